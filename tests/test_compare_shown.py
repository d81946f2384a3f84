"""Proves what is said of a comparison: in figures, in characters, in Markdown; and that names stay names."""

from __future__ import annotations

import re
from collections.abc import Callable

import comparison_samples as samples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_router.cli import comparing
from compute_router.cli.call import Cli
from compute_router.cli.drawing import PARTS, Row, bar, forest, gathered
from compute_router.cli.output import Output
from compute_router.cli.words import visible
from compute_router.compare import wording
from compute_router.compare.markdown import markdown
from compute_router.compare.outcome import Comparison, Contrast, Metric, Result, Verdict

SAMPLES = ("faster", "refused", "inconclusive", "equivalent", "three_arms", "waived", "failures", "anecdote",
           "surfaces", "many", "hostile", "nothing", "bare")  # fmt: skip
every = pytest.mark.parametrize("make", [getattr(samples, name) for name in SAMPLES], ids=SAMPLES)


def told(comparison: Comparison, capsys: pytest.CaptureFixture[str], **options: bool) -> str:
    comparing._show(Cli(Output()), comparison, options.get("runs"), options.get("every", False))
    return capsys.readouterr().out


def numbers(contrast: Contrast) -> list[str]:
    """The numbers of its refusals, as far as they are numbers."""
    return [r.number for r in contrast.refusals if re.fullmatch("R[0-9]{2}", r.number)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (float("inf"), "-"),
        (0.0, "0"),
        (11272.988, "11,273"),
        (1234567.4, "1,234,567"),
        (0.71149, "0.7115"),
        (0.000123456, "0.0001235"),
        (1e-300, "1.000e-300"),
        (2.0, "2"),
        (-3.25, "-3.25"),
    ],
)
def test_a_number_has_four_digits_or_is_whole(value: float | None, text: str) -> None:
    assert wording.number(value) == text


@given(st.floats(1e-4, 1e12))
def test_a_number_is_near_what_it_stands_for(value: float) -> None:
    assert float(wording.number(value).replace(",", "")) == pytest.approx(value, rel=6e-4)


def test_of_a_loss_one_says_better() -> None:
    loss, rate = Metric(name="loss", higher_is_better=False, rate=False), Metric(name="tok_s")
    assert wording.word(loss, Verdict.FASTER) == "better"
    assert wording.word(rate, Verdict.FASTER) == "faster"
    assert wording.word(loss, Verdict.INCONCLUSIVE) == "inconclusive"


def test_chance_is_not_zero() -> None:
    assert wording.chance(0.0000001) == "p < 0.001"
    assert wording.chance(2 / 64) == "p = 0.031"
    assert wording.chance(None) == "no p-value"


@given(
    st.lists(st.tuples(st.floats(0.2, 5), st.floats(0, 0.5), st.floats(0, 0.5)), min_size=1, max_size=4),
    st.floats(0.001, 0.2),
)
def test_a_forest_holds_one_and_every_interval(rows: list[tuple[float, float, float]], margin: float) -> None:
    made = [Row(f"arm{i}", r, r * (1 - low), r * (1 + high), "") for i, (r, low, high) in enumerate(rows)]
    head, *lines = forest(made, margin)
    at = head.index("1")
    assert len(lines) == len(made)
    for row, line in zip(made, lines, strict=True):
        assert row.ratio is not None
        dot = line.index("●")
        assert (dot >= at) if row.ratio > 1 else (dot <= at)
        assert all(0 <= i < 60 for i in (at, dot))
    assert forest(made, margin, ascii_only=True)[1].isascii()


def test_a_forest_of_nothing_is_nothing() -> None:
    assert forest([Row("a", None, None, None, "")], 0.02) == []


def test_a_bar_is_as_long_as_its_share() -> None:
    assert bar({"steady": 10, "compile": 10}, 20, 30) == "c" * 15 + "#" * 15
    assert len(bar({"steady": 10}, 20, 30)) == 15
    assert bar({}, 20) == ""
    assert bar({"of_a_later_version": 5}, 5, 10) == "-" * 10


def test_no_part_of_a_run_is_left_out_of_a_bar() -> None:
    from compute_router.receipt.schema import TABLE

    parts = {
        f.path.removeprefix("timing.").removesuffix("_us"): 1 for f in TABLE if f.path.startswith("timing.")
    }
    assert sum(gathered(parts).values()) == len(parts)
    assert {part for group in PARTS.values() for part in group} <= set(parts)


@every
def test_the_terminal_bears_it(make: Callable[[], Comparison], capsys: pytest.CaptureFixture[str]) -> None:
    comparison = make()
    text = told(comparison, capsys)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u2066\u200f]", text)
    for contrast in comparison.contrasts:
        assert all(number in text for number in numbers(contrast))
        if contrast.result is Result.REFUSED:
            assert "REFUSED" in text
    for waiver in comparison.waivers:
        assert "WAIVED" in text
        assert visible(waiver.because.split()[0]) in text


def test_a_verdict_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(samples.faster(), capsys).splitlines()
    assert lines[0] == "fused against flash: FASTER  (claim)"
    assert "1.12x (95% 1.11 to 1.14), beyond the margin of 2%" in "\n".join(lines)


def test_runs_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = samples.many()
    assert comparison.points[0].run_id not in told(comparison, capsys)
    assert comparison.points[0].run_id in told(comparison, capsys, runs=True)
    assert comparison.points[-1].run_id in told(comparison, capsys, runs=True, every=True)
    assert samples.faster().points[0].run_id not in told(samples.faster(), capsys, runs=False)


@every
def test_markdown_bears_it(make: Callable[[], Comparison]) -> None:
    comparison = make()
    text = markdown(comparison)
    assert len(text) < 65_536
    # What a user wrote is text: no tag, no person, no reference, no cell of its own.
    bare = re.sub(r"`[^`\n]*`", "", text).replace("<br>", "")
    bare = re.sub(r"</?(details|summary)>", "", bare)
    assert not re.search(r"(?<!\\)<", bare)
    assert not re.search(r"@\w", bare)
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)
            assert len(cells) >= 6, line
    for contrast in comparison.contrasts:
        assert text.count("###") >= 1
        assert all(number in text for number in numbers(contrast))


def test_markdown_begins_with_the_answer() -> None:
    assert markdown(samples.faster()).startswith("### 🟢 fused against flash: FASTER (claim)\n")
    assert markdown(samples.refused()).startswith("### ⛔ cold against warm: REFUSED COLD_VS_WARM\n")


def test_bytes_are_told_in_their_power() -> None:
    memory = Metric(name="peak_memory", unit="bytes", higher_is_better=False, rate=False)
    assert wording.figure(667_471_872.0, memory) == "667 MB"
    assert wording.figure(512.0, memory) == "512 bytes"
