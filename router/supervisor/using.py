"""Keeps what this process uses from being tidied away, by kernel locks that end with it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time

from . import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Set, Tuple

    Json = Dict[str, Any]

LOCK = "route-lock.txt"
"""The file of an environment that is locked for it; its time is when the environment was used last."""
_ENVIRONMENT = re.compile(r"(/.*/envs/[0-9a-f]{64})/bin/python")
_held: Dict[str, Tuple[int, bool]] = {}


def use(path: str, patience: float = 60.0, *, lasting: bool = False) -> bool:
    """Share the lock of a file or folder until `leave`; False if it is not there, or is not free in time.

    It is marked as used now. With `lasting` the processes that are forked from here keep it as well.
    """
    if path in _held and files.still(path, _held[path][0]):
        _touch(path)
        return True
    leave(path)
    until = time.monotonic() + patience
    while True:
        fd = _lock(path, fcntl.LOCK_SH)
        if fd >= 0:
            _held[path] = (fd, lasting)
            _touch(path)
            return True
        if fd != -1 or time.monotonic() >= until:
            return fd == -3
        time.sleep(0.02)


def _touch(path: str) -> None:
    try:
        os.utime(path)
    except OSError:
        pass  # somebody else's, or of a disk that takes nothing any more: it seems older than it is


def _lock(path: str, how: int) -> int:
    """A descriptor with the lock; -1 if others have it, -2 if nothing is there, -3 on a disk without locks,
    where nobody can have one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -2
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as e:
        os.close(fd)
        return -1 if e.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EINTR) else -3
    if files.still(path, fd):
        return fd
    os.close(fd)
    return -1


def leave(path: str) -> None:
    """Use it no longer. Silent if it was not used."""
    fd, _ = _held.pop(path, (-1, False))
    if fd >= 0:
        os.close(fd)


def descriptor(path: str) -> int:
    """That of something in use, for a process that is started from here and is to keep it; -1 if none."""
    return _held.get(path, (-1, False))[0]


def own() -> str:
    """The folder of the supervisor that this process is; its name is its digest."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def lasting() -> Set[int]:
    """For a process that was just forked: the descriptors that it keeps; it closes all others."""
    for path in [path for path, (_, lasts) in _held.items() if not lasts]:
        del _held[path]
    return {fd for fd, _ in _held.values()}


def made(path: str) -> str:
    """`path`, an empty file for locks alone, made if it is not there."""
    try:
        os.close(os.open(path, files.NEW, 0o600))
        os.utime(path, (0, 0))  # used by nobody yet
    except FileExistsError:
        pass
    return path


def lock_of(root: str, what: str) -> str:
    """The file for a lock of the whole root: `bring` is shared by whoever brings blobs until what needs
    them is there, `gc` is held by the one who tidies up, `uv` shared by whoever uses its cache."""
    return made(os.path.join(root, ".%s.lock" % what))


def alone(path: str) -> int:
    """A descriptor by which nobody else uses `path` until it is closed; negative if somebody does, or if
    it is not there."""
    return _lock(path, fcntl.LOCK_EX)


def environment(path: str) -> bool:
    """Use the environment at `path` from here on; False if it is not there."""
    return use(os.path.join(path, LOCK))


def of_work(spec: Json) -> None:
    """Use the environment that the work of a specification runs in, if it is one of ours."""
    found = _ENVIRONMENT.fullmatch(str(spec.get("python") or ""))
    if found:
        use(os.path.join(found[1], LOCK), lasting=True)
