"""Figures and times in words: durations, sizes, ages, and text made safe to print."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from re import Match

__all__ = ["age", "clock", "duration", "nearest", "one_line", "short_id", "size", "visible"]

# Control characters, and the marks that turn the direction of writing round: both can make a
# terminal show something other than what stands there. Compiled when first used.
_UNSAFE = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"


def _spelled(match: Match[str]) -> str:
    code = ord(match[0])
    if code < 32:
        return "^" + chr(code + 64)
    if code == 127:
        return "^?"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def visible(text: str) -> str:
    """`text` with every control character but tab and line end spelled out (`^[`, `\\x9b`)."""
    if text.isascii() and text.isprintable():
        return text
    import re

    safe = re.sub(_UNSAFE, _spelled, text)
    # A lone surrogate (an undecodable file name) has no UTF-8 form.
    return safe.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """`text` on one line, safe to print."""
    return visible(" ".join(text.split()))


def duration(us: int | None) -> str:
    """Microseconds in words: `0.4 s`, `12.3 s`, `4 min 10 s`, `2 h 05 min`, `3 d 4 h`."""
    if us is None:
        return "-"
    seconds = max(us, 0) / 1e6
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def size(count: int | None) -> str:
    """Bytes in words, powers of 1000: `812 B`, `34 kB`, `1.2 GB`."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return (
        f"{count} B" if unit == "B" else f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"
    )


def age(us: int | None, *, now_us: int | None = None) -> str:
    """How long ago an epoch time in microseconds was: `12 s ago`, `3 min ago`, `2 d ago`."""
    if us is None:
        return "-"
    seconds = max(0, (time.time_ns() // 1000 if now_us is None else now_us) - us) // 1_000_000
    for unit, most, divisor in (("s", 100, 1), ("min", 100 * 60, 60), ("h", 48 * 3600, 3600)):
        if seconds < most:
            return f"{seconds // divisor} {unit} ago"
    return f"{seconds // 86400} d ago"


def clock(us: int | None) -> str:
    """An epoch time in microseconds as local date and time."""
    return "-" if us is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(us / 1e6))


def short_id(run_id: str) -> str:
    """Enough of a run id to name it: time part and a little of the rest."""
    return run_id[:14]


def nearest(word: str, known: list[str]) -> str:
    """The entry of `known` that begins with `word`, else the one most like it, or nothing."""
    from difflib import get_close_matches

    # Whoever left off in the middle of a word meant that word, however much longer it is.
    if len(word) >= 3 and (begun := [entry for entry in known if entry.startswith(word)]):
        return min(begun, key=len)
    return next(iter(get_close_matches(word, known, n=1, cutoff=0.6)), "")
