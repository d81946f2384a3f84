"""What the machines of one run saw, made one fact for each field; and the blocks of those beside node 0."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from compute_router.receipt.facts import MOST_TEXT, Fact, at_path, missing, put, seen, unobserved, value
from compute_router.receipt.observing import observe
from compute_router.receipt.schema import TABLE
from compute_router.records import canonical, digest

__all__ = ["Node", "broken", "nodes_of", "observe_all", "rows"]


class Node(NamedTuple):
    """One machine of a run on several; `measured` is its block, None if it left none."""

    rank: int
    machine: str
    measured: Mapping[str, Any] | None
    measured_sha256: str | None


def rows(first: Mapping[str, Any] | None, sha256: str | None, others: Sequence[Node]) -> list[dict[str, Any]]:
    """The value of the field `nodes`. Node 0's block stands at the top of the receipt and not here again."""
    members = at_path(first, "launch.members")
    name = members[0] if isinstance(members, list) and members and isinstance(members[0], str) else ""
    found = [Node(0, name, None, sha256), *sorted(others)]
    return [
        {
            "rank": node.rank,
            "machine": node.machine,
            "measured_sha256": node.measured_sha256,
            "measured": None if node.measured is None else dict(node.measured),
        }
        for node in found
    ]


def nodes_of(context: Any) -> list[Node]:
    """The machines beside node 0 that a receipt tells of."""
    listed = value(context, "nodes")
    found = []
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict) and item.get("rank") != 0:
            block = item.get("measured")
            found.append(
                Node(
                    item.get("rank") or 0,
                    str(item.get("machine")),
                    block if isinstance(block, dict) else None,
                    item.get("measured_sha256"),
                )
            )
    return found


def broken(receipt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and sentence of every block of a node that is not what its digest stands for."""
    listed = value(receipt.get("context"), "nodes")
    for index, item in enumerate(listed if isinstance(listed, list) else ()):
        path, item = f"context.nodes.{index}", item if isinstance(item, dict) else {}
        block, told = item.get("measured"), item.get("measured_sha256")
        if item.get("rank") == 0:
            if block is not None or told != receipt.get("measured_sha256"):
                yield path, "node 0 is not the machine of the measured block"
        elif block is None:
            if told is not None:
                yield path, "its digest stands for a block that is not there"
        elif not isinstance(block, dict) or hashlib.sha256(canonical(block)).hexdigest() != told:
            yield path, "its measured block is not what its digest stands for"
        elif any(block.get(name) != receipt.get(name) for name in ("run_id", "attempt")):
            yield path, "its measured block is that of another run"


def observe_all(
    first: Mapping[str, Any] | None, others: Sequence[Node], *, at: int, cpu: bool
) -> dict[str, Any]:
    """As `observe`, over all machines of a run: the rules are those of `RULES`, any other field is node 0's.

    What must be alike and is not was not observed of the run: no single value would be true of it.
    """
    found = observe(first, at=at, cpu=cpu)
    if not others:
        return found
    members = at_path(first, "launch.members")
    name = str(members[0]) if isinstance(members, list) and members else "node 0"
    each = [(name, found), *((n.machine, observe(n.measured, at=at, cpu=cpu)) for n in sorted(others))]
    for field in TABLE:
        rule = RULES.get(field.path) if field.block == "measured" else None
        if rule is not None:
            put(found, field.path, rule([(who, at_path(seen_, field.path)) for who, seen_ in each]))
    return found


Facts = Sequence[tuple[str, Fact]]


def _gone(facts: Facts) -> Fact | None:
    """What stands for all if one of them has no value: that of the first such machine, which is named."""
    for who, fact in facts:
        if gone := missing(fact):
            why = str(fact.get("why") or gone)
            return dict(fact) if gone == "not_applicable" else unobserved(f"{who}: {why.partition(': ')[2]}")
    return None


def _made(facts: Facts, v: Any) -> Fact:
    first = facts[0][1]
    return seen(v, first["src"], max(fact["at"] for _, fact in facts))


def _total(facts: Facts) -> Fact:
    return _gone(facts) or _made(facts, sum(fact["v"] for _, fact in facts))


def _most(facts: Facts) -> Fact:
    return _gone(facts) or _made(facts, max(fact["v"] for _, fact in facts))


def _joined(facts: Facts) -> Fact:
    return _gone(facts) or _made(facts, [item for _, fact in facts for item in fact["v"]])


def _named(facts: Facts) -> Fact:
    told = (f"{who}: {item}"[:MOST_TEXT] for who, fact in facts for item in fact.get("v") or ())
    return _gone(facts) or _made(facts, list(told))


def _bad_news(rule: Callable[[Facts], Fact], bad: Callable[[Any], Any] = bool) -> Callable[[Facts], Fact]:
    """What one machine saw is not undone by another that could not look."""

    def made(facts: Facts) -> Fact:
        known = [(who, fact) for who, fact in facts if not missing(fact)]
        if known and bad((found := rule(known))["v"]):
            return found
        return rule(facts)

    return made


def _in_order(facts: Facts) -> Fact:
    """One digest; that of all of them, by rank, where the machines have different ones."""
    if gone := _gone(facts):
        return gone
    each = [fact["v"] for _, fact in facts]
    return dict(facts[0][1]) if len(set(each)) == 1 else _made(facts, digest(each))


def _merged(facts: Facts) -> Fact:
    """Every name once; where the machines have different values for it, all of them, by rank."""
    if gone := _gone(facts):
        return gone
    found = {}
    for name in sorted({name for _, fact in facts for name in fact["v"]}):
        each = [fact["v"].get(name, "(not set)") for _, fact in facts]
        found[name] = (each[0] if len(set(each)) == 1 else " | ".join(each))[:MOST_TEXT]
    return _made(facts, found)


def _slowest(facts: Facts) -> Fact:
    """The clocks of the machine whose GPUs ran slowest: the others wait for it."""
    told = [fact for _, fact in facts if type(at_path(fact, "v.p50")) is int]
    return _gone(facts) or (dict(min(told, key=lambda fact: fact["v"]["p50"])) if told else dict(facts[0][1]))


def _alike(part: Callable[[Any], Any] = lambda v: v) -> Callable[[Facts], Fact]:
    """All must have the same, or the same `part` of it."""

    def rule(facts: Facts) -> Fact:
        if gone := _gone(facts):
            return gone
        who, first = facts[0]
        for other, fact in facts[1:]:
            if part(fact["v"]) != part(first["v"]):
                return unobserved(
                    f"the machines differ: {_short(first['v'])} on {who}, {_short(fact['v'])} on {other}"
                )
        return dict(first)

    return rule


def _short(v: Any) -> str:
    return str(v)[:80]


def _each(*names: str) -> Callable[[Any], Any]:
    return lambda v: sorted([str(item.get(name)) for name in names] for item in v)


def _uncommitted(volumes: Any) -> bool:
    return any(v.get("committed") is False or "commit_failed" in (v.get("event") or ()) for v in volumes)


RULES: Mapping[str, Callable[[Facts], Fact]] = {
    "distributed.world": _total,
    "hw.observed.cotenants": _bad_news(_total),
    "compile.recompiles": _bad_news(_total),
    "distributed.first_step_us": _joined,
    "mem.peak_alloc_bytes": _joined,
    "mem.peak_reserved": _joined,
    "hw.observed.uuid": _joined,
    "hw.observed.throttle_reasons": _bad_news(_joined),
    "hw.observed.errors": _bad_news(_named),
    "volumes": _bad_news(_joined, bad=_uncommitted),
    "hw.observed.clock_sm_mhz": _slowest,
    "hw.observed.temp_c_max": _most,
    "mem.host_rss_peak": _most,
    "hw.observed.sku": _alike(),
    "hw.observed.count": _alike(),
    "hw.observed.topology": _alike(),
    "hw.observed.power_limit_w": _alike(),
    "hw.observed.mig": _alike(),
    **{
        f"hw.observed.{name}": _alike()
        for name in ("driver", "cuda_driver", "cc", "ecc", "mem_bytes", "cpu_milli", "governor")
    },
    "startup.class": _alike(),
    "env.stack": _alike(),
    "env.allow": _merged,
    "env.dists_sha256": _in_order,
    "image.digest": _alike(),
    "lock_sha256": _alike(),
    "data.manifest_sha256": _in_order,
    "cache": _alike(_each("kind", "state", "verdict")),
    "storage": _alike(_each("role", "class")),
}
"""How a field of several machines is made: what is not named here is node 0's, and stands for the others
in `nodes`."""
