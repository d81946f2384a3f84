"""Proves the statistics of a comparison against scipy: distributions, exact tests, intervals, counts."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from compute_router.compare import distributions, exact, intervals


def sample(seed: int, n: int, *, digits: int | None = None, mean: float = 0.0) -> list[float]:
    rng = random.Random(seed)
    return [round(v, digits) if digits is not None else v for v in (rng.gauss(mean, 1) for _ in range(n))]


# Distributions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [0.5, 1, 1.3, 2, 3, 4.7, 5, 10, 30, 199.5, 1e4, 1e6])
def test_students_t_is_that_of_scipy(df: float) -> None:
    for t in (0.0, 1e-9, 0.1, 1.0, 2.0, 5.0, 40.0, -0.3, -7.0):
        assert distributions.t_tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-8)
    for p in (0.5, 0.5001, 0.6, 0.9, 0.95, 0.975, 0.995, 0.9999, 0.2, 0.001):
        assert distributions.t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-8, abs=1e-12)


def test_t_quantiles_of_the_printed_table() -> None:
    table = {1: 12.706, 2: 4.303, 5: 2.571, 10: 2.228, 30: 2.042}  # two-sided 5 %, any textbook
    for df, t in table.items():
        assert round(distributions.t_quantile(0.975, df), 3) == t


@pytest.mark.parametrize(("p", "df"), [(0, 5), (1, 5), (math.nan, 5), (0.9, 0), (0.9, -1)])
def test_no_t_quantile_without_sense(p: float, df: float) -> None:
    with pytest.raises(ValueError, match="no t quantile"):
        distributions.t_quantile(p, df)


@given(st.floats(0.1, 200), st.floats(0.1, 200), st.floats(0, 1))
def test_the_incomplete_beta_function_is_that_of_scipy(a: float, b: float, x: float) -> None:
    assert distributions.incomplete_beta(a, b, x, 1 - x) == pytest.approx(
        stats.beta.cdf(x, a, b), rel=1e-8, abs=1e-12
    )


# Pairs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 10, 12])
@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_are_counted_as_scipy_does(n: int, seed: int) -> None:
    logs = sample(seed, n, mean=0.4)
    if n > 1:
        theirs = stats.permutation_test((logs,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert exact.sign_flip(logs).p == pytest.approx(theirs.pvalue, rel=1e-12)
    sums = [abs(sum(s * v for s, v in zip(signs, logs, strict=True))) for signs in every_sign(n)]
    assert exact.sign_flip(logs).p == sum(s >= abs(sum(logs)) * (1 - 1e-12) for s in sums) / 2**n


def every_sign(n: int) -> list[tuple[int, ...]]:
    return list(itertools.product((1, -1), repeat=n))


def test_sign_flips_of_thirty_pairs_are_all_counted() -> None:
    found = exact.sign_flip([0.01] * 30)
    assert found == (2 / 2**30, "sign-flip, exact, 1073741824 of 1073741824")


@given(st.integers(1, 20), st.floats(1e-9, 1e3), st.integers(0, 20))
def test_equal_differences_tie_whatever_they_are(n: int, size: float, minus: int) -> None:
    """The sum of n signs is binomial, so the p is too: rounding of sums must not part what is equal."""
    minus = min(minus, n)
    found = exact.sign_flip([size] * (n - minus) + [-size] * minus).p
    far = abs(n - 2 * minus)
    assert found == sum(math.comb(n, k) for k in range(n + 1) if abs(n - 2 * k) >= far) / 2**n


def test_zero_differences_count_both_ways() -> None:
    assert exact.sign_flip([0.0] * 8).p == 1.0
    assert exact.sign_flip([0.02] * 6 + [0.0] * 2).p == 2 / 2**6
    assert exact.sign_flip([]).p == 1.0


def test_more_pairs_are_drawn_and_labelled_so() -> None:
    logs = sample(5, 40, mean=0.35)
    found = exact.sign_flip(logs)
    assert found.name == "sign-flip, Monte Carlo, 20000 of 2^40"
    assert found.p == pytest.approx(stats.ttest_1samp(logs, 0).pvalue, rel=0.2)
    assert exact.sign_flip([-v for v in reversed(logs)]) == found, "neither order nor direction matters"
    assert exact.sign_flip([0.01] * 64).p == 1 / 20_000, "never 0: the observed pattern is one of them"
    many = sample(6, 200, mean=0.1)
    found = exact.sign_flip(many)
    assert found.name == "sign-flip, normal approximation"
    assert found.p == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.01)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9, 20])
def test_the_signed_rank_distribution_is_that_of_wilcoxon(n: int) -> None:
    below = exact.signed_rank_null(n)
    assert below[-1] == 2**n
    assert len(below) == n * (n + 1) // 2 + 1
    if n >= 5:
        logs = sample(n, n, mean=0.5)
        ranks = stats.rankdata(np.abs(logs))
        plus = int(sum(r for r, v in zip(ranks, logs, strict=True) if v > 0))
        smaller = min(plus, n * (n + 1) // 2 - plus)
        theirs = stats.wilcoxon(logs, method="exact").pvalue
        assert min(1.0, 2 * below[smaller] / 2**n) == pytest.approx(theirs)


# Two arms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 5), (3, 3), (4, 4), (6, 6), (10, 7), (25, 30)])
@pytest.mark.parametrize("seed", range(4))
def test_mann_whitney_without_ties_is_that_of_scipy(n: int, m: int, seed: int) -> None:
    base, candidate = sample(seed, n), sample(seed + 100, m, mean=0.8)
    found = exact.mann_whitney(base, candidate)
    assert found.p == pytest.approx(stats.mannwhitneyu(base, candidate, method="exact").pvalue, rel=1e-12)
    assert found.name == "Mann-Whitney, exact"


@pytest.mark.parametrize(("n", "m"), [(3, 4), (5, 5), (6, 6), (4, 8)])
@pytest.mark.parametrize("seed", range(4))
def test_mann_whitney_with_ties_counts_every_deal(n: int, m: int, seed: int) -> None:
    base, candidate = sample(seed, n, digits=0), sample(seed + 50, m, digits=0, mean=0.7)
    ranks = stats.rankdata([*base, *candidate])
    seen = sum(ranks[:n])
    deals = [sum(deal) for deal in itertools.combinations(ranks, n)]
    tails = sum(d <= seen for d in deals), sum(d >= seen for d in deals)
    found = exact.mann_whitney(base, candidate)
    assert found.p == min(1.0, 2 * min(tails) / len(deals))
    assert found.name == "Mann-Whitney, exact, with ties"


@pytest.mark.parametrize("digits", [None, 1, 0])
def test_many_runs_are_approximated_and_labelled_so(digits: int | None) -> None:
    base, candidate = sample(1, 80, digits=digits), sample(2, 60, digits=digits, mean=0.3)
    found = exact.mann_whitney(base, candidate)
    theirs = stats.mannwhitneyu(base, candidate, method="asymptotic", use_continuity=True).pvalue
    assert found.p == pytest.approx(theirs, rel=1e-12)
    assert "approximation" in found.name


def test_nothing_but_ties_says_nothing() -> None:
    assert exact.mann_whitney([1.0] * 6, [1.0] * 6).p == 1.0
    assert exact.mann_whitney([1.0] * 90, [1.0] * 90).p == 1.0


@pytest.mark.parametrize(
    ("n", "m", "paired", "p"),
    [(3, 3, False, 0.1), (4, 4, False, 2 / 70), (6, 6, True, 2 / 64), (5, 5, True, 2 / 32), (1, 1, False, 1)],
)
def test_the_least_p_is_reached_and_no_less(n: int, m: int, paired: bool, p: float) -> None:
    assert exact.least_p(n, m, paired=paired) == pytest.approx(p)
    high = [10.0 + k for k in range(m)]
    seen = exact.sign_flip(high) if paired else exact.mann_whitney([float(k) for k in range(n)], high)
    assert seen.p == pytest.approx(p)


# Counts and order -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 15), st.integers(1, 15), st.data())
def test_fishers_test_is_that_of_scipy(n: int, m: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    theirs = stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
    assert exact.fisher(a, n, b, m) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("n", [4, 6, 10, 40])
@pytest.mark.parametrize("seed", range(3))
def test_the_trend_is_kendalls(n: int, seed: int) -> None:
    values = [v + 0.2 * i for i, v in enumerate(sample(seed, n))]
    theirs = stats.kendalltau(range(n), values, method="exact").pvalue
    assert exact.trend(values).p == pytest.approx(theirs, rel=1e-9)


def test_a_trend_of_ties_is_none_and_of_many_runs_is_approximated() -> None:
    assert exact.trend([5.0] * 10).p == 1.0
    long = [v + 0.01 * i for i, v in enumerate(sample(3, 80))]
    found = exact.trend(long)
    assert found.name == "Mann-Kendall, normal approximation"
    assert found.p == pytest.approx(stats.kendalltau(range(80), long).pvalue, rel=0.1)


# Intervals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(2, 2), (6, 6), (6, 20), (50, 3)])
@pytest.mark.parametrize("level", [0.90, 0.95])
def test_welchs_interval_is_that_of_scipy(n: int, m: int, level: float) -> None:
    base, candidate = sample(n, n), [3 * v for v in sample(m + 1, m)]
    theirs = stats.ttest_ind(candidate, base, equal_var=False)
    ours = intervals.welch(base, candidate)
    assert ours.interval(level) == pytest.approx(tuple(theirs.confidence_interval(level)), rel=1e-9)
    assert ours.p() == pytest.approx(theirs.pvalue, rel=1e-9)


def test_yuens_trimmed_test_is_that_of_scipy() -> None:
    base, candidate = sample(1, 10), sample(2, 10, mean=1)
    theirs = stats.ttest_ind(candidate, base, equal_var=False, trim=0.1)  # 1 of 10 at each end
    assert intervals.welch(base, candidate, trim=1).p() == pytest.approx(theirs.pvalue, rel=1e-9)


@pytest.mark.parametrize("n", [2, 6, 11])
def test_the_interval_of_pairs_is_that_of_scipy(n: int) -> None:
    logs = sample(n, n, mean=0.3)
    theirs = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert intervals.difference(logs).interval(0.95) == pytest.approx(tuple(theirs), rel=1e-9)


def test_without_spread_there_is_no_interval() -> None:
    for centre in (
        intervals.welch([1.0], [2.0]),
        intervals.welch([1.0], [2.0, 3.0]),
        intervals.welch([1.0] * 6, [2.0] * 6),
        intervals.difference([0.3]),
        intervals.difference([0.1 + 0.2, 0.3]),  # the same but for rounding
    ):
        assert centre.interval(0.95) is None
        assert centre.p() is None
    assert intervals.welch([1.0] * 6, [2.0, 2.1, 1.9]).interval(0.95) is not None, "one spread is enough"


@pytest.mark.parametrize(("n", "m"), [(4, 4), (6, 6), (7, 12), (30, 25)])
@pytest.mark.parametrize("seed", range(3))
def test_the_hodges_lehmann_interval_inverts_mann_whitney(n: int, m: int, seed: int) -> None:
    """A shift lies inside just when the exact test of the shifted arms does not reject it."""
    base, candidate = sample(seed, n), sample(seed + 9, m, mean=0.5)
    found = intervals.hodges_lehmann(base, candidate)
    assert found.at == pytest.approx(statistics.median(c - b for b in base for c in candidate))
    assert found.interval is not None
    for shift, inside in (
        (found.interval[0] + 1e-9, True),
        (found.interval[0] - 1e-9, False),
        (found.interval[1] - 1e-9, True),
        (found.interval[1] + 1e-9, False),
    ):
        p = stats.mannwhitneyu(base, [c - shift for c in candidate], method="exact").pvalue
        assert (p > 0.05) == inside


@pytest.mark.parametrize("n", [6, 7, 10, 25])
def test_the_interval_of_walsh_averages_inverts_wilcoxon(n: int) -> None:
    logs = sample(n, n, mean=0.5)
    found = intervals.signed_rank_shift(logs)
    walsh = [(logs[i] + logs[j]) / 2 for i in range(n) for j in range(i, n)]
    assert found.at == pytest.approx(statistics.median(walsh))
    for interval, alpha in ((found.interval, 0.05), (found.interval90, 0.10)):
        assert interval is not None
        for shift, inside in ((interval[0] + 1e-9, True), (interval[0] - 1e-9, False)):
            p = stats.wilcoxon([v - shift for v in logs], method="exact").pvalue
            assert (p > alpha) == inside


def test_too_few_runs_have_no_exact_interval() -> None:
    assert intervals.hodges_lehmann(sample(1, 3), sample(2, 3)).interval is None
    assert intervals.signed_rank_shift(sample(1, 5)).interval is None
    assert intervals.signed_rank_shift(sample(1, 5)).interval90 is not None


@pytest.mark.parametrize("digits", [None, 1, 0])
def test_searching_many_differences_finds_what_sorting_does(
    digits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, candidate = sample(1, 160, digits=digits), sample(2, 150, digits=digits, mean=0.2)
    searched = intervals.hodges_lehmann(base, candidate), intervals.signed_rank_shift(base)
    assert len(base) * len(candidate) > intervals.LISTED
    monkeypatch.setattr(intervals, "LISTED", 10**9)
    listed = intervals.hodges_lehmann(base, candidate), intervals.signed_rank_shift(base)
    for ours, theirs in zip(searched, listed, strict=True):
        assert ours.at == pytest.approx(theirs.at, abs=1e-12)
        assert ours.interval == pytest.approx(theirs.interval, abs=1e-12)
