"""Where the time went: stacked bars of the parts of every run, or of every arm where runs are many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from compute_router.compare.outcome import Point
from compute_router.report.elements import Element, cut, el
from compute_router.report.marks import Looks, at, mark, words
from compute_router.report.numerals import NONE, count, span
from compute_router.report.scales import Scale, time_ticks
from compute_router.report.tables import table

__all__ = ["PARTS", "patterns", "time_bars"]

PARTS = {
    "submit": ("a1", "handing over"),
    "queue": ("a2", "waiting for the place"),
    "image": ("a3", "making the image or environment"),
    "boot": ("a4", "booting"),
    "stage_in": ("a5", "bringing files in"),
    "start": ("a6", "starting the work at its place"),
    "bootstrap": ("b1", "starting Python"),
    "import": ("b2", "importing"),
    "compile": ("b3", "compiling"),
    "first_step": ("b4", "first step"),
    "warmup": ("b5", "steps discarded"),
    "steady": ("g1", "steps counted"),
    "eval": ("p1", "evaluation"),
    "checkpoint": ("p2", "checkpoints"),
    "data_wait": ("p3", "waiting for data"),
    "run": ("g2", "the work, not told apart"),
    "idle": ("i1", "nothing that was seen"),
    "collect": ("i2", "measuring after the end"),
}
"""Part of the time line -> its look (family and number) and what it is. In the order of a run."""
OTHER = ("i3", "a part with no name here")
HATCHED = ("a2", "a4", "a6", "b1", "b4", "p2", "i1", "i3", "g2")
FEW = 40
"""Runs up to which each has a bar of its own at first sight."""
BAR, GAP, HEAD = 16, 7, 26


def patterns() -> Element:
    """Hatching for every second part of a family, so that neighbours differ in more than colour."""
    return el(
        "svg",
        el(
            "defs",
            [
                el(
                    "pattern",
                    el("rect", width="7", height="7", class_=f"t-{look}"),
                    el("path", d="M0 0V7", class_="hatch"),
                    id=f"hatch-{look}",
                    patternUnits="userSpaceOnUse",
                    patternTransform="rotate(45)",
                    width="7",
                    height="7",
                )
                for look in HATCHED
            ],
        ),
        class_="nowhere",
        width="0",
        height="0",
        aria_hidden="true",
        focusable="false",
    )


def time_bars(points: Sequence[Point], looks: Looks) -> list[Element]:
    """The bars with their legend and tables; one sentence where no run says where its time went."""
    timed = [p for p in points if sum(_parts(p.timing).values()) > 0]
    if not timed:
        return [el("p", "No run says where its time went.", class_="quiet")]
    used = _order(name for p in timed for name in _parts(p.timing))
    numbers = {id(p): i for i, p in enumerate(points, 1)}
    arms = [a for a in looks.arms if any(p.arm == a for p in timed)]
    groups = [(arm, [p for p in timed if p.arm == arm]) for arm in arms]
    legend = _legend(used, {name: sum(_parts(p.timing).get(name, 0) for p in timed) for name in used})
    middle = [(arm, _medians(mine, used)) for arm, mine in groups]
    medians = _median_table(middle, groups, used)
    if len(timed) <= FEW:
        bars = [(cut(arm, 60), [_bar(p, numbers[id(p)], looks) for p in mine]) for arm, mine in groups]
        chart = _chart("each", bars, used, "Every run, from its submission to its end.", legend)
        return [
            chart,
            el("details", el("summary", "Times as a table"), medians, _run_table(groups, used, numbers)),
        ]
    typical: list[tuple[str, list[Bar]]] = [
        (
            f"{cut(arm, 60)} ({len(mine):,} runs)",
            [("median", None, parts, sum(parts.values()), "median of each part")],
        )
        for (arm, parts), (_, mine) in zip(middle, groups, strict=True)
    ]
    said = (
        "The median of each part, for each arm; medians of parts need not add up to the median of the whole."
    )
    every = [(cut(arm, 60), [_bar(p, numbers[id(p)], looks) for p in mine]) for arm, mine in groups]
    small = _chart("each", every, used, "Every run, from its submission to its end.", None, tight=True)
    return [
        _chart("median", typical, used, said, legend),
        el("details", el("summary", "Medians as a table"), medians),
        el(
            "details",
            el("summary", f"Every one of {count(len(timed), 'run')}"),
            small,
            _run_table(groups, used, numbers),
        ),
    ]


def _parts(timing: Mapping[str, int]) -> dict[str, int]:
    return {name: us for name, us in timing.items() if 0 < us < 2**53}


def _order(names: Iterable[str]) -> list[str]:
    found = dict.fromkeys(names)
    return [name for name in PARTS if name in found] + sorted(name for name in found if name not in PARTS)


def _medians(points: Sequence[Point], used: Sequence[str]) -> dict[str, int]:
    return {name: round(median(_parts(p.timing).get(name, 0) for p in points)) for name in used}


Bar = tuple[str, tuple[str, str] | None, Mapping[str, int], int, str]
"""What stands before it, its mark, its parts, their sum, what it is."""


def _bar(p: Point, number: int, looks: Looks) -> Bar:
    parts = _parts(p.timing)
    told = f"{cut(p.arm, 40)}, run {number}, started {words(p.startup)}"
    if not p.counted:
        told += f", not counted: {cut(p.why or p.state, 120)}"
    return (f"{number}" if p.counted else f"✕ {number}", looks.of(p), parts, sum(parts.values()), told)


def _chart(
    key: str,
    groups: Sequence[tuple[str, list[Bar]]],
    used: Sequence[str],
    caption: str,
    legend: Element | None,
    *,
    tight: bool = False,
) -> Element:
    longest = max(total for _, bars in groups for _, _, _, total, _ in bars)
    scale = Scale(0, max(longest, 1))
    bar, gap = (5, 1) if tight else (BAR, GAP)
    y = 0.0
    left: list[Element] = []
    right: list[Element] = []
    drawn: list[Element] = []
    for title, bars in groups:
        name = el("text", title, x="0", y=HEAD - 9, class_="group")
        drawn.append(el("svg", name, x="0", y=y, width="100%", height=HEAD, class_="inside"))
        y += HEAD
        if tight:
            drawn.append(_thin(bars, used, scale, y, bar, gap))
            y += len(bars) * (bar + gap)
        for label, shape, parts, total, told in bars if not tight else ():
            middle = y + bar / 2
            left.append(el("text", label, x="100%", y=middle + 4, dx="-24", text_anchor="end", class_="tick"))
            if shape:
                left.append(mark(shape[0], shape[1], "100%", middle, el("title", told), dx=-11))
            right.append(el("text", span(total), x="0", y=middle + 4, dx="6", class_="tick"))
            drawn += _segments(parts, scale, y, bar, told)
            y += bar + gap
        y += 6
    ticks = [(scale.at(us), text) for us, text in time_ticks(longest, 5)]
    grid = [el("line", x1=at(x), x2=at(x), y1="0", y2=y, class_="grid") for x, _ in ticks]
    axis = [
        el("text", text, x=at(x), y=y + 16, text_anchor="middle" if x else "start", class_="tick")
        for x, text in ticks
    ]
    plot = el(
        "svg",
        el("title", "Where the time went", id=f"time-{key}-title"),
        el("desc", f"{caption} The table below says the same.", id=f"time-{key}-desc"),
        grid,
        drawn,
        axis,
        height=y + 22,
        class_="plot bars",
        role="img",
        aria_labelledby=f"time-{key}-title time-{key}-desc",
    )
    return el(
        "figure",
        el("figcaption", caption),
        el(
            "div",
            _beside(left, "gutter", y + 22),
            plot,
            _beside(right, "totals", y + 22),
            class_="framed with-totals",
        ),
        legend,
        aria_label="Where the time went",
        class_="chart",
    )


def _beside(drawn: list[Element], class_: str, height: float) -> Element:
    return el("svg", drawn, class_=class_, height=height, aria_hidden="true", focusable="false")


def _segments(parts: Mapping[str, int], scale: Scale, y: float, bar: float, told: str) -> list[Element]:
    drawn, so_far = [], 0
    for name in _order(parts):
        us = parts[name]
        look, meaning = PARTS.get(name, OTHER)
        share = scale.at(us)
        x = at(scale.at(so_far))
        title = el("title", f"{cut(name, 40)}: {span(us)} ({meaning})\n{told}")
        drawn.append(el("rect", title, x=x, y=y, width=at(share), height=bar, class_=f"part f-{look}"))
        if share > 0.24 and look not in HATCHED:
            text = el("text", cut(name, 12), x="4", y=bar - 4.5, class_=f"on on-{look}")
            drawn.append(el("svg", text, x=x, y=y, width=at(share), height=bar, class_="inside"))
        so_far += us
    return drawn


def _thin(
    bars: Sequence[Bar], used: Sequence[str], scale: Scale, y: float, bar: float, gap: float
) -> Element:
    """The bars of many runs: one path for each part, stretched to whatever width there is."""
    paths: dict[str, list[str]] = {name: [] for name in used}
    for i, (_, _, parts, _, _) in enumerate(bars):
        so_far = 0
        for name in _order(parts):
            left, right = round(scale.at(so_far) * 4000), round(scale.at(so_far + parts[name]) * 4000)
            so_far += parts[name]
            if right > left:
                paths[name].append(f"M{left} {i * (bar + gap):g}h{right - left}v{bar:g}h-{right - left}z")
    height = len(bars) * (bar + gap)
    return el(
        "svg",
        [el("path", d="".join(d), class_=f"t-{PARTS.get(name, OTHER)[0]}") for name, d in paths.items() if d],
        x="0",
        y=y,
        width="100%",
        height=height,
        viewBox=f"0 0 4000 {height:g}",
        preserveAspectRatio="none",
    )


def _legend(used: Sequence[str], totals: Mapping[str, int]) -> Element:
    whole = sum(totals.values())
    items = []
    for name in used:
        look, meaning = PARTS.get(name, OTHER)
        key = el("svg", el("rect", x="1", y="1", width="14", height="14", class_=f"part f-{look}"),
                 class_="key", aria_hidden="true", focusable="false")  # fmt: skip
        share = totals[name] / whole * 100
        said = f"{share:.0f}\xa0%" if share >= 1 else "<\xa01\xa0%"
        items.append(
            el(
                "li",
                key,
                el("span", el("strong", el("bdi", cut(name.replace("_", " "), 40))), f" {meaning}, {said}"),
            )
        )
    return el("ul", items, class_="legend parts")


def _median_table(
    middle: Sequence[tuple[str, Mapping[str, int]]],
    groups: Sequence[tuple[str, Sequence[Point]]],
    used: Sequence[str],
) -> Element:
    header = ["Part", *(f"{cut(arm, 40)} ({len(mine):,})" for arm, mine in groups), "What it is"]
    rows = [
        [
            cut(name, 40),
            *(span(parts[name]) if parts[name] else NONE for _, parts in middle),
            PARTS.get(name, OTHER)[1],
        ]
        for name in used
    ]
    return table("Median time of each part, by arm (runs)", header, rows, numbers=range(1, len(groups) + 1))


def _run_table(
    groups: Sequence[tuple[str, Sequence[Point]]], used: Sequence[str], numbers: Mapping[int, int]
) -> Element:
    header = ["Run", "Arm", "Whole", *(cut(name, 24) for name in used)]
    rows = []
    for arm, mine in groups:
        for p in mine:
            parts = _parts(p.timing)
            cells = (span(parts[name]) if name in parts else NONE for name in used)
            rows.append([str(numbers[id(p)]), cut(arm, 40), span(sum(parts.values())), *cells])
    return table("Time of each part, by run", header, rows, numbers=range(2, len(header)))
