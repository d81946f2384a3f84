"""Proves the report as text: whatever it is given is escaped, figures are readable, nothing is left out."""

from __future__ import annotations

import math
import re
import shlex
from html.parser import HTMLParser
from typing import Any

import pytest
from comparison_parts import comparison, estimate, point
from comparison_samples import ATTRIBUTE, SAMPLES, SCRIPT, many

from compute_router.compare.outcome import Comparison, Contrast, Metric, Result
from compute_router.report import page
from compute_router.report.document import again, heading
from compute_router.report.elements import Sheet, cut, el, rendered, spelled
from compute_router.report.looks import CSS
from compute_router.report.numerals import figure, interval, percent, probability, ratio, short
from compute_router.report.scales import Scale, even_ticks, ratio_ticks, steady_scale, time_ticks
from compute_router.report.times import HATCHED, PARTS
from compute_router.report.verdicts import with_commands


class Read(HTMLParser):
    """What a page holds, as a parser of its own sees it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def read(name: str) -> Read:
    return Read(page(SAMPLES[name]()))


# The builder


def test_text_and_attributes_are_escaped() -> None:
    made = rendered(el("p", SCRIPT, title=ATTRIBUTE))
    assert made.count("<") == 3, "the doctype, the element and its end"
    read = Read(made)
    assert (read.text, read.tags) == (SCRIPT, [("p", {"title": ATTRIBUTE})])


@pytest.mark.parametrize(
    "tag", ["script", "style", "iframe", "img", "link", "object", "form", "input", "p onx"]
)
def test_there_are_no_elements_that_could_run_or_load(tag: str) -> None:
    with pytest.raises(ValueError, match="no element"):
        el(tag)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("onclick", "x()"),
        ("ONLOAD", "x()"),
        ("style", "color:red"),
        ("src", "a.png"),
        ("a b", "c"),
        ("href", "https://example.org"),
        ("href", "javascript:x()"),
        ("href", "#a b"),
        ("href", "data:text/html,x"),
    ],
)
def test_there_are_no_attributes_that_could_run_or_load(name: str, value: str) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(ValueError):
        el("a", **given)


def test_attributes_that_are_not_given_are_left_out() -> None:
    made = rendered(el("div", None, ["a", [el("br", "x") if False else "b"], 3], class_=None, hidden=False))
    assert made == "<!doctype html>\n<div>ab3</div>\n"
    assert "<details open>" in rendered(el("details", open=True))


def test_a_sheet_holds_no_markup() -> None:
    with pytest.raises(ValueError, match="markup"):
        Sheet("a{}</style><script>")


def test_what_does_not_show_itself_is_spelled_out() -> None:
    assert spelled("a\x1b[31m\u202eb\x00\u200f\ud800\ufeff") == r"a^[[31m\u202eb^@\u200f\ud800\ufeff"
    assert spelled("naïve – 東京 שלום") == "naïve – 東京 שלום"
    assert cut("a \n\t b", 9) == "a b"
    assert cut("x" * 50, 10) == "x" * 9 + "…"
    page_of_it = rendered(el("p", "\ud800\x00"))
    page_of_it.encode()


# Figures and axes


def test_figures_have_the_digits_they_carry() -> None:
    assert [figure(x) for x in (412345.67, 61.234, 2.1044, 0, 0.00001, 1.5e20)] == [
        "412,346", "61.23", "2.104", "0", "1e-05", "1.5e+20",
    ]  # fmt: skip
    assert figure(-1234.5, "s") == "−1,234 s"
    assert [figure(x) for x in (None, math.nan, math.inf, -math.inf)] == ["–", "not a number", "∞", "−∞"]
    assert [ratio(x) for x in (0.7154, 1.1244, 3.4185, 12.34, 123.4, 0.0012, 0.0)] == [
        "0.715", "1.124", "3.42", "12.3", "123", "1.20e-03", "0",
    ]  # fmt: skip
    assert interval((0.9, 1.1)) == "0.900 to 1.100"
    assert [percent(x) for x in (1.125, 0.715, 1.0, 40.0, None)] == ["+12.5 %", "−28.5 %", "0.0 %", "", ""]
    assert [probability(p) for p in (0.03125, 0.5625, 1e-9, None)] == ["0.031", "0.56", "< 0.001", "–"]
    assert [short(x) for x in (412300, 61.2, 1.5e6, 0.25, 2e9)] == ["412.3k", "61.2", "1.5M", "0.25", "2G"]


@pytest.mark.parametrize(
    "ends", [(0.97, 1.04), (0.7, 1.3), (0.2, 4.0), (1e-3, 1e3), (0.999, 1.001), (0.5, 600)]
)
def test_ratio_ticks_are_few_and_hold_one(ends: tuple[float, float]) -> None:
    ticks = ratio_ticks(Scale(*ends, log=True), 6)
    assert 1.0 in ticks
    assert len(ticks) <= 6
    assert all(ends[0] <= t <= ends[1] for t in ticks)
    assert ticks == sorted(set(ticks))


def test_scales_of_any_values(seed: Any) -> None:
    for _ in range(2000):
        values = [seed.choice([-1, 1]) * 10 ** seed.uniform(-300, 300) for _ in range(seed.randrange(1, 5))]
        if seed.random() < 0.5:
            values = [seed.uniform(1, 1.2) * abs(values[0]) for _ in values]
        scale = steady_scale(values)
        assert scale.low < scale.high
        assert all(-1e-9 <= scale.at(v) <= 1 + 1e-9 for v in values), values
        ticks = even_ticks(scale)
        assert len(ticks) <= 7
        assert all(math.isfinite(t) for t in ticks)


def test_a_place_on_a_logarithmic_axis_is_that_of_its_logarithm() -> None:
    scale = Scale(0.25, 4, log=True)
    assert [round(scale.at(v), 6) for v in (0.25, 0.5, 1, 2, 4, 99, 0)] == [0, 0.25, 0.5, 0.75, 1, 1, 0]
    assert scale.beyond(4.1)
    assert not scale.beyond(4)


def test_times_are_marked_at_whole_units() -> None:
    assert [text for _, text in time_ticks(80e6)] == ["0", "15 s", "30 s", "45 s", "1 min", "1:15 min"]
    assert [text for _, text in time_ticks(8.3 * 3600e6, 5)] == ["0", "2 h", "4 h", "6 h", "8 h"]
    assert time_ticks(2.4e6, 3)[0] == (0, "0")
    assert len(time_ticks(1e15)) <= 7


# The page


@pytest.mark.parametrize("name", SAMPLES)
def test_a_page_is_well_formed_and_loads_nothing(name: str) -> None:
    read_page = read(name)
    assert read_page.open == []
    ids = [a["id"] for _, a in read_page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in read_page.tags:
        assert tag not in ("script", "img", "link", "iframe", "object", "base")
        assert not {"src", "style", "onload", "onerror", "srcset"} & set(attributes)
        if href := attributes.get("href"):
            assert href.startswith("#")
            assert href[1:] in ids, f"{href} leads nowhere"
        for labels in (attributes.get("aria-labelledby") or "").split():
            assert labels in ids
    [policy] = [a["content"] for t, a in read_page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", SAMPLES)
def test_equal_records_give_equal_pages(name: str) -> None:
    assert page(SAMPLES[name]()) == page(SAMPLES[name]())


def test_the_verdict_comes_first_with_what_it_rests_on() -> None:
    text = read("faster").text
    assert text.index("fused is faster than flash: 1.125× tokens/s") < text.index("1.109 to 1.140")
    assert text.index("1.109 to 1.140") < text.index("Where the time went", text.index("1.109"))
    for said in ("standing: claim", "0.031", "sign-flip, exact, 64 of 64", "6 blocks", "Hodges-Lehmann 1.126",
                 "anything about other shapes", "the interval lies beyond it", "flash 6 of 6"):  # fmt: skip
        assert said in text, said


def test_a_refusal_says_what_why_and_the_mend() -> None:
    text = read("refused").text
    head = text[: text.index("Ratios", text.index("cannot be compared"))]
    for said in ("✕refused", "COLD_VS_WARM", "R03", "cache=empty", "does not cure this",
                 "route warm train.py", "TOO_FEW_RUNS", "cannot be waived", "NOT_INTERLEAVED"):  # fmt: skip
        assert said in head, said
    assert "standing:" not in text
    assert "There is no ratio to show" in text


def test_what_refuses_comes_first_among_differences() -> None:
    text = page(SAMPLES["refused"]())
    roles = re.findall(r'class="role role-(\w+)"', text)
    assert roles == ["refuses", "refuses", "refuses", "warns"]


def test_a_waiver_is_never_silent() -> None:
    text = read("waived").text
    assert text.count("one machine was free, and only for one night") == 3, "at the verdict, below, to repeat"
    assert "NOT_INTERLEAVED waived" in text.replace("NOT_INTERLEAVEDwaived", "NOT_INTERLEAVED waived")
    assert "COLD_VS_WARM (not needed: nothing broke it), because: copied from another call" in text
    assert "standing: exploratory" in text
    assert 'class="answer is-faster is-hint"' in page(SAMPLES["waived"]())


def test_failures_are_counted_and_shown() -> None:
    text = read("failures").text
    assert "fused 7 of 10 (by chance: p = 0.090, Fisher, exact)" in text
    assert page(SAMPLES["failures"]()).count('href="#m-cross"') == 4 + 1, "four runs, and the legend"
    for why in ("out of memory", "preempted", "no end marker"):
        assert why in text


def test_directions_know_which_way_is_better() -> None:
    text = read("three_arms").text
    assert "◂ slower" in text
    assert "faster ▸" in text
    assert "◂ better" in text
    assert "worse ▸" in text
    assert "faster ▸" not in read("surfaces").text, "more seconds are slower"
    assert "ratio 1.224 (worse)" in text


def test_every_run_stands_in_a_table_with_its_receipt() -> None:
    made = SAMPLES["failures"]()
    text = page(made)
    for p in made.points:
        assert p.receipt_id in text
        assert p.run_id in text


def test_many_runs_stay_small_and_are_drawn_by_arm() -> None:
    text = page(many(500))
    assert len(text.encode()) < 2_000_000
    assert "Every one of 1,000 runs" in text
    assert "medians of parts need not add up" in text
    assert "<summary>Every one" not in page(many(15))


def test_nothing_at_all_is_told() -> None:
    assert "This comparison is refused" in read("nothing").text
    assert "NOTHING_TO_COMPARE" in read("nothing").text
    assert "Nothing was compared" in read("bare").text


def test_the_command_repeats_the_comparison() -> None:
    made = SAMPLES["waived"]()
    words = shlex.split(again(made))
    assert words[:2] == ["route", "compare"]
    files = words[2 : words.index("--vary")]
    assert files == [*(p.ref for p in made.points[:6]), "vs", *(p.ref for p in made.points[6:])]
    assert words[words.index("--allow") : words.index("--allow") + 4] == [
        "--allow", "NOT_INTERLEAVED", "--because", "one machine was free, and only for one night",
    ]  # fmt: skip
    assert read("waived").text.count(again(made)) == 1


def test_a_run_of_a_store_is_called_by_its_id_and_its_folder_is_not_told() -> None:
    run = point("a", 0, 10.0)
    home = f"/home/somebody/.local/share/route/runs/{run.run_id}/receipt.json"
    told = f"not observed ({home})"
    made = comparison(
        [point("a", 0, 10.0, ref=home), point("b", 1, 11.0)], [], notes=(told, "x" * 380 + told)
    )
    text = page(made, command=f"route compare {home} other.json")
    assert "somebody" not in text
    assert f"not observed ({run.run_id})" in text
    assert f"route compare {run.run_id} other.json" in text


def test_a_title_takes_the_place_of_the_heading() -> None:
    made = SAMPLES["three_arms"]()
    assert heading(made) == "math, eager against flash"
    given = Read(page(made, title=f"Kernels {SCRIPT}"))
    assert given.texts.count(f"Kernels {SCRIPT}") == 2, "the title and the heading"


def test_commands_are_set_apart() -> None:
    def parts(text: str) -> list[str]:
        return [c if isinstance(c, str) else f"[{c.children[0]}]" for c in with_commands(text)]  # type: ignore[union-attr]

    assert parts("route warm a.py, then again") == ["[route warm a.py]", ", then again"]
    assert parts("let `route study run` do it") == ["let ", "[route study run]", " do it"]
    assert parts("an `open one") == ["an `open one"]
    assert parts("nothing to type") == ["nothing to type"]
    told = "name receipts: route receipt list shows those there are"
    assert parts(told) == ["name receipts: ", "[route receipt list]", " shows those there are"]
    assert parts("as a study does (route study run)") == ["as a study does (", "[route study run]", ")"]
    assert parts("declare it: --vary kernel") == ["declare it: ", "[--vary kernel]"]
    assert parts("route compare a.json --vary x, twice") == ["[route compare a.json --vary x]", ", twice"]


def test_runs_far_apart_in_time_are_shown_by_their_order() -> None:
    points = [point("a", i, 10.0 + i) for i in range(4)]
    late = point("b", 9_000, 12.0)
    made = comparison([*points, late], [])
    assert "run, in the order in which they began" in page(made)
    assert "since the first start" in page(comparison(points, []))


def test_more_arms_than_fillings_have_letters() -> None:
    made = comparison([point(f"arm{i}", i, 10.0 + i) for i in range(6)], [])
    text = Read(page(made))
    assert "arm4 (e)" in text.text
    assert "arm5 (f)" in text.text
    assert "arm3 (d)" not in text.text


def test_an_estimate_that_cannot_be_drawn_is_left_out_of_the_plot() -> None:
    odd = estimate([1.0], [2.0], metric=Metric(name="odd"))
    odd = type(odd)(**{**{n: getattr(odd, n) for n in odd.__struct_fields__}, "ratio": math.nan})
    contrast = Contrast(base="a", candidate="b", result=Result.EQUAL, primary=odd)
    text = Read(page(comparison([], [contrast]))).text
    assert "There is no ratio to show" in text
    assert "not a number×" in text


def test_a_record_that_went_through_json_gives_the_same_page() -> None:
    import msgspec

    made = SAMPLES["three_arms"]()
    again_made = msgspec.json.decode(msgspec.json.encode(made), type=Comparison)
    assert page(again_made) == page(made)


# Colours


def luminance(colour: str) -> float:
    colour = colour.lstrip("#")
    whole = "".join(c * 2 for c in colour) if len(colour) == 3 else colour
    parts = [int(whole[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast_of(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_words_on_bars_can_be_read() -> None:
    fills = dict(re.findall(r"\.t-(\w\d)\{fill:(#\w+)\}", CSS))
    white = set(re.findall(r"on-(\w\d)", CSS))
    looks = {look for look, _ in PARTS.values()}
    assert looks <= set(fills)
    for look in looks - set(HATCHED):
        text = "#ffffff" if look in white else "#0b0f12"
        assert contrast_of(fills[look], text) >= 4.5, look


def test_marks_stand_out_from_their_ground_in_both_schemes() -> None:
    light, dark = CSS.split("@media(prefers-color-scheme:dark)")[:2]
    for scheme in (light, dark.split("*{box-sizing")[0]):
        card = re.search(r"--card:(#\w+)", scheme)
        assert card
        marks = re.findall(r"--c\d:(#\w+)", scheme)
        assert len(marks) == 8
        for colour in marks:
            assert contrast_of(colour, card[1]) >= 3, colour
