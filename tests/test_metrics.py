"""Proves that what the work reported is added up rightly or not at all: whoever wrote, in whatever order."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_router.supervisor.observing import metrics


def summary(lines: list[bytes], discard: int = 1) -> metrics.Summary:
    made = metrics.Summary(discard)
    for line in lines:
        made.add(line)
    return made


def row(**said: Any) -> bytes:
    return json.dumps(said).encode()


def series(count: int, *, us: int = 100, tokens: int = 10, start: int = 1000) -> list[bytes]:
    """Steps as route_report writes them."""
    return [
        row(step=i, tokens=tokens, loss=2.5 - i / 100, t_us=start + us * i, mono_us=start + us * i)
        for i in range(count)
    ]


NUMBERS = st.integers(0, 10**12) | st.floats(0, 1e6, allow_nan=False).map(lambda x: round(x, 4))
STEPS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "tokens": st.integers(0, 10**9),
            "step_us": st.integers(0, 10**7),
            "loss": NUMBERS,
            "lr": st.floats(1e-12, 1.0),
            "note": st.text("ab", max_size=2),
        },
    ),
    min_size=1,
    max_size=12,
)


@given(STEPS, st.integers(0, 3))
def test_the_quick_way_of_reading_a_line_finds_what_parsing_it_finds(
    steps: list[dict[str, Any]], discard: int
) -> None:
    quick, slow = [], []
    for number, said in enumerate(steps):
        full = {"step": number, **said, "t_us": 10**15 + number * 50, "mono_us": 7000 + number * 50}
        quick.append(json.dumps(full).encode())
        slow.append(json.dumps(full, separators=(" ,", " :")).encode())  # no line that is read quickly
    one, other = summary(quick, discard), summary(slow, discard)
    for name in ("steps", "counted", "discarded", "tokens", "spent_us", "first_step", "last_step", "lacking"):
        assert getattr(one, name) == getattr(other, name), name
    assert (one.values, one.finite, one.tok_s()) == (other.values, other.finite, other.tok_s())
    assert (one.last, one.first, one.window_us) == (other.last, other.first, other.window_us)
    assert (one.quantiles(), one.window_mono_us) == (other.quantiles(), other.window_mono_us)


def test_the_quick_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    whole = metrics.parse

    def counted(line: bytes) -> Any:
        parsed.append(line)
        return whole(line)

    monkeypatch.setattr(metrics, "parse", counted)
    assert summary(series(500)).steps == 500
    assert len(parsed) == 1, "the first step alone is parsed as it comes"


@given(st.data(), st.integers(2, 8))
@settings(max_examples=200)
def test_two_ranks_in_one_file_never_raise_the_rate(data: st.DataObject, count: int) -> None:
    """Any interleaving of the lines of two ranks, each torn or lost at will: no rate, or none too high."""
    ranks = [series(count), series(count, start=1000 + data.draw(st.integers(0, 60)))]
    right = Fraction(summary(ranks[0]).tok_s() or 0)
    order = data.draw(st.permutations([0] * count + [1] * count))
    mixed: list[bytes] = []
    for rank in order:
        mixed.append(ranks[rank].pop(0))
    torn = data.draw(st.sets(st.integers(0, 2 * count - 1), max_size=3))
    lines = [line[: len(line) // 2] if at in torn else line for at, line in enumerate(mixed)]
    found = summary(lines)
    rate = found.tok_s()
    if not torn:
        assert rate is None
        assert "several processes report" in found.wrong
        assert found.quantiles() is None
    if rate is not None:
        # What is left may be one rank's steps in order: then the rate is that of the work, or lower.
        spread = 60 * count
        assert Fraction(rate) <= right * (100 * count) / max(1, 100 * count - spread) or found.steps <= count


def test_a_count_that_begins_again_is_no_series() -> None:
    found = summary([*series(3), *series(3, start=9000)])
    assert found.tok_s() is None
    assert found.wrong.startswith("step 0 was reported after step 2")


def test_garbage_infinities_and_numbers_too_large_are_no_figures() -> None:
    good = series(4)
    found = summary([good[0], b"\xff\x00", b"[1]", b'{"step": ', *good[1:]])
    assert (found.bad, found.steps, found.tok_s()) == (3, 4, "100000")
    for odd in (b"NaN", b"Infinity", b"1e400", b"9" * 80):
        line = b'{"step": 4, "tokens": 10, "loss": ' + odd + b', "t_us": 1400, "mono_us": 1400}'
        assert summary([*good, line]).finite is False, odd
        assert summary([*good, line]).values["loss"] == "2.47"
    assert summary([*good, row(step=4, t_us=1400, mono_us=1400)]).tok_s() is None, "no tokens, no rate"
    assert summary([*good, row(step=1e400, mono_us=1)]).wrong == "a step was reported without a whole number"


def test_an_evaluation_within_a_step_that_counts_is_found() -> None:
    lines = series(4)
    lines.insert(2, row(event="eval", us=40, mono_us=1190))
    found = summary(lines)
    assert found.inside == {"eval": 1}
    assert found.spans["eval"] == [1, 40, 40]
    outside = [*series(4), row(event="eval", us=40, mono_us=1400)]
    assert summary(outside).inside == {}
    early = series(4)
    early.insert(1, row(event="checkpoint", us=30, mono_us=1090))
    assert summary(early, discard=2).inside == {}, "a step that does not count"
    assert summary([*series(2), row(event="eval", loss=1.0)]).untimed == ["eval"]


def test_a_file_is_read_as_far_as_is_allowed_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(series(50)) + b"\n")
    whole, part = metrics.summarise(str(path), 1), metrics.summarise(str(path), 1, 20)
    assert whole is not None
    assert part is not None
    assert whole.tok_s() == "100000"
    assert not whole.truncated
    assert part.tok_s() is None
    assert part.truncated
    assert part.wrong == "the work wrote more than 20 lines"


def test_a_long_series_takes_little_memory(tmp_path: Path) -> None:
    """Memory grows by eight bytes for a step, and by nothing beyond a million."""
    import tracemalloc

    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join(series(60_000)) + b"\n")
    tracemalloc.start()
    try:
        found = metrics.summarise(str(path), 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert found.counted == 59_999
    assert peak < 8 << 20


def test_a_file_that_is_too_long_is_read_in_part_and_claims_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line without an end counts too: it is no line more, and takes as long to read."""
    monkeypatch.setattr(metrics, "MOST_BYTES", 2 << 20)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([*series(20), b"x" * (6 << 20)]))
    found = metrics.summarise(str(path), 1)
    assert found is not None
    assert "more than 2 MiB" in found.partial
    assert found.tok_s() is None
    path.write_bytes(b"\n".join(series(20)))
    whole = metrics.summarise(str(path), 1)
    assert whole is not None
    assert whole.partial == ""
