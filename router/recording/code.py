"""What git says of the folder a command stands in: commit and digest of what differs; nothing is copied."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from compute_router.gitfacts import Git, changes
from compute_router.recording.command import digest_of
from compute_router.records import Record
from compute_router.snapshot import FileEntry, LinkEntry

__all__ = ["MOST_BYTES", "MOST_FILES", "git_facts"]

MOST_FILES = 2_000
MOST_BYTES = 64 << 20
MORE = f"more differs from the commit than is read ({MOST_FILES:,} files, {MOST_BYTES >> 20} MiB)"


def git_facts(folder: Path, *, deadline: float) -> tuple[Git | None, str]:
    """The state of the work tree that `folder` lies in, as `Snapshot.git` has it for one that ships
    whole, and a note. What differs is read up to `MOST_FILES` files and `MOST_BYTES` bytes; beyond
    that the digest is None and the note says so. Raises `NoGit`."""
    found = changes(folder, deadline=deadline)
    if found is None:
        return None, ""
    top, told = found
    entries: dict[str, Record] = {}
    room, note = MOST_BYTES, MORE if len(told.paths) > MOST_FILES else ""
    for path in () if note else sorted(told.paths):
        try:
            entry = _entry(top, path, room)
        except _Unread as e:
            note = str(e) or MORE
            break
        if entry is not None:
            entries[path] = entry
        if isinstance(entry, FileEntry):
            room -= entry.bytes
    git = told.facts(entries)
    if not note:
        return git, ""
    return Git(commit=git.commit, branch=git.branch, dirty=True, diff_sha256=None, message=git.message), note


class _Unread(Exception):
    """A file that is there and could not be read as it stood."""


def _entry(top: Path, path: str, room: int) -> Record | None:
    """The file or link as a snapshot has it; None for what is gone or is neither. Raises `_Unread`,
    without a word where there are more bytes than `room`."""
    where, shown = top / path, ascii(path[:200])
    try:
        path.encode()
        mode = os.lstat(where).st_mode
        if stat.S_ISLNK(mode):
            return LinkEntry(path=path, link=os.readlink(where))
        if not stat.S_ISREG(mode):
            return None
        fd = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeEncodeError as e:
        raise _Unread(f"the name of {shown} is no text") from e
    except OSError as e:
        raise _Unread(f"{shown} cannot be read: {e.strerror}") from e
    try:
        status = os.fstat(fd)
        if status.st_size > room:
            raise _Unread
        sha256 = digest_of(fd, room)
    except OSError as e:
        raise _Unread(f"{shown} cannot be read: {e.strerror}") from e
    finally:
        os.close(fd)
    if sha256 is None:
        raise _Unread(f"{shown} changed while it was read")
    mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
    return FileEntry(path=path, sha256=sha256, bytes=status.st_size, mode=mode)
