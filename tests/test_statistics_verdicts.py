"""Proves the verdicts of a comparison: its rule, few runs, no spread, many metrics, hostile figures."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from compute_router.compare import judging, planning, remarks
from compute_router.compare.outcome import Estimate, Metric, Standing, Verdict

RATE = Metric(name="tok_s_global", unit="tokens/s")
TIME = Metric(name="wall", unit="s", higher_is_better=False)
MIRROR = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}

EVEN = [100.0, 101.0, 99.0, 100.5, 99.5, 100.2, 99.8, 100.9, 99.1, 100.0]


def compared(
    base: Sequence[float],
    candidate: Sequence[float],
    *,
    metric: Metric = RATE,
    paired: bool = False,
    margin: float = 0.02,
    olympic: bool = False,
) -> Estimate:
    return judging.estimate(base, candidate, metric=metric, paired=paired, margin=margin, olympic=olympic)


def times(values: Sequence[float], factor: float) -> list[float]:
    return [v * factor for v in values]


def told(found: Estimate, words: str) -> str:
    """The note that has these words."""
    notes = [note for note in found.notes if words in note]
    assert len(notes) == 1, found.notes
    return notes[0]


# The rule -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("metric", "up"), [(RATE, Verdict.FASTER), (TIME, Verdict.SLOWER)])
def test_more_is_better_only_where_the_metric_says_so(paired: bool, metric: Metric, up: Verdict) -> None:
    noise = [1.001, 0.998, 1.002, 1.0, 0.999, 1.001]
    candidate = [v * n * 1.1 for v, n in zip(EVEN[:6], noise, strict=True)]
    found = compared(EVEN[:6], candidate, metric=metric, paired=paired)
    assert found.verdict is up
    assert found.beyond
    assert not found.within
    assert found.needed is None
    assert found.p == (2 / 64 if paired else pytest.approx(2 / 924))
    assert found.ratio == pytest.approx(1.1, rel=0.01)


def test_the_figures_are_those_of_scipy() -> None:
    base, candidate = EVEN[:6], times(EVEN[3:10], 1.04)
    found = compared(base, candidate)
    logs = [math.log(v) for v in base], [math.log(v) for v in candidate]
    theirs = stats.ttest_ind(logs[1], logs[0], equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx((math.exp(theirs.low), math.exp(theirs.high)))
    assert found.base == pytest.approx(stats.gmean(base))
    assert found.candidate == pytest.approx(stats.gmean(candidate))
    assert found.ratio == pytest.approx(stats.gmean(candidate) / stats.gmean(base))
    assert found.base_range == (99.0, 101.0)
    assert (found.n_base, found.n_candidate) == (6, 7)


def test_faster_without_beyond_where_the_interval_reaches_into_the_margin() -> None:
    found = compared(EVEN, times(EVEN, 1.02))
    assert (found.verdict, found.beyond, found.within) == (Verdict.FASTER, False, False)


def test_a_small_but_certain_difference_is_named_as_both() -> None:
    found = compared(EVEN, times(EVEN, 1.01))
    assert (found.verdict, found.beyond, found.within) == (Verdict.FASTER, False, True)
    told(found, "the difference is there, and is smaller than the margin of 2 %")


def test_equivalent_is_shown_and_not_merely_not_refuted() -> None:
    found = compared(EVEN, list(reversed(EVEN)))
    assert (found.verdict, found.within, found.needed) == (Verdict.EQUIVALENT, True, None)
    wide = [v**3 / 10_000 for v in EVEN]
    found = compared(wide, list(reversed(wide)), margin=0.01)
    assert (found.verdict, found.within) == (Verdict.INCONCLUSIVE, False)
    assert found.needed is not None
    assert found.needed > 10
    note = told(found, "with 80% power")
    assert f"{found.needed} runs of each arm find a difference of 1 %" in note


def test_methods_that_disagree_make_no_verdict() -> None:
    """One wild run: ranks see a difference, means do not."""
    base = [100.0, 100.1, 100.2, 100.3, 100.4, 100.5, 100.6, 100.7]
    candidate = [*times(base[:7], 1.05), 20.0]
    found = compared(base, candidate)
    assert found.p is not None
    assert found.p < 0.05
    assert found.verdict is Verdict.INCONCLUSIVE
    note = told(found, "disagree")
    assert "the geometric-mean ratio says inconclusive" in note
    assert "the Hodges-Lehmann shift says faster" in note


def test_both_intervals_without_the_test_are_no_direction() -> None:
    candidate = [101.7, 99.4, 101.1, 102.5, 100.8, 99.5, 100.8, 101.5]
    found = compared([100.0] * 8, candidate, paired=True)
    assert found.p is not None
    assert 0.05 < found.p < 0.06
    for interval in (found.interval, found.shift_interval):
        assert interval is not None
        assert interval[0] > 1
    assert (found.verdict, found.within) == (Verdict.EQUIVALENT, True)


def test_means_alone_show_no_equivalence() -> None:
    candidate = [101.3, 100.1, 102.3, 100.2, 100.1, 101.2, 102.9]
    found = compared([100.0] * 7, candidate, paired=True)
    assert found.interval90 is not None
    assert found.shift_interval90 is not None
    assert found.interval90[1] < 1.02 < found.shift_interval90[1]
    assert (found.verdict, found.within) == (Verdict.FASTER, False)


# Few runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [False, True])
def test_what_so_many_runs_may_say(paired: bool) -> None:
    for n in range(1, 8):
        found = compared(EVEN[:n], times(reversed(EVEN[:n]), 1.1), paired=paired)  # type: ignore[arg-type]
        assert found.ratio is not None
        assert (found.p is not None) == (n >= planning.N_TEST), n
        assert (found.interval is not None) == (n >= planning.N_TEST), n
        assert (found.verdict is Verdict.FASTER) == (n >= planning.N_VERDICT), n
    told(compared(EVEN[:1], EVEN[:1], paired=paired), "an anecdote; a verdict needs 6")
    told(compared(EVEN[:3], EVEN[:3], paired=paired), "values and range alone, and p cannot be below 0.")


def test_runs_that_cannot_reach_the_level_say_so() -> None:
    told(compared(EVEN[:5], times(EVEN[:5], 1.1), paired=True), "p cannot be below 0.062")
    told(compared(EVEN[:3], times(EVEN[:3], 1.1)), "p cannot be below 0.1;")
    note = told(compared(EVEN[:5], times(EVEN[:5], 1.1)), "exploratory")
    assert note == "5 runs: exploratory; a verdict needs 6 runs of each arm"
    told(compared(EVEN[:4], EVEN), "4 runs and 10: exploratory")


def test_the_smaller_arm_counts() -> None:
    assert compared(EVEN[:1], times(EVEN, 1.1)).p is None
    assert compared(EVEN[:5], times(EVEN, 1.1)).verdict is Verdict.INCONCLUSIVE


def test_no_runs_are_not_an_error() -> None:
    found = compared([], EVEN)
    assert (found.verdict, found.ratio, found.base, found.p) == (Verdict.INCONCLUSIVE, None, None, None)
    assert found.candidate == pytest.approx(100, rel=0.01)
    told(found, "no runs")


def test_standing_by_number() -> None:
    assert [planning.standing(n) for n in (1, 2, 5, 6, 10)] == [
        Standing.ANECDOTE,
        Standing.EXPLORATORY,
        Standing.EXPLORATORY,
        Standing.CLAIM,
        Standing.CLAIM,
    ]


# No spread ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, Verdict.EQUIVALENT), (1.05, Verdict.FASTER), (0.9, Verdict.SLOWER)]
)
def test_without_spread_ranks_decide_and_no_interval_is_made_up(
    paired: bool, factor: float, verdict: Verdict
) -> None:
    found = compared([7e9] * 6, [7e9 * factor] * 6, paired=paired)
    assert found.interval is None
    assert found.verdict is verdict
    told(found, "no spread")


def test_proportional_pairs_have_no_spread_for_all_their_rounding() -> None:
    base = [random.Random(4).uniform(1, 1000) for _ in range(8)]
    found = compared(base, times(base, 1.07), paired=True)
    assert found.interval is None
    assert found.shift_interval == pytest.approx((1.07, 1.07))
    assert found.p == 2 / 2**8


# Olympic --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [False, True])
def test_olympic_drops_the_ends_counts_the_rest_and_is_labelled(paired: bool) -> None:
    base = [*EVEN[:7], 50.0]
    noise = [1.0, 1.004, 0.997, 1.001, 0.999, 1.002, 0.998, 1.0]
    candidate = [v * n * 1.05 for v, n in zip([*EVEN[:7], 150.0], noise, strict=True)]
    plain = compared(base, candidate, paired=paired)
    found = compared(base, candidate, paired=paired, olympic=True)
    assert (found.n_base, found.n_candidate) == (6, 6)
    assert found.interval is not None
    assert plain.interval is not None
    assert found.interval[1] / found.interval[0] < plain.interval[1] / plain.interval[0]
    assert found.base_range is not None
    assert found.base_range[0] > 50
    told(found, "olympic: the ")
    assert "trimmed t" in found.test
    assert found.ratio == pytest.approx(found.candidate / found.base)  # type: ignore[operator]


def test_olympic_counts_what_is_left() -> None:
    assert compared(EVEN[:7], times(EVEN[:7], 1.1), olympic=True).verdict is Verdict.INCONCLUSIVE
    assert compared(EVEN[:8], times(EVEN[:8], 1.1), olympic=True).verdict is Verdict.FASTER
    told(compared(EVEN[:2], EVEN[:2], olympic=True), "too few runs to drop any")


# Drift, success, an arm against itself --------------------------------------------------------------


def test_drift_is_told_with_its_size() -> None:
    falling = [100 * 0.99**i for i in range(8)]
    found = compared(falling, EVEN)
    assert told(found, "drifts").startswith("base drifts: -1.0% per run (p=")
    assert remarks.drift("candidate", EVEN) == ""
    assert remarks.drift("candidate", [1.0]) == ""


def test_success_is_counted_and_its_chance_is_fishers() -> None:
    found = judging.success(10, 10, 4, 10)
    assert found.p == pytest.approx(stats.fisher_exact([[10, 0], [4, 6]]).pvalue)
    assert (found.base, found.base_of, found.candidate, found.candidate_of) == (10, 10, 4, 10)
    assert judging.failures_differ(found)
    assert not judging.failures_differ(judging.success(10, 10, 9, 10))
    assert judging.failures_differ(judging.success(10, 10, 8, 10))
    assert judging.success(0, 0, 3, 3).p is None
    with pytest.raises(ValueError, match="3 of 2"):
        judging.success(1, 2, 3, 2)


def test_an_arm_against_itself() -> None:
    steady = judging.self_check([100 * 0.99**i for i in range(12)], metric=RATE, margin=0.02)
    assert steady.verdict is not Verdict.FASTER, "drift cancels out in ABBA"
    assert steady.verdict is not Verdict.SLOWER
    told(steady, "all runs drifts")
    rhythm = judging.self_check(
        [v * (1.1 if i % 4 in (0, 3) else 1) for i, v in enumerate([*EVEN, *EVEN[:2]])],
        metric=RATE,
        margin=0.02,
    )
    assert rhythm.verdict is Verdict.SLOWER
    assert (rhythm.n_base, rhythm.n_candidate) == (6, 6)


@pytest.mark.parametrize(
    ("false", "of", "holds"), [(0, 10, True), (1, 1, True), (2, 2, False), (2, 10, True), (3, 10, False)]
)
def test_the_noise_model_is_given_up_beyond_chance(false: int, of: int, holds: bool) -> None:
    assert judging.noise_model_holds(false, of) is holds
    assert bool(stats.binom.sf(false - 1, of, 0.05) > 0.05 - 1e-9) is holds


# Many metrics ---------------------------------------------------------------------------------------


def test_holm_adjusts_and_judges_anew() -> None:
    clear = compared(EVEN[:6], times(EVEN[:6], 1.2))
    faint = compared(EVEN, times(EVEN, 1.008))
    assert faint.verdict is Verdict.FASTER
    assert faint.p is not None
    assert 0.01 < faint.p < 0.05
    few = compared(EVEN[:2], EVEN[:2])
    family = [faint, clear, few, compared(EVEN, EVEN[::-1]), compared(EVEN[:8], EVEN[:8][::-1])]
    out = judging.holm(family)
    ps = [e.p for e in family if e.p is not None]
    adjusted = [e.p_adjusted for e in out if e.p is not None]
    assert adjusted == pytest.approx(by_hand(ps))
    assert out[2] == few
    assert out[1].verdict is Verdict.FASTER
    assert out[0].verdict is Verdict.EQUIVALENT, "no longer certain, but still shown to be small"
    assert not out[0].beyond
    told(out[0], "by Holm over 4 tests")
    assert not [note for note in out[0].notes if "the difference is there" in note]


def by_hand(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p, from his definition: the largest of (m - rank) p over all that are not larger."""
    m = len(ps)
    ranked = sorted(range(m), key=lambda i: ps[i])
    return [
        min(1.0, max((m - rank) * ps[j] for rank, j in enumerate(ranked[: ranked.index(i) + 1])))
        for i in range(m)
    ]


def test_too_few_pairs_for_so_many_metrics_say_so_and_how_many_would_do() -> None:
    noise = [1.0, 1.03, 0.98, 1.02, 0.99, 1.01]
    won = compared(EVEN[:6], [v * n * 1.06 for v, n in zip(EVEN[:6], noise, strict=True)], paired=True)
    assert won.verdict is Verdict.FASTER
    alone, two = judging.holm([won])[0], judging.holm([won, won])[0]
    assert (alone.verdict, alone.p_adjusted) == (Verdict.FASTER, won.p)
    assert (two.verdict, two.p_adjusted) == (Verdict.INCONCLUSIVE, 2 * 2 / 64)
    assert judging.holm([won, won])[1] == two, "no larger p is adjusted to a smaller one"
    assert two.needed is not None
    assert two.needed >= 7, "2/2^7 is below 0.05/2"
    told(two, "6 blocks cannot pass as the first of so many")


# Whatever is given ----------------------------------------------------------------------------------

HOSTILE = [0.0, -1.0, math.inf, -math.inf, math.nan, 1e-41, 1e41, 10**400, True, "12", None]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda v: str(v)[:8])
@pytest.mark.parametrize("arm", ["base", "candidate"])
def test_hostile_figures_are_refused_in_one_line(value: object, arm: str) -> None:
    bad: list[float] = [*EVEN[:6], value]  # type: ignore[list-item]
    base, candidate = (bad, EVEN) if arm == "base" else (EVEN, bad)
    with pytest.raises(ValueError, match=f"{arm}: value 7 is .*positive") as caught:
        compared(base, candidate)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 160


def test_pairs_and_margin_must_make_sense() -> None:
    with pytest.raises(ValueError, match="6 and 5 runs cannot be paired"):
        compared(EVEN[:6], EVEN[:5], paired=True)
    for margin in (0.0, -0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="the margin is"):
            compared(EVEN, EVEN, margin=margin)


extremes = st.lists(st.floats(judging.LEAST, judging.MOST), min_size=0, max_size=12)


@settings(max_examples=150, deadline=None)
@given(extremes, extremes, st.booleans(), st.booleans())
def test_any_positive_figures_are_judged_with_finite_answers(
    base: list[float], candidate: list[float], paired: bool, olympic: bool
) -> None:
    if paired:
        base, candidate = base[: len(candidate)], candidate[: len(base)]
    found = compared(base, candidate, paired=paired, olympic=olympic)
    figures = [found.ratio, found.shift, found.p, *(found.interval or ()), *(found.shift_interval or ())]
    assert all(math.isfinite(v) for v in figures if v is not None)
    assert found == compared(base, candidate, paired=paired, olympic=olympic)


# Symmetries: whole figures, so that swapping, scaling and mirroring neither make nor break a tie.
figures = st.lists(st.integers(800, 1200).map(float), min_size=4, max_size=10)


def assert_mirrors(found: Estimate, mirror: Estimate) -> None:
    assert mirror.p == pytest.approx(found.p)
    assert mirror.verdict is MIRROR.get(found.verdict, found.verdict)
    assert (mirror.beyond, mirror.within, mirror.needed) == (found.beyond, found.within, found.needed)


@settings(max_examples=150, deadline=None)
@given(figures, figures, st.booleans(), st.booleans())
def test_swapping_the_arms_inverts_the_ratio_and_mirrors_the_verdict(
    base: list[float], candidate: list[float], paired: bool, olympic: bool
) -> None:
    if paired:
        base, candidate = base[: len(candidate)], candidate[: len(base)]
    found = compared(base, candidate, paired=paired, olympic=olympic)
    swapped = compared(candidate, base, paired=paired, olympic=olympic)
    assert_mirrors(found, swapped)
    for ours, theirs in ((found.interval, swapped.interval), (found.shift_interval, swapped.shift_interval)):
        assert (ours is None) == (theirs is None)
        if ours and theirs:
            assert theirs == pytest.approx((1 / ours[1], 1 / ours[0]))
    assert found.ratio == pytest.approx(1 / swapped.ratio)  # type: ignore[operator]


@settings(max_examples=100, deadline=None)
@given(figures, figures, st.booleans(), st.sampled_from([2.0**-20, 3.0, 1024.0, 1e6]))
def test_the_unit_of_a_metric_changes_nothing(
    base: list[float], candidate: list[float], paired: bool, unit: float
) -> None:
    if paired:
        base, candidate = base[: len(candidate)], candidate[: len(base)]
    found = compared(base, candidate, paired=paired)
    scaled = compared(times(base, unit), times(candidate, unit), paired=paired)
    assert scaled.verdict is found.verdict
    assert scaled.p == pytest.approx(found.p)
    assert scaled.ratio == pytest.approx(found.ratio)
    assert scaled.interval == (found.interval and pytest.approx(found.interval))


@settings(max_examples=100, deadline=None)
@given(figures, figures, st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_unpaired_runs_or_of_blocks_changes_no_verdict(
    base: list[float], candidate: list[float], rng: random.Random, paired: bool
) -> None:
    n = min(len(base), len(candidate))
    blocks = list(zip(base[:n], candidate[:n], strict=True))
    rng.shuffle(blocks)
    if paired:
        found = compared(base[:n], candidate[:n], paired=True)
        shuffled = compared([b for b, _ in blocks], [c for _, c in blocks], paired=True)
    else:
        found = compared(base, candidate)
        shuffled = compared(rng.sample(base, len(base)), rng.sample(candidate, len(candidate)))
    assert shuffled.p == found.p
    assert shuffled.verdict is found.verdict
    assert shuffled.interval == (found.interval and pytest.approx(found.interval))


@settings(max_examples=100, deadline=None)
@given(figures, figures)
def test_lower_is_better_mirrors_the_verdict_alone(base: list[float], candidate: list[float]) -> None:
    rate, time = compared(base, candidate), compared(base, candidate, metric=TIME)
    assert_mirrors(rate, time)
    assert (rate.ratio, rate.interval) == (time.ratio, time.interval)
