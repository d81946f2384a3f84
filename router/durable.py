"""Files that are there whole or not at all, even after a crash; locks that vanish with their holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PART", "fsync_folder", "held", "is_held", "put_aside", "read_file", "write_beside", "write_file"]

PART = ".part"
"""How the name of a file ends that is not yet whole."""


def write_beside(folder: Path, name: str, data: bytes) -> Path:
    """Write `data` to a new file beside where `name` will be, and bring it to the disk.

    Returns its path; nothing is left behind if it raises `OSError`.
    """
    path = folder / f".{name}.{os.getpid()}.{os.urandom(4).hex()}{PART}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Put `data` under `folder/name`: after a return it survives a crash, before it nothing shows."""
    beside = write_beside(folder, name, data)
    try:
        os.replace(beside, folder / name)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_folder(folder)


def fsync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def held(path: Path, *, create: bool = False) -> Iterator[int]:
    """Hold the kernel's lock on a folder or file; yields its descriptor. It ends with the process."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND if create else os.O_RDONLY
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def is_held(path: Path) -> bool:
    """Whether some process holds the kernel's lock on `path` now; False where there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def read_file(path: Path, most: int) -> bytes | None:
    """The bytes of a file of at most `most` bytes; None if there is none. Raises `OSError`, and
    `ValueError` for a larger one or one that is no regular file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as f:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > most:
            raise ValueError(f"it is larger than {most >> 20} MiB")
        return f.read()


def put_aside(path: Path) -> Path:
    """Rename a damaged file to `<name>.damaged-<n>` and return where it is now."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    os.rename(path, aside)
    return aside
