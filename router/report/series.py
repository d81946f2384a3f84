"""Runs over time: the primary metric of every run, how it started, whose it is, and what does not count."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from statistics import fmean

from compute_router.compare.outcome import Comparison, Point
from compute_router.report.elements import Child, Element, cut, el
from compute_router.report.marks import STARTS, Looks, at, cross, mark, words
from compute_router.report.numerals import count, figure, short
from compute_router.report.scales import Scale, even_ticks, steady_scale, time_ticks, usable

__all__ = ["in_order", "metric_of", "series_plot"]

HEIGHT = 260
STRIP = 22
JOINED = 60
"""Blocks up to which the runs of one are joined: more lines than that hide what they join."""


def metric_of(comparison: Comparison) -> tuple[str, str]:
    """Name and unit of the metric that is plotted: the primary one, else the first there is."""
    units = {e.metric.name: e.metric.unit for c in comparison.contrasts if (e := c.primary)}
    names = [*units, comparison.metric, *(name for p in comparison.points for name in p.figures)]
    name = next((n for n in names if any(n in p.figures for p in comparison.points)), "")
    return name, units.get(name, "")


def in_order(comparison: Comparison) -> list[Point]:
    """The runs as they began; where that is not known of all, as the study planned them, else as given."""
    points = comparison.points
    if all(p.started_us is not None for p in points):
        return sorted(points, key=lambda p: p.started_us or 0)
    if all(p.index is not None for p in points):
        return sorted(points, key=lambda p: p.index or 0)
    return list(points)


def _places(points: Sequence[Point]) -> tuple[list[float], list[tuple[float, str]], str]:
    """Where each run stands along the axis, its ticks, and what it is an axis of."""
    starts = [p.started_us for p in points if p.started_us is not None]
    if len(starts) == len(points) > 1:
        gaps = [b - a for a, b in itertools.pairwise(starts)]
        span = starts[-1] - starts[0]
        # One long pause would press all runs into the corners.
        if 0 < span < 1e16 and max(gaps) <= max(span / 3, 2 * span / len(starts)):
            scale = _roomy(0, span)
            ticks = [(scale.at(us), text) for us, text in time_ticks(span)]
            return [scale.at(s - starts[0]) for s in starts], ticks, "since the first start"
    scale = _roomy(1, max(len(points), 2))
    whole = [t for t in even_ticks(Scale(1, max(len(points), 2)), 6) if t == int(t) and t <= len(points)]
    marks = [(scale.at(t), f"{t:.0f}") for t in ([*whole] or [1])]
    return [scale.at(i + 1) for i in range(len(points))], marks, "run, in the order in which they began"


def _roomy(low: float, high: float) -> Scale:
    room = (high - low) * 0.03
    return Scale(low - room, high + room)


def series_plot(comparison: Comparison, looks: Looks) -> Element:
    """The plot with its legend."""
    points = in_order(comparison)
    name, unit = metric_of(comparison)
    values = [next(iter(usable([p.figures.get(name)])), None) for p in points]
    places, marks, axis = _places(points)
    scale = steady_scale([v for v in values if v is not None])
    without = [
        arm
        for arm in looks.arms
        if any(p.arm == arm and v is None for p, v in zip(points, values, strict=True))
    ]
    height = HEIGHT + STRIP * len(without) + (8 if without else 0)
    levels = _levels(comparison, points, values)

    def y(value: float) -> float:
        return round((1 - scale.at(value)) * HEIGHT, 1)

    def strip(arm: str) -> float:
        return HEIGHT + 8 + STRIP * (without.index(arm) + 0.5)

    joined = _joined(points, values, places, y)
    ticks = even_ticks(scale, 6)
    gutter = el(
        "svg",
        [
            el("text", short(t), x="100%", y=y(t) + 4, dx="-8", text_anchor="end", class_="tick")
            for t in ticks
        ],
        [
            el(
                "text",
                f"{cut(arm, 6)} ✕",
                x="100%",
                y=strip(arm) + 4,
                dx="-8",
                text_anchor="end",
                class_="tick",
            )
            for arm in without
        ],
        height=height + 24,
        class_="gutter",
        aria_hidden="true",
        focusable="false",
    )
    plot = el(
        "svg",
        el("title", f"{cut(name, 60) or 'Runs'} of every run", id="series-title"),
        el("desc", _said(comparison, points, levels, unit), id="series-desc"),
        [el("line", x1="0", x2="100%", y1=y(t), y2=y(t), class_="grid") for t in ticks],
        el("line", x1="0", x2="100%", y1=HEIGHT, y2=HEIGHT, class_="axis"),
        [
            el("rect", x="0", y=strip(arm) - STRIP / 2 + 2, width="100%", height=STRIP - 4, class_="strip")
            for arm in without
        ],
        joined,
        [
            el("line", x1="0", x2="100%", y1=y(v), y2=y(v), class_=f"level {looks.filling(a)}")
            for a, v in levels.items()
        ],
        [
            _mark(p, v, at(x), y(v) if v is not None else strip(p.arm), looks, unit)
            for p, v, x in zip(points, values, places, strict=True)
        ],
        [
            [
                el("line", x1=at(x), x2=at(x), y1=height, y2=height + 5, class_="axis"),
                el("text", text, x=at(x), y=height + 19, text_anchor="middle", class_="tick"),
            ]
            for x, text in marks
        ],
        height=height + 24,
        class_="plot",
        role="img",
        aria_labelledby="series-title series-desc",
    )
    log = ", logarithmic" if scale.log else ""
    caption: list[Child] = [
        el("strong", el("bdi", cut(name, 60) or "no metric")),
        f" ({cut(unit, 24)}{log})" if unit else log,
    ]
    return el(
        "figure",
        el(
            "figcaption",
            caption,
            " over time." if scale.low == 0 else " over time. The axis does not begin at zero.",
            " Joined runs are one block." if joined else "",
        ),
        el("div", gutter, plot, _names(levels, y, height + 24), class_="framed with-names"),
        el("p", axis, class_="axis-name"),
        _legend(comparison, points, values, looks, levels, unit),
        aria_label="Runs over time",
        class_="chart",
    )


def _levels(
    comparison: Comparison, points: Sequence[Point], values: Sequence[float | None]
) -> dict[str, float]:
    """What each arm comes to: the geometric mean of its runs that count, as the estimate has it."""
    from math import exp, log

    found = {}
    for arm in dict.fromkeys(p.arm for p in points):
        mine = [
            v for p, v in zip(points, values, strict=True) if p.arm == arm and p.counted and v is not None
        ]
        if mine and min(mine) > 0:
            found[arm] = exp(fmean(log(v) for v in mine))
    return found


def _joined(
    points: Sequence[Point],
    values: Sequence[float | None],
    places: Sequence[float],
    y: Callable[[float], float],
) -> list[Element]:
    blocks: dict[int, list[tuple[float, float]]] = {}
    for p, v, x in zip(points, values, places, strict=True):
        if p.block is not None and v is not None:
            blocks.setdefault(p.block, []).append((x, y(v)))
    if len(blocks) > JOINED:
        return []
    return [
        el("line", x1=at(a[0]), y1=a[1], x2=at(b[0]), y2=b[1], class_="joined")
        for row in blocks.values()
        for a, b in itertools.pairwise(row)
    ]


def _mark(p: Point, value: float | None, x: str, y: float, looks: Looks, unit: str) -> Element:
    name, colour = looks.of(p)
    told = [
        f"{cut(p.arm, 60)}: {figure(value, cut(unit, 24))}"
        if value is not None
        else f"{cut(p.arm, 60)}: no value"
    ]
    if p.block is not None:
        told.append(f"block {p.block}")
    told += [f"started {words(p.startup)}", f"run {cut(p.run_id, 30)}"]
    if not p.counted:
        told.append(f"does not count: {cut(p.why or p.state, 200)}")
    title = el("title", "\n".join(told))
    letter = looks.letter(p.arm)
    beside = el("text", letter, x=x, y=y + 4, dx="8", class_="tick") if letter else None
    if p.counted and value is not None:
        return el("g", title, mark(looks.small + name, colour, x, y), beside)
    pale = mark(looks.small + name, f"{colour} pale", x, y) if value is not None else None
    return el("g", title, pale, cross(x, y, small=looks.small), beside)


def _names(levels: dict[str, float], y: Callable[[float], float], height: float) -> Element:
    """The arms at the right end of their lines, moved apart where the lines lie close."""
    here, drawn = -99.0, []
    for arm, value in sorted(levels.items(), key=lambda item: y(item[1])):
        here = max(y(value) + 4, here + 14)
        drawn.append(el("text", cut(arm, 11), x="0", y=here, dx="7", class_="level-name"))
    return el("svg", drawn, class_="names", height=height, aria_hidden="true", focusable="false")


def _said(comparison: Comparison, points: Sequence[Point], levels: dict[str, float], unit: str) -> str:
    told = [count(len(points), "run")]
    for arm in comparison.arms:
        if arm.name in levels:
            told.append(f"{cut(arm.name, 40)}: geometric mean {figure(levels[arm.name], cut(unit, 24))}")
    if left := sum(not p.counted for p in points):
        told.append(f"{left:,} of them not counted")
    return "; ".join(told) + ". Every run stands in the table of runs below."


def _legend(
    comparison: Comparison,
    points: Sequence[Point],
    values: Sequence[float | None],
    looks: Looks,
    levels: dict[str, float],
    unit: str,
) -> Element:
    def key(*drawn: Element) -> Element:
        return el("svg", *drawn, class_="key", aria_hidden="true", focusable="false")

    arms = []
    for name in looks.arms:
        mine = [p for p in points if p.arm == name]
        counted = sum(p.counted for p in mine)
        letter = f" ({looks.letter(name)})" if looks.letter(name) else ""
        mean = f", {figure(levels[name], cut(unit, 24))}" if name in levels else ""
        said = f"{letter}{mean}, {counted:,} of {len(mine):,} counted"
        drawn = key(mark(f"m-circle-{looks.filling(name)}", "ink", "8", 8))
        arms.append(el("li", drawn, el("span", el("bdi", cut(name, 60)), said)))
    starts = []
    for start in looks.starts:
        shape, colour = STARTS[start]
        drawn = key(mark(f"m-{shape}-filled", f"c{colour}", "8", 8))
        n = sum((p.startup if p.startup in STARTS else "unobserved") == start for p in points)
        starts.append(el("li", drawn, f"{words(start)} ({n:,})"))
    if any(not p.counted for p in points):
        starts.append(el("li", key(cross("8", 8)), "failed or not counted"))
    return el(
        "div",
        el(
            "div",
            el("p", "Filling: arm (dashed line: geometric mean)", class_="over"),
            el("ul", arms, class_="legend"),
        ),
        el(
            "div",
            el("p", "Shape and colour: how it started", class_="over"),
            el("ul", starts, class_="legend"),
        ),
        class_="legends",
    )
