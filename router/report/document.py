"""The whole report: one HTML page of a comparison that needs nothing beside itself."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence

from compute_router.compare.outcome import Comparison, Point
from compute_router.report.elements import Child, Element, Sheet, cut, el, rendered
from compute_router.report.looks import CSS
from compute_router.report.marks import Looks
from compute_router.report.naming import renamed, renamer
from compute_router.report.numerals import count
from compute_router.report.ratios import ratio_plot
from compute_router.report.series import in_order, series_plot
from compute_router.report.tables import arms, differences, runs
from compute_router.report.times import HATCHED, patterns, time_bars
from compute_router.report.verdicts import answers

__all__ = ["again", "heading", "is_page", "page"]

_HATCHED = "".join(f".f-{look}{{fill:url(#hatch-{look})}}" for look in HATCHED)
_SHEET = CSS.replace("HATCHED", _HATCHED).strip()
# The one style sheet is named by its digest, so that nothing else could ever style, run or load.
_POLICY = (
    "default-src 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_SHEET.encode()).digest()).decode()
    + "'; base-uri 'none'; form-action 'none'"
)


def page(comparison: Comparison, *, title: str = "", command: str = "") -> str:
    """`comparison` as one HTML file: it loads nothing, runs nothing, and shows every text as text.

    Equal records give equal pages. `title` stands in place of a heading made from the arms; `command` in
    place of one that names every receipt.
    """
    command = renamer(comparison)(command)
    comparison = renamed(comparison)
    shown = cut(title, 200) or heading(comparison)
    looks = Looks(comparison)
    points = in_order(comparison)
    sections: list[tuple[str, str, Child]] = [
        ("verdict", "Verdict", answers(comparison)),
        ("ratios", "Ratios", ratio_plot(comparison)),
        (
            "runs",
            "Runs over time",
            [series_plot(comparison, looks)] if points else [_none("There are no runs.")],
        ),
        ("time", "Where the time went", time_bars(points, looks)),
        ("differences", "What differs", _differences(comparison)),
        ("evidence", "Evidence", _evidence(comparison, points)),
        ("again", "Repeat it", _again(comparison, command)),
    ]
    drawn = el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("meta", name="referrer", content="no-referrer"),
            el("meta", name="generator", content=f"compute-router {cut(comparison.version, 30)}".strip()),
            el("title", shown),
            Sheet(_SHEET),
        ),
        el(
            "body",
            el("a", "Skip to the verdict", href="#verdict", class_="skip"),
            looks.definitions(points),
            patterns(),
            _header(comparison, shown, sections),
            el(
                "main",
                [
                    el(
                        "section",
                        el("h2", name, id=f"{key}-title"),
                        inside,
                        id=key,
                        aria_labelledby=f"{key}-title",
                    )
                    for key, name, inside in sections
                ],
            ),
            el(
                "footer",
                el(
                    "p",
                    f"Made by compute-router {cut(comparison.version, 30)} from receipts. "
                    "One fresh run is the unit of every statistic. This file loads nothing and runs nothing.",
                    class_="quiet small",
                ),
            ),
        ),
        lang="en",
    )
    return rendered(drawn)


def heading(comparison: Comparison) -> str:
    """What is compared, in a few words: `fused against flash`."""
    if not comparison.contrasts:
        return "Comparison of runs"
    others = [cut(c.candidate, 40) for c in comparison.contrasts]
    named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return f"{named} against {cut(comparison.contrasts[0].base, 40)}"


def is_page(start: bytes) -> bool:
    """Whether a file that begins with `start` (1,000 bytes will do) is one of these."""
    return start.startswith(b"<!doctype html>") and b'content="compute-router' in start


def _none(text: str) -> Element:
    return el("p", text, class_="quiet")


def _header(comparison: Comparison, shown: str, sections: Sequence[tuple[str, str, Child]]) -> Element:
    facts: list[tuple[str, Child]] = []
    names = list(dict.fromkeys(p.name for p in comparison.points if p.name))
    lanes = list(dict.fromkeys(f"{p.kind}, {p.purpose}".strip(", ") for p in comparison.points))
    if names:
        facts.append(("Workload", cut(", ".join(names[:3]), 120)))
    if lanes and lanes != [""]:
        facts.append(("Kind", cut("; ".join(lanes[:3]), 80)))
    if comparison.metric:
        facts.append(("Metric", el("code", cut(comparison.metric, 80))))
    if comparison.vary:
        facts.append(
            ("Varies", [[", "] * (i > 0) + [el("code", cut(v, 80))] for i, v in enumerate(comparison.vary)])
        )
    facts.append(("Margin", f"{comparison.margin * 100:.3g} %"))
    facts.append(("Receipts", f"{len(comparison.points):,}"))
    for key, value in list(comparison.study.items())[:8]:
        facts.append((f"Study {cut(key, 30)}", el("code", cut(value, 64), class_="id")))
    return el(
        "header",
        el("p", "compute-router: fair comparison", class_="over"),
        el("h1", el("bdi", shown)),
        el("dl", [el("div", el("dt", k), el("dd", v)) for k, v in facts], class_="facts"),
        el(
            "nav",
            el("ul", [el("li", el("a", name, href=f"#{key}")) for key, name, _ in sections]),
            aria_label="On this page",
        ),
    )


def _differences(comparison: Comparison) -> list[Child]:
    found = [c for c in comparison.contrasts if c.differences]
    if not found:
        return [_none("No field of the arms differs." if comparison.contrasts else "Nothing was compared.")]
    lead = "Fields of the receipts in which the arms differ; what stands in the way of a verdict comes first."
    return [el("p", lead, class_="lead"), *(differences(c) for c in found)]


def _evidence(comparison: Comparison, points: Sequence[Point]) -> list[Child]:
    notes = [el("li", el("bdi", cut(note, 400))) for note in comparison.notes]
    return [
        el("ul", notes) if notes else None,
        arms(comparison) if comparison.arms else None,
        runs(comparison, points) if points else _none("There are no receipts."),
    ]


def again(comparison: Comparison) -> str:
    """The command that makes the same comparison of the same receipts, unless a field made its arms."""
    groups = [[p.ref for p in comparison.points if p.arm == arm.name] for arm in comparison.arms]
    words = ["route", "compare"]
    if len(groups) == 2 and not comparison.study:
        words += [*dict.fromkeys(groups[0]), "vs", *dict.fromkeys(groups[1])]
    else:
        words += dict.fromkeys(p.ref for p in comparison.points)
    for field in comparison.vary:
        words += ["--vary", field]
    if comparison.metric:
        words += ["--metric", comparison.metric]
    words += ["--margin", f"{comparison.margin:.6g}"]
    for waiver in comparison.waivers:
        words += ["--allow", waiver.rule, "--because", waiver.because]
    return shlex.join(words)


def _again(comparison: Comparison, command: str) -> list[Child]:
    if not comparison.points:
        return [_none("There is nothing to repeat.")]
    typed = el("code", command or again(comparison), class_="command block")
    rules = f" Rules {comparison.rules}, router {cut(comparison.version, 30)}." if comparison.version else ""
    lead = f"The same receipts give the same answer, wherever they lie.{rules} One click selects the command."
    if not command and len(comparison.points) > 24:
        summary = el("summary", f"The command, with {count(len(comparison.points), 'file')}")
        return [el("p", lead, class_="lead"), el("details", summary, typed)]
    return [el("p", lead, class_="lead"), typed]
