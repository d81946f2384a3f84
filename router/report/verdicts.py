"""The answer, first and large: a verdict or a refusal for each contrast, with what it rests on."""

from __future__ import annotations

import re
from collections.abc import Iterable

from compute_router.compare.outcome import (
    Comparison,
    Contrast,
    Estimate,
    Refusal,
    Result,
    Standing,
    Verdict,
    Waiver,
)
from compute_router.report.elements import Child, Element, cut, el
from compute_router.report.numerals import NONE, figure, interval, percent, probability, ratio

__all__ = ["answers", "sort_of"]

SIGNS = {
    "faster": ("▲", "faster"),
    "slower": ("▼", "slower"),
    "equivalent": ("=", "equivalent"),
    "inconclusive": ("~", "inconclusive"),
    "refused": ("✕", "refused"),
    "withheld": ("?", "no verdict"),
}
STANDINGS = {
    Standing.CLAIM: "may be quoted as it stands",
    Standing.EXPLORATORY: "a hint: repeat it before relying on it",
    Standing.ANECDOTE: "what happened once: decides nothing",
}


def sort_of(contrast: Contrast) -> str:
    """The key of `SIGNS` for a contrast: its verdict, or that there is none."""
    if contrast.result is Result.REFUSED:
        return "refused"
    return str(contrast.verdict.value) if contrast.verdict else "withheld"


def answers(comparison: Comparison) -> list[Element]:
    """One block for what stands in the way of all of it, and one for each contrast."""
    blocks: list[Element] = []
    standing = [r for r in comparison.refusals if not r.waived]
    if standing or not comparison.contrasts:
        blocks.append(_nothing(standing))
    blocks += [_answer(c) for c in comparison.contrasts]
    waived = [r for r in comparison.refusals if r.waived]
    if waived or comparison.waivers:
        blocks.append(_set_aside(waived, comparison.waivers))
    return blocks


def _word(contrast: Contrast, sort: str) -> str:
    """The verdict's word: of what is no rate, better and worse."""
    rate = contrast.primary is None or contrast.primary.metric.rate
    return SIGNS[sort][1] if rate else {"faster": "better", "slower": "worse"}.get(sort, SIGNS[sort][1])


def _headline(contrast: Contrast, sort: str) -> list[Child]:
    """The answer in the fewest words."""
    new, base = el("bdi", cut(contrast.candidate, 60)), el("bdi", cut(contrast.base, 60))
    e = contrast.primary
    margin = f" within {e.margin * 100:.3g}\xa0%" if e else ""
    figures: list[Child] = []
    if e and e.ratio is not None:
        unit = cut(e.metric.unit if e.metric.rate and e.metric.unit else e.metric.name, 40)
        figures = [": ", el("span", f"{ratio(e.ratio)}× {unit}")]
    said: dict[str, list[Child]] = {
        "faster": [new, f" is {_word(contrast, sort)} than ", base, figures],
        "slower": [new, f" is {_word(contrast, sort)} than ", base, figures],
        "equivalent": [new, " and ", base, f" are equivalent{margin}", figures],
        "inconclusive": [new, " and ", base, " cannot be told apart"],
        "refused": [new, " and ", base, " cannot be compared"],
        "withheld": ["No verdict on ", new, " against ", base],
    }
    return said[sort]


def _badge(sort: str, word: str = "") -> Element:
    sign, word = SIGNS[sort][0], word or SIGNS[sort][1]
    return el("span", el("span", sign, class_="sign", aria_hidden="true"), word, class_="badge")


def _nothing(refusals: list[Refusal]) -> Element:
    sentence = "This comparison is refused" if refusals else "Nothing was compared"
    text = (
        None if refusals else el("p", "The record holds no arms, no runs and no rule that stands in the way.")
    )
    return el(
        "div",
        el("p", _badge("refused" if refusals else "withheld"), class_="badges"),
        el("h3", sentence, class_="sentence"),
        text,
        [_refusal(r) for r in refusals],
        class_=f"answer is-{'refused' if refusals else 'withheld'}",
    )


def _set_aside(waived: Iterable[Refusal], waivers: Iterable[Waiver]) -> Element:
    told = [el("li", _waiver(w)) for w in waivers]
    return el(
        "div",
        el("h3", "Rules set aside by whoever asked"),
        el("ul", told) if told else None,
        [_refusal(r) for r in waived],
        class_="answer is-waived",
    )


def _waiver(waiver: Waiver) -> list[Child]:
    used = "used" if waiver.used else "not needed: nothing broke it"
    return [
        el("code", cut(waiver.rule, 80)),
        f" ({used}), because: ",
        el("bdi", cut(waiver.because, 400) or "no reason was given"),
    ]


def _answer(contrast: Contrast) -> Element:
    sort = sort_of(contrast)
    badges: list[Child] = [_badge(sort, _word(contrast, sort))]
    if contrast.standing and sort != "refused":
        name = contrast.standing.value
        badges += [
            el("span", el("span", "standing: ", class_="quiet"), name, class_=f"standing standing-{name}"),
            el("span", STANDINGS[contrast.standing], class_="quiet small"),
        ]
    if contrast.label:
        badges.append(el("span", el("bdi", cut(contrast.label, 120)), class_="label"))
    # Of a refusal the rules below say it all, and one by one.
    said = bool(contrast.sentence) and not (sort == "refused" and contrast.refusals)
    certain = sort == "refused" or contrast.standing is Standing.CLAIM
    standing = [r for r in contrast.refusals if not r.waived]
    waived = [r for r in contrast.refusals if r.waived]
    return el(
        "div",
        el("p", *(el("span", b, " ") for b in badges), class_="badges"),
        el("h3", _headline(contrast, sort), class_="sentence"),
        el("p", el("bdi", cut(contrast.sentence, 600)), class_="quiet said") if said else None,
        [_refusal(r) for r in waived],
        _figures(contrast) if contrast.primary and sort != "refused" else None,
        [_refusal(r) for r in standing],
        _success(contrast),
        _told("What cannot be concluded from this", contrast.cannot),
        _told("Of these figures", contrast.primary.notes if contrast.primary and sort != "refused" else ()),
        class_=f"answer is-{sort}" + ("" if certain else " is-hint"),
    )


def _figures(contrast: Contrast) -> Element:
    e = contrast.primary
    assert e is not None
    unit = "blocks" if e.paired else "runs"
    change = percent(e.ratio)
    n = f"{e.n_base:,} {unit}" if e.paired else f"{e.n_base:,} and {e.n_candidate:,}"
    holm = f"Holm over all that is tested: {probability(e.p_adjusted)}" if e.p_adjusted is not None else ""
    shift = f"Hodges-Lehmann {ratio(e.shift)}" if e.shift is not None else ""
    if e.shift_interval:
        shift += f", {interval(e.shift_interval)}"
    cells = [
        _cell("Ratio", f"{ratio(e.ratio)}×" if e.ratio is not None else NONE, change, big=True),
        _cell("95 % interval", interval(e.interval), shift if e.interval else "too few runs for one"),
        _cell("p", probability(e.p), "; ".join(filter(None, [cut(e.test, 80), holm])) or "not tested"),
        _cell("Pairs" if e.paired else "Runs", n, cut(contrast.order, 80)),
        _cell("Margin", f"{e.margin * 100:.3g} %", _margin(e)),
        _arm(contrast.base, e.base, e.base_range, e.metric.unit),
        _arm(contrast.candidate, e.candidate, e.candidate_range, e.metric.unit),
    ]
    if e.needed is not None:
        each = "" if e.paired else "of each arm "
        cells.insert(3, _cell("Needed", _many(e.needed, unit), f"{each}to find a difference of the margin"))
    return el("dl", cells, class_="figures")


def _many(n: int, unit: str) -> str:
    return f"{n:,} {unit}" if n <= 1_000_000 else f"over a million {unit}"


def _margin(e: Estimate) -> str:
    if e.beyond:
        return "the interval lies beyond it"
    if e.verdict is Verdict.EQUIVALENT:
        return f"90 % interval within it: {interval(e.interval90)}" if e.interval90 else "all within it"
    if e.verdict in (Verdict.FASTER, Verdict.SLOWER):
        return "the interval reaches into it"
    return "what would matter in practice"


def _arm(name: str, value: float | None, ends: tuple[float, float] | None, unit: str) -> Element:
    spread = f"{figure(ends[0])} to {figure(ends[1])}" if ends and ends[0] != ends[1] else ""
    return _cell(el("bdi", cut(name, 40)), figure(value, cut(unit, 24)), spread)


def _cell(label: Child, value: str, more: str = "", *, big: bool = False) -> Element:
    return el(
        "div",
        el("dt", label),
        el("dd", value, class_="value big" if big else "value"),
        el("dd", more, class_="quiet small") if more else None,
    )


def _success(contrast: Contrast) -> Element | None:
    s = contrast.success
    if s is None:
        return None
    chance = f" (by chance: p = {probability(s.p)}, Fisher, exact)" if s.p is not None else ""
    told: list[Child] = [
        el("bdi", cut(contrast.base, 40)),
        f" {s.base:,} of {s.base_of:,}, ",
        el("bdi", cut(contrast.candidate, 40)),
        f" {s.candidate:,} of {s.candidate_of:,}",
    ]
    uneven = s.base < s.base_of or s.candidate < s.candidate_of
    return el(
        "p", "Succeeded: ", told, chance if uneven else "", ".", class_="small" if uneven else "small quiet"
    )


def _told(title: str, lines: tuple[str, ...]) -> Element | None:
    if not lines:
        return None
    shown = [el("li", el("bdi", cut(line, 400))) for line in lines]
    return el("div", el("p", title, class_="over"), el("ul", shown), class_="told")


def _refusal(refusal: Refusal) -> Element:
    """A rule that stands in the way, or that was set aside: what, why, and the mend or the reason."""
    head: list[Child] = [
        el("span", cut(refusal.number, 8), class_="number"),
        " ",
        el("code", cut(refusal.code, 60)),
    ]
    if refusal.waived:
        head.append(el("span", "waived", class_="label"))
    elif not refusal.waivable:
        head.append(el("span", "cannot be waived", class_="quiet small"))
    rows = [("What", cut(refusal.what, 400)), ("Why", cut(refusal.why, 400))]
    last: Child = el("div", el("dt", "Mend"), el("dd", with_commands(refusal.mend)))
    if refusal.waived:
        last = el(
            "div", el("dt", "Set aside because"), el("dd", cut(refusal.because, 400) or "no reason given")
        )
    return el(
        "div",
        el("p", head, class_="rule-name"),
        el("dl", [el("div", el("dt", k), el("dd", v)) for k, v in rows if v], last, class_="pairs"),
        class_="rule waived" if refusal.waived else "rule",
    )


_OPTION = r"--[a-z][\w-]*(?: [^\s,;)]+)?"
_TYPED = re.compile(
    r"(?:^|(?<=\()|(?<=: ))(?:"
    # A verb, then options and what looks like a name of something rather than a word of the sentence.
    rf"route (?:(?:receipt|study|plugins) )?[a-z]+(?: (?:{_OPTION}|[^\s,;)]*[./_=<A-Z0-9][^\s,;)]*))*"
    rf"|{_OPTION})"
)


def with_commands(text: str) -> list[Child]:
    """`text` with what is to be typed set apart: what stands in backticks, else a command or an option."""
    line = cut(text, 600)
    if "`" not in line:
        line = _TYPED.sub(r"`\g<0>`", line)
    parts = line.split("`")
    if len(parts) % 2 == 0:
        return [line]
    return [el("code", part, class_="command") if i % 2 else part for i, part in enumerate(parts) if part]
