"""The sentences that stand beside an estimate: too few runs, drift, what was dropped, how many would do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from compute_router.compare import exact
from compute_router.compare.outcome import Estimate
from compute_router.compare.planning import ALPHA, N_TEST, N_VERDICT, POWER

__all__ = ["drift", "enough", "olympic", "size_notes", "small"]


def size_notes(found: Estimate) -> list[str]:
    """What so few runs cannot say; empty if they are enough for a verdict."""
    n, m = found.n_base, found.n_candidate
    few = min(n, m)
    counted = f"{n} {'block' if found.paired else 'run'}{'' if n == 1 else 's'}"
    counted += "" if found.paired or n == m else f" and {m}"
    unit = "blocks" if found.paired else "runs of each arm"
    if few == 1:
        return [f"{counted}: an anecdote; a verdict needs {N_VERDICT} {unit}"]
    if few < N_VERDICT:
        least = exact.least_p(n, m, paired=found.paired)
        cannot = f", and p cannot be below {least:.2g}" if least >= ALPHA else ""
        shown = "values and range alone" if few < N_TEST else "exploratory"
        return [f"{counted}: {shown}{cannot}; a verdict needs {N_VERDICT} {unit}"]
    return []


def drift(name: str, arm: Sequence[float]) -> str:
    """One sentence if the runs of an arm, in the order they started, rise or fall; else nothing."""
    if len(arm) < 2:
        return ""
    test = exact.trend(arm)
    if test.p >= ALPHA:
        return ""
    slope = statistics.linear_regression(range(len(arm)), [math.log(v) for v in arm]).slope
    return f"{name} drifts: {math.expm1(slope):+.1%} per run (p={test.p:.2g})"


def olympic(base: Sequence[float], candidate: Sequence[float], *, paired: bool) -> str:
    """What was dropped, of how many."""
    if paired:
        return (
            f"olympic: the blocks with the smallest and the largest ratio are dropped, 2 of {len(base)}; "
            f"ranks are of all"
        )
    return (
        f"olympic: the fastest and the slowest run of each arm are dropped, "
        f"2 of {len(base)} and 2 of {len(candidate)}; ranks are of all"
    )


def small(margin: float) -> str:
    """Of a difference that is certain, and shown to be less than what was declared to matter."""
    return f"the difference is there, and is smaller than the margin of {percent(margin)}"


def enough(spread: float, margin: float, needed: int, same: int, *, paired: bool) -> str:
    """How many runs would find a difference of the margin, and how many would show that there is none."""
    unit = "blocks" if paired else "runs of each arm"
    return (
        f"at a spread of {percent(math.expm1(spread))}, {needed} {unit} find a difference of "
        f"{percent(margin)} with {POWER:.0%} power; {same} show that there is none of that size, "
        f"if there is none"
    )


def percent(part: float) -> str:
    """`1.25 %`."""
    return f"{100 * part:.3g} %"
