"""Caps a log by a hole in its middle: offsets stay, head and tail are kept."""

from __future__ import annotations

import os

from . import files, notice, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Tuple

    from .runs import Attempt

PAGE = 4096
FULL = 3, 4
"""The part of the cap from which on the middle is cut out: what is written meanwhile needs the rest."""
PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def cap(attempt: Attempt, most: int, size: int) -> int:
    """Punch the middle out of a log of `size` bytes, so that half of `most` stays: head and tail.

    The hole is written to `capped.json` first: whoever reads the log never takes it for output.
    Returns the bytes on disk afterwards, or -1 where the file system cannot do that.
    """
    begin = -(-(most // 8) // PAGE) * PAGE
    end = (size - most * 3 // 8) // PAGE * PAGE
    if end > begin:
        note = wire.dumps({"from": begin, "to": end, "cap": most})
        noted = _note(attempt, note)
        error = punch(attempt.at("log"), begin, end - begin)
        if error:
            _note(attempt, wire.dumps({"cap": most, "error": os.strerror(error)}))
            return -1
        if not noted:
            _note(attempt, note)  # the disk was full, and now is not
    return os.stat(attempt.at("log")).st_blocks * 512


def _note(attempt: Attempt, note: bytes) -> bool:
    try:
        files.write_hint(attempt.at("capped.json"), note)
    except OSError:
        return False
    return True


def due(most: int, used: int) -> bool:
    """Whether a log that takes `used` bytes on disk is to be cut now."""
    return used * FULL[1] > most * FULL[0]


def punch(path: str, offset: int, length: int) -> int:
    """Free a range of a file without moving the rest; 0, or the error number."""
    import ctypes
    import errno

    lib = notice.libc()
    call = getattr(lib, "fallocate64", None) or getattr(lib, "fallocate", None)
    if call is None:
        return errno.ENOSYS
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if call(fd, PUNCH, offset, length) == 0:
            return 0
        return ctypes.get_errno() or errno.EIO
    finally:
        os.close(fd)


def hole(attempt: Attempt) -> Tuple[int, int]:
    """The bytes of the log that were not kept: from, to (equal if all were)."""
    found: Dict[str, Any] = files.hint_json(attempt.at("capped.json"))
    begin, end = found.get("from"), found.get("to")
    if type(begin) is int and type(end) is int and 0 <= begin <= end:
        return begin, end
    return 0, 0
