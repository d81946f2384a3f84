"""Many small blobs in one file: appended as they arrive, durable by one sync, live by one rename."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct

from . import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterator, List, Optional, Set, Tuple

SMALL = 1 << 17
"""Bytes of a blob from which on it is a file of its own."""
MANY = 32
"""Small blobs in one upload from which on they share a file: a sync of each is what an upload waits for."""
MOST = 64 << 20
FLUSH = 2 << 20
"""Bytes of a pack after which their writing out begins."""
MOST_FILES = 64
"""Packs kept open for reading at a time."""

# A pack is records one after the other, then an index of them all. An unfinished one has no index and
# is read by its records.
_RECORD = struct.Struct("<32sQ")
_ENTRY = struct.Struct("<32sQQ")
_FOOT = struct.Struct("<Q8s")
_MAGIC = b"routepk1"


class Packs:
    """The packs below one root, as one connection sees them, and the one that it is filling."""

    def __init__(self, root: str, nonce: str) -> None:
        self.folder = os.path.join(root, "packs")
        self._stage = os.path.join(root, "stage")
        self._part = os.path.join(self._stage, nonce + ".pack")
        self._fd = -1
        self._size = self._flushed = 0
        self._table: Optional[bytes] = None
        self._new: Dict[str, Tuple[int, int]] = {}
        self._known: Optional[Dict[str, Tuple[str, int, int]]] = None
        self._open: Dict[str, int] = {}

    def known(self) -> Dict[str, Tuple[str, int, int]]:
        """Of each blob in a finished pack: the pack's name, offset and size."""
        if self._known is None:
            self._known = {}
            for name in _names(self.folder):
                self._learn(name)
        return self._known

    def _learn(self, name: str) -> None:
        known = self._known
        if known is not None:
            for digest, offset, size in index(os.path.join(self.folder, name)):
                known[digest] = (name, offset, size)

    def has(self, digest: str, size: int) -> bool:
        if digest in self._new:
            return True
        found = self.known().get(digest)
        return found is not None and found[2] == size

    def read(self, digest: str) -> Optional[bytes]:
        """The bytes of a blob in a finished pack or in ours; None if there is none, or its pack is gone."""
        if digest in self._new:
            offset, size = self._new[digest]
            return os.pread(self._fd, size, offset)
        found = self.known().get(digest)
        if found is None:
            return None
        name, offset, size = found
        fd = self._open.get(name, -1)
        if fd < 0:
            if len(self._open) >= MOST_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            try:
                fd = os.open(os.path.join(self.folder, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                return None
            self._open[name] = fd
        data = os.pread(fd, size, offset)
        return data if len(data) == size else None

    # Filling

    def add(self, digest: str, data: bytes) -> None:
        """Append a blob whose digest was verified. It is not live before `settle`."""
        if digest in self._new:
            return
        if self._fd < 0:
            self._begin()
        elif self._table is not None:
            self._cut_back()  # a commit failed after `seal`
        try:
            files.write_all(self._fd, _RECORD.pack(bytes.fromhex(digest), len(data)) + data)
        except OSError:
            self._cut_back()
            raise
        self._new[digest] = (self._size + _RECORD.size, len(data))
        self._size += _RECORD.size + len(data)
        if self._size >= MOST:
            self.settle()
        elif self._size - self._flushed >= FLUSH and hasattr(os, "posix_fadvise"):
            # Writing out begins now, so that little is left to be waited for.
            os.posix_fadvise(self._fd, self._flushed, self._size - self._flushed, os.POSIX_FADV_DONTNEED)
            self._flushed = self._size

    def _begin(self) -> None:
        """Open a part of our own. Whoever goes on with what is left of one must know that its writer is gone:
        so it is locked before it has the name that others look for."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._part + ".new", flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(self._part + ".new", self._part)
        except OSError:
            os.close(fd)
            raise
        self._fd, self._size, self._flushed = fd, 0, 0

    def _cut_back(self) -> None:
        self._table = None
        os.ftruncate(self._fd, self._size)
        os.lseek(self._fd, self._size, os.SEEK_SET)

    def seal(self) -> int:
        """Write the index behind what was added; the descriptor that is to be synced before `settle`, or -1
        if nothing was added. What is added before that `settle` breaks the seal."""
        if self._fd >= 0 and self._table is None:
            table = b"".join(
                _ENTRY.pack(bytes.fromhex(digest), *where) for digest, where in sorted(self._new.items())
            )
            try:
                files.write_all(self._fd, table + _FOOT.pack(len(self._new), _MAGIC))
            except OSError:
                self._cut_back()
                raise
            self._table = table
        return self._fd

    def settle(self, *, synced: bool = False) -> None:
        """Make what was added durable and live; `synced` if what `seal` gave was synced since."""
        if self.seal() < 0:
            return
        table, self._table = self._table or b"", None
        try:
            if not synced:
                os.fsync(self._fd)
        except OSError:
            self.forget()
            raise
        if not os.path.isdir(self.folder):
            # Not its parents: a root that was removed meanwhile is not to come back.
            _make(self.folder)
            files.sync_folder(os.path.dirname(self.folder))
        name = hashlib.sha256(table).hexdigest() + ".pack"
        self.known()
        os.rename(self._part, os.path.join(self.folder, name))
        files.sync_folder(self.folder)
        os.close(self._fd)
        self._fd, self._new = -1, {}
        self._learn(name)

    def forget(self) -> Set[str]:
        """Remove what was added since the last `settle`; its digests. After a sync that failed another one
        may succeed although nothing of it was written."""
        lost = set(self._new)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._new, self._table = -1, {}, None
            os.unlink(self._part)
        return lost

    def adopt(self, wanted: Set[str]) -> None:
        """Take over those of `wanted` that another connection was sent and did not live to make live.

        One that still lives keeps its own: copied is what has arrived whole, by its digest.
        """
        for name in _names(self._stage):
            path = os.path.join(self._stage, name)
            if path == self._part:
                continue
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                over = _locked(fd)
                for digest, data in _records(fd):
                    if digest in wanted and digest not in self._new:
                        self.add(digest, data)
                # Settled since it was opened, it is a pack now, and its writer may have begun another part.
                if over and files.still(path, fd):
                    os.unlink(path)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Keep what has arrived, and let go of all."""
        try:
            self.settle()
        except OSError:
            pass  # the part stays, and is gone on with by its records
        for fd in (self._fd, *self._open.values()):
            if fd >= 0:
                os.close(fd)
        self._fd = -1
        self._open.clear()


def _make(folder: str) -> None:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass  # another connection was faster


def _names(folder: str) -> List[str]:
    try:
        return [name for name in os.listdir(folder) if name.endswith(".pack")]
    except OSError:
        return []


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def index(path: str) -> List[Tuple[str, int, int]]:
    """The blobs of a finished pack as digest, offset and size; nothing of one that cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return []
    try:
        size = os.fstat(fd).st_size
        foot = os.pread(fd, _FOOT.size, max(0, size - _FOOT.size))
        count, magic = _FOOT.unpack(foot) if len(foot) == _FOOT.size else (0, b"")
        begin = size - _FOOT.size - count * _ENTRY.size
        if magic != _MAGIC or begin < 0:
            return []
        table = os.pread(fd, count * _ENTRY.size, begin)
        found = [(digest.hex(), offset, length) for digest, offset, length in _ENTRY.iter_unpack(table)]
        return [one for one in found if one[1] + one[2] <= begin]
    except (OSError, struct.error):
        return []
    finally:
        os.close(fd)


def _records(fd: int) -> Iterator[Tuple[str, bytes]]:
    """The whole records of an unfinished pack, each verified."""
    offset = 0
    while True:
        head = os.pread(fd, _RECORD.size, offset)
        if len(head) < _RECORD.size:
            return
        raw, size = _RECORD.unpack(head)
        if size > SMALL:
            return
        data = os.pread(fd, size, offset + _RECORD.size)
        if hashlib.sha256(data).digest() != raw:
            return
        yield raw.hex(), data
        offset += _RECORD.size + size
