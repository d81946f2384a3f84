"""Blobs as they arrive over one connection: gone on with, verified, made durable, then given their names."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading

from . import files, forking, names, packs
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Set

    Json = Dict[str, Any]

MOST_OPEN = 256
"""Parts kept open and locked at a time; of any further one the upload begins anew."""


def blob_path(root: str, digest: str) -> str:
    return os.path.join(root, "blobs", digest[:2], digest)


class Part:
    """A blob that is arriving, under a lock of ours. `seen` hashes what came; None = read it again."""

    def __init__(self, path: str, fd: int) -> None:
        self.path, self.fd = path, fd
        self.size = os.fstat(fd).st_size
        self.seen: Any = None if self.size else hashlib.sha256()


class Arriving:
    """What one connection has brought so far. Nothing of it is live before `settle`."""

    def __init__(self, root: str, nonce: str) -> None:
        self.root, self.nonce = root, nonce
        self.folder = os.path.join(root, "stage")
        self.packs = packs.Packs(root, nonce)
        self.parts: Dict[str, Part] = {}
        self.whole: Dict[str, Part] = {}
        self.failed: Dict[str, Fault] = {}
        self.shards: Set[str] = set()
        """Which of them are not for `blobs/` but for a volume."""
        self._here: Set[str] = set()
        self._packed: Set[str] = set()

    # Have and want

    def want(self, request: Json) -> List[List[Any]]:
        """What of `blobs` and `shards` is not here, each with the byte to go on from."""
        self.failed.clear()
        listed = [(digest, size, False) for digest, size in _pairs(request.get("blobs"))]
        listed += [(digest, size, True) for digest, size in _pairs(request.get("shards"))]
        lacking = []
        for digest, size, shard in listed:
            if shard:
                self.shards.add(digest)
            if self.has_shard(digest, size) if shard else self.has(digest, size):
                self._here.add(digest)
            else:
                lacking.append((digest, size, shard))
        small = {digest for digest, size, shard in lacking if size < packs.SMALL and not shard}
        if len(small) >= packs.MANY or small & self._packed:
            self.packs.adopt(small)
            self._packed |= small
        left = self._left()
        wanted: List[List[Any]] = []
        for digest, size, _ in lacking:
            if digest not in self._packed:
                wanted.append([digest, self._resume(digest, size, left.get(digest, []))])
            elif not self.packs.has(digest, size):
                wanted.append([digest, 0])
        return wanted

    def has(self, digest: str, size: int) -> bool:
        if digest in self.whole or self.packs.has(digest, size):
            return True
        try:
            return os.stat(blob_path(self.root, digest), follow_symlinks=False).st_size == size
        except OSError:
            return False

    def has_shard(self, digest: str, size: int) -> bool:
        from . import shards

        return digest in self.whole or shards.find(self.root, digest, size) is not None

    def read(self, digest: str) -> Optional[bytes]:
        """A small blob out of the packs; None if it is none of theirs."""
        return self.packs.read(digest)

    def path(self, digest: str) -> str:
        """The file of a blob that stands alone, or has arrived and is not settled yet."""
        part = self.whole.get(digest)
        return blob_path(self.root, digest) if part is None else part.path

    def _left(self) -> Dict[str, List[str]]:
        """The parts that stand in the stage, by digest."""
        found: Dict[str, List[str]] = {}
        for name in os.listdir(self.folder):
            if name.endswith(".part"):
                found.setdefault(name.partition(".")[0], []).append(os.path.join(self.folder, name))
        return found

    def _resume(self, digest: str, size: int, left: List[str]) -> int:
        """From which byte the upload goes on; the part is ours from here on."""
        part = self.parts.get(digest)
        if part is None and left and len(self.parts) < MOST_OPEN:
            part = self._take_over(digest, size, left)
        if part is None:
            return 0
        if part.size > size:
            self._begin_anew(part)
        os.lseek(part.fd, part.size, os.SEEK_SET)
        return part.size

    def _take_over(self, digest: str, size: int, left: List[str]) -> Optional[Part]:
        """The longest of the parts that others left. Whoever is still in one keeps it: he may be a
        connection whose end is not yet known here, and then what he was sent is copied."""
        for path in sorted(left, key=_size, reverse=True):
            if not 0 < _size(path) <= size:
                continue
            try:
                fd = files.lock(path, create=False)
            except OSError:
                continue
            if fd >= 0:
                # One that has become a blob since it was opened must never be written to.
                if files.still(path, fd):
                    self.parts[digest] = Part(path, fd)
                    return self.parts[digest]
                os.close(fd)
                continue
            try:
                source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue  # it was made live, or given up, just now
            try:
                part = self._new(digest)
                files.copy(source, part.fd)
            finally:
                os.close(source)
            part.size, part.seen = os.fstat(part.fd).st_size, None
            return part
        return None

    def _begin_anew(self, part: Part) -> None:
        os.ftruncate(part.fd, 0)
        os.lseek(part.fd, 0, os.SEEK_SET)
        part.size, part.seen = 0, hashlib.sha256()

    # Arriving

    def blob(self, request: Json, body: bytes) -> None:
        """Take a piece of a blob. What goes wrong is kept for `settle` to tell."""
        digest = names.digest(request.get("sha256"))
        offset = names.whole(request.get("offset", 0), "offset")
        if digest in self.whole or digest in self.failed or digest in self._here:
            return
        try:
            self._piece(digest, offset, body, request.get("last") is True)
        except OSError as e:
            self.failed[digest] = forking.refusal(e)
            self._drop(digest)
        except Fault as fault:
            self.failed[digest] = fault
            self._drop(digest)

    def _piece(self, digest: str, offset: int, body: bytes, last: bool) -> None:
        part = self.parts.get(digest)
        if part is None and digest in self._packed and offset == 0 and last and len(body) < packs.SMALL:
            if hashlib.sha256(body).hexdigest() != digest:
                raise damaged(digest)
            self.packs.add(digest, body)
            return
        if part is None:
            part = self._new(digest)
        if offset == 0 and part.size:
            # Sent without asking first: what was left of it by somebody else is not needed.
            self._begin_anew(part)
        if offset != part.size:
            raise Fault("BAD_REQUEST", "blob %s: piece at %d, expected %d" % (digest[:12], offset, part.size))
        files.write_all(part.fd, body)
        part.size += len(body)
        if part.seen is not None:
            part.seen.update(body)
        if not last:
            if len(self.parts) > MOST_OPEN:
                raise Fault(
                    "BAD_REQUEST", "more than %d blobs at a time" % MOST_OPEN, "send one after the other"
                )
            return
        found = part.seen.hexdigest() if part.seen is not None else files.digest(part.fd)
        if found != digest:
            self._begin_anew(part)
            raise damaged(digest)
        # Writing out begins now and is waited for once, when all is settled.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(part.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        # Kept open, and so locked: another connection must not begin it anew before it has its name.
        self.whole[digest] = self.parts.pop(digest)
        if len(self.whole) >= MOST_OPEN:
            self._settle_parts()

    def torn(self, request: Json, body: bytes) -> None:
        """Keep what came of a piece whose rest never will."""
        try:
            digest = names.digest(request.get("sha256"))
            if digest not in self._packed and body:
                self.blob(dict(request, last=False), body)
        except Fault:
            pass

    def _new(self, digest: str) -> Part:
        """A part of our own: `<digest>.part`, or one named for this connection where another has that.

        Whoever tidies may hold the lock of ours for an instant, so it is tried more than once."""
        path = os.path.join(self.folder, digest + ".part")
        ours = os.path.join(self.folder, "%s.%s.part" % (digest, self.nonce))
        for name in (path, ours, ours, path, ours):
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                continue
            # Renamed by the one who had it before us: this is now a live blob, and no longer that part.
            if not files.still(name, fd):
                os.close(fd)
                continue
            os.ftruncate(fd, 0)
            part = self.parts[digest] = Part(name, fd)
            return part
        raise Fault("BLOBS_MISSING", "blob %s is being sent by somebody else" % digest[:12], "try again")

    def _drop(self, digest: str) -> None:
        part = self.parts.pop(digest, None)
        if part is not None:
            os.close(part.fd)

    def check(self) -> None:
        """Raises `Fault` if any of what was sent did not arrive as it should."""
        if self.failed:
            raise next(iter(self.failed.values()))

    def settle(self, meanwhile: Optional[Callable[[], None]] = None) -> None:
        """Make what arrived durable and live, with `meanwhile` done while the disk is waited for. Raises
        what `check` does."""
        self.check()
        unsynced = [part.fd for part in self.whole.values()]
        if self.packs.seal() >= 0:
            unsynced.append(self.packs.seal())
        failed: List[OSError] = []
        try:
            _sync(unsynced, meanwhile, failed)
        finally:
            if failed:
                self._lose()
        if failed:
            raise failed[0]
        self.packs.settle(synced=True)
        self._settle_parts(synced=True)

    def _lose(self) -> None:
        """Forget all that is not settled, so that it is sent again."""
        for part in self.whole.values():
            os.unlink(part.path)
            os.close(part.fd)
        self._here -= self.packs.forget() | set(self.whole)
        self.whole.clear()

    def _settle_parts(self, *, synced: bool = False) -> None:
        """Synced first, renamed then."""
        folders = set()
        if not synced:
            try:
                for part in self.whole.values():
                    os.fsync(part.fd)
            except OSError:
                self._lose()
                raise
        for digest, part in self.whole.items():
            if digest in self.shards:
                from . import shards

                final = shards.path(self.root, digest, part.fd)
            else:
                final = blob_path(self.root, digest)
            folder = os.path.dirname(final)
            if folder not in folders:
                os.makedirs(folder, 0o700, exist_ok=True)
                folders.add(folder)
            try:
                os.rename(part.path, final)
            except FileNotFoundError:
                if not os.path.exists(final):
                    raise
        for folder in folders:
            files.sync_folder(folder)
        if folders:
            files.sync_folder(os.path.join(self.root, "blobs"))
        for part in self.whole.values():
            os.close(part.fd)
        left = self._left() if self.whole else {}
        for digest in self.whole:
            _forget(left.get(digest, []))  # what other connections had of it
        self.whole.clear()

    def close(self) -> None:
        """Let go of the parts; those that are not whole stay, to be gone on with."""
        self.packs.close()
        for digest, part in (*self.parts.items(), *self.whole.items()):
            os.close(part.fd)
            if os.path.exists(blob_path(self.root, digest)):
                _forget([part.path])  # another connection was faster
        self.parts.clear()
        self.whole.clear()


def _sync(fds: List[int], meanwhile: Optional[Callable[[], None]], failed: List[OSError]) -> None:
    """Wait until the disk has what was written to all of `fds`, with `meanwhile` done in that time; raises
    what that raises, and tells in `failed` what the disk did not take."""

    def wait() -> None:
        try:
            for fd in fds:
                os.fsync(fd)
        except OSError as e:
            failed.append(e)

    if meanwhile is None:
        wait()
    elif not fds:
        meanwhile()
    else:
        waiting = threading.Thread(target=wait)
        waiting.start()
        try:
            meanwhile()
        finally:
            # What is done next may fork, which no other thread is to see.
            waiting.join()


def _forget(paths: List[str]) -> None:
    """Remove parts that nobody needs any more, but those that somebody still fills."""
    for path in paths:
        try:
            fd = files.lock(path, create=False)
            if fd >= 0:
                if files.still(path, fd):
                    os.unlink(path)
                os.close(fd)
        except OSError:
            continue


def damaged(digest: str) -> Fault:
    return Fault("BLOBS_MISSING", "blob %s arrived damaged" % digest[:12], "try again")


def _pairs(listed: Any) -> List[Any]:
    found = []
    for item in listed or []:
        if not isinstance(item, list) or len(item) != 2:
            raise Fault("BAD_REQUEST", "`blobs` holds pairs of sha256 and size", "see docs/protocol.md")
        found.append((names.digest(item[0]), names.whole(item[1], "a size")))
    return found


def _size(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except OSError:
        return -1
