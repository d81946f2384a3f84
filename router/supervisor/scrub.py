"""The forms in which a secret's value can stand in bytes, and where they stand in given bytes."""

from __future__ import annotations

import base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterator, List, Mapping, Sequence, Set, Tuple

    Alternatives = Tuple[bytes, ...]
    Span = Tuple[int, int, str]

LEAST = 4
"""Bytes of the shortest value that is looked for: a shorter one stands everywhere by chance."""
LEAST_LINE = 8
"""The same for one line of a value of several."""
LEAST_HALF = 4
"""Bytes of the beginning of a form that count as one at the very end of a file."""
ANCHOR = 3
WRAPS = (76, 64)
"""Columns at which `base64`, MIME and PEM break lines."""
PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
"""What no encoding that is looked for writes otherwise."""
NAMED = {
    0: "0", 7: "a", 8: "b", 9: "t", 10: "n", 11: "v", 12: "f", 13: "r", 27: "E",
}  # fmt: skip
ENTITIES = {ord("&"): b"&amp;", ord("<"): b"&lt;", ord(">"): b"&gt;", ord('"'): b"&quot;", ord("'"): b"&#39;"}


def special(byte: int, run: int) -> Alternatives:
    """How `run` equal bytes may be written: as they are, for a URL, in JSON, for a shell, in a literal."""
    raw = bytes((byte,))
    found = [raw, b"%%%02X" % byte, b"%%%02x" % byte]
    if byte < 128:
        # A second backslash: text that was escaped is escaped again when it is put into JSON.
        hexes = (b"u%04x" % byte, b"u%04X" % byte)
        escapes = [*hexes, b"x%02x" % byte, b"x%02X" % byte, b"%03o" % byte]
        if byte in NAMED:
            escapes.append(NAMED[byte].encode())
        if byte == ord("\\"):
            found += [raw * 2, raw * 4]
        elif byte >= 32:
            found += [b"\\" + raw, b"\\\\" + raw, b"\\\\\\" + raw]
        found += [slashes + escape for escape in escapes for slashes in (b"\\", b"\\\\")]
    else:
        found += [b"\\x%02x" % byte, b"\\%03o" % byte, b"\\\\x%02x" % byte, b"\\udc%02x" % byte]
    if byte == ord(" "):
        found.append(b"+")
    elif byte == ord("'"):
        found += [b"'\\''", b"'\\\\''", b"'\"'\"'", b"'\\\"'\\\"'", b"&#x27;"]
    if byte in ENTITIES:
        found.append(ENTITIES[byte])
    # A shell quotes only the first of some characters in a row.
    return _ordered([*(way * run for way in found), b"\\" + raw * run])


def foreign(character: str) -> Alternatives:
    """How a character beyond ASCII may be written."""
    data = character.encode("utf-8")
    units = character.encode("utf-16-be")
    pairs = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
    found = [data]
    for make in (str.lower, str.upper):
        found.append("".join(make("%%%02x" % byte) for byte in data).encode())
        for slashes in ("\\", "\\\\"):
            found.append("".join(slashes + "u" + make(pair) for pair in pairs).encode())
            found.append("".join(slashes + "x" + make("%02x" % byte) for byte in data).encode())
    found.append("".join("\\%03o" % byte for byte in data).encode())
    number = ord(character)
    found.append((b"\\x%02x" if number < 256 else b"\\U%08x") % number)
    return _ordered(found)


def _ordered(ways: Iterator[bytes] | Sequence[bytes]) -> Alternatives:
    return tuple(sorted(set(ways), key=lambda way: (-len(way), way)))


def steps(text: str) -> List[Alternatives]:
    """`text` as pieces that follow each other, each with the ways to write it."""
    found: List[Alternatives] = []
    plain = bytearray()
    at = 0
    while at < len(text):
        number = ord(text[at])
        if number in PLAIN:
            plain.append(number)
            at += 1
            continue
        if plain:
            found.append((bytes(plain),))
            plain.clear()
        if number < 128:
            # Equal ones together: an encoder treats them alike, and nothing has to be tried twice.
            run = len(text) - at - len(text[at:].lstrip(text[at]))
            found.append(special(number, run))
            at += run
            continue
        # What was no UTF-8 in the environment comes as a lone surrogate that stands for its byte.
        stray = 0xDC80 <= number <= 0xDCFF
        if not stray and 0xD800 <= number <= 0xDFFF:
            found.append((("\\u%04x" % number).encode(), ("\\u%04X" % number).encode()))
        else:
            found.append(special(number - 0xDC00, 1) if stray else foreign(text[at]))
        at += 1
    if plain:
        found.append((bytes(plain),))
    return found


class Form:
    """One way a value may stand in bytes: pieces that follow each other."""

    def __init__(self, name: str, pieces: List[Alternatives]) -> None:
        self.name, self.pieces = name, pieces
        self.longest = sum(max(map(len, ways)) for ways in pieces)
        fixed = [i for i, ways in enumerate(pieces) if len(ways) == 1]
        best = max(fixed, key=lambda i: len(pieces[i][0]), default=-1)
        self.anchor = pieces[best][0] if best >= 0 and len(pieces[best][0]) >= ANCHOR else b""
        before = pieces[: max(best, 0)] if self.anchor else []
        self.before = sum(min(map(len, w)) for w in before), sum(max(map(len, w)) for w in before)
        # The beginning of a form, of which each way is a place to look from where there is no anchor.
        self.first = pieces[0]

    def starts(self, data: bytes) -> Iterator[int]:
        """Every place where the form may begin, in order but for repetitions."""
        for word in (self.anchor,) if self.anchor else self.first:
            at = data.find(word)
            while at >= 0:
                least, most = self.before if self.anchor else (0, 0)
                yield from range(max(0, at - most), at - least + 1)
                at = data.find(word, at + 1)

    def end(self, data: bytes, start: int) -> int:
        """Where the form ends that begins at `start`; -1 if none does."""
        reached = {start}
        for ways in self.pieces:
            reached = {at + len(way) for at in reached for way in ways if data.startswith(way, at)}
            if not reached:
                return -1
        return max(reached)

    def cut(self, data: bytes, start: int) -> bool:
        """Whether what stands from `start` to the end of `data` is the beginning of the form, not all."""
        reached = {start}
        size = len(data)
        for ways in self.pieces:
            after = set()
            for at in reached:
                rest = size - at
                for way in ways:
                    if rest < len(way):
                        if way.startswith(data[at:]):
                            return True
                    elif data.startswith(way, at):
                        after.add(at + len(way))
            reached = after
            if not reached:
                return False
        return False


class Scrubber:
    """Finds the values of `secrets` (name to value) in bytes, in every form. Holds them in memory only."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        made: Dict[Tuple[Alternatives, ...], Form] = {}
        self.short: List[str] = []
        for name in sorted(secrets):
            if _size(secrets[name].strip()) < LEAST:
                self.short.append(name)
                continue
            for pieces in forms(secrets[name]):
                made.setdefault(tuple(pieces), Form(name, pieces))
        self.forms = sorted(made.values(), key=lambda form: (-form.longest, form.name))
        self.longest = max((form.longest for form in self.forms), default=0)
        self._by_first: Dict[int, List[Form]] = {}
        for form in self.forms:
            for byte in {way[0] for way in form.first}:
                self._by_first.setdefault(byte, []).append(form)

    def spans(self, data: bytes) -> List[Span]:
        """Where a form stands: from, to, the secret's name. They may overlap."""
        found: List[Span] = []
        for form in self.forms:
            if form.anchor and form.anchor not in data:
                continue
            past = 0
            for start in form.starts(data):
                if start < past:
                    continue
                end = form.end(data, start)
                if end > start:
                    found.append((start, end, form.name))
                    past = end if form.anchor else 0
        return found

    def holds(self, data: bytes) -> str:
        """The name of a secret whose value stands in `data`; empty if none does."""
        spans = self.spans(data)
        return min(spans)[2] if spans else ""

    def masked(self, data: bytes) -> bytes:
        """`data` with every form overwritten; as long as before."""
        made = bytearray(data)
        for start, end, _ in self.spans(data):
            made[start:end] = b"*" * (end - start)
        return bytes(made)

    def replaced(self, text: str, instead: str = "***") -> Tuple[str, Dict[str, int]]:
        """`text` with `instead` for every form, and how often each secret stood there."""
        if not self.forms:
            return text, {}
        data = text.encode("utf-8", "surrogatepass")
        counts: Dict[str, int] = {}
        made, at = [], 0
        for start, end, name in sorted(self.spans(data)):
            if end <= at:
                continue
            if start >= at:
                made.append(data[at:start] + instead.encode())
                counts[name] = counts.get(name, 0) + 1
            at = end
        if not made:
            return text, {}
        return b"".join([*made, data[at:]]).decode("utf-8", "surrogatepass"), counts

    def held(self, data: bytes) -> int:
        """From where on the end of `data` may be the beginning of a form; its length if nowhere."""
        size = len(data)
        for start in range(max(0, size - self.longest), size):
            for form in self._by_first.get(data[start], ()):
                if size - start < form.longest and form.cut(data, start):
                    return start
        return size


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def forms(value: str) -> Iterator[List[Alternatives]]:
    """The forms of one value. White space around it is none of it."""
    value = value.strip()
    yield steps(value)
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:
        for line in lines:
            if _size(line) >= LEAST_LINE:
                yield steps(line)
    data = value.encode("utf-8", "surrogateescape" if _strays(value) else "surrogatepass")
    for text in based(data):
        # Its `+` and `/` may be escaped once more.
        yield steps(text.decode("ascii"))


def _strays(value: str) -> bool:
    return any(0xDC80 <= ord(c) <= 0xDCFF for c in value)


def based(data: bytes) -> Set[bytes]:
    """`data` in base64 as it stands inside of more: at each of three places, without the characters
    that its neighbours have a part in."""
    found: Set[bytes] = set()
    for before, first in ((0, 0), (1, 2), (2, 3)):
        text = base64.b64encode(b"\0" * before + data)
        inner = text[first : (before + len(data)) * 8 // 6]
        found.add(inner)
        found.add(inner.replace(b"+", b"-").replace(b"/", b"_"))
    for width in WRAPS:
        text = base64.b64encode(data).rstrip(b"=")
        if len(text) > width:
            found.update(line for line in _lines(text, width) if len(line) >= LEAST_LINE)
    return found


def _lines(text: bytes, width: int) -> Iterator[bytes]:
    for at in range(0, len(text), width):
        yield text[at : at + width]
