"""Reads the measured block by rule: from what a machine said to facts. Whatever it said, nothing raises."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from compute_router.receipt.facts import (
    MOST_ITEMS,
    Fact,
    at_path,
    misfit,
    not_applicable,
    put,
    seen,
    unobserved,
)
from compute_router.receipt.schema import ENUMS, ITEMS, TABLE, SchemaField

__all__ = ["observe", "word_of"]

NEVER = "the machine left no measurements"
_SLUG = re.compile(r"[^a-z0-9_./+-]+")


def observe(measured: Mapping[str, Any] | None, *, at: int, cpu: bool) -> dict[str, Any]:
    """Every field of the block `measured`, as facts at their paths.

    `at` stands where the machine did not say when; `cpu` says that no accelerator was asked for.
    Pure, so that whoever holds a receipt can do it again.
    """
    found: dict[str, Any] = {}
    for field in TABLE:
        if field.block == "measured":
            put(found, field.path, _one(field, measured, at, cpu))
    return found


def _one(field: SchemaField, measured: Mapping[str, Any] | None, at: int, cpu: bool) -> Fact:
    if measured is None:
        return unobserved(NEVER)
    special = _SPECIAL.get(field.path)
    try:
        if special is not None:
            fact = special(field, measured, at, cpu)
            wrong = "" if fact["v"] is None else misfit(field.type, fact["v"])
            return unobserved(f"what the machine said {wrong}") if wrong else fact
        return _fact(field, at_path(measured, field.of), at)
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as e:
        return unobserved(f"the machine's answer cannot be read ({type(e).__name__})")


def word_of(src: Any) -> str:
    """The source of a fact as the schema has it: `workload` as it is, anything else as observed by it."""
    if src == "workload":
        return "workload"
    name = _SLUG.sub("-", str(src).lower())[:64] if isinstance(src, str) else ""
    return "observed" if name in ("", "supervisor", "observed") else f"observed:{name}"


def _fact(field: SchemaField, node: Any, at: int) -> Fact:
    """One field as it was said: wrapped with source and time, or plain."""
    v, why, src, when = _unwrap(node, at)
    if v is None:
        return unobserved(why or "the machine does not report it")
    if v == "not_applicable":
        return not_applicable("the machine has none")
    if v == "unobserved":
        return unobserved(why)
    if wrong := misfit(field.type, v):
        return unobserved(f"what the machine said {wrong}")
    return seen(v, src, when)


def _unwrap(node: Any, at: int) -> tuple[Any, str, str, int]:
    """Value, reason, source and time of what may be wrapped in `{v, src, at}` or `{v, why}`."""
    if not isinstance(node, Mapping) or "v" not in node:
        return node, "", "observed", at
    why, when = node.get("why"), node.get("at")
    good = type(when) is int and 0 <= when < 2**53
    return node["v"], why if isinstance(why, str) else "", word_of(node.get("src")), when if good else at  # type: ignore[return-value]


def _hardware(field: SchemaField, measured: Mapping[str, Any], at: int, cpu: bool) -> Fact:
    """Where no accelerator was asked for, the hardware is the CPU: its model and how many there are."""
    name = field.path.rpartition(".")[2]
    if cpu:
        name = {"sku": "cpu_model", "count": "cpus"}.get(name, name)
    return _fact(field, at_path(measured, f"hw.observed.{name}"), at)


def _stack(field: SchemaField, measured: Mapping[str, Any], at: int, cpu: bool) -> Fact:
    """The versions that were seen; None of them if the framework's own was not."""
    listed = at_path(measured, field.of)
    if isinstance(listed, Mapping) and "v" in listed:
        return _fact(field, listed, at)
    if not isinstance(listed, Mapping):
        return unobserved()
    known, whys, when, src = {}, [], at, "observed"
    for name, node in list(listed.items())[:200]:
        v, why, src, when = _unwrap(node, at)
        if isinstance(v, str) and v != "not_applicable":
            known[str(name)] = v[:200]
        elif v is None:
            whys.append(why)
    return seen(known, src, when) if known and not whys else unobserved(whys[0] if whys else "")


def _list(field: SchemaField, measured: Mapping[str, Any], at: int, cpu: bool) -> Fact:
    """A list whose items, and their fields, may each be wrapped."""
    node, why, src, when = _unwrap(at_path(measured, field.of), at)
    if not isinstance(node, list):
        return unobserved(why)
    name = field.type.partition(":")[2]
    items = []
    for entry in node[:MOST_ITEMS]:
        inner, _, said, then = _unwrap(entry, at)
        if said != "observed":
            src, when = said, then
        if isinstance(inner, Mapping):
            items.append({key: _part(type_, inner.get(key)) for key, type_ in ITEMS[name].items()})
    # A list that says who looked is one of what was used, and may well be empty.
    if not items and field.path == "cache" and src == "observed":
        return unobserved("no cache was looked at, and the work reported none")
    return seen(items, src, when)


def _part(type_: str, node: Any) -> Any:
    v, _, _, _ = _unwrap(node, 0)
    name, _, rest = type_.partition(":")
    blank = "unobserved" if name == "enum" and "unobserved" in ENUMS[rest] else None
    if type_ == "texts":
        listed = v if isinstance(v, list) else [] if v is None else [v]
        v = [word for item in listed[:100] if isinstance(word := _unwrap(item, 0)[0], str)]
    elif type_ == "decimal" and type(v) is int:
        v = str(v)
    return blank if v is None or misfit(type_, v) else v


def _metrics(field: SchemaField, measured: Mapping[str, Any], at: int, cpu: bool) -> Fact:
    """The figures that were reported: the global rate, the losses, and the last value of the primary."""
    block = at_path(measured, "metrics")
    if not isinstance(block, Mapping):
        return unobserved()
    rows: list[dict[str, Any]] = []
    count = _unwrap(at_path(measured, "steady.n_steps"), at)[0]
    count = None if misfit("int", count) else count
    when = at
    for name, unit, higher, definition in _DEFINED:
        v, _, _, then = _unwrap(block.get(name), at)
        if isinstance(v, str) and not misfit("decimal", v):
            when = then
            rows.append(_metric(name, unit, higher, v, definition, count))
    primary, more = block.get("primary"), block.get("higher_is_better")
    last, _, _, then = _unwrap(block.get("last"), at)
    if (
        isinstance(primary, str)
        and isinstance(last, Mapping)
        and primary not in {row["name"] for row in rows}
    ):
        v = last.get(primary)
        if isinstance(v, str) and not misfit("decimal", v):
            when = then
            rows.append(
                _metric(primary[:200], "", more if type(more) is bool else None, v, "reported_last/1", 1)
            )
    if not rows:
        return unobserved(_unwrap(block.get("read"), at)[1] or "the work reported no figure")
    return seen(rows, "workload", when)


def _metric(
    name: str, unit: str, higher: bool | None, v: str, definition: str, n: int | None
) -> dict[str, Any]:
    return {
        "name": name,
        "unit": unit,
        "higher_is_better": higher,
        "value": v,
        "definition_id": definition,
        "n": n,
        "quantiles": None,
    }


# Name, unit, whether more is better, definition. Tokens are those of the global batch; the rate is
# the ratio of sums over the steps that count.
_DEFINED = (
    ("tok_s_global", "tokens/s", True, "tok_s_global/1"),
    ("loss_first", "", False, "loss_reported/1"),
    ("loss_last", "", False, "loss_reported/1"),
)
_SPECIAL: dict[str, Callable[[SchemaField, Mapping[str, Any], int, bool], Fact]] = {
    "hw.observed.sku": _hardware,
    "hw.observed.count": _hardware,
    "env.stack": _stack,
    "metrics.values": _metrics,
    **{field.path: _list for field in TABLE if field.block == "measured" and field.path in ITEMS},
}
