"""Tables: one way to draw them, and those of differences, arms and runs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from compute_router.compare.outcome import Comparison, Contrast, Point, Role
from compute_router.report.elements import Child, Element, cut, el
from compute_router.report.numerals import NONE, figure, span

__all__ = ["arms", "differences", "moment", "runs", "table"]

ROLES = {
    Role.REFUSES: ("refuses", "stands in the way of a verdict"),
    Role.FOLLOWS: ("follows", "differs because what varies does: the claim must name it"),
    Role.WARNS: ("warns", "may matter, and is told"),
    Role.VARIED: ("varied", "what is compared"),
}


def table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[Child]], *, numbers: Collection[int] = ()
) -> Element:
    """A table in a box of its own that scrolls; its first column names the rows."""
    right = dict.fromkeys(numbers, "number")
    key = "t-" + hashlib.sha256(caption.encode("utf-8", "replace")).hexdigest()[:8]
    return el(
        "div",
        el(
            "table",
            el("caption", caption, id=key),
            el(
                "thead",
                el("tr", [el("th", name, scope="col", class_=right.get(i)) for i, name in enumerate(header)]),
            ),
            el(
                "tbody",
                [el("tr", [_cell(i, cell, right.get(i)) for i, cell in enumerate(row)]) for row in rows],
            ),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_labelledby=key,
    )


def _cell(place: int, cell: Child, class_: str | None) -> Element:
    return el("td", cell, class_=class_) if place else el("th", cell, scope="row", class_=class_)


def moment(us: int | None) -> Child:
    """A time of the world, in UTC to the second."""
    try:
        when = datetime.fromtimestamp((us or 0) / 1e6, UTC)
    except (OverflowError, ValueError, OSError):
        return NONE
    return el("time", f"{when:%Y-%m-%d %H:%M:%S}", datetime=f"{when:%Y-%m-%dT%H:%M:%SZ}") if us else NONE


def differences(contrast: Contrast) -> Element:
    """Every field in which two arms differ, what refuses first."""
    order = list(ROLES)
    found = sorted(contrast.differences, key=lambda d: (order.index(d.role), d.field))
    rows: list[list[Child]] = []
    for d in found:
        word, meaning = ROLES[d.role]
        role: Child = [
            el("span", word, class_=f"role role-{word}"),
            " ",
            el("span", meaning, class_="quiet small"),
        ]
        rows.append([el("code", cut(d.field, 100)), _value(d.base), _value(d.candidate), cut(d.cls, 4), role])
    base, candidate = cut(contrast.base, 40), cut(contrast.candidate, 40)
    return table(
        f"Fields in which {candidate} and {base} differ",
        ["Field", base, candidate, "Class", "What it does"],
        rows,
    )


def _value(text: str) -> Child:
    return el("code", cut(text, 200)) if text else el("span", "(empty)", class_="quiet")


def arms(comparison: Comparison) -> Element:
    """The arms, how many of their runs count, and their comparability keys."""
    rows: list[list[Child]] = []
    for i, arm in enumerate(comparison.arms):
        keys: Child = [el("code", cut(key, 64), class_="id") for key in arm.keys[:6]] or NONE
        more = f" and {len(arm.keys) - 6} more" if len(arm.keys) > 6 else ""
        role = "base" if i == 0 else "candidate"
        rows.append(
            [
                cut(arm.name, 60),
                role,
                f"{arm.given:,}",
                f"{arm.succeeded:,}",
                f"{arm.counted:,}",
                [keys, more],
            ]
        )
    header = ["Arm", "Role", "Receipts", "Succeeded", "Counted", "Comparability keys of the counted"]
    return table("Arms", header, rows, numbers=(2, 3, 4))


def runs(comparison: Comparison, points: Sequence[Point]) -> Element:
    """Every run: the data behind the plots, with the receipt that says so."""
    metrics = list(dict.fromkeys(name for p in points for name in p.figures))
    primary = comparison.metric
    metrics = [m for m in (primary, *metrics) if m in metrics][:1] + [m for m in metrics if m != primary]
    metrics = list(dict.fromkeys(metrics))[:6]
    estimates = [e for c in comparison.contrasts for e in (c.primary, *c.others) if e]
    units = {e.metric.name: f" ({cut(e.metric.unit, 16)})" for e in estimates if e.metric.unit}
    named_metrics = [cut(m, 40) + units.get(m, "") for m in metrics]
    header = ["No.", "Arm", "Block", "Counts", *named_metrics, "Started as", "Started (UTC)",
              "Took", "Place", "Hardware", "Cache", "Storage", "Run", "Receipt", "File"]  # fmt: skip
    rows: list[list[Child]] = []
    for i, p in enumerate(points, 1):
        counts: Child = "yes"
        if not p.counted:
            counts = [el("span", "✕ ", aria_hidden="true"), cut(f"no: {p.why or p.state}", 160)]
        elif p.caveats:
            counts = cut(f"yes; {'; '.join(p.caveats)}", 160)
        took = sum(p.timing.values())
        rows.append(
            [
                str(i),
                cut(p.arm, 40),
                str(p.block) if p.block is not None else NONE,
                counts,
                *(figure(p.figures.get(m)) for m in metrics),
                cut(p.startup.replace("_", " "), 60),
                moment(p.started_us),
                span(took) if took else NONE,
                cut(" ".join(filter(None, [p.surface, p.backend])), 60),
                cut(p.hardware, 60),
                cut(p.cache, 80),
                cut(p.storage, 80),
                el("code", cut(p.run_id, 40), class_="id") if p.run_id else NONE,
                el("code", cut(p.receipt_id, 64), class_="id") if p.receipt_id else NONE,
                el("code", cut(p.ref, 120)),
            ]
        )
    took_at = 6 + len(metrics)
    return table("Every run", header, rows, numbers=(0, *range(4, 4 + len(metrics)), took_at))
