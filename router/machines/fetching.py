"""Bring back what a run left behind: by manifest, by offset, verified, and never outside one folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compute_router.errors import Broken, CredentialsError, StoreError, Unavailable
from compute_router.machines.brought import PARTS, Brought, wanted
from compute_router.machines.framing import Frame
from compute_router.machines.session import Session, Sessions
from compute_router.progress import transfer

__all__ = ["Brought", "fetch", "wanted"]

FILES = 4000
"""Files in one request, so that its line stays within what the protocol allows."""
TRIES = 5
"""Broken connections in a row, without a byte brought between them, after which it is given up."""
SYNCS = 8


def fetch(sessions: Sessions, run_id: str, into: Path) -> Sequence[Path]:
    """Bring the files of a final run into the folder `into`, which is made if need be.

    Returns their paths, sorted. Whole files are renamed into place once their digest is right, so
    nothing partial ever has a final name; what was half brought is gone on with, and what is
    there already is not brought again. No link is followed below `into`. Raises `Unavailable`
    when the machine cannot be reached or a file there no longer is what the manifest says,
    `Rejected` for a manifest that no honest machine writes, `StoreError` when it cannot be written.
    """
    manifest = _manifest(sessions, run_id)
    files = wanted(manifest)
    try:
        into.mkdir(parents=True, exist_ok=True)
        base = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise _unwritten(into, e) from e
    try:
        _Fetch(sessions, run_id, base, files).run()
        _note(base, manifest)
    except OSError as e:
        raise _unwritten(into, e) from e
    finally:
        os.close(base)
    return sorted(into / item.to for item in files)


def _manifest(sessions: Sessions, run_id: str) -> Mapping[str, Any]:
    """What is to be brought. Where nobody there knows any more what to look for, the values are given
    again, as far as this process can have them; what cannot be looked through stays there."""
    try:
        return sessions.ask("manifest", run_id=run_id, deadline=120.0).head
    except CredentialsError as e:
        from compute_router.secrets import recall

        values = json.dumps(recall(e.names, keyring=True)).encode()
        return sessions.ask("manifest", values, run_id=run_id, unmasked=True, deadline=120.0).head


def _note(base: int, manifest: Mapping[str, Any]) -> None:
    """Write down what cannot be brought any more since another client has collected it: `gone.json`."""
    gone, taken = manifest.get("gone"), manifest.get("collected")
    if not isinstance(gone, list) or not gone:
        return
    sizes = [item.get("bytes") for item in gone if isinstance(item, dict)]
    at, by = (taken.get("at_us"), taken.get("by")) if isinstance(taken, dict) else (None, None)
    note = {
        "files": len(gone),
        "bytes": sum(size for size in sizes if type(size) is int and 0 <= size < 2**53),
        "collected_us": at if type(at) is int and 0 <= at < 2**53 else None,
        "by": str(by)[:200] if by else None,
    }
    handle = os.open(".gone.json.part", _NEW | os.O_TRUNC, 0o600, dir_fd=base)
    with open(handle, "wb") as file:
        file.write(json.dumps(note).encode() + b"\n")
    os.replace(".gone.json.part", "gone.json", src_dir_fd=base, dst_dir_fd=base)


def _unwritten(into: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{error.filename or into} cannot be written: {error.strerror}",
        mend="free space, or make it writable",
    )


class _Fetch:
    """One fetch: which files are still to be brought, and the folder they go to as a descriptor."""

    def __init__(self, sessions: Sessions, run_id: str, base: int, files: list[Brought]) -> None:
        self.sessions, self.run_id, self.base, self.files = sessions, run_id, base, files
        self.parts = _folder(base, PARTS)

    def run(self) -> None:
        try:
            left = {item.path: item for item in self.files if not self._there(item)}
            self._room(left.values())
            failures = 0
            twice: set[str] = set()
            while left:
                before = len(left), self._size(left.values())
                cause: Exception | None = None
                try:
                    total = sum(item.bytes for item in left.values())
                    there = min(total, before[1])
                    with (
                        self.sessions.use(fresh=failures > 0) as session,
                        transfer("fetch", self.sessions.machine.name, total, done=there) as add,
                    ):
                        for start in range(0, len(left), FILES):
                            self._ask(session, list(left.values())[start : start + FILES], add)
                except (Broken, Unavailable) as e:
                    cause = e
                finished = self._finish([item for item in left.values() if self._whole(item)])
                for item in list(left.values()):
                    if item.path in finished:
                        del left[item.path]
                    elif cause is None:
                        if item.path in twice:
                            raise Unavailable(
                                f"{item.path} cannot be read there as its manifest says",
                                mend="route collect tries again",
                            )
                        twice.add(item.path)
                if cause is not None:
                    failures = 0 if (len(left), self._size(left.values())) != before else failures + 1
                    if failures >= TRIES:
                        raise Unavailable(
                            f"the connection broke while files were brought back: {cause}",
                            mend="route collect goes on where it stopped",
                        ) from cause
                    time.sleep(min(5.0, 0.1 * 2**failures) if failures else 0.0)
            with contextlib.suppress(OSError):
                os.rmdir(PARTS, dir_fd=self.base)
        finally:
            os.close(self.parts)

    def _size(self, items: Any) -> int:
        return sum(self._have(item) for item in items)

    def _have(self, item: Brought) -> int:
        """Bytes of `item` that were brought before."""
        try:
            found = os.stat(_part(item), dir_fd=self.parts, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        return found.st_size if stat.S_ISREG(found.st_mode) else 0

    def _room(self, items: Any) -> None:
        needed = sum(item.bytes - min(item.bytes, self._have(item)) for item in items)
        space = os.fstatvfs(self.base)
        if needed > space.f_bavail * space.f_frsize:
            raise StoreError(
                f"the outputs need {needed >> 20:,} MiB more than are free here",
                mend="free space, or use another ROUTE_HOME",
            )

    def _there(self, item: Brought) -> bool:
        """Whether the whole file stands under its final name already."""
        try:
            with self._parent(item.to, make=False) as (folder, name):
                handle = os.open(
                    name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
                )
        except OSError:
            return False
        with open(handle, "rb") as file:
            found = os.fstat(handle)
            return (
                stat.S_ISREG(found.st_mode) and found.st_size == item.bytes and _digest(file) == item.sha256
            )

    @contextlib.contextmanager
    def _parent(self, path: str, *, make: bool) -> Iterator[tuple[int, str]]:
        """The folder of `path`, opened step by step without following a link, and the last name."""
        *above, name = path.split("/")
        folder = os.dup(self.base)
        try:
            for part in above:
                below = _folder(folder, part) if make else os.open(part, _WALK, dir_fd=folder)
                os.close(folder)
                folder = below
            yield folder, name
        finally:
            os.close(folder)

    def _ask(self, session: Session, items: list[Brought], add: Callable[[int], None]) -> None:
        """Bring `items` into their parts, each from where it stopped."""
        by_path: dict[str, tuple[Brought, int]] = {}
        for item in items:
            have = self._have(item)
            if have < item.bytes:
                by_path[item.path] = (item, have)
            elif have == 0:  # an empty file needs no byte from there
                os.close(os.open(_part(item), _NEW, 0o600, dir_fd=self.parts))
        if not by_path:
            return
        session.send("fetch", run_id=self.run_id, files=[[path, at] for path, (_, at) in by_path.items()])
        handle, current = -1, ""
        try:
            while True:
                frame = session.frame()
                head = frame.head
                if head.get("re") != "fetch" or head.get("ok") is False:
                    session.close()
                    raise Broken(f"no answer to fetch: {str(head)[:200]}")
                if head.get("end"):
                    session.answered()
                    return
                path = head.get("path")
                if not isinstance(path, str) or path not in by_path:
                    session.close()
                    raise Broken(f"a file came that was not asked for: {path!r:.200}")
                if "error" in head:
                    del by_path[path]
                    continue
                item, at = by_path[path]
                if head.get("offset") != at or at + len(frame.body) > item.bytes:
                    session.close()
                    raise Broken(f"{path!r:.200} came from another place than was asked for")
                if path != current:
                    if handle >= 0:
                        os.close(handle)
                    handle, current = os.open(_part(item), _NEW, 0o600, dir_fd=self.parts), path
                _write(handle, frame.body, at)
                add(len(frame.body))
                by_path[path] = (item, at + len(frame.body))
        except Broken:
            self._keep(session.torn(), by_path)
            raise
        finally:
            if handle >= 0:
                os.close(handle)

    def _keep(self, torn: Frame | None, by_path: Mapping[str, tuple[Brought, int]]) -> None:
        """Keep what came of a piece whose rest never did: it need not be sent again."""
        path = torn.head.get("path") if torn is not None else None
        if torn is None or torn.head.get("re") != "fetch" or not isinstance(path, str) or path not in by_path:
            return
        item, at = by_path[path]
        if torn.head.get("offset") == at and at + len(torn.body) <= item.bytes:
            handle = os.open(_part(item), _NEW, 0o600, dir_fd=self.parts)
            try:
                _write(handle, torn.body, at)
            finally:
                os.close(handle)

    def _whole(self, item: Brought) -> bool:
        """Whether its part is whole and right. A whole part of other bytes is thrown away."""
        try:
            handle = os.open(_part(item), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.parts)
        except FileNotFoundError:
            return False
        with open(handle, "rb") as file:
            if os.fstat(handle).st_size < item.bytes:
                return False
            if _digest(file) == item.sha256:
                return True
        os.unlink(_part(item), dir_fd=self.parts)
        return False

    def _finish(self, items: Sequence[Brought]) -> set[str]:
        """Put whole parts under their final names, all synced first; their paths there."""
        if len(items) > 1:
            from concurrent.futures import ThreadPoolExecutor

            # A disk takes many syncs at once in hardly more time than one.
            with ThreadPoolExecutor(SYNCS) as pool:
                list(pool.map(self._sync, items))
        else:
            for item in items:
                self._sync(item)
        for item in items:
            with self._parent(item.to, make=True) as (folder, name):
                os.replace(_part(item), name, src_dir_fd=self.parts, dst_dir_fd=folder)
        return {item.path for item in items}

    def _sync(self, item: Brought) -> None:
        handle = os.open(_part(item), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.parts)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_WALK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _folder(above: int, name: str) -> int:
    """The folder `name` in `above`, made if it is not there; `NotADirectoryError` or ELOOP for a link."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=above)
    return os.open(name, _WALK, dir_fd=above)


def _part(item: Brought) -> str:
    # By path too: two files of equal content are brought and renamed each for itself.
    return f"{item.sha256[:32]}-{hashlib.sha256(item.path.encode()).hexdigest()[:16]}"


def _write(handle: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done


def _digest(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
