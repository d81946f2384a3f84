"""The ratio plot: for every contrast and metric the ratio with its interval, against 1 and the margin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compute_router.compare.outcome import Comparison, Contrast, Estimate, Result
from compute_router.report.elements import Element, cut, el
from compute_router.report.marks import at
from compute_router.report.numerals import figure, interval, percent, probability, ratio
from compute_router.report.scales import Scale, ratio_ticks, usable
from compute_router.report.tables import table

__all__ = ["ratio_plot"]

HEIGHT = 46
Row = tuple[Contrast, Estimate]


def _rows(comparison: Comparison) -> list[Row]:
    return [
        (c, e)
        for c in comparison.contrasts
        if c.result is not Result.REFUSED
        for e in ((c.primary, *c.others) if c.primary else c.others)
        if usable([e.ratio], positive=True)
    ]


def ratio_plot(comparison: Comparison) -> list[Element]:
    """The plot with its legend and the table behind it; one sentence where there is nothing to draw."""
    rows = _rows(comparison)
    if not rows:
        return [el("p", "There is no ratio to show: nothing here may be compared.", class_="quiet")]
    scale = _scale([e for _, e in rows])
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(_ends(row[1]), []).append(row)
    drawn = [_group(ends, mine, scale, first=i == 0) for i, (ends, mine) in enumerate(groups.items())]
    return [
        el(
            "figure",
            el("figcaption", _caption(rows)),
            drawn,
            _legend(rows),
            aria_label="Ratio plot",
            class_="chart",
        ),
        _table(rows),
    ]


def _caption(rows: Sequence[Row]) -> str:
    margin = max(e.margin for _, e in rows)
    return (
        "Candidate over base, on a logarithmic axis. Where the 95 % interval leaves out 1, chance alone "
        "would rarely make such a difference. The band is the margin: "
        f"less than {margin * 100:.3g} % does not matter."
    )


def _ends(e: Estimate) -> tuple[str, str]:
    """What less and more than 1 mean for a metric."""
    good, bad = ("faster", "slower") if e.metric.rate else ("better", "worse")
    return (bad, good) if e.metric.higher_is_better else (good, bad)


def _scale(estimates: Iterable[Estimate]) -> Scale:
    ends = [1.0]
    for e in estimates:
        given = [
            e.ratio,
            e.shift,
            *(e.interval or ()),
            *(e.shift_interval or ()),
            1 / (1 + e.margin),
            1 + e.margin,
        ]
        ends += [min(max(v, 1e-3), 1e3) for v in usable(given, positive=True)]
    low, high = min(ends), max(ends)
    room = max((high / low) ** 0.08, 1.004)
    return Scale(low / room, high * room, log=True)


def _group(ends: tuple[str, str], rows: Sequence[Row], scale: Scale, *, first: bool) -> Element:
    """Rows that read in the same direction, under one axis."""
    one = at(scale.at(1))
    head = el(
        "svg",
        el("text", f"◂ {ends[0]}", x=one, y="12", dx="-8", class_="end", text_anchor="end"),
        el("text", f"{ends[1]} ▸", x=one, y="12", dx="8", class_="end"),
        height="18",
        class_="plot",
        aria_hidden="true",
        focusable="false",
    )
    # A word that would run out of the plot stands in the caption of every row, too.
    axis = el(
        "svg",
        [
            [
                el("line", x1=at(scale.at(t)), x2=at(scale.at(t)), y1="0", y2="5", class_="axis"),
                el("text", f"{t:.6g}×", x=at(scale.at(t)), y="19", text_anchor="middle", class_="tick"),
            ]
            for t in ratio_ticks(scale, 6)
        ],
        el("line", x1="0", x2="100%", y1="0.5", y2="0.5", class_="axis"),
        height="24",
        class_="plot",
        aria_hidden="true",
        focusable="false",
    )
    return el(
        "div",
        el("div", el("div", head, class_="forest-plot"), class_="forest-row"),
        [_row(row, ends, scale, f"{'-'.join(ends)}-{i}") for i, row in enumerate(rows)],
        el("div", el("div", axis, class_="forest-plot"), class_="forest-row"),
        class_="forest" if first else "forest further",
    )


def _row(row: Row, ends: tuple[str, str], scale: Scale, key: str) -> Element:
    contrast, e = row
    name, metric = f"{cut(contrast.candidate, 40)} against {cut(contrast.base, 40)}", cut(e.metric.name, 50)
    assert e.ratio is not None
    side = "the same" if e.ratio == 1 else ends[e.ratio > 1]
    told = f"ratio {ratio(e.ratio)} ({side})"
    if e.interval:
        told += f", 95 % interval {interval(e.interval)}"
    if e.shift is not None:
        told += f", Hodges-Lehmann {ratio(e.shift)}"
    low, high = at(scale.at(1 / (1 + e.margin))), scale.at(1 + e.margin) - scale.at(1 / (1 + e.margin))
    ticks = [at(scale.at(t)) for t in ratio_ticks(scale, 6)]
    drawing = el(
        "svg",
        el("title", f"{name}, {metric}", id=f"ratio-{key}-title"),
        el("desc", told, id=f"ratio-{key}-desc"),
        el("rect", x=low, y="0", width=at(high), height=HEIGHT, class_="band"),
        [el("line", x1=x, x2=x, y1="0", y2=HEIGHT, class_="grid") for x in ticks],
        el("line", x1=at(scale.at(1)), x2=at(scale.at(1)), y1="0", y2=HEIGHT, class_="one"),
        _range(e.shift_interval, scale, 31, "shift"),
        _range(e.interval, scale, 17, "mean"),
        _shift(e, scale),
        el("use", href="#m-diamond-filled", x=at(scale.at(e.ratio)), y="17", class_="ink"),
        _off(e.ratio, scale),
        height=HEIGHT,
        class_="plot",
        role="img",
        aria_labelledby=f"ratio-{key}-title ratio-{key}-desc",
    )
    return el(
        "div",
        el(
            "div",
            el("strong", el("bdi", name)),
            el("span", el("bdi", metric), class_="quiet"),
            class_="forest-label",
        ),
        el("div", drawing, class_="forest-plot"),
        el(
            "div",
            el("strong", f"{ratio(e.ratio)}×"),
            el("span", interval(e.interval) if e.interval else "no interval", class_="quiet"),
            class_="forest-said",
        ),
        class_="forest-row",
    )


def _range(ends: tuple[float, float] | None, scale: Scale, y: int, class_: str) -> list[Element]:
    """An interval: a line with a stroke at each end, and an arrow where it goes on beyond the plot."""
    if ends is None or not all(end == end for end in ends):
        return []
    low, high = at(scale.at(ends[0])), at(scale.at(ends[1]))
    drawn = [el("line", x1=low, x2=high, y1=y, y2=y, class_=f"range {class_}")]
    for x, end, way in ((low, ends[0], "◂"), (high, ends[1], "▸")):
        if scale.beyond(end):
            drawn.append(el("text", way, x=x, y=y + 4, class_="tick", text_anchor="middle"))
        else:
            drawn.append(el("line", x1=x, x2=x, y1=y - 4, y2=y + 4, class_=f"range {class_}"))
    return drawn


def _shift(e: Estimate, scale: Scale) -> Element | None:
    if not usable([e.shift], positive=True) or e.shift is None:
        return None
    return el("use", href="#m-circle-hollow", x=at(scale.at(e.shift)), y="31", class_="faint")


def _off(value: float, scale: Scale) -> Element | None:
    if not scale.beyond(value):
        return None
    more = value > scale.high
    return el("text", "beyond ▸" if more else "◂ beyond", x="100%" if more else "0", y="10", class_="tick",
              text_anchor="end" if more else "start")  # fmt: skip


def _legend(rows: Sequence[Row]) -> Element:
    def item(drawn: list[Element], text: str) -> Element:
        return el("li", el("svg", drawn, class_="key wide", aria_hidden="true", focusable="false"), text)

    items = []
    line = {"y1": 8, "y2": 8, "x1": 1, "x2": 33}
    if any(e.interval for _, e in rows) or any(e.ratio for _, e in rows):
        mean = [
            el("line", class_="range mean", **line),
            el("use", href="#m-diamond-filled", x=17, y=8, class_="ink"),
        ]
        items.append(item(mean, "ratio of geometric means, 95 % interval (Student's t on logarithms)"))
    if any(e.shift is not None for _, e in rows):
        shift = [
            el("line", class_="range shift", **line),
            el("use", href="#m-circle-hollow", x=17, y=8, class_="faint"),
        ]
        items.append(item(shift, "Hodges-Lehmann shift, exact interval"))
    items.append(item([el("rect", x=1, y=1, width=32, height=14, class_="band")], "margin"))
    return el("ul", items, class_="legend")


def _table(rows: Sequence[Row]) -> Element:
    header = ["Contrast", "Metric", "Base", "Candidate", "Ratio", "Change", "95 % interval", "Hodges-Lehmann",
              "p", "p (Holm)", "n", "Test", "Verdict"]  # fmt: skip
    body = [
        [
            f"{cut(c.candidate, 40)} against {cut(c.base, 40)}",
            cut(e.metric.name, 60),
            figure(e.base, cut(e.metric.unit, 24)),
            figure(e.candidate, cut(e.metric.unit, 24)),
            ratio(e.ratio),
            percent(e.ratio),
            interval(e.interval),
            f"{ratio(e.shift)} ({interval(e.shift_interval)})" if e.shift_interval else ratio(e.shift),
            probability(e.p),
            probability(e.p_adjusted),
            f"{e.n_base} pairs" if e.paired else f"{e.n_base} + {e.n_candidate}",
            cut(e.test, 60),
            _verdict_word(e),
        ]
        for c, e in rows
    ]
    shown = table("Ratios of every contrast and metric", header, body, numbers=range(2, 11))
    return el("details", el("summary", "The figures as a table"), shown, open=len(rows) <= 4)


def _verdict_word(e: Estimate) -> str:
    if e.metric.rate:
        return str(e.verdict.value)
    return {"faster": "better", "slower": "worse"}.get(e.verdict.value, str(e.verdict.value))
