"""Facts: a value with who saw it and when, or why there is none; and whether a value fits its type."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from compute_router.receipt.schema import ENUMS, ITEMS

__all__ = [
    "MOST_ITEMS",
    "Fact",
    "at_path",
    "leaves",
    "misfit",
    "missing",
    "not_applicable",
    "put",
    "seen",
    "unobserved",
    "value",
]

Fact = dict[str, Any]
MOST_ITEMS = 10_000
MOST_TEXT = 4096
MAX_INT = 2**53 - 1
_HEX = re.compile(r"[0-9a-f]{1,128}")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,39})(\.[0-9]{1,40})?")


def seen(v: Any, src: str, at: int) -> Fact:
    """A value, who says so, and when (epoch microseconds)."""
    return {"v": v, "src": src, "at": at}


def unobserved(why: str = "") -> Fact:
    """Nobody saw it. Never equal to anything, not even to another that nobody saw."""
    return {"v": None, "why": f"unobserved: {why[:300]}" if why else "unobserved"}


def not_applicable(why: str) -> Fact:
    """There is nothing to see: by kind and hardware class, never by a probe. Equal to itself."""
    return {"v": None, "why": f"not_applicable: {why[:300]}" if why else "not_applicable"}


def missing(fact: Any) -> str:
    """`unobserved` or `not_applicable` for a fact without a value, else nothing."""
    if not isinstance(fact, Mapping) or fact.get("v") is not None:
        return "" if isinstance(fact, Mapping) else "unobserved"
    why = fact.get("why")
    return "not_applicable" if isinstance(why, str) and why.startswith("not_applicable") else "unobserved"


def at_path(data: Any, path: str) -> Any:
    """What stands at a dotted path; None where there is nothing."""
    for name in path.split("."):
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def value(context: Any, path: str) -> Any:
    """The value of the fact at `path`, None where it has none."""
    fact = at_path(context, path)
    return fact.get("v") if isinstance(fact, Mapping) else None


def put(data: dict[str, Any], path: str, fact: Any) -> None:
    """Set `path` in nested dicts."""
    *parents, last = path.split(".")
    for name in parents:
        data = data.setdefault(name, {})
    data[last] = fact


def leaves(context: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every fact below `context` with its path; whatever else stands there is given out as it is."""
    if isinstance(context, Mapping) and "v" not in context and path.count(".") < 8:
        for name, item in context.items():
            yield from leaves(item, f"{path}.{name}" if path else str(name))
    else:
        yield path, context


def misfit(type_: str, v: Any, *, partly: bool = False) -> str:
    """Why `v` is no value of the schema type `type_`; empty if it is one. With `partly`, items of a list
    may lack parts."""
    name, _, rest = type_.partition(":")
    if name in ("int", "signed"):
        if type(v) is not int or abs(v) > MAX_INT or (v < 0 and name == "int"):
            return f"is no integer{' from 0' if name == 'int' else ''} below 2^53"
    elif name == "bool":
        if type(v) is not bool:
            return "is neither true nor false"
    elif name in ("text", "open"):
        if not isinstance(v, str) or len(v) > MOST_TEXT:
            return f"is no text of at most {MOST_TEXT} characters"
    elif name == "hex":
        if not isinstance(v, str) or not _HEX.fullmatch(v):
            return "is no digest in lower-case hex"
    elif name == "decimal":
        if not isinstance(v, str) or not _DECIMAL.fullmatch(v):
            return "is no decimal number as text"
    elif name == "enum":
        if v not in ENUMS[rest]:
            return f"is none of {', '.join(ENUMS[rest])}"
    elif name in ("texts", "numbers"):
        inner = "text" if name == "texts" else "int"
        if not isinstance(v, list) or any(misfit(inner, item) for item in v):
            return f"is no list of {name}"
    elif name == "map":
        if not isinstance(v, dict) or any(misfit("text", item) for item in v.values()):
            return "is no map from name to text"
    elif name == "list":
        return _misfit_list(rest, v, partly)
    return ""


def _misfit_list(name: str, v: Any, partly: bool) -> str:
    if not isinstance(v, list) or len(v) > MOST_ITEMS:
        return f"is no list of at most {MOST_ITEMS} items"
    items = ITEMS[name]
    for index, item in enumerate(v):
        if not isinstance(item, dict):
            return f"has item {index}, which is no object"
        if set(item) - set(items) or (set(items) - set(item) and not partly):
            odd = sorted(map(str, set(item) ^ set(items)))
            return (
                f"has item {index} with {'an unknown' if set(item) - set(items) else 'no'} field {odd[0]!r}"
            )
        for key, type_ in items.items():
            if item.get(key) is not None and (why := misfit(type_, item[key])):
                return f"has item {index} whose {key} {why}"
    return ""
