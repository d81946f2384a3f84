"""Figures as a reader wants them: no more digits than they carry, and never a blank for what is not there."""

from __future__ import annotations

import math

from compute_router.receipt.summary import span

__all__ = ["NONE", "count", "figure", "interval", "percent", "probability", "ratio", "short", "span"]

NONE = "–"


def _odd(x: float | None) -> str | None:
    if x is None:
        return NONE
    if math.isnan(x):
        return "not a number"
    return ("∞" if x > 0 else "−∞") if math.isinf(x) else None


def figure(x: float | None, unit: str = "") -> str:
    """A value of a metric: `412,300 tokens/s`, `2.104`, `1.2e+20`."""
    odd = _odd(x)
    if odd is not None or x is None:
        return odd or NONE
    size = abs(x)
    if size >= 1e12 or 0 < size < 1e-4:
        text = f"{x:.3g}"
    elif size >= 1000:
        text = f"{x:,.0f}"
    else:
        text = f"{x:.4g}"
    return f"{text} {unit}".rstrip().replace("-", "−", 1) if x < 0 else f"{text} {unit}".rstrip()


def short(x: float) -> str:
    """A value at an axis: `412k`, `61.2`, `1.5M`."""
    size = abs(x)
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if limit <= size < 1e12:
            by = 1e3 if sign == "k" else limit
            return f"{x / by:.5g}{sign}"
    return f"{x:,.4g}" if size < 1e4 else f"{x:.2g}"


def ratio(x: float | None) -> str:
    """A ratio: `1.125`, `0.715`, `3.42`, `12.3`."""
    odd = _odd(x)
    if odd is not None or x is None:
        return odd or NONE
    size = abs(x)
    if not size:
        return "0"
    if size >= 1e5 or size < 0.01:
        return f"{x:.2e}"
    return f"{x:.3f}" if size < 3 else f"{x:.2f}" if size < 10 else f"{x:.1f}" if size < 100 else f"{x:,.0f}"


def interval(pair: tuple[float, float] | None) -> str:
    """Both ends of an interval of ratios: `1.109 to 1.140`."""
    return NONE if pair is None else f"{ratio(pair[0])} to {ratio(pair[1])}"


def percent(x: float | None) -> str:
    """A ratio as a change, where that is the easier reading: `+12.5 %`; else nothing."""
    if x is None or not 0.2 <= x <= 3:
        return ""
    change = (x - 1) * 100
    text = f"{abs(change):.1f} %"
    return text if text == "0.0 %" else ("+" if change > 0 else "−") + text


def probability(p: float | None) -> str:
    """A p-value: `0.031`, `0.56`, `< 0.001`."""
    odd = _odd(p)
    if odd is not None or p is None:
        return odd or NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}"


def count(n: int, one: str, many: str = "") -> str:
    """`1 run`, `6 runs`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
