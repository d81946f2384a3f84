"""What a client may name: run ids, digests, paths below a folder. Everything else is refused here."""

from __future__ import annotations

import os

from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List

_ID = frozenset("0123456789abcdefghijklmnopqrstuvwxyz")
_HEX = frozenset("0123456789abcdef")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
ROLES = ("compile-cache", "checkpoints", "data", "home")
MOST_PATH = 1024
MOST_NAME = 255


def run_id(value: Any) -> str:
    if isinstance(value, str) and len(value) == 26 and _ID.issuperset(value):
        return value
    raise Fault("BAD_REQUEST", "%.40r is no run id" % (value,), "a run id has 26 characters of 0-9a-z")


def digest(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64 and _HEX.issuperset(value):
        return value
    raise Fault("BAD_REQUEST", "%.80r is no sha256" % (value,), "64 lower-case hex digits")


def whole(value: Any, what: str, low: int = 0, high: int = 2**53 - 1) -> int:
    if type(value) is int and low <= value <= high:
        return value
    raise Fault("BAD_REQUEST", "%s cannot be %.40r" % (what, value), "an integer from %d to %d" % (low, high))


def word(value: Any, what: str) -> str:
    """A name that becomes part of a file name: short, plain, and never `.` or `..`."""
    if isinstance(value, str) and 0 < len(value) <= 100 and _WORD.issuperset(value) and value[0] != ".":
        return value
    raise Fault("BAD_REQUEST", "%s cannot be %.60r" % (what, value), "letters, digits, `.`, `_` and `-`")


def parts(value: Any, what: str = "path") -> List[str]:
    """The parts of a path that stays below its folder. `.` is the folder itself: no parts.

    Refuses what is absolute, empty, climbs, holds NUL, or is too long for a file system.
    """
    if isinstance(value, str) and value and "\0" not in value and not value.startswith("/"):
        try:
            size = len(value) if value.isascii() else len(os.fsencode(value))
        except UnicodeError:
            size = MOST_PATH + 1
        found = [part for part in value.split("/") if part not in ("", ".")]
        short = size <= MOST_NAME or all(len(os.fsencode(part)) <= MOST_NAME for part in found)
        if size <= MOST_PATH and ".." not in found and short:
            return found
    raise Fault(
        "BAD_REQUEST", "%s cannot be %.80r" % (what, value), "relative, below its folder, without `..`"
    )


def text(value: Any, what: str) -> str:
    """A string that an operating system takes as argument or variable."""
    if isinstance(value, str) and "\0" not in value:
        try:
            os.fsencode(value)
        except UnicodeError:
            pass
        else:
            return value
    raise Fault("BAD_REQUEST", "%s cannot be %.60r" % (what, value), "text without NUL")
