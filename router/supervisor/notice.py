"""Events of the file system (inotify), so that nothing has to sleep and look again."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Tuple

MODIFY, MOVED_TO, CREATE, DELETE, ONESHOT = 0x2, 0x80, 0x100, 0x200, 0x80000000
NEW = CREATE | MOVED_TO
_libc: Any = None


def libc() -> Any:
    """The C library, or None where it cannot be called."""
    global _libc
    if _libc is None:
        try:
            import ctypes

            _libc = ctypes.CDLL(None, use_errno=True)
        except (ImportError, OSError):
            _libc = False
    return _libc or None


class Notice:
    """One inotify descriptor, to be polled; -1 where the system has none (then poll by time)."""

    def __init__(self) -> None:
        self.fd = -1
        lib = libc()
        if lib is not None and hasattr(lib, "inotify_init1"):
            self.fd = int(lib.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, path: str, mask: int) -> bool:
        if self.fd < 0:
            return False
        return int(libc().inotify_add_watch(self.fd, os.fsencode(path), mask & 0xFFFFFFFF)) >= 0

    def once(self, path: str) -> bool:
        """Tell of the next write to `path`, and of no further one."""
        return self.add(path, MODIFY | ONESHOT)

    def drain(self) -> None:
        try:
            while len(os.read(self.fd, 1 << 16)) == 1 << 16:
                pass
        except OSError:
            pass

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def watch(paths: Iterable[Tuple[str, int]]) -> Notice:
    """A descriptor that tells of `(path, mask)`; it is of no use (-1) if one of them cannot be watched."""
    made = Notice()
    for path, mask in paths:
        if not made.add(path, mask):
            made.close()
            break
    return made
