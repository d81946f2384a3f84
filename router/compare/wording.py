"""Figures of a comparison in words: what the terminal, Markdown and HTML say alike."""

from __future__ import annotations

import math

from compute_router.compare.outcome import (
    Comparison,
    Contrast,
    Difference,
    Estimate,
    Metric,
    Result,
    Role,
    Verdict,
)

__all__ = [
    "ROLES",
    "between",
    "chance",
    "differing",
    "figure",
    "heading",
    "interval_of",
    "mark",
    "number",
    "percent",
    "study_of",
    "times",
    "word",
]

_BYTES = ("bytes", "kB", "MB", "GB", "TB", "PB")
_WORSE = {Verdict.FASTER: "better", Verdict.SLOWER: "worse"}
ROLES = {
    Role.REFUSES: "refuses",
    Role.VARIED: "the variable",
    Role.FOLLOWS: "confounder",
    Role.WARNS: "note",
}
"""What a difference is called where people read it."""


def number(value: float | None, digits: int = 4) -> str:
    """`value` to so many digits (whole ones are not rounded away), thousands parted, with an exponent only
    where nobody would write it without one."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -5 < magnitude < 15:
        return f"{value:.{digits - 1}e}"
    places = max(digits - 1 - magnitude, 0)
    text = f"{round(value, places) + 0.0:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def figure(value: float | None, metric: Metric, digits: int = 4) -> str:
    """A value of `metric` with its unit: `11,270 tokens/s`; bytes in powers of 1000."""
    if metric.unit == "bytes" and value is not None and value >= 1000:
        power = min(int(math.log10(value)) // 3, 5)
        return f"{number(value / 1000**power, 3)} {_BYTES[power]}"
    return f"{number(value, digits)} {metric.unit}".strip()


def times(ratio: float | None) -> str:
    """A ratio: `0.711x`."""
    return "-" if ratio is None else f"{number(ratio, 3 if ratio < 10 else 4)}x"


def percent(share: float) -> str:
    """A share of one: `2%`, `0.5%`."""
    return f"{number(share * 100, 3)}%"


def between(interval: tuple[float, float] | None) -> str:
    """An interval of ratios: `0.690 to 0.733`; says so where there is none."""
    if interval is None:
        return "no finite interval"
    return f"{number(interval[0], 3)} to {number(interval[1], 3)}"


def interval_of(estimate: Estimate) -> str:
    """The ratio with its interval: `0.711x (95% 0.69 to 0.733)`."""
    if estimate.interval is None:
        return times(estimate.ratio)
    return f"{times(estimate.ratio)} (95% {between(estimate.interval)})"


def chance(p: float | None) -> str:
    """A p-value: `p = 0.031`, `p < 0.001`."""
    if p is None:
        return "no p-value"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def word(metric: Metric, verdict: Verdict) -> str:
    """The verdict as it is said of this metric: of a loss better and worse, not faster and slower."""
    return verdict.value if metric.rate else _WORSE.get(verdict, verdict.value)


def heading(contrast: Contrast) -> str:
    """The answer in a word or two, in capitals: `SLOWER`, `REFUSED COLD_VS_WARM`, `NO VERDICT`."""
    if contrast.result is Result.REFUSED:
        first = next((r.code for r in contrast.refusals if not r.waived), "")
        return f"REFUSED {first}".strip()
    if contrast.verdict is None or contrast.primary is None:
        return "NO VERDICT"
    return word(contrast.primary.metric, contrast.verdict).upper()


def mark(contrast: Contrast) -> str:
    """One sign for the answer, that needs no colour."""
    if contrast.result is Result.REFUSED:
        return "x"
    known = {Verdict.FASTER: "+", Verdict.SLOWER: "-", Verdict.EQUIVALENT: "=", Verdict.INCONCLUSIVE: "~"}
    return known[contrast.verdict] if contrast.verdict else "?"


def differing(contrast: Contrast) -> list[Difference]:
    """The differences of a contrast, what weighs most first."""
    order = list(ROLES)
    return sorted(contrast.differences, key=lambda d: (order.index(d.role), d.field))


def study_of(comparison: Comparison) -> str:
    """The study in a few words, if there is one."""
    told = comparison.study
    name = told.get("id", "")
    return f"{name} ({told['sha256'][:12]})" if name and told.get("sha256") else name
