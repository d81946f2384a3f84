"""Adds, changes and removes one `[machines.NAME]` of the user's configuration; all else stays as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from compute_router.config import own_path
from compute_router.durable import fsync_folder, held, write_beside
from compute_router.errors import ConfigError, InputError
from compute_router.reading.layers import parse_toml, shown_path
from compute_router.reading.locate import line_of, locate

__all__ = ["put", "remove"]

Tables = dict[str, Any]
_HEADER = re.compile(r"[ \t]*\[\[?(?P<path>[^\[\]\n]+)\]\]?[ \t]*(#.*)?")
_BLANK = re.compile(r"[ \t]*(#.*)?")
_ROUNDS = 20
"""How often the file is read again because an editor, which knows no lock, wrote it meanwhile."""


def put(name: str, change: Callable[[Mapping[str, Any] | None], Mapping[str, Any] | None]) -> Path:
    """Write the table of machine `name`, and return the file it stands in.

    `change` is given the table as it stands there now, or None, and returns the keys to set (a value
    of None takes one out), or None for leaving the file as it is; what it raises is raised, and nothing
    is written. It may be called more than once. Edits at the same time are made one after the other.

    Raises `ConfigError` with its line where the file is no TOML, and `InputError` where it cannot be
    written.
    """

    def edit(text: str, tables: Tables) -> str | None:
        there = tables.get("machines", {}).get(name)
        values = change(there)
        if values is None:
            return None
        wanted = {k: v for k, v in {**(there or {}), **values}.items() if v is not None}
        if wanted == there:
            return None
        expected = {**tables, "machines": {**tables.get("machines", {}), name: wanted}}
        return _first_that_is(expected, _spliced(text, name, values), _whole(text, name, values))

    return _edited(edit)


def remove(name: str) -> bool:
    """Take the table of machine `name` out; False if there is none. Raises as `put` does."""
    found = False

    def edit(text: str, tables: Tables) -> str | None:
        nonlocal found
        found = name in tables.get("machines", {})
        if not found:
            return None
        rest = {key: table for key, table in tables["machines"].items() if key != name}
        return _first_that_is(
            {**tables, "machines": rest}, _spliced(text, name, None), _whole(text, name, None)
        )

    _edited(edit)
    return found


def _edited(edit: Callable[[str, Tables], str | None]) -> Path:
    path = own_path()
    if not path.is_absolute():
        raise InputError("no HOME is set, so there is no config.toml", mend="export ROUTE_CONFIG=/a/file")
    _tomlkit()
    shown = shown_path(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with held(path.parent / f".{path.name}.lock", create=True):
            for _ in range(_ROUNDS):
                before, mark = _read(path)
                text, bom = _decoded(before, shown)
                made = edit(text, _machines_in(text, shown))
                if made is None:
                    return path
                if _replaced(path, ("\ufeff" if bom else "").encode() + made.encode(), mark):
                    return path
    except OSError as e:
        raise InputError(f"{shown} cannot be written: {e.strerror or e}", mend="see that it can be") from e
    raise InputError(f"{shown} is written by somebody else all the time", mend="close it, and try again")


def _tomlkit() -> Any:
    try:
        import tomlkit
    except ImportError as e:
        raise InputError(
            "tomlkit is missing, which keeps the comments of your config.toml",
            mend="pip install 'compute-router[ssh]'",
        ) from e
    return tomlkit


def _read(path: Path) -> tuple[bytes, tuple[int, ...] | None]:
    """The bytes of the file, and what changes when somebody writes it; none, None if it is not there."""
    try:
        with open(path, "rb") as f:
            return f.read(), _mark(os.fstat(f.fileno()))
    except FileNotFoundError:
        return b"", None


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _decoded(data: bytes, shown: str) -> tuple[str, bool]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ConfigError(
            "the bytes here are not UTF-8", mend="save it as UTF-8", file=shown, line=line
        ) from None
    return text.removeprefix("\ufeff"), text.startswith("\ufeff")


def _machines_in(text: str, shown: str) -> Tables:
    """The values of the file, whose `machines` is a table of tables."""
    plain = text.replace("\r\n", "\n")
    tables = parse_toml(plain, shown, error=ConfigError)
    machines = tables.get("machines", {})
    wrong: tuple[str, ...] | None = None if isinstance(machines, dict) else ("machines",)
    if wrong is None:
        wrong = next((("machines", n) for n, table in machines.items() if not isinstance(table, dict)), None)
    if wrong is not None:
        name = ".".join(wrong)
        raise ConfigError(
            f"{name} must be a table",
            mend="write [machines.NAME] and its keys below",
            file=shown,
            line=line_of(locate(plain), wrong),
        )
    return tables


def _replaced(path: Path, data: bytes, mark: tuple[int, ...] | None) -> bool:
    """Put `data` in place of the file that `mark` was taken of; False, and nothing done, if it is another
    by now. A link stays one: what it leads to is replaced."""
    real = Path(os.path.realpath(path))
    beside = write_beside(real.parent, real.name, data)
    try:
        try:
            now: os.stat_result | None = os.stat(real)
        except FileNotFoundError:
            now = None
        if (None if now is None else _mark(now)) != mark:
            return False
        if now is not None and not now.st_mode & 0o222:
            # A rename asks the folder alone, but whoever made the file so means it.
            raise OSError(errno.EACCES, "it is read-only")
        if now is not None:
            os.chmod(beside, stat.S_IMODE(now.st_mode))
            if (now.st_uid, now.st_gid) != (os.geteuid(), os.getegid()):
                with contextlib.suppress(OSError):
                    os.chown(beside, now.st_uid, now.st_gid)
        os.replace(beside, real)
    finally:
        beside.unlink(missing_ok=True)
    fsync_folder(real.parent)
    return True


# The text. What is written is only ever what reads back as the values that were meant.


def _first_that_is(expected: Tables, *tries: Callable[[], str]) -> str:
    for make in tries:
        # A way of writing the table that one of them does not know is one for the next.
        with contextlib.suppress(Exception):
            made = make()
            if _same(tomllib.loads(made.replace("\r\n", "\n")), expected):
                return made
    raise InputError(
        "your config.toml writes its machines in a way that cannot be edited by a program",
        mend="edit it by hand, or write each machine as a table [machines.NAME]",
    )


def _same(one: Tables, other: Tables) -> bool:
    def whole(tables: Tables) -> Tables:
        return {key: value for key, value in tables.items() if key != "machines" or value}

    return repr(_sorted(whole(one))) == repr(_sorted(whole(other)))


def _sorted(value: Any) -> Any:
    """Values that can be compared although one may be a NaN and order does not count."""
    if isinstance(value, dict):
        return [(key, _sorted(value[key])) for key in sorted(value)]
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _spliced(text: str, name: str, values: Mapping[str, Any] | None) -> Callable[[], str]:
    """The text with the lines of one table replaced, put in or (None) taken out. Comments around it, even
    those that stand between it and the next table, are nobody's but the reader's."""

    def make() -> str:
        lines = text.splitlines(keepends=True)
        end_of_line = "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"
        own = list(_blocks(lines, name))
        if len(own) > 1:
            raise ValueError("the table stands in several places")
        if values is None:
            [(start, end)] = own
            return _joined(lines[:start], [], lines[end:], end_of_line)
        if own:
            [(start, end)] = own
            block = _tomlkit().parse("".join(lines[start:end]))
            _set(block["machines"][name], values)
            changed = re.sub(r"\r?\n", end_of_line, block.as_string())
            return "".join([*lines[:start], changed, *lines[end:]])
        after = max((end for _, end in _blocks(lines, None)), default=len(lines))
        return _joined(lines[:after], _written(name, values, end_of_line), lines[after:], end_of_line)

    return make


def _blocks(lines: list[str], name: str | None) -> Iterator[tuple[int, int]]:
    """First and last line (excluded) of each run of tables `machines.NAME...`; of any machine if None."""
    start = None
    for number, line in enumerate([*lines, "[]"]):
        header = _HEADER.fullmatch(line.rstrip("\r\n"))
        if header is None and number < len(lines):
            continue
        path = _path(header["path"]) if header is not None else ()
        ours = path[:1] == ("machines",) and len(path) > 1 and name in (None, path[1])
        if start is not None and not ours:
            yield start, _end_of_text(lines, start, number)
            start = None
        if ours and start is None:
            start = number


def _path(header: str) -> tuple[str, ...]:
    try:
        found: Any = tomllib.loads(f"[{header}]")
    except tomllib.TOMLDecodeError:
        return ()
    parts = []
    while isinstance(found, dict) and found:
        [(part, found)] = found.items()
        parts.append(part)
    return tuple(parts)


def _end_of_text(lines: list[str], start: int = 0, end: int | None = None) -> int:
    """Behind the last line from `start` to `end` that says something to a program."""
    end = len(lines) if end is None else end
    while end > start and _BLANK.fullmatch(lines[end - 1].rstrip("\r\n")):
        end -= 1
    return end


def _joined(before: list[str], block: list[str], after: list[str], end_of_line: str) -> str:
    """The three with one empty line between those that have anything, and a line end at the end."""
    parts = []
    for part in (before, block, after):
        text = "".join(part)
        lines = text.splitlines(keepends=True)
        while lines and not lines[0].strip():
            lines.pop(0)
        while lines and not lines[-1].strip():
            lines.pop()
        if lines:
            parts.append("".join(lines).rstrip("\r\n") + end_of_line)
    return end_of_line.join(parts)


def _written(name: str, values: Mapping[str, Any], end_of_line: str) -> list[str]:
    """The lines of a new table."""
    tomlkit = _tomlkit()
    doc, machines, table = tomlkit.document(), tomlkit.table(is_super_table=True), tomlkit.table()
    _set(table, values)
    machines.append(name, table)
    doc.append("machines", machines)
    text: str = doc.as_string()
    return [line + end_of_line for line in text.strip().splitlines()]


def _set(table: Any, values: Mapping[str, Any]) -> None:
    tomlkit = _tomlkit()
    for key, value in values.items():
        if value is None:
            if key in table:
                del table[key]
        elif isinstance(value, Mapping):
            inline = tomlkit.inline_table()
            inline.update(dict(value))
            table[key] = inline
        else:
            table[key] = value


def _whole(text: str, name: str, values: Mapping[str, Any] | None) -> Callable[[], str]:
    """The same for whoever writes machines in another form, such as `machines.h1.address = ...`."""

    def make() -> str:
        doc = _tomlkit().parse(text)
        if values is None:
            del doc["machines"][name]
            if not doc["machines"]:
                del doc["machines"]
        else:
            if name not in doc.setdefault("machines", {}):
                doc["machines"][name] = _tomlkit().inline_table()
            _set(doc["machines"][name], values)
        made: str = doc.as_string()
        return made

    return make
