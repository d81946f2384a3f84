"""Figures and places in the words of a policy's sentences."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from compute_router.backend import Hardware, Offer
from compute_router.workload import Accelerator, Workload

__all__ = ["asked", "has", "listed", "place", "spoken", "target", "wait_flag"]

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def spoken(us: int | None) -> str:
    """Microseconds as people say them: `0.4 s`, `40 s`, `4 min 10 s`, `3 h`, `2 d 4 h`."""
    if us is None:
        return "an unknown time"
    if us < 9_950_000:
        return f"{max(us, 0) / 1_000_000:.1f} s"
    seconds = (us + 500_000) // 1_000_000
    for (unit, size), (below, part) in itertools.pairwise(_UNITS):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{seconds} s"


def wait_flag(us: int | None) -> str:
    """The `--wait` that would be long enough for a queue of `us` microseconds, rounded up."""
    if us is None:
        return "--wait forever"
    minutes = max(1, -(-us // 60_000_000))
    return f"--wait {minutes}m" if minutes < 120 else f"--wait {-(-minutes // 60)}h"


def listed(things: Iterable[object], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = [str(thing) for thing in things]
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def asked(workload: Workload) -> str:
    """The hardware a workload asks for, with its substitutes: `H200:8 or H100:8`, `2x cpu`."""
    needs = workload.needs
    text = listed((needs.accelerator, *needs.substitutes), "or")
    return f"{needs.nodes} nodes of {text}" if needs.nodes > 1 else text


def has(hardware: Hardware) -> str:
    """What one node of a place has, as a workload would ask for it: `H200:8`, `v6e-8`, `cpu`."""
    return str(Accelerator(family=hardware.family, sku=hardware.sku, count=hardware.count))


def place(offer: Offer) -> str:
    """The name of a place: `backend/id`, or the backend alone where that is the id too."""
    return offer.backend if offer.id == offer.backend else f"{offer.backend}/{offer.id}"


def target(workload: Workload) -> str:
    """What the user wrote behind `route run`, as far as the workload knows it."""
    entry = workload.entry
    return entry.ready or entry.script or f"-- {' '.join(entry.argv[:1]) or workload.name} ..."
