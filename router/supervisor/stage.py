"""Brings a run onto the machine: blobs by content, then one rename that is the commit point."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os

from . import files, forking, instead, machine, names, runs, spec, wire
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Set, Tuple

    from .runs import Run

    Json = Dict[str, Any]

MOST_OPEN = 256
"""Parts kept open and locked at a time; of any further one the upload begins anew."""


def blob_path(root: str, digest: str) -> str:
    return os.path.join(root, "blobs", digest[:2], digest)


class Part:
    """A blob that is arriving, under a lock of ours."""

    def __init__(self, path: str, fd: int) -> None:
        self.path, self.fd = path, fd
        self.size = os.fstat(fd).st_size


class Stage:
    """What one connection has brought so far. Nothing of it is live before `commit`."""

    def __init__(self, root: str, nonce: str) -> None:
        self.root, self.nonce = root, nonce
        self.folder = os.path.join(root, "stage")
        self.parts: Dict[str, Part] = {}
        self.whole: Dict[str, Part] = {}
        self.failed: Dict[str, Fault] = {}
        self.began = machine.mono_us()

    # Have and want

    def prepare(self, request: Json) -> Json:
        run = runs.run(self.root, request)
        names.digest(request.get("spec_sha256"))
        self.began = machine.mono_us()
        self.failed.clear()
        data = files.read(os.path.join(run.path, "spec.json"))
        wanted: List[List[Any]] = []
        blobs = request.get("blobs") or []
        if data is None:
            for item in blobs:
                if not isinstance(item, list) or len(item) != 2:
                    raise Fault(
                        "BAD_REQUEST", "`blobs` holds pairs of sha256 and size", "see docs/protocol.md"
                    )
                digest, size = names.digest(item[0]), names.whole(item[1], "a size")
                if not self._have(digest, size):
                    wanted.append([digest, self._resume(digest, size)])
        disk = os.statvfs(self.root)
        return {
            "committed": None if data is None else hashlib.sha256(data).hexdigest(),
            "want": wanted,
            "free_bytes": disk.f_bavail * disk.f_frsize,
        }

    def _have(self, digest: str, size: int) -> bool:
        if digest in self.whole:
            return True
        try:
            return os.stat(blob_path(self.root, digest), follow_symlinks=False).st_size == size
        except OSError:
            return False

    def _resume(self, digest: str, size: int) -> int:
        """From which byte the upload goes on; the part is ours from here on."""
        part = self.parts.get(digest)
        path = os.path.join(self.folder, digest + ".part")
        if part is None and len(self.parts) < MOST_OPEN and os.path.exists(path):
            fd = files.lock(path)
            if fd >= 0:
                os.lseek(fd, 0, os.SEEK_END)
                part = self.parts[digest] = Part(path, fd)
        if part is None:
            return 0
        if part.size > size:
            os.ftruncate(part.fd, 0)
            os.lseek(part.fd, 0, os.SEEK_SET)
            part.size = 0
        os.lseek(part.fd, part.size, os.SEEK_SET)
        return part.size

    # Arriving

    def blob(self, request: Json, body: bytes) -> None:
        """Take a piece of a blob. What goes wrong is kept for `commit` to tell."""
        digest = names.digest(request.get("sha256"))
        offset = names.whole(request.get("offset", 0), "offset")
        if digest in self.whole or digest in self.failed:
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
        if part is None:
            part = self._new(digest)
        if offset != part.size:
            raise Fault("BAD_REQUEST", "blob %s: piece at %d, expected %d" % (digest[:12], offset, part.size))
        files.write_all(part.fd, body)
        part.size += len(body)
        if not last:
            if len(self.parts) > MOST_OPEN:
                raise Fault(
                    "BAD_REQUEST", "more than %d blobs at a time" % MOST_OPEN, "send one after the other"
                )
            return
        if part.size == len(body):
            found = hashlib.sha256(body).hexdigest()
        else:
            os.lseek(part.fd, 0, os.SEEK_SET)
            found = _digest(part.fd)
        if found != digest:
            os.ftruncate(part.fd, 0)
            raise Fault("BLOBS_MISSING", "blob %s arrived damaged" % digest[:12], "try again")
        # Writing out begins now and is waited for once, at the commit.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(part.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        # Kept open, and so locked: another connection must not begin it anew before it has its name.
        self.whole[digest] = self.parts.pop(digest)
        if len(self.whole) >= MOST_OPEN:
            self._settle_blobs()

    def _new(self, digest: str) -> Part:
        path = os.path.join(self.folder, digest + ".part")
        for name in (path, os.path.join(self.folder, "%s.%s.part" % (digest, self.nonce))):
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                continue
            # Renamed away by the one who had it before us: this is no longer that file.
            if os.fstat(fd).st_nlink == 0:
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

    def _settle_blobs(self) -> None:
        """Make what arrived durable and live: synced first, renamed then."""
        folders = set()
        for part in self.whole.values():
            os.fsync(part.fd)
        for digest, part in self.whole.items():
            final = blob_path(self.root, digest)
            folder = os.path.dirname(final)
            if folder not in folders:
                os.makedirs(folder, 0o700, exist_ok=True)
                folders.add(folder)
            os.rename(part.path, final)
        for folder in folders:
            files.sync_folder(folder)
        if folders:
            files.sync_folder(os.path.join(self.root, "blobs"))
        for part in self.whole.values():
            os.close(part.fd)
        self.whole.clear()

    # Commit

    def commit(self, request: Json, body: bytes) -> Json:
        """Make the run live by one rename; the same run again is no error, another one is."""
        run = runs.run(self.root, request)
        found = spec.check(body, run.id)
        if self._stands(run, body, found):
            return {"already": True}
        if self.failed:
            raise next(iter(self.failed.values()))
        self._settle_blobs()
        entries = found.get("tree", [])
        missing = [
            e["sha256"] for e in entries if "link" not in e and not self._have(e["sha256"], e["bytes"])
        ]
        if missing:
            raise Fault(
                "BLOBS_MISSING", "%d blobs are not here" % len(missing), "send them", missing=missing[:1000]
            )
        made = os.path.join(self.folder, "%s.%s" % (run.id, self.nonce))
        _remove(made)
        try:
            os.mkdir(made, 0o700)
            os.mkdir(os.path.join(made, "attempts"), 0o700)
            materialise(self.root, made, entries)
            note = {
                "at_us": machine.now_us(),
                "mono_us": machine.mono_us(),
                "boot_id": machine.boot_id(),
                "stage_us": machine.mono_us() - self.began,
            }
            files.write(os.path.join(made, "committed.json"), wire.dumps(note))
            files.write(os.path.join(made, "spec.json"), body)
            try:
                os.rename(made, run.path)
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if self._stands(run, body, found):
                    return {"already": True}
                raise
            files.sync_folder(os.path.dirname(run.path))
        finally:
            _remove(made)
        return {"already": False}

    def _stands(self, run: Run, body: bytes, found: Json) -> bool:
        stands = files.read(os.path.join(run.path, "spec.json"))
        if stands is None:
            return False
        if stands != body and not instead.replace(run, stands, body, found):
            raise Fault(
                "CONFLICT",
                "run %s is already here with another specification" % run.id,
                "use another key, or the workload as it was",
                spec_sha256=hashlib.sha256(stands).hexdigest(),
            )
        return True

    def close(self) -> None:
        """Let go of the parts; those that are not whole stay, to be gone on with."""
        for part in (*self.parts.values(), *self.whole.values()):
            os.close(part.fd)
        self.parts.clear()
        self.whole.clear()


def _digest(fd: int) -> str:
    made = hashlib.sha256()
    while True:
        data = os.read(fd, 1 << 20)
        if not data:
            return made.hexdigest()
        made.update(data)


def _remove(path: str) -> None:
    if os.path.lexists(path):
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def materialise(root: str, made: str, entries: List[Json]) -> None:
    """Make `work/` below `made` from blobs. Copies, never links: the work may write into its files.

    It is not synced: after a reboot `renew` makes it again from the blobs, which are.
    """
    work = os.path.join(made, "work")
    os.mkdir(work, 0o700)
    folders: Set[str] = {""}
    links: List[Tuple[str, str]] = []
    for entry in entries:
        parts = names.parts(entry["path"])
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in folders:
                os.mkdir(os.path.join(work, folder), 0o755)
                folders.add(folder)
        path = os.path.join(work, *parts)
        if "link" in entry:
            links.append((path, entry["link"]))
            continue
        sink = os.open(path, files.NEW, 0o600)
        try:
            source = os.open(blob_path(root, entry["sha256"]), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                _copy(source, sink)
            finally:
                os.close(source)
            os.fchmod(sink, (entry["mode"] & 0o777) | 0o600)
        finally:
            os.close(sink)
    # Last, so that nothing above was ever written through one of them.
    for path, target in links:
        os.symlink(target, path)


def _copy(source: int, sink: int) -> None:
    while True:
        data = os.read(source, 1 << 20)
        if not data:
            return
        files.write_all(sink, data)


def renew(run: Run, found: Json) -> None:
    """Make `work/` again if the machine was started since the commit and nothing was executed yet."""
    note = files.hint_json(os.path.join(run.path, "committed.json"))
    if note.get("boot_id") == machine.boot_id():
        return
    for number in files.numbered(run.attempts):
        if os.path.exists(os.path.join(run.attempts, str(number), "exec.json")):
            return
    again = os.path.join(run.path, ".again")
    _remove(again)
    os.mkdir(again, 0o700)
    materialise(run.root, again, found.get("tree", []))
    _remove(run.work)
    os.rename(os.path.join(again, "work"), run.work)
    _remove(again)
    files.write(os.path.join(run.path, "committed.json"), wire.dumps(dict(note, boot_id=machine.boot_id())))
