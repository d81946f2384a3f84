"""What ranks other than 0 said of themselves: each in a file of its own, its first step and its memory."""

from __future__ import annotations

import os

from .. import group
from . import metrics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from .facts import Look

    Json = Dict[str, Any]

MOST_RANKS = 4096
MOST_LINES = 100


def of(look: Look) -> Dict[int, metrics.Summary]:
    """The summary of every rank that reported, by its number; that of rank 0 is the work's own."""
    found: Dict[int, metrics.Summary] = {}
    if look.reported is not None:
        found[0] = look.reported
    folder, name = os.path.split(look.attempt.at("metrics.jsonl"))
    try:
        names = [n for n in os.listdir(folder) if n.startswith(name + ".")]
    except OSError:
        return found
    for each in sorted(names)[:MOST_RANKS]:
        number = each[len(name) + 1 :]
        if number.isdigit() and len(number) < 7 and int(number) > 0:
            said = metrics.summarise(os.path.join(folder, each), 0, MOST_LINES)
            if said is not None:
                found[int(number)] = said
    return found


def first_rank(spec: Json) -> int:
    """The number of the first rank on this machine: each machine of a group has as many."""
    count = spec.get("launcher", {}).get("ranks", 1)
    return int(group.of(spec).get("node_rank", 0)) * (count if type(count) is int else 1)


def first_steps(look: Look) -> Tuple[Optional[List[int]], str]:
    """Microseconds from the work's first instruction to the end of the first step, by rank; else why not."""
    begun, over = look.executed.get("mono_us"), look.record.get("mono_us")
    if type(begun) is not int or type(over) is not int:
        return None, "the work was never executed, or nobody saw its end"
    each, base = of(look), first_rank(look.spec)
    if look.spec.get("launcher", {}).get("name") != "torchrun" and base:
        each = {
            base + rank: said for rank, said in each.items()
        }  # each machine's process is rank 0 to itself
    # A launcher in place starts as many as it likes: those that reported are all that is known.
    count = look.spec.get("launcher", {}).get("ranks", 1)
    times = []
    for rank in sorted({*range(base, base + (count if type(count) is int else 1)), *each} if each else ()):
        at = each[rank].first_us if rank in each else None
        if at is None or not begun <= at <= over:
            return None, "rank %d did not say when its first step ended (see route_report.step)" % rank
        times.append(at - begun)
    return times or None, "the work reported no steps; report them with route_report.step"


def peaks(look: Look, name: str) -> Optional[List[int]]:
    """The largest figure called `name` that each rank noted under `memory`, by rank; None if one did not."""
    found = []
    each = of(look)
    for _, said in sorted(each.items()):
        figures = [n.get(name) for n in said.notes if n.get("event") == "memory"]
        figures = [max(f) if isinstance(f, list) and f else f for f in figures]
        numbers = [f for f in figures if type(f) is int and f >= 0]
        if not numbers:
            return None
        found.append(max(numbers))
    return found or None
