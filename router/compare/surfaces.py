"""What may be said across surfaces: end to end, by time to a first result that can be trusted, by cost."""

from __future__ import annotations

from collections.abc import Iterable

from compute_router.compare.figures import DERIVED
from compute_router.compare.outcome import Difference

__all__ = ["ALLOWED", "LABEL", "START", "claimed", "forbidden"]

LABEL = "surface claim, end to end"
ALLOWED = ("time_to_first_trustworthy_result", "wall", "cost")
"""The metrics of a claim about surfaces, the first one where none is named."""
START = ("startup.class", "cache")
"""Fields that must be equal for a figure of the steady window to mean the same on two surfaces."""


def claimed(differences: Iterable[Difference], varied: frozenset[str]) -> bool:
    """Whether this is a claim about surfaces: the surface is the declared variable, and differs."""
    return "surface" in varied and any(d.field == "surface" for d in differences)


def forbidden(metric: str, differences: Iterable[Difference]) -> str:
    """Why a metric may not be compared across surfaces; empty if it may."""
    if metric in ALLOWED:
        return ""
    told = [d for d in differences if d.field in START]
    if not told and metric not in DERIVED:
        return ""
    if metric in DERIVED and metric not in ALLOWED:
        return f"{metric} is not what two surfaces are held against each other by"
    start = ", ".join(f"{d.field} {d.base} and {d.candidate}" for d in told)
    return f"{metric} is a figure of the steady window, and the runs started from other states: {start}"
