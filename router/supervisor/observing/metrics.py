"""Reads metrics.jsonl: what the work said of itself, in bounded memory, whatever it wrote."""

from __future__ import annotations

import os
import re
from array import array
from fractions import Fraction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Tuple

    Json = Dict[str, Any]

MOST_LINE = 1 << 16
MOST_LINES = 10_000_000
MOST_BYTES = 8 << 30
MOST_NOTES = 1000
MOST_SERIES = 1_000_000
SPANS = ("eval", "checkpoint", "data_wait")
"""Notes under these names may say how long it took, as `us`; `mono_us` is when it was over."""
_NUMBER = rb"-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]{1,18})?(?:e[-+][0-9]{2})?"
_NAME = rb'"(?!(?:step|tokens|step_us|t_us|mono_us|event|compile)")[A-Za-z_]{1,40}"'
_PLAIN = re.compile(
    rb'\{"step": (0|[1-9][0-9]{0,14})(?:, "tokens": (0|[1-9][0-9]{0,14}))?'
    rb'(?:, "step_us": (0|[1-9][0-9]{0,14}))?((?:, ' + _NAME + rb": " + _NUMBER + rb")*)"
    rb', "t_us": (1[0-9]{15}|[1-9][0-9]{0,14}), "mono_us": (0|[1-9][0-9]{0,14})\}'
)
_OURS = ("step", "t_us", "mono_us")


def lines(fd: int) -> Iterator[bytes]:
    """The lines of an open file; of one that is longer than 64 KiB only its first bytes, once.

    Ends after `MOST_BYTES`: `unread` then tells that there is more.
    """
    rest, cut, read = b"", False, 0
    while read < MOST_BYTES:
        data = os.read(fd, 1 << 20)
        if not data:
            break
        read += len(data)
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


def unread(fd: int) -> bool:
    """Whether the file goes on behind where reading has come to."""
    return os.lseek(fd, 0, os.SEEK_CUR) < os.fstat(fd).st_size


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


class Number(str):
    """A number as the work wrote it: no float of ours stands between it and the record."""


_decoder: List[Any] = []


def parse(line: bytes) -> Optional[Json]:
    """One reported object with numbers kept as the text that was written; None if it is none."""
    if len(line) > MOST_LINE:
        return None
    if not _decoder:
        import json

        # Made once: a file may have millions of lines.
        _decoder.append(json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=Number))
    try:
        found = _decoder[0].decode(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def integer(value: Any) -> Optional[int]:
    if isinstance(value, Number):
        if len(value) < 16 and value.isdigit():
            return int(value)
        text = decimal(value, 1)
        if text is not None and "." not in text and abs(int(text)) < 2**53:
            return int(text)
    return None


def is_finite(value: Any) -> bool:
    """Whether `decimal` would make a number of this text."""
    plainly = isinstance(value, Number) and len(value) < 25 and value.strip("-0123456789.") == ""
    return plainly or decimal(value) is not None


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
        self._last: Optional[Json] = None
        self._last_line = b""
        self._rests: Dict[bytes, bytes] = {}
        self.tokens = 0
        self.counted = 0
        self.spent_us = 0
        self.discarded_us = 0
        """Sum of the discarded steps but for a first one that does not say how long it took."""
        self.first_step: Optional[int] = None
        self.last_step: Optional[int] = None
        self.first_us: Optional[int] = None
        """When the first step ended, by the monotonic clock."""
        self.first_spent_us: Optional[int] = None
        """How long the first step took, if the work said so."""
        self.window_us: Optional[List[int]] = None
        """When the first step that counts began and the last one ended (epoch); None if that was not told."""
        self.window_mono_us: Optional[List[int]] = None
        """The same by the monotonic clock of whoever wrote the lines."""
        self.times = array("q")
        self.lacking = ""
        self.confused = ""
        """Why the steps are no series of one work: then nothing that is made of them holds."""
        self.finite = True
        self.notes: List[Json] = []
        self.spans: Dict[str, List[int]] = {}
        """What the work timed itself, by name: how often, and microseconds in all and within its steps."""
        self.inside: Dict[str, int] = {}
        """How many steps that count had an evaluation or a checkpoint inside, by name."""
        self.untimed: List[str] = []
        """Names of notes that say nothing of how long it took."""
        self._values: Dict[str, Any] = {}
        self._before: Optional[int] = None
        self._number: Optional[int] = None
        self._pending: List[Tuple[str, int, int]] = []
        self.truncated = False
        self.partial = ""
        """Why the lines that were read are not all that were written."""

    @property
    def values(self) -> Dict[str, str]:
        """The last finite value of each name, as a decimal."""
        self._fold()
        made = {name: decimal(value) for name, value in self._values.items()}
        return {name: text for name, text in made.items() if text is not None}

    def add(self, line: bytes) -> None:
        if not line.strip() or (self.steps and self._quick(line)):
            return
        found = parse(line)
        if found is None:
            self.bad += 1
        elif "step" in found and "event" not in found:
            self._step(found)
        else:
            self._note(found)

    def _note(self, found: Json) -> None:
        name = found.get("event")
        if name in SPANS:
            spent, at = integer(found.get("us")), integer(found.get("mono_us"))
            if spent is None or spent < 0:
                self.untimed.append(str(name)) if name not in self.untimed else None
            else:
                sums = self.spans.setdefault(str(name), [0, 0, 0])
                sums[0], sums[1] = sums[0] + 1, sums[1] + spent
                if at is None:
                    self.untimed.append(str(name)) if name not in self.untimed else None
                elif len(self._pending) < MOST_NOTES:
                    self._pending.append((str(name), at - spent, at))
        if len(self.notes) < MOST_NOTES:
            self.notes.append(plain(found))
        elif name not in SPANS:
            self.truncated = True

    def _step(self, found: Json) -> None:
        self._fold()
        self.first = self.first or found
        self._last = found
        for name, value in found.items():
            if isinstance(value, Number) and name not in _OURS:
                if not is_finite(value):
                    self.finite = False
                elif name in self._values or len(self._values) < 200:
                    self._values[name] = value
        if "loss" in found and not is_finite(found["loss"]):
            self.finite = False
        number, tokens, spent = (integer(found.get(name)) for name in ("step", "tokens", "step_us"))
        ended, at = integer(found.get("t_us")), integer(found.get("mono_us"))
        self._count(number, tokens, spent, ended, at, found.get("compile") is True)

    def _count(
        self,
        number: Optional[int],
        tokens: Optional[int],
        spent: Optional[int],
        ended: Optional[int],
        at: Optional[int],
        compiles: bool = False,
    ) -> None:
        self.steps += 1
        earlier = self._number
        if number is None:
            self.confused = self.confused or "a step was reported without a whole number"
        elif earlier is not None and number <= earlier:
            self.confused = self.confused or (
                "step %d was reported after step %d: several processes report, or the count begins again; "
                "let one of them report numbers that grow" % (number, earlier)
            )
        else:
            self._number = number
        before, self._before = self._before, at
        if self.steps == 1:
            self.first_us = at
            self.first_spent_us = spent if spent is not None and spent >= 0 else None
        # A step lasts from the end of the one before, unless the work says how long it took.
        if spent is None and at is not None and before is not None:
            spent = at - before
        within = self._within(at, spent) if self._pending else ()
        if self.steps <= self.discard or compiles:
            self.discarded += 1
            self.discarded_us += max(0, spent or 0)
            return
        if spent is None or spent < 0:
            if self.steps > 1:
                self.lacking = self.lacking or "some steps were reported without a time"
            return
        for name in within:
            self.inside[name] = self.inside.get(name, 0) + 1
        self.spent_us += spent
        self.counted += 1
        if ended is not None:
            self.window_us = [self.window_us[0] if self.window_us else ended - spent, ended]
        if at is not None:
            self.window_mono_us = [self.window_mono_us[0] if self.window_mono_us else at - spent, at]
        self.first_step = number if self.counted == 1 else self.first_step
        self.last_step = number
        if len(self.times) < MOST_SERIES:
            self.times.append(spent)
        if tokens is None or tokens < 0:
            self.lacking = self.lacking or "some steps were reported without tokens"
        else:
            self.tokens += tokens

    def _quick(self, line: bytes) -> bool:
        """Count a line of the form in which `route_report` writes them, without parsing all of it."""
        found = _PLAIN.fullmatch(line)
        if found is None:
            return False
        number, tokens, spent, rest, ended, at = found.groups()
        # Of lines that report the same names the last one is enough: its values are read when asked for.
        shape = rest.translate(None, b"0123456789.+-")
        self._rests.pop(shape, None)
        if len(self._rests) >= 200:
            self._fold()
        self._rests[shape] = rest
        self._last_line = line
        self._count(
            int(number), int(tokens) if tokens else None, int(spent) if spent else None, int(ended), int(at)
        )
        if tokens:
            self._values["tokens"] = Number(tokens.decode())
        if spent:
            self._values["step_us"] = Number(spent.decode())
        return True

    def _fold(self) -> None:
        rests, self._rests = self._rests, {}
        for rest in rests.values():
            for name, value in (parse(b"{" + rest[2:] + b"}") or {}).items():
                if name in self._values or len(self._values) < 200:
                    self._values[name] = value
        if self._last_line:
            self._last, self._last_line = parse(self._last_line), b""

    @property
    def last(self) -> Optional[Json]:
        """The last step as it was reported."""
        self._fold()
        return self._last

    def _within(self, at: Optional[int], spent: Optional[int]) -> List[str]:
        """What of the spans reported since the last step lay within the step that ended at `at`."""
        waiting, self._pending = self._pending, []
        if at is None or spent is None:
            return []
        names = set()
        for name, begin, end in waiting:
            shared = min(end, at) - max(begin, at - spent)
            if shared > 0:
                self.spans[name][2] += shared
                names.add(name)
        return sorted(names - {"data_wait"})

    @property
    def wrong(self) -> str:
        """Why nothing that is made of all the steps holds; empty if it does."""
        return self.confused or self.partial

    def tok_s(self) -> Optional[str]:
        """Tokens of the global batch per second over the steady window: sum over sum, six decimals."""
        if self.wrong or self.lacking or not self.tokens or not self.spent_us:
            return None
        return decimal(Fraction(self.tokens * 1_000_000, self.spent_us))

    def quantiles(self) -> Optional[Json]:
        """Step times in microseconds, by the nearest-rank definition."""
        if not self.times or self.wrong or self.counted > len(self.times):
            return None
        ordered = sorted(self.times)

        def rank(percent: int) -> int:
            return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]

        return {"min": ordered[0], "p50": rank(50), "p90": rank(90), "p99": rank(99), "max": ordered[-1]}


def summarise(path: str, discard: int, most: int = MOST_LINES) -> Optional[Summary]:
    """The summary of a metrics file; None if the work wrote none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    found = Summary(discard)
    try:
        for line in lines(fd):
            found.read += 1
            if found.read > most:
                found.partial = "the work wrote more than {:,} lines".format(most)
                break
            found.add(line)
        if not found.partial and unread(fd):
            found.partial = "the work wrote more than %d MiB" % (MOST_BYTES >> 20)
    except OSError as e:
        found.partial = "what the work wrote could be read in part only: %s" % e.strerror
    finally:
        os.close(fd)
    found.truncated = found.truncated or bool(found.partial)
    return found
