"""Where each key of a TOML text stands: the line numbers that `tomllib` does not keep."""

from __future__ import annotations

import bisect
import re
import tomllib

__all__ = ["Lines", "Path", "line_of", "locate"]

Path = tuple[str | int, ...]
Lines = dict[Path, int]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}\n#]*")
# No possessive quantifiers: over groups they match wrongly before Python 3.11.5 (cpython 106052).
_STRINGS = (
    re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*"""(?:"{0,2})', re.S),
    re.compile(r"'''(?:[^']|'(?!''))*'''(?:'{0,2})", re.S),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)


def locate(text: str) -> Lines:
    """The line, counted from 1, of every table, key and array element of a TOML text.

    Paths are as one would index `tomllib.loads(text)`: `("stage", 0, "from")`. A table that is
    named in several places has the line of the first. `text` must have passed `tomllib` already;
    for a text that has not, the answer is incomplete and never an exception.
    """
    scan = _Scan(text)
    try:
        scan.document()
    except (_Stop, RecursionError):
        pass
    return scan.lines


def line_of(lines: Lines, path: Path) -> int | None:
    """The line of `path`, or of the nearest thing around it that has one."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


class _Stop(Exception):
    """The text is not the TOML it was said to be."""


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: Lines = {}
        self.counts: dict[Path, int] = {}  # elements of each array of tables, so far
        self.ends = [match.start() for match in re.finditer("\n", text)]

    def document(self) -> None:
        table: Path = ()
        while self.skip(_BLANK):
            here = self.line()
            if self.take("[["):
                *outer, last = self.key()
                path = (*self.resolve(tuple(outer)), last)
                self.mark((), path, here)
                count = self.counts.get(path, 0)
                self.counts[path] = count + 1
                table = (*path, count)
                self.lines[table] = here
                self.need("]]")
            elif self.take("["):
                table = self.resolve(self.key())
                self.mark((), table, here)
                self.need("]")
            else:
                self.pair(table)

    def resolve(self, keys: tuple[str, ...]) -> Path:
        """A header's keys as a path: below an array of tables they mean its last element."""
        path: Path = ()
        for key in keys:
            path = (*path, key)
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        return path

    def mark(self, base: Path, path: Path, line: int) -> None:
        for end in range(len(base) + 1, len(path) + 1):
            self.lines.setdefault(path[:end], line)

    def pair(self, base: Path) -> None:
        here = self.line()
        path = (*base, *self.key())
        self.mark(base, path, here)
        self.need("=")
        self.skip(_SPACE)
        self.value(path)

    def key(self) -> tuple[str, ...]:
        keys = []
        while True:
            self.skip(_SPACE)
            keys.append(self.simple_key())
            self.skip(_SPACE)
            if not self.take("."):
                return tuple(keys)

    def simple_key(self) -> str:
        if match := _BARE_KEY.match(self.text, self.at):
            self.at = match.end()
            return match[0]
        quoted = self.string()
        if "\\" in quoted and quoted[0] == '"':
            try:
                return str(tomllib.loads(f"x={quoted}")["x"])
            except tomllib.TOMLDecodeError:
                raise _Stop from None
        return quoted[1:-1]

    def string(self) -> str:
        for pattern in _STRINGS:
            if match := pattern.match(self.text, self.at):
                self.at = match.end()
                return match[0]
        raise _Stop

    def value(self, path: Path) -> None:
        if self.text[self.at : self.at + 1] in ('"', "'"):
            self.string()
        elif self.take("["):
            index = 0
            while self.skip(_BLANK) and not self.take("]"):
                self.lines[(*path, index)] = self.line()
                self.value((*path, index))
                index += 1
                self.skip(_BLANK)
                self.take(",")
        elif self.take("{"):
            while self.skip(_BLANK) and not self.take("}"):
                self.pair(path)
                self.skip(_BLANK)
                self.take(",")
        else:
            before = self.at
            self.skip(_BARE_VALUE)
            if self.at == before:
                raise _Stop

    def line(self) -> int:
        return bisect.bisect_left(self.ends, self.at) + 1

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Move over `pattern`; whether anything of the text is left."""
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return self.at < len(self.text)

    def take(self, mark: str) -> bool:
        if self.text.startswith(mark, self.at):
            self.at += len(mark)
            return True
        return False

    def need(self, mark: str) -> None:
        if not self.take(mark):
            raise _Stop
