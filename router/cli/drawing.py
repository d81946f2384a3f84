"""Figures drawn with characters: intervals around 1, and where the time of a run went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["PARTS", "Row", "bar", "forest", "legend"]

PARTS = {
    "wait": ("queue", "boot", "image"),
    "stage": ("submit", "stage_in", "bootstrap"),
    "import": ("import",),
    "compile": ("compile", "first_step", "warmup"),
    "steady": ("steady",),
    "other": (),
}
"""What the parts of a time line are gathered into for a bar of a few characters; the rest is `other`."""

_FILL = {"wait": ".", "stage": ":", "import": "i", "compile": "c", "steady": "#", "other": "-"}


class Row(NamedTuple):
    """One line of a forest: its label, and ratios above 1 where the candidate is better."""

    label: str
    ratio: float | None
    low: float | None
    high: float | None
    text: str


def forest(rows: Sequence[Row], margin: float, width: int = 44, *, ascii_only: bool = False) -> list[str]:
    """The rows under each other on one logarithmic axis that holds 1 and every interval.

    The band `1/(1+margin)` to `1+margin` is drawn with dots. Rows without a ratio are left out.
    """
    drawn = [row for row in rows if _drawable(row.ratio)]
    if not drawn:
        return []
    ends = [v for row in drawn for v in (row.ratio, row.low, row.high) if v and _drawable(v)]
    ends += [1 / (1 + margin) ** 2, (1 + margin) ** 2]
    low, high = math.log(min(ends)), math.log(max(ends))
    pad = (high - low) * 0.04
    low, high = low - pad, high + pad

    def at(value: float) -> int:
        return min(max(round((math.log(value) - low) / (high - low) * (width - 1)), 0), width - 1)

    line, dot, left, right, one, near = ("-", "o", "[", "]", "|", ".") if ascii_only else "─●├┤│·"
    label = max(len(row.label) for row in drawn)
    head = [" "] * width
    worse, better = "worse", "better"
    centre = at(1.0)
    if centre >= len(worse) + 2:
        head[centre - len(worse) - 2 : centre - 2] = worse
    if width - centre > len(better) + 3:
        head[centre + 3 : centre + 3 + len(better)] = better
    head[centre] = "1"
    lines = [f"{'':{label}}  {''.join(head)}".rstrip()]
    for row in drawn:
        cells = [" "] * width
        for i in range(at(1 / (1 + margin)), at(1 + margin) + 1):
            cells[i] = near
        cells[centre] = one
        if row.low and row.high and _drawable(row.low) and _drawable(row.high):
            first, last = at(row.low), at(row.high)
            cells[first : last + 1] = [line] * (last - first + 1)
            if last > first:
                cells[first], cells[last] = left, right
        cells[at(row.ratio or 1.0)] = dot
        lines.append(f"{row.label:{label}}  {''.join(cells)}  {row.text}".rstrip())
    return lines


def _drawable(ratio: float | None) -> bool:
    return ratio is not None and math.isfinite(ratio) and ratio > 0


def gathered(timing: Mapping[str, int]) -> dict[str, int]:
    """The parts of a time line gathered as in `PARTS`, in microseconds."""
    home = {part: name for name, parts in PARTS.items() for part in parts}
    found = dict.fromkeys(PARTS, 0)
    for part, us in timing.items():
        found[home.get(part, "other")] += us
    return found


def bar(timing: Mapping[str, int], longest_us: int, width: int = 30) -> str:
    """The time line of a run as a bar, as long as its share of `longest_us`."""
    total = sum(timing.values())
    if not total or longest_us <= 0:
        return ""
    room = max(round(width * total / longest_us), 1)
    cells, done, seen = "", 0, 0
    for name, us in gathered(timing).items():
        seen += us
        end = round(room * seen / total)
        cells += _FILL[name] * (end - done)
        done = end
    return cells


def legend() -> str:
    """What the letters of a bar stand for."""
    return ", ".join(f"{sign} {name}" for name, sign in _FILL.items())
