"""Reads metrics.jsonl: what the work said of itself, in bounded memory, whatever it wrote."""

from __future__ import annotations

import os
from fractions import Fraction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional

    Json = Dict[str, Any]

MOST_LINE = 1 << 16
MOST_LINES = 10_000_000
MOST_NOTES = 1000
MOST_SERIES = 200_000


def lines(fd: int) -> Iterator[bytes]:
    """The lines of an open file; of one that is longer than 64 KiB only its first bytes, once."""
    rest, cut = b"", False
    while True:
        data = os.read(fd, 1 << 20)
        if not data:
            break
        rows = (rest + data).split(b"\n")
        rest = rows.pop()
        for row in rows:
            yield b"" if cut else row[: MOST_LINE + 1]
            cut = False
        if len(rest) > MOST_LINE:
            if not cut:
                yield rest[: MOST_LINE + 1]
            rest, cut = b"", True
    if rest and not cut:
        yield rest


def decimal(value: Any, digits: int = 6) -> Optional[str]:
    """A number as a decimal string, at most `digits` behind the point; None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        # Anything longer is no measurement, and `1e999999999` would fill the memory.
        if len(value) > 40:
            return None
        _, _, power = value.lower().partition("e")
        try:
            if power and abs(int(power)) > 300:
                return None
            value = Fraction(value)
        except (ValueError, ZeroDivisionError):
            return None
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        value = Fraction(repr(value))
    if not isinstance(value, (int, Fraction)):
        return None
    scaled = round(Fraction(value) * 10**digits)
    sign, whole = "-" if scaled < 0 else "", str(abs(scaled)).rjust(digits + 1, "0")
    text = (whole[:-digits] + "." + whole[-digits:]).rstrip("0").rstrip(".")
    return sign + text if text != "0" else "0"


def parse(line: bytes) -> Optional[Json]:
    """One reported object with numbers kept as the text that was written; None if it is none."""
    import json

    if len(line) > MOST_LINE:
        return None
    try:
        found = json.loads(line.decode("utf-8"), parse_float=Number, parse_int=Number, parse_constant=Number)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Number(str):
    """A number as the work wrote it: no float of ours stands between it and the record."""


def integer(value: Any) -> Optional[int]:
    if isinstance(value, Number):
        text = decimal(value, 1)
        if text is not None and "." not in text and abs(int(text)) < 2**53:
            return int(text)
    return None


def plain(value: Any, depth: int = 0) -> Any:
    """Reported data as canonical JSON can hold it: numbers as integers or decimal strings."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Number):
        whole = integer(value)
        return whole if whole is not None else (decimal(value, 12) or str(value)[:40])
    if isinstance(value, str):
        return value[:2000].encode("utf-8", "backslashreplace").decode("utf-8")
    if depth > 8:
        return "..."
    if isinstance(value, dict):
        kept = {}
        for key, item in list(value.items())[:200]:
            name = key[:100].encode("ascii", "backslashreplace").decode("ascii")
            kept[name] = plain(item, depth + 1)
        return kept
    return [plain(item, depth + 1) for item in value[:200]]


class Summary:
    """What the lines add up to. A step lasts its `step_us`, or from one `mono_us` to the next."""

    def __init__(self, discard: int) -> None:
        self.discard = discard
        self.steps = self.bad = self.read = self.discarded = 0
        self.first: Optional[Json] = None
        self.last: Optional[Json] = None
        self.tokens = 0
        self.counted = 0
        self.spent_us = 0
        self.first_step: Optional[int] = None
        self.last_step: Optional[int] = None
        self.first_us: Optional[int] = None
        self.window_us: Optional[List[int]] = None
        """When the first step that counts began and the last one ended (epoch); None if that was not told."""
        self.times: List[int] = []
        self.lacking = ""
        self.finite = True
        self.notes: List[Json] = []
        self.values: Dict[str, str] = {}
        self._before: Optional[int] = None
        self.truncated = False

    def add(self, line: bytes) -> None:
        if not line.strip():
            return
        found = parse(line)
        if found is None:
            self.bad += 1
        elif "step" in found and "event" not in found:
            self._step(found)
        elif len(self.notes) < MOST_NOTES:
            self.notes.append(plain(found))
        else:
            self.truncated = True

    def _step(self, found: Json) -> None:
        at = integer(found.get("mono_us"))
        self.steps += 1
        self.first = self.first or found
        self.last = found
        if self.steps == 1:
            self.first_us = at
        for name, value in list(found.items())[:50]:
            if isinstance(value, Number) and name not in ("step", "t_us", "mono_us"):
                text = decimal(value)
                if text is None:
                    self.finite = False
                elif len(self.values) < 200:
                    self.values[name] = text
        if "loss" in found and decimal(found["loss"]) is None:
            self.finite = False
        before, self._before = self._before, at
        if self.steps <= self.discard or found.get("compile") is True:
            self.discarded += 1
            return
        # A step lasts from the end of the one before, unless the work says how long it took.
        spent = integer(found.get("step_us"))
        if spent is None and at is not None and before is not None:
            spent = at - before
        if spent is None or spent < 0:
            if self.steps > 1:
                self.lacking = self.lacking or "some steps were reported without a time"
            return
        self.spent_us += spent
        self.counted += 1
        ended = integer(found.get("t_us"))
        if ended is not None:
            self.window_us = [self.window_us[0] if self.window_us else ended - spent, ended]
        number = integer(found["step"])
        self.first_step = number if self.counted == 1 else self.first_step
        self.last_step = number
        if len(self.times) < MOST_SERIES:
            self.times.append(spent)
        tokens = integer(found.get("tokens"))
        if tokens is None:
            self.lacking = self.lacking or "some steps were reported without tokens"
        else:
            self.tokens += tokens

    def tok_s(self) -> Optional[str]:
        """Tokens of the global batch per second over the steady window: sum over sum, six decimals."""
        if self.lacking or not self.tokens or not self.spent_us:
            return None
        return decimal(Fraction(self.tokens * 1_000_000, self.spent_us))

    def quantiles(self) -> Optional[Json]:
        """Step times in microseconds, by the nearest-rank definition."""
        if not self.times:
            return None
        ordered = sorted(self.times)

        def rank(percent: int) -> int:
            return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]

        return {"min": ordered[0], "p50": rank(50), "p90": rank(90), "p99": rank(99), "max": ordered[-1]}


def summarise(path: str, discard: int) -> Optional[Summary]:
    """The summary of a metrics file; None if the work wrote none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    found = Summary(discard)
    try:
        for line in lines(fd):
            found.read += 1
            if found.read > MOST_LINES:
                found.truncated = True
                break
            found.add(line)
    except OSError:
        found.truncated = True
    finally:
        os.close(fd)
    return found
