"""Layers of settings: what each says and where, laid over one another; and reading one from TOML."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compute_router.errors import InputError, WorkloadError
from compute_router.reading.keys import KEYS, TABLES, check
from compute_router.reading.locate import Lines, line_of
from compute_router.reading.locate import Path as KeyPath
from compute_router.reading.values import Wrong

__all__ = ["Layer", "Merged", "dotted", "merge", "parse_toml", "set_layer", "shown_path", "toml_layer"]


def shown_path(path: Path, cwd: Path | None = None) -> str:
    """`path` as a person would write it: from where they stand, from their home, else whole."""
    whole = os.path.abspath(path)
    near = os.path.relpath(whole, cwd or Path.cwd())
    home = os.path.expanduser("~")
    far = "~" + whole[len(home) :] if whole.startswith(home.rstrip("/") + "/") else whole
    # From where they stand, unless the way there is a detour: ../.config instead of ~/.config.
    return near if near.count("..") <= 2 and not (".." in near and len(far) <= len(near)) else far


def dotted(path: KeyPath) -> str:
    """A path as one would write it on the command line; parts that are no bare key are quoted."""
    parts = (str(p) if re.fullmatch(r"[A-Za-z0-9_-]+", str(p)) else '"' + str(p) + '"' for p in path)
    return ".".join(parts)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Settings from one place: `shown` names it, `note` the part of it, `lines` where each key stands,
    `first` the line of what has none of its own."""

    shown: str
    values: Mapping[str, Any]
    lines: Lines = dataclasses.field(default_factory=dict, repr=False)
    note: str = ""
    error: type[InputError] = WorkloadError
    first: int | None = None

    def line(self, path: KeyPath) -> int | None:
        return line_of(self.lines, path) or self.first

    def origin(self, path: KeyPath) -> str:
        """`train.py:7`, `route.toml:12 [profiles.big]` or `--set`."""
        line = self.line(path)
        at = f"{self.shown}:{line}" if line else self.shown
        return f"{at} {self.note}" if self.note else at

    def fault(self, path: KeyPath, what: str, mend: str) -> InputError:
        """The error that says what is wrong at `path`."""
        if not self.lines and self.first is None:
            return self.error(f"{self.shown}: {what}", mend=mend)
        return self.error(what, mend=mend, file=self.shown, line=self.line(path))

    def checked(self) -> Layer:
        """Itself, once every key in it is one there is and has a value it can have."""
        for key, value in self.values.items():
            try:
                check(key, value)
            except Wrong as e:
                raise self.fault(e.path, e.what, e.mend) from None
        return self


@dataclasses.dataclass(frozen=True)
class Merged:
    """Layers laid over one another: the values, and which layer each came from."""

    values: dict[str, Any]
    sources: dict[KeyPath, Layer]

    def source(self, path: KeyPath) -> Layer | None:
        while path:
            if path in self.sources:
                return self.sources[path]
            path = path[:-1]
        return None

    def origin(self, path: KeyPath) -> str:
        source = self.source(path)
        return "default" if source is None else source.origin(path)

    def fault(self, path: KeyPath, what: str, mend: str) -> InputError:
        """An error about what stands at `path`, or about the first thing below it that was written."""
        if path not in self.sources:
            below = (p for p in self.sources if p[: len(path)] == path)
            path = next(below, path)
        source = self.source(path)
        if source is None:
            return WorkloadError(what, mend=mend)
        return source.fault(path, what, mend)


def merge(layers: Iterable[Layer]) -> Merged:
    """Lay `layers` over one another, the first lowest. Tables of `TABLES` are merged key by key."""
    values: dict[str, Any] = {}
    sources: dict[KeyPath, Layer] = {}

    def lay(into: dict[str, Any], found: Mapping[str, Any], path: KeyPath, layer: Layer) -> None:
        for key, value in found.items():
            here = (*path, key)
            if isinstance(value, Mapping) and len(here) <= TABLES.get(str(here[0]), 0):
                below = into.setdefault(key, {})
                sources.setdefault(here, layer) if not value else None
                lay(below, value, here, layer)
            else:
                into[key] = value
                sources[here] = layer

    for layer in layers:
        lay(values, layer.values, (), layer)
    return Merged(values, sources)


_AT = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def parse_toml(
    text: str, shown: str, *, first: int = 1, error: type[InputError] = WorkloadError
) -> dict[str, Any]:
    """The values of a TOML text whose line 1 stands in line `first` of its file.

    Raises `error` with the line in the file.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        said = str(e)
        at = _AT.search(said)
        last = text.rstrip("\n").count("\n") + 1
        line = int(at[1]) if at and at[1] else last
        what = said[: at.start()] if at else said
        raise error(
            f"TOML: {what[:1].lower()}{what[1:]}",
            mend=_toml_mend(text, line),
            file=shown,
            line=line + first - 1,
        ) from None
    # Python's parser recurses for every bracket, and its integers have a limit of digits.
    except (RecursionError, ValueError) as e:
        why = "it is nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise error(f"TOML cannot be read: {why}", mend="make it simpler", file=shown, line=first) from None


def _toml_mend(text: str, line: int) -> str:
    lines = text.split("\n")
    written = lines[min(line, len(lines)) - 1].strip() if lines else ""
    if match := re.fullmatch(r"([\w.-]+)\s*=\s*([A-Za-z][^\s\"'\[\]{},]*)", written):
        return f'strings stand in quotes: {match[1]} = "{match[2]}"'
    if match := re.fullmatch(r"([\w.-]+)\s*:\s*(.+)", written):
        return f"TOML has = between key and value: {match[1]} = {match[2]}"
    return "see https://toml.io for how TOML is written"


def toml_layer(
    values: Mapping[str, Any],
    lines: Lines,
    shown: str,
    *,
    below: KeyPath = (),
    first: int = 1,
    note: str = "",
    error: type[InputError] = WorkloadError,
) -> Layer:
    """The layer at path `below` of a located TOML text."""
    cut = {p[len(below) :]: n + first - 1 for p, n in lines.items() if p[: len(below)] == below}
    at = line_of(lines, below)
    return Layer(shown, values, cut, note, error, at + first - 1 if at else first)


def set_layer(sets: Sequence[str]) -> Layer:
    """The layer of the `--set key=value` flags; a later one wins over an earlier.

    A value is TOML; what is no TOML, or is meant for a key that takes a string, is that string.
    """
    values: dict[str, Any] = {}
    for given in sets:
        left, equals, right = given.partition("=")
        mend = "write --set key=value, e.g. --set timeout=2h"
        if not equals:
            raise WorkloadError(f"--set {given!r}: there is no =", mend=mend)
        path = _set_key(left.strip(), given)
        value = _set_value(path, right)
        into = values
        for key in path[:-1]:
            into = into.setdefault(key, {})
            if not isinstance(into, dict):
                raise WorkloadError(
                    f"--set {given!r}: {dotted(path)} lies inside a value that is no table", mend=mend
                )
        into[path[-1]] = value
    return Layer("--set", values)


def _set_key(left: str, given: str) -> tuple[str, ...]:
    try:
        # The value is a marker; whatever else came out of the left side was no key.
        found: Any = tomllib.loads(f"{left} = 0") if "\n" not in left else {}
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        found = {}
    path: list[str] = []
    while isinstance(found, dict) and len(found) == 1:
        path.append(next(iter(found)))
        found = found[path[-1]]
    if not path or found != 0:
        raise WorkloadError(
            f"--set {given!r}: {left!r} is no key", mend="write --set key=value or table.key=value"
        )
    return tuple(path)


def _set_value(path: tuple[str, ...], right: str) -> Any:
    try:
        found = tomllib.loads(f"v = {right}")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return right
    if list(found) != ["v"] or "\n" in right.strip():
        return right
    value = found["v"]
    return right if not isinstance(value, (str, list, dict)) and _takes_string(path) else value


def _takes_string(path: tuple[str, ...]) -> bool:
    """Whether a number or boolean at `path` can only have been meant as text."""
    if path[0] in ("env", "volumes", "buckets"):
        return len(path) == 2
    if path == ("metrics", "primary"):
        return True
    words = ("string", "duration", "decimal in a string")
    return len(path) == 1 and path[0] in KEYS and KEYS[path[0]].type in words
