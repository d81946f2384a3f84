"""Digests of files that a snapshot read before, so that what is unchanged is not read again."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import msgspec

from compute_router.durable import read_file

__all__ = ["Hashes"]

SCHEMA = "route.hashes/1"
SETTLED = 2_000_000_000
"""Nanoseconds for which a file must have been left alone before its digest is kept: a later edit then
shows in its times, however coarsely its file system keeps them."""
MOST_BYTES = 16 << 20
MOST_ROOTS = 32

_Key = tuple[int, int, int, int, int, int]


class _Kept(msgspec.Struct, array_like=True):
    schema: str
    root: str
    files: dict[str, tuple[_Key, str]]


class Hashes:
    """What is known of the files below one root: `of` answers, `add` learns, `save` keeps it for later.

    It is a hint: one that is missing, damaged, foreign or cannot be written costs a reading, no more.
    Nothing is kept of a root on a network file system, whose clock is not this machine's.
    """

    def __init__(self, home: Path, root: Path) -> None:
        self._folder = home / "snapshots"
        self._root = str(root)
        self._path = self._folder / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:32]}.hashes"
        self._new = False
        self._next: dict[str, tuple[_Key, str]] = {}
        self._known = self._load()
        self.hits = 0
        """How many files were not read again."""

    def _load(self) -> dict[str, tuple[_Key, str]]:
        from compute_router.supervisor import machine

        mount = machine.mount_of(self._root)
        self._local = mount is None or not machine.is_network(mount.fs)
        if not self._local:
            return {}
        try:
            found = os.lstat(self._path)
            data = read_file(self._path, MOST_BYTES) or b""
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                return {}
            head, _, body = data.partition(b"\n")
            if head != hashlib.sha256(body).hexdigest().encode():
                return {}
            kept = msgspec.json.decode(body, type=_Kept)
        except (OSError, ValueError, RecursionError):
            return {}
        return kept.files if (kept.schema, kept.root) == (SCHEMA, self._root) else {}

    def of(self, path: str, found: os.stat_result) -> str | None:
        """The digest of the file at `path`, if it is the very file, unchanged, that was read before."""
        known = self._known.get(path)
        if known is None or known[0] != _key(found):
            return None
        self._next[path] = known
        self.hits += 1
        return known[1]

    def add(self, path: str, before: os.stat_result, after: os.stat_result, sha256: str) -> None:
        """Learn what reading a file gave; `before` and `after` are its states around that. One that was
        written to a moment ago, or meanwhile, is not learnt."""
        key = _key(before)
        newest = max(before.st_mtime_ns, before.st_ctime_ns)
        if self._local and key == _key(after) and newest < time.time_ns() - SETTLED:
            self._next[path] = (key, sha256)
            self._new = True

    def save(self) -> None:
        """Keep what is known now. Never raises; of several writers the last one's stands, whole."""
        if not self._new and len(self._next) == len(self._known):
            return
        body = msgspec.json.encode(_Kept(SCHEMA, self._root, self._next))
        if len(body) > MOST_BYTES - 100 or not self._local:
            return
        beside = self._folder / f".{self._path.name}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            # Not brought to the disk: after a crash its own digest says whether it is whole.
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                with os.fdopen(fd, "wb") as f:
                    f.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                os.replace(beside, self._path)
            except OSError:
                beside.unlink(missing_ok=True)
                raise
            self._prune()
        except OSError:
            return

    def _prune(self) -> None:
        """Forget the roots that were looked at longest ago, and what writers left that were cut off."""
        entries = [(entry.stat().st_mtime, entry) for entry in os.scandir(self._folder)]
        old = time.time() - 3600
        for at, entry in entries:
            if entry.name.startswith(".") and at < old:
                os.unlink(entry.path)
        kept = sorted((pair for pair in entries if pair[1].name.endswith(".hashes")), key=lambda p: -p[0])
        for _, entry in kept[MOST_ROOTS:]:
            os.unlink(entry.path)


def _key(found: os.stat_result) -> _Key:
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_mode,
    )
