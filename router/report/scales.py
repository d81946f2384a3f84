"""Axes: where a value lies between the ends, in hundredths of the width, and which values are marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["Scale", "even_ticks", "ratio_ticks", "steady_scale", "time_ticks", "usable"]

_DECADES = (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)
_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def usable(values: Iterable[float | None], *, positive: bool = False) -> list[float]:
    """Those of `values` that an axis can show."""
    return [v for v in values if v is not None and math.isfinite(v) and (v > 0 or not positive)]


class Scale:
    """From `low` to `high`, even or logarithmic. `low` < `high`, and above 0 if logarithmic."""

    def __init__(self, low: float, high: float, *, log: bool = False) -> None:
        self.low, self.high, self.log = low, high, log

    def at(self, value: float) -> float:
        """Where `value` lies, 0 to 1; what lies beyond an end is put at that end."""
        if math.isnan(value):
            return 0.0
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        # Halved, because the distance of two numbers may be greater than any number.
        return (value / 2 - low / 2) / (high / 2 - low / 2)

    def beyond(self, value: float) -> bool:
        """Whether `value` lies outside."""
        return not self.low <= value <= self.high


def steady_scale(values: Sequence[float]) -> Scale:
    """A scale for values that are seen side by side: even, or logarithmic if they are worlds apart."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low > 0 and high / low > 30:
        room = (high / low) ** 0.06
        return Scale(max(low / room, 1e-305), min(high * room, 1e305), log=True)
    room = (high / 2 - low / 2) * 0.16 or abs(high) * 0.05 or 1.0
    # What cannot be below nothing is not drawn below it.
    least = 0.0 if low >= 0 else -1e305
    return Scale(max(low - room, least), min(high + room, 1e305))


def even_ticks(scale: Scale, most: int = 6) -> list[float]:
    """Round values within the scale, `most` at most."""
    if scale.log:
        return ratio_ticks(scale, most)
    width = scale.high - scale.low
    if not math.isfinite(width) or width <= 0:
        return [scale.low]
    power = 10.0 ** math.floor(math.log10(width / most))
    step = next(power * f for f in (1, 2, 2.5, 5, 10, 20) if width / (power * f) <= most - 0.5)
    first = math.ceil(scale.low / step)
    return [n * step for n in range(first, math.floor(scale.high / step) + 1)][:most]


def ratio_ticks(scale: Scale, most: int = 7) -> list[float]:
    """Round ratios within a logarithmic scale; 1 is one of them if it lies within."""
    low, high = scale.low, scale.high
    if high / low < 2:
        for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
            found = [round(n * step, 6) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
            if len(found) <= most:
                return found
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for marks in _DECADES:
        found = [m * 10.0**d for d in range(first, last + 1) for m in marks if low <= m * 10.0**d <= high]
        if len(found) <= most:
            return found
    every = math.ceil((last - first + 1) / most)
    return [10.0**d for d in range(first, last + 1) if d % every == 0 and low <= 10.0**d <= high]


def time_ticks(most_us: float, most: int = 6) -> list[tuple[float, str]]:
    """Round times from 0 to `most_us`, with what is written at them."""
    seconds = max(most_us, 1.0) / 1e6
    if seconds < most:
        return [(s * 1e6, f"{s:.3g} s" if s else "0") for s in even_ticks(Scale(0, seconds), most)]
    step = next((s for s in _SECONDS if seconds / s <= most), 0)
    if not step:
        step = 86400 * math.ceil(seconds / 86400 / most)
    return [(s * 1e6, _clock(s)) for s in range(0, int(seconds) + 1, step)]


def _clock(seconds: int) -> str:
    if not seconds:
        return "0"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size} {unit}"
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"
