"""Staged shards: which files of this computer `stage` names, where they go in a volume, and their digests."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from compute_router.backend import Submission
from compute_router.errors import InputError
from compute_router.hashes import Hashes
from compute_router.home import default_home
from compute_router.machines.blobs import Blob, pieces
from compute_router.workload import Stage, Workload

__all__ = ["Shard", "refusal", "shards_of"]

MOST_FILES = 50_000
KEPT = 16
_MADE: OrderedDict[str, tuple[Shard, ...]] = OrderedDict()
"""Of the last submissions: what is sent has to be what the specification says."""


class Shard(NamedTuple):
    """One file: where it is here, the role of the volume it goes to, its path there, its content."""

    source: Path
    role: str
    path: str
    sha256: str
    size: int
    mtime_ns: int

    @property
    def entry(self) -> dict[str, Any]:
        """What the specification says of it."""
        return {"role": self.role, "path": self.path, "sha256": self.sha256, "bytes": self.size}

    @property
    def blob(self) -> Blob:
        return Blob(self.sha256, self.size, functools.partial(self._pieces), shard=True)

    def _pieces(self, offset: int) -> Iterator[tuple[int, bytes, bool]]:
        for at, piece, last in pieces(self.source, offset):
            # Not hashed again: the other side does that, and what changed here shows in its time.
            if last and os.stat(self.source).st_mtime_ns != self.mtime_ns:
                raise _changed(self.source)
            yield at, piece, last


def refusal(workload: Workload) -> tuple[str, str] | None:
    """Why `stage` cannot be done from this computer, and what mends it; None if it can. Looks at names
    alone."""
    for stage in workload.stage:
        if not stage.source.startswith("/"):
            return (
                f"stage: {stage.source} is no path, and machines read no buckets",
                "copy it to a disk of this computer, or use a backend that mounts buckets",
            )
        try:
            if not sum(1 for _ in _listed(stage)):
                return (
                    f"stage: no file is at {stage.source} on this computer",
                    "correct `from`, or put the files there",
                )
        except InputError as e:
            return e.what, e.mend
    return None


def shards_of(submission: Submission) -> tuple[Shard, ...]:
    """The shards of a submission, sorted by where they go; the same ones each time it is asked.

    Hashes what is not known from before: a large file that is unchanged on a disk of this computer is
    not read again. Raises `InputError` for what is not there or is named twice.
    """
    if not submission.workload.stage:
        return ()
    found = _MADE.get(submission.id)
    if found is None:
        found = _MADE[submission.id] = _all(submission.workload)
        while len(_MADE) > KEPT:
            _MADE.popitem(last=False)
    return found


def _all(workload: Workload) -> tuple[Shard, ...]:
    made: dict[tuple[str, str], Shard] = {}
    for stage in workload.stage:
        base = _base(stage.source)
        # Beside what a snapshot of the same folder remembers, which is of other files.
        hashes = Hashes(default_home(), base / ".staged")
        some = False
        for source, path in _listed(stage):
            some = True
            shard = _shard(source, stage.to.value, path, hashes)
            other = made.setdefault((shard.role, shard.path), shard)
            if other.sha256 != shard.sha256:
                raise InputError(
                    f"stage: {other.source} and {source} both go to {path} of the volume {shard.role}",
                    mend="name one of them",
                )
            if len(made) > MOST_FILES:
                raise InputError(f"stage: more than {MOST_FILES:,} files", mend="put them into larger shards")
        if not some:
            raise InputError(f"stage: no file is at {stage.source} on this computer", mend="correct `from`")
        hashes.save()
    return tuple(made[key] for key in sorted(made))


def _base(source: str) -> Path:
    """The folder that paths in the volume are relative to: the deepest one that is named without a
    wildcard."""
    if not glob.has_magic(source):
        return Path(os.path.dirname(source.rstrip("/")) or "/")
    parts = source.split("/")
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path("/".join(parts[:first]) or "/")


def _listed(stage: Stage) -> Iterator[tuple[Path, str]]:
    """Each file and its path in the volume. What is found of a folder is all that lies below it."""
    base = _base(stage.source)
    for found in sorted(glob.iglob(stage.source, recursive=True)):
        path = Path(found)
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            if file.is_file():
                yield file, str(file.relative_to(base))
            elif not file.is_dir():
                raise InputError(f"stage: {file} is no regular file", mend="name files and folders alone")


def _shard(source: Path, role: str, path: str, hashes: Hashes) -> Shard:
    try:
        path.encode()
        with open(source, "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise InputError(f"stage: {source} is no regular file", mend="name files and folders alone")
            sha256 = hashes.of(path, before)
            if sha256 is None:
                made = hashlib.file_digest(file, "sha256")
                after = os.fstat(file.fileno())
                if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                    raise _changed(source)
                sha256 = made.hexdigest()
                hashes.add(path, before, after, sha256)
    except OSError as e:
        raise InputError(f"stage: {source} cannot be read: {e.strerror}", mend="correct `from`") from e
    except UnicodeEncodeError as e:
        raise InputError("stage: the name of a file is not UTF-8 text", mend="give it another") from e
    return Shard(source, role, path, sha256, before.st_size, before.st_mtime_ns)


def _changed(source: Path) -> InputError:
    return InputError(
        f"stage: {source} changed while it was read", mend="run it again once nothing writes to it"
    )
