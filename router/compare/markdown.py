"""A comparison as Markdown for a pull request: the verdict first, the rest folded away."""

from __future__ import annotations

import re
from collections.abc import Iterator

from compute_router.compare import wording
from compute_router.compare.outcome import Comparison, Contrast, Estimate, Point, Refusal, Result

__all__ = ["markdown"]

_SIGNS = {"x": "⛔", "+": "🟢", "-": "🔴", "=": "⚪", "~": "🟡", "?": "❔"}
MOST_RUNS = 60
"""Runs listed; a comment of GitHub holds 65,536 characters."""


def markdown(comparison: Comparison) -> str:
    """`comparison` in GitHub's Markdown. Names of users cannot break out of their place in it."""
    return "\n".join(_lines(comparison)).rstrip() + "\n"


def _lines(comparison: Comparison) -> Iterator[str]:
    for refusal in comparison.refusals:
        yield from _refusal(refusal)
        yield ""
    for contrast in comparison.contrasts:
        yield from _contrast(contrast)
    for waiver in comparison.waivers:
        used = "" if waiver.used else " (it was not needed)"
        yield f"> ⚠️ **`{_code(waiver.rule)}` was waived**{used}: {_text(waiver.because)}"
        yield ""
    if comparison.points:
        yield from _runs(comparison)
    for note in comparison.notes:
        yield f"- {_text(note)}"


def _contrast(contrast: Contrast) -> Iterator[str]:
    head = f"{_text(contrast.candidate)} against {_text(contrast.base)}"
    standing = f" ({contrast.standing.value})" if contrast.standing and contrast.verdict else ""
    sign = _SIGNS[wording.mark(contrast)]
    yield f"### {sign} {head}: {_text(wording.heading(contrast))}{standing}"
    yield ""
    if contrast.sentence:
        yield _text(contrast.sentence)
        yield ""
    if contrast.label:
        yield f"*{_text(contrast.label)}*"
        yield ""
    for refusal in contrast.refusals:
        yield from _refusal(refusal)
    if contrast.refusals:
        yield ""
    estimates = [e for e in (contrast.primary, *contrast.others) if e is not None]
    if estimates and contrast.result is not Result.REFUSED:
        arms = f"{_cell(contrast.base)} | {_cell(contrast.candidate)}"
        yield f"| metric | {arms} | ratio | 95% | p | n | verdict |"
        yield "|---|---:|---:|---:|---:|---:|---:|---|"
        for estimate in estimates:
            yield _row(estimate)
        yield ""
    differences = wording.differing(contrast)
    if differences:
        yield "<details><summary>What differs</summary>"
        yield ""
        yield f"| field | {_cell(contrast.base)} | {_cell(contrast.candidate)} | |"
        yield "|---|---|---|---|"
        for item in differences:
            values = f"{_cell(item.base)} | {_cell(item.candidate)}"
            yield f"| `{_code(item.field)}` | {values} | {wording.ROLES[item.role]} |"
        yield ""
        yield "</details>"
        yield ""
    for cannot in contrast.cannot:
        yield f"- cannot be concluded: {_text(cannot)}"
    if contrast.cannot:
        yield ""


def _row(estimate: Estimate) -> str:
    metric = estimate.metric
    p = estimate.p if estimate.p_adjusted is None else estimate.p_adjusted
    cells = [
        f"`{_code(metric.name)}`" + (f" ({_cell(metric.unit)})" if metric.unit else ""),
        wording.number(estimate.base),
        wording.number(estimate.candidate),
        wording.times(estimate.ratio),
        wording.between(estimate.interval) if estimate.interval else "-",
        "-" if p is None else _cell(wording.chance(p).removeprefix("p ").removeprefix("= ")),
        f"{estimate.n_base} pairs" if estimate.paired else f"{estimate.n_base} + {estimate.n_candidate}",
        wording.word(metric, estimate.verdict),
    ]
    return f"| {' | '.join(cells)} |"


def _refusal(refusal: Refusal) -> Iterator[str]:
    waived = f" (waived: {_text(refusal.because)})" if refusal.waived else ""
    yield f"- **{_cell(refusal.number)} `{_code(refusal.code)}`**{waived}: {_text(refusal.what)}"
    if refusal.why:
        yield f"  <br>{_text(refusal.why)}"
    if refusal.mend and not refusal.waived:
        yield f"  <br>*mend:* {_text(refusal.mend)}"


def _runs(comparison: Comparison) -> Iterator[str]:
    primary = next((c.primary for c in comparison.contrasts if c.primary is not None), None)
    name = primary.metric.name if primary else comparison.metric
    yield f"<details><summary>{len(comparison.points)} runs</summary>"
    yield ""
    yield f"| run | arm | {_cell(name) or 'figure'} | start | cache | receipt | |"
    yield "|---|---|---:|---|---|---|---|"
    for point in comparison.points[:MOST_RUNS]:
        yield _run(point, name)
    if len(comparison.points) > MOST_RUNS:
        yield f"| and {len(comparison.points) - MOST_RUNS} more | | | | | | |"
    yield ""
    yield "</details>"
    yield ""


def _run(point: Point, name: str) -> str:
    cells = [
        f"`{_code(point.run_id)}`",
        _cell(point.arm),
        wording.number(point.figures.get(name)),
        _cell(point.startup),
        _cell(point.cache),
        f"`{_code(point.receipt_id[:12])}`",
        "" if point.counted else f"not counted: {_cell(point.why)}",
    ]
    return f"| {' | '.join(cells)} |"


_SPECIAL = re.compile(r"([\\`*{}\[\]<#|~!&]|(?<!\w)_|_(?!\w))")


def _text(text: str) -> str:
    """`text` on one line, without a meaning of its own in Markdown; what stands in backticks stays code."""
    parts = _plain(text).split("`")
    if len(parts) % 2 == 0:
        return _cell(text)
    return "".join(
        f"`{_code(part)}`" if i % 2 and part.strip() else _escaped(part) for i, part in enumerate(parts)
    )


def _cell(text: str) -> str:
    return _escaped(_plain(text))


def _plain(text: str) -> str:
    """`text` on one line, without what cannot be seen: control characters, marks of direction."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _escaped(text: str) -> str:
    # A backslash does not keep GitHub from taking `@name` for a person; a zero-width space does.
    return _SPECIAL.sub(r"\\\1", text).replace("@", "@&#8203;")


def _code(text: str) -> str:
    """`text` for inside backticks: no backtick, no line end, no bar that would end a cell."""
    return _plain(text).replace("`", "'").replace("|", "¦")
