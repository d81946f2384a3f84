"""Files that are never seen half: written beside, synced, renamed or linked; and kernel locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time

from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, Optional

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_count = 0


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy(source: int, sink: int) -> None:
    """Write all that can still be read from `source` to `sink`."""
    while True:
        data = os.read(source, 1 << 20)
        if not data:
            return
        write_all(sink, data)


def digest(fd: int) -> str:
    """The sha256 of what stands under `fd`, from its first byte on."""
    made = hashlib.sha256()
    os.lseek(fd, 0, os.SEEK_SET)
    while True:
        data = os.read(fd, 1 << 20)
        if not data:
            return made.hexdigest()
        made.update(data)


def sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _beside(path: str, data: bytes, mode: int) -> str:
    global _count
    _count += 1
    folder, name = os.path.split(path)
    part = os.path.join(folder, ".%s.%d.%d.%d" % (name, os.getpid(), time.monotonic_ns(), _count))
    fd = os.open(part, NEW, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        os.unlink(part)
        raise
    os.close(fd)
    return part


def write(path: str, data: bytes, mode: int = 0o600, *, folder: bool = True) -> None:
    """Put `data` under `path`, replacing what stood there. Durable when it returns; without `folder`
    only its bytes are, and its name is once the folder is synced for something else."""
    part = _beside(path, data, mode)
    os.rename(part, path)
    if folder:
        sync_folder(os.path.dirname(path))


def write_hint(path: str, data: bytes) -> None:
    """Like `write`, without waiting for the disk: for what is a hint and never evidence."""
    part = "%s.%d" % (path, os.getpid())
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)
    os.rename(part, path)


def create_once(path: str, data: bytes) -> bool:
    """Put `data` under `path` unless something stands there; True for the one who did."""
    part = _beside(path, data, 0o600)
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(part)
    sync_folder(os.path.dirname(path))
    return True


def mark_once(path: str) -> bool:
    """An empty file under `path`, which a full disk still has room for; True for the one who made it."""
    try:
        os.close(os.open(path, NEW, 0o600))
    except OSError:
        return False
    return True


def read(path: str, most: int = 1 << 26) -> Optional[bytes]:
    """What stands under `path`; None if nothing does. Never follows a link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        parts = []
        while most > 0:
            got = os.read(fd, min(most, 1 << 20))
            if not got:
                break
            parts.append(got)
            most -= len(got)
        return b"".join(parts)
    finally:
        os.close(fd)


def read_json(path: str) -> Optional[Dict[str, Any]]:
    """The JSON object under `path`; None if the file is absent. Raises `Fault` DAMAGED."""
    data = read(path)
    if data is None:
        return None
    try:
        value = wire.loads(data)
        if not isinstance(value, dict):
            raise ValueError("no object")
    except ValueError as e:
        raise wire.Fault("DAMAGED", "%s cannot be read: %s" % (path, str(e)[:80]), "its file system lost it")
    return value


def hint_json(path: str) -> Dict[str, Any]:
    """Like `read_json` for a file that is a hint: anything wrong with it is an empty object."""
    try:
        return read_json(path) or {}
    except (wire.Fault, OSError):
        return {}


def lock(path: str, *, shared: bool = False, create: bool = True, patience: float = 0.0) -> int:
    """Take the kernel lock of `path`; its descriptor, or -1 if somebody else has it.

    A look at a lock (`held`) takes it for an instant, so whoever needs it asks again for
    `patience` seconds.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    fd = os.open(path, flags, 0o600)
    until, pause = time.monotonic() + patience, 0.001
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return fd
        except OSError as e:
            if e.errno == errno.EINTR:
                continue
            if e.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                os.close(fd)
                raise
        except BaseException:
            os.close(fd)
            raise
        if time.monotonic() >= until:
            os.close(fd)
            return -1
        time.sleep(pause)
        pause = min(pause * 1.1, 0.02)


def still(path: str, fd: int) -> bool:
    """Whether `path` still names the file that is open as `fd`. A file that was renamed or removed after it
    was opened, and before its lock was taken, is no longer the one that was meant."""
    try:
        named, opened = os.stat(path, follow_symlinks=False), os.fstat(fd)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def held(path: str) -> bool:
    """Whether somebody holds the lock of `path`; False if there is no such file."""
    try:
        fd = lock(path, shared=True, create=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if fd < 0:
        return True
    os.close(fd)
    return False


def numbered(folder: str) -> Iterator[int]:
    """The attempts that have a folder, in no order."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name.isdigit() and not name.startswith("0"):
            yield int(name)
