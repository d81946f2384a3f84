"""How large a difference is, and how uncertain: computed on logs, so that it is a ratio."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from compute_router.compare.distributions import normal_quantile, t_quantile, t_tail
from compute_router.compare.exact import EXACT_RUNS, rank_sum_null, signed_rank_null

__all__ = ["Centre", "Interval", "Shift", "difference", "hodges_lehmann", "signed_rank_shift", "welch"]

Interval = tuple[float, float]

NO_SPREAD = 1e-12
"""A standard error of logs below this is rounding: no measurement agrees to a part in 10^12."""
LISTED = 20_000
"""Pairwise differences up to which all are listed and sorted; more are searched for the wanted ones."""


class Centre(NamedTuple):
    """A mean difference of logs, its standard error, and the degrees of freedom of that error."""

    at: float
    error: float | None
    """None if there is no spread to tell it from: fewer than two runs, or all the same."""
    df: float

    def interval(self, level: float) -> Interval | None:
        """The interval of Student's t that covers with chance `level`; None without an error."""
        if self.error is None:
            return None
        reach = t_quantile((1 + level) / 2, self.df) * self.error
        return self.at - reach, self.at + reach

    def p(self) -> float | None:
        """Two-sided, that the difference is 0; None without an error."""
        return None if self.error is None else min(1.0, 2 * t_tail(abs(self.at) / self.error, self.df))


class Shift(NamedTuple):
    """The Hodges-Lehmann estimate of a difference of logs, with distribution-free intervals."""

    at: float
    interval: Interval | None
    """Covers with 95 % at least; None if so few runs cannot."""
    interval90: Interval | None


# Means ----------------------------------------------------------------------------------------------


def welch(base: Sequence[float], candidate: Sequence[float], *, trim: int = 0) -> Centre:
    """The difference of two means of logs, without the assumption of equal spread: Welch (1947), degrees
    of freedom by Satterthwaite (1946). With `trim`, of means without the `trim` smallest and largest of
    each arm, by Yuen (1974)."""
    (at_b, var_b, df_b), (at_c, var_c, df_c) = _mean(base, trim), _mean(candidate, trim)
    at = at_c - at_b
    if var_b is None or var_c is None or math.sqrt(var_b + var_c) < NO_SPREAD:
        return Centre(at, None, 0)
    # Divided by the larger variance, so that squares of tiny ones do not vanish.
    b, c = var_b / max(var_b, var_c), var_c / max(var_b, var_c)
    df = (b + c) ** 2 / (b * b / df_b + c * c / df_c)
    return Centre(at, math.sqrt(var_b + var_c), df)


def difference(logs: Sequence[float], *, trim: int = 0) -> Centre:
    """The mean of the pairs' differences of logs, by Student (1908); with `trim`, without the `trim`
    smallest and largest of them, by Tukey and McLaughlin (1963)."""
    at, variance, df = _mean(logs, trim)
    if variance is None or math.sqrt(variance) < NO_SPREAD:
        return Centre(at, None, 0)
    return Centre(at, math.sqrt(variance), df)


def _mean(logs: Sequence[float], trim: int) -> tuple[float, float | None, int]:
    """A mean, the variance of that mean and its degrees of freedom. Of a trimmed mean the variance comes
    from the winsorized values (the dropped ones moved to the nearest kept): the kept alone look too
    much alike, and tests made from them find differences that are not there."""
    n = len(logs)
    kept = sorted(logs)[trim : n - trim]
    at = math.fsum(kept) / len(kept)
    if len(kept) < 2:
        return at, None, 0
    if not trim:
        return at, _squares(kept) / (n - 1) / n, n - 1
    moved = [kept[0]] * trim + kept + [kept[-1]] * trim
    return at, _squares(moved) / (len(kept) * (len(kept) - 1)), len(kept) - 1


def _squares(values: Sequence[float]) -> float:
    """The sum of squared distances from the mean, in two passes."""
    mean = math.fsum(values) / len(values)
    return math.fsum([(v - mean) ** 2 for v in values])


# Order statistics -----------------------------------------------------------------------------------


def hodges_lehmann(base: Sequence[float], candidate: Sequence[float]) -> Shift:
    """The median of all differences between a run of one arm and a run of the other (Hodges and Lehmann
    1963). Its interval ends at order statistics of these differences, chosen by the null distribution
    of Mann and Whitney (Moses 1953; Hollander and Wolfe 1999, section 4.3): it holds whatever the
    shape of the noise, and excludes 0 just when the exact test rejects (without ties)."""
    n, m = len(base), len(candidate)
    below = rank_sum_null(tuple(range(n + m)), n) if n + m <= EXACT_RUNS else None
    least = n * (n - 1) // 2
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    places = [_place(below, least, n * m / 2, deviation, level) for level in (0.95, 0.90)]
    return _shift([-b for b in base], sorted(candidate), [0] * n, n * m, places)


def signed_rank_shift(logs: Sequence[float]) -> Shift:
    """The same for pairs: the median of the Walsh averages, the means of any two of the pairs'
    differences (one with itself too), with an interval by the null distribution of Wilcoxon's signed
    ranks (Tukey 1949; Hollander and Wolfe 1999, section 3.3)."""
    n = len(logs)
    below = signed_rank_null(n) if n <= EXACT_RUNS else None
    deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    places = [_place(below, 0, n * (n + 1) / 4, deviation, level) for level in (0.95, 0.90)]
    halves = sorted(d / 2 for d in logs)
    return _shift(halves, halves, list(range(n)), n * (n + 1) // 2, places)


def _place(
    below: tuple[int, ...] | None, least: int, mean: float, deviation: float, level: float
) -> int | None:
    """How many order statistics lie outside the interval on each side; None if even the outermost do not
    cover with chance `level`. `below` counts from sum 0, the statistic from `least`."""
    tail = (1 - level) / 2
    if below is None:
        return max(0, math.floor(mean + normal_quantile(tail) * deviation - 0.5))
    # Compared as whole numbers: 2.5 % of a count, exactly.
    per_mille = round(1000 * tail)
    k = bisect_right(below, below[-1] * per_mille // 1000) - 1 - least
    return k if k >= 0 else None


def _shift(
    offsets: Sequence[float],
    values: Sequence[float],
    starts: Sequence[int],
    total: int,
    places: Sequence[int | None],
) -> Shift:
    wanted = {(total - 1) // 2, total // 2}
    for k in places:
        if k is not None:
            wanted |= {k, total - 1 - k}
    found = _order_statistics(offsets, values, starts, sorted(wanted))
    at = (found[(total - 1) // 2] + found[total // 2]) / 2
    first, second = (None if k is None else (found[k], found[total - 1 - k]) for k in places)
    return Shift(at, first, second)


def _order_statistics(
    offsets: Sequence[float], values: Sequence[float], starts: Sequence[int], wanted: Sequence[int]
) -> dict[int, float]:
    """The sums offset[i] + value[j], j >= starts[i], at the `wanted` places of their order, from 0."""
    rows = list(zip(offsets, starts, strict=True))
    if len(rows) * len(values) <= LISTED:
        every = sorted([o + v for o, start in rows for v in values[start:]])
        return {k: every[k] for k in wanted}
    low = min(o + values[start] for o, start in rows)
    high = max(o for o, _ in rows) + values[-1]
    ends = [len(values)] * len(rows)
    return _searched(offsets, values, (list(starts), ends), (low, high), 0, wanted)


def _searched(
    offsets: Sequence[float],
    values: Sequence[float],
    window: tuple[list[int], list[int]],
    ends: Interval,
    before: int,
    wanted: Sequence[int],
) -> dict[int, float]:
    """The `wanted` sums among those inside the window, which lie between `ends`; `before` lie below. The
    range of sums is halved until few are left, or until all that are left are equal."""
    starts, stops = window
    while wanted:
        middle = (ends[0] + ends[1]) / 2
        if ends[0] == ends[1]:
            return dict.fromkeys(wanted, middle)
        if sum(stops) - sum(starts) <= 4 * len(offsets) or not ends[0] < middle < ends[1]:
            rows = zip(offsets, starts, stops, strict=True)
            rest = sorted([o + v for o, start, stop in rows for v in values[start:stop]])
            return {k: rest[min(max(k - before, 0), len(rest) - 1)] for k in wanted}
        rows = zip(offsets, starts, stops, strict=True)
        cuts = [bisect_right(values, middle - o, start, stop) for o, start, stop in rows]
        first = before + sum(cuts) - sum(starts)
        upper = [k for k in wanted if k >= first]
        if len(upper) < len(wanted):
            lower = [k for k in wanted if k < first]
            found = _searched(offsets, values, (starts, cuts), (ends[0], middle), before, lower)
            if upper:
                found |= _searched(offsets, values, (cuts, stops), (middle, ends[1]), first, upper)
            return found
        starts, ends, before = cuts, (middle, ends[1]), first
    return {}
