"""What git says of the folder a command stands in: commit and digest of what differs; nothing is copied."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from compute_router.gitfacts import Git, changes
from compute_router.records import Record
from compute_router.snapshot import FileEntry, LinkEntry

__all__ = ["MOST_BYTES", "MOST_FILES", "git_facts"]

MOST_FILES = 2_000
MOST_BYTES = 64 << 20


def git_facts(folder: Path, *, deadline: float) -> tuple[Git | None, str]:
    """The state of the work tree that `folder` lies in, as `Snapshot.git` has it for one that ships
    whole, and a note. What differs is read up to `MOST_FILES` files and `MOST_BYTES` bytes; beyond
    that the digest is None and the note says so. Raises `NoGit`."""
    found = changes(folder, deadline=deadline)
    if found is None:
        return None, ""
    top, told = found
    entries: dict[str, Record] = {}
    room = MOST_BYTES
    for path in sorted(told.paths)[: MOST_FILES + 1]:
        size = _size(top / path)
        room -= size
        if room < 0:
            break
        if (entry := _entry(top, path)) is not None:
            entries[path] = entry
    git = told.facts(entries)
    if room >= 0 and len(told.paths) <= MOST_FILES:
        return git, ""
    note = f"more differs from the commit than is read ({MOST_FILES:,} files, {MOST_BYTES >> 20} MiB)"
    return Git(commit=git.commit, branch=git.branch, dirty=True, diff_sha256=None, message=git.message), note


def _size(path: Path) -> int:
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _entry(top: Path, path: str) -> Record | None:
    """The file or link as a snapshot has it; None for what is gone or is neither."""
    where = top / path
    try:
        path.encode()
        if os.path.islink(where):
            return LinkEntry(path=path, link=os.readlink(where))
        fd = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, UnicodeEncodeError):
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        return FileEntry(path=path, sha256=sha256, bytes=status.st_size, mode=mode)
