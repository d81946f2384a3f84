"""The types a key can have: each checks one value and says in words what is wrong with it."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from compute_router.records import MAX_INT
from compute_router.workload import Accelerator, Role, Stage

__all__ = [
    "MOST_US",
    "Wrong",
    "accelerator",
    "boolean",
    "choice",
    "count",
    "decimal",
    "duration",
    "is_text",
    "items",
    "join",
    "label",
    "module",
    "mount",
    "near",
    "plain_json",
    "python",
    "relative",
    "secret_name",
    "stage",
    "table",
    "text",
    "url",
    "variable",
]

Check = Callable[[Any], Any]


class Wrong(Exception):
    """One value cannot be used: what is wrong, how to mend it, and where below the key it stands."""

    def __init__(self, what: str, mend: str = "", path: tuple[str | int, ...] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend
        self.path = path


def join(place: str, what: str) -> str:
    """`key` and what is wrong with it, or with something below it, as one sentence."""
    return f"{place}{what}" if what.startswith((".", "[")) else f"{place} {what}"


def near(word: str, known: Iterable[str]) -> str:
    """The mend for a word that is not among `known`: the nearest one, else all of them."""
    # Only a mistake pays for this import.
    from difflib import get_close_matches

    known = sorted(known)
    close = get_close_matches(word, known, 1) or get_close_matches(word.lower(), known, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are: {', '.join(known)}" if known else "none is known"


def _words(value: Any) -> str:
    for type_, word in (
        (bool, "a boolean"),
        (str, "a string"),
        (int, "an integer"),
        (float, "a decimal number"),
        (list, "a list"),
        (dict, "a table"),
    ):
        if isinstance(value, type_):
            return word
    return "nothing" if value is None else "a date or time"


def _cut(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "...")


def is_text(value: Any, *, mend: str = "") -> str:
    """A string without NUL, which no argument, path or variable can hold."""
    if not isinstance(value, str):
        raise Wrong(f"must be a string, not {_words(value)}", mend)
    if "\0" in value:
        raise Wrong("holds a NUL character", "take it out")
    return value


def text(value: Any) -> str:
    said = is_text(value, mend="put it in quotes")
    if not said.strip():
        raise Wrong("is empty", "write something, or leave the key out")
    if not said.isprintable():
        raise Wrong(f"holds unprintable characters: {_cut(said)}", "take them out")
    return said


_LABEL = re.compile(r"\w[\w.:@+=-]{0,99}")


def label(value: Any) -> str:
    """A name or tag: letters, digits and `. _ : @ + = -`, at most 100, begun by a letter or digit."""
    said = is_text(value, mend="put it in quotes")
    if not _LABEL.fullmatch(said):
        raise Wrong(f"{_cut(said)} is no label", "use up to 100 letters, digits and . _ : @ + = -")
    if said == "latest":
        raise Wrong("'latest' already means the newest run", "choose another name")
    return said


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"must be true or false, not {_words(value)}", "write it without quotes")
    return value


def count(least: int, most: int) -> Check:
    """An integer from `least` to `most`."""

    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Wrong(f"must be an integer, not {_words(value)}", f"write a number from {least} to {most}")
        if not least <= value <= most:
            raise Wrong(f"is {value}, out of range", f"write a number from {least} to {most}")
        return value

    return check


_DECIMAL = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")


def decimal(value: Any, *, positive: bool = False) -> str:
    """A decimal number as a string: floats have no exact form, so records hold none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        shown = f"{value}" if math.isfinite(value) and abs(value) < 1e15 else "4.50"
        raise Wrong(f"must be a decimal in a string, not {_words(value)}", f'write "{shown}"')
    said = is_text(value, mend='write it like "4.50"')
    if not _DECIMAL.fullmatch(said.removeprefix("" if positive else "-")):
        raise Wrong(f"{_cut(said)} is no decimal number", 'write it like "4.50", with no unit or exponent')
    if positive and not said.strip("0."):
        raise Wrong("must be more than 0", 'write it like "4.50", or leave the key out')
    return said


def choice(kinds: type[enum.StrEnum]) -> Check:
    """One of the words of an enumeration."""

    def check(value: Any) -> enum.StrEnum:
        words = [str(member) for member in kinds]
        listed = f"one of: {', '.join(words)}"
        if not isinstance(value, str):
            raise Wrong(f"must be a string, not {_words(value)}", listed)
        if value not in words:
            nearest = near(value, words)
            mend = f"{nearest} ({listed})" if nearest.startswith("did") else listed
            raise Wrong(f"cannot be {_cut(value)}", mend)
        return kinds(value)

    return check


def accelerator(value: Any) -> Accelerator:
    mend = "write cpu, any, H200:8 (a GPU and how many on each node) or v6e-8 (a TPU slice)"
    try:
        return Accelerator.parse(is_text(value, mend=mend))
    except ValueError:
        raise Wrong(f"{_cut(value)} is no accelerator", mend) from None


_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
MOST_US = 1000 * 86_400 * 1_000_000
"""The longest duration, in microseconds."""
_DURATION = re.compile(r"(?=[0-9])(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?")


def duration(value: Any) -> int:
    """`4h`, `90s`, `1h30m`, `2d` as microseconds; more than 0 and at most 1000 days."""
    mend = "write it like 90s, 30m, 4h, 1h30m or 2d"
    if isinstance(value, int) and not isinstance(value, bool):
        raise Wrong("has no unit", f'write "{value}s" for {value} seconds')
    said = is_text(value, mend=mend)
    match = _DURATION.fullmatch(said.replace(" ", ""))
    if not match:
        raise Wrong(f"{_cut(said)} is no duration", mend)
    seconds = sum(int(n or 0) * unit for n, unit in zip(match.groups(), _UNITS.values(), strict=True))
    if not 0 < seconds * 1_000_000 <= MOST_US:
        raise Wrong(f"{_cut(said)} is not more than 0 and at most 1000 days", mend)
    return seconds * 1_000_000


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def variable(value: Any) -> str:
    """The name of an environment variable that the user may set."""
    said = is_text(value)
    if not _VARIABLE.fullmatch(said):
        raise Wrong(f"{_cut(said)} is no name of an environment variable", "use letters, digits and _")
    if said.startswith("ROUTE_"):
        raise Wrong(f"{said} is set by the router", "choose a name that does not begin with ROUTE_")
    return said


def secret_name(value: Any) -> str:
    if isinstance(value, str) and "=" in value:
        name = value.partition("=")[0]
        raise Wrong("holds a value, not only a name", f"write {name!r} alone, and export {name}=...")
    return variable(value)


def _posix(value: str, what: str) -> list[str]:
    if not value.isprintable() or "\\" in value:
        raise Wrong(f"{_cut(value)} is no {what}", "use / between folders and printable characters")
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Wrong(f"{_cut(value)} goes up with ..", "write the path without ..")
    return parts


def relative(value: Any) -> str:
    """A path inside the folder that is shipped."""
    mend = "write it relative to the folder the work starts in, e.g. results/"
    said = is_text(value, mend=mend)
    if not said or said.startswith(("/", "~")):
        raise Wrong(f"{_cut(said)} is no relative path", mend)
    if not _posix(said, "path"):
        raise Wrong(f"{_cut(said)} would take the whole folder", "name a folder or files in it")
    return said


def mount(value: Any) -> str:
    """An absolute path a volume or bucket is seen at, without a slash at its end."""
    said = is_text(value, mend="write it like /data")
    if not said.startswith("/"):
        raise Wrong(f"{_cut(said)} is no absolute path", "write it like /data")
    parts = _posix(said, "path")
    if not parts or parts[0] in {"proc", "sys", "dev"}:
        raise Wrong(f"{_cut(said)} belongs to the system", "write it like /data")
    if not said.isascii():
        raise Wrong(f"{_cut(said)} is not ASCII", "use letters a-z, digits and / . _ -")
    return "/" + "/".join(parts)


_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.I)


def url(value: Any, *, what: str = "s3://bucket/prefix", schemes: tuple[str, ...] = ()) -> str:
    """`scheme://...` that holds no user name or password: credentials are secrets."""
    said = is_text(value, mend=f"write it like {what}")
    if "@" in said.partition("://")[2].split("/")[0]:
        raise Wrong("holds a user name or password", "name it under secrets; a URL is written into receipts")
    scheme = said.partition("://")[0].lower()
    if not _URL.fullmatch(said) or not said.isprintable() or (schemes and scheme not in schemes):
        raise Wrong(f"{_cut(said)} is no URL that can be used here", f"write it like {what}")
    return said


def python(value: Any) -> str:
    mend = 'write "current" (the interpreter that is there) or an absolute path'
    said = is_text(value, mend=mend)
    if said != "current" and not re.fullmatch(r"/[^\x00-\x1f]*[^/\x00-\x1f]", said):
        raise Wrong(f"{_cut(said)} is no interpreter", mend)
    return said


def module(value: Any) -> str:
    """The name of a Python module, as in an import."""
    said = is_text(value, mend="put it in quotes")
    if not said.isascii() or len(said) > 200 or not all(part.isidentifier() for part in said.split(".")):
        raise Wrong(f"{_cut(said)} is no name of a module", 'write it as in an import: "flash_attn"')
    return said


def items(check: Check, *, unique: bool = True) -> Check:
    """A list, each element of which passes `check`; a tuple comes out."""

    def each(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            mend = (
                f'write ["{value}"]'
                if isinstance(value, str) and len(value) < 60 and value.isprintable()
                else "write [...]"
            )
            raise Wrong(f"must be a list, not {_words(value)}", mend)
        found: list[Any] = []
        for index, item in enumerate(value):
            try:
                got = check(item)
            except Wrong as e:
                raise Wrong(join(f"[{index}]", e.what), e.mend, (index, *e.path)) from None
            if unique and got in found:
                raise Wrong(f"names {got} twice", "name it once", (index,))
            found.append(got)
        return tuple(found)

    return each


def table(key: Check, value: Check, *, like: str) -> Check:
    """A table, each key and value of which passes its check."""

    def each(found: Any) -> dict[Any, Any]:
        if not isinstance(found, dict):
            raise Wrong(f"must be a table, not {_words(found)}", f"write {like}")
        checked: dict[Any, Any] = {}
        for name, item in found.items():
            try:
                good = key(name)
            except Wrong as e:
                raise Wrong(e.what, e.mend, (name,)) from None
            if good in checked:
                raise Wrong(f"names {good} twice", "name it once", (name,))
            try:
                checked[good] = value(item)
            except Wrong as e:
                raise Wrong(join(f".{name}", e.what), e.mend, (name, *e.path)) from None
        return checked

    return each


def stage(value: Any) -> Stage:
    like = '{ from = "/datasets/000*", to = "data" }'
    if not isinstance(value, dict):
        raise Wrong(f"must be a table, not {_words(value)}", f"write {like}")
    for name in value:
        if name not in ("from", "to"):
            raise Wrong(f"has no key {_cut(name)}", f"{near(name, ('from', 'to'))} write {like}", (name,))
    for name in ("from", "to"):
        if name not in value:
            raise Wrong(f"lacks {name!r}", f"write {like}")
    try:
        source = text(value["from"])
        if not source.startswith("/") and not _URL.fullmatch(source):
            raise Wrong(f"{_cut(source)} is no absolute path or URL", f"write {like}")
        if source.startswith("/"):
            _posix(source, "path")
    except Wrong as e:
        raise Wrong(join(".from", e.what), e.mend, ("from",)) from None
    try:
        to: Role = choice(Role)(value["to"])
    except Wrong as e:
        raise Wrong(join(".to", e.what), e.mend, ("to",)) from None
    return Stage(source=source, to=to)


def plain_json(value: Any, path: tuple[str | int, ...] = ()) -> Any:
    """Any value that has a canonical form: strings, integers, booleans, lists and tables of them."""
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    said = f"{where} " if where else ""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or not key.isascii():
                raise Wrong(f"{said}has a key that is not ASCII: {_cut(str(key))}", "use a-z", (*path, key))
        return {key: plain_json(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item, (*path, index)) for index, item in enumerate(value)]
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) > MAX_INT:
        raise Wrong(f"{said}is too large a number", "write it as a string", path)
    if isinstance(value, (str, int)):
        return value
    quoted = (
        f'write "{value}"' if isinstance(value, float) and math.isfinite(value) else "write it as a string"
    )
    raise Wrong(f"{said}must not be {_words(value)}", quoted, path)
