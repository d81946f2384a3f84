"""Tests that count every case: sign flips of pairs, ranks of two arms, counts of success, order of runs.

A chance is a ratio of two whole numbers here, so equal cases are equal and nothing rounds. Beyond the
sizes named below counting would be slow; what is used instead is said in `Test.name`.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from compute_router.compare.distributions import normal_tail

__all__ = [
    "Test",
    "fisher",
    "least_p",
    "mann_whitney",
    "rank_sum_null",
    "sign_flip",
    "signed_rank_null",
    "trend",
]

EXACT_PAIRS = 30
"""Pairs up to which all 2^n sign patterns are counted: 2^15 sums for each half, some 30 ms."""
EXACT_RUNS = 100
"""Runs of both arms together up to which rank sums are counted, some 50 ms; the same for signed ranks.
The normal approximation is right to the third decimal long before."""
EXACT_ORDER = 50
"""Runs up to which orders are counted, some 15 ms."""
DRAWN_PAIRS = 100
"""Pairs up to which sign patterns are drawn where not all can be counted; the sum of more is normal."""
DRAWS = 19_999
"""Sign patterns drawn. With the observed one added they are 20,000: a p of 0.05 is then right to 0.003."""
SEED = 1979
"""Of those draws: the same receipts give the same p on every machine."""
TIE = 1e-10
"""Two sums of log ratios are the same if they differ by less than this part of the sum of sizes. Rounding
makes some 1e-14 of it; calling near ties ties can only make p larger."""


class Test(NamedTuple):
    """A two-sided p, and how it was found."""

    p: float
    name: str


def least_p(n_base: int, n_candidate: int, *, paired: bool) -> float:
    """The smallest two-sided p that so many runs can reach, whatever they measure (without ties)."""
    return min(1.0, 2 / (2**n_base if paired else math.comb(n_base + n_candidate, n_base)))


# Pairs ----------------------------------------------------------------------------------------------


def sign_flip(differences: Sequence[float]) -> Test:
    """Fisher's permutation test of pairs (1935, section 21): were the arms the same, each difference
    of logs could as well have had the other sign. p is the part of all sign patterns whose mean is at
    least as far from 0.

    Counted, not sampled, up to EXACT_PAIRS: the sums of both halves are sorted and met in the middle
    (Horowitz and Sahni 1974; for this test Pagano and Tritchler 1983). A difference of 0 keeps its
    place (it counts both ways); with nothing but zeros p is 1. It depends on neither the order of
    the pairs nor which arm is the base.
    """
    sizes = sorted(abs(d) for d in differences)
    n = len(sizes)
    bar = abs(math.fsum(differences)) - TIE * math.fsum(sizes)
    name = "sign-flip, exact, {0} of {0}".format(2**n)
    if n > DRAWN_PAIRS:
        name = "sign-flip, normal approximation"
    elif n > EXACT_PAIRS:
        name = f"sign-flip, Monte Carlo, {DRAWS + 1} of 2^{n}"
    if bar <= 0:
        return Test(1.0, name)
    if n > DRAWN_PAIRS:
        # Over all sign patterns the mean of the sum is 0, and its variance the sum of squares, exactly.
        return Test(2 * normal_tail(bar / math.sqrt(math.fsum(s * s for s in sizes))), name)
    if n > EXACT_PAIRS:
        return Test((1 + _drawn(sizes, bar)) / (1 + DRAWS), name)
    low, high = _signed_sums(sizes[::2]), _signed_sums(sizes[1::2])
    beyond, at = 0, len(high)
    for value in low:  # rising, so the place in `high` from which the two reach the bar only falls
        while at and value + high[at - 1] >= bar:
            at -= 1
        beyond += len(high) - at
    return Test(2 * beyond / 2**n, name)


def _signed_sums(sizes: Sequence[float]) -> list[float]:
    """The sums of all sign patterns of `sizes`, rising."""
    sums = [0.0]
    for size in sizes:
        sums = sorted([s - size for s in sums] + [s + size for s in sums])
    return sums


def _drawn(sizes: Sequence[float], bar: float) -> int:
    """How many of DRAWS random sign patterns reach the bar on either side (Phipson and Smyth 2010
    tell why the observed pattern must be added to them)."""
    rng = random.Random(SEED)
    tables = []
    for at in range(0, len(sizes), 8):
        sums = [0.0]
        for size in sizes[at : at + 8]:
            sums = [s - size for s in sums] + [s + size for s in sums]
        tables.append(sums * (256 // len(sums)))
    width = len(tables)
    return sum(
        abs(sum(table[byte] for table, byte in zip(tables, rng.randbytes(width), strict=True))) >= bar
        for _ in range(DRAWS)
    )


@lru_cache(maxsize=128)
def signed_rank_null(n: int) -> tuple[int, ...]:
    """Of all 2^n sign patterns of the ranks 1..n, how many have a sum of positive ranks <= 0, 1, 2, ...
    (Wilcoxon 1945): the coefficients of the product of (1 + x^k), added up."""
    width = n // 8 + 1
    packed = 1
    for rank in range(1, n + 1):
        packed += packed << (8 * width * rank)
    return tuple(accumulate(_unpacked(packed, width, n * (n + 1) // 2 + 1)))


# Two arms -------------------------------------------------------------------------------------------


def mann_whitney(base: Sequence[float], candidate: Sequence[float]) -> Test:
    """The test of Mann and Whitney (1947): is one arm's rank sum far from what chance would deal?

    p is twice the smaller tail, at most 1. Ties get midranks and are counted as they are: over all ways
    to deal the very midranks that were seen. Beyond EXACT_RUNS by the normal approximation, with
    correction for ties and for continuity (Hollander and Wolfe 1999, section 4.1).
    """
    n, m = len(base), len(candidate)
    doubled = _doubled_midranks([*base, *candidate])
    observed = sum(doubled[:n])
    ties = [count for count in Counter(doubled).values() if count > 1]
    label = "Mann-Whitney, exact" + (", with ties" if ties else "")
    if n + m <= EXACT_RUNS:
        low = min(doubled)
        step = math.gcd(*(rank - low for rank in doubled)) or 1
        scores = tuple(sorted((rank - low) // step for rank in doubled))
        below = rank_sum_null(scores, n)
        at = (observed - n * low) // step
        lower, upper = below[at], below[-1] - (below[at - 1] if at else 0)
        return Test(min(1.0, 2 * min(lower, upper) / below[-1]), label)
    total = n + m
    spread = n * m / 12 * ((total + 1) - sum(t**3 - t for t in ties) / (total * (total - 1)))
    distance = abs(observed / 2 - n * (total + 1) / 2) - 0.5
    p = 1.0 if spread <= 0 or distance <= 0 else 2 * normal_tail(distance / math.sqrt(spread))
    return Test(min(1.0, p), "Mann-Whitney, normal approximation, corrected for ties and continuity")


def _doubled_midranks(values: Sequence[float]) -> list[int]:
    """The ranks of `values` from 1, of equal ones their mean; doubled, so that all are whole."""
    ordered = sorted(values)
    return [bisect_left(ordered, v) + bisect_right(ordered, v) + 1 for v in values]


@lru_cache(maxsize=256)
def rank_sum_null(scores: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Of all ways to choose `size` of the `scores` (0 or more), how many add up to <= 0, 1, 2, ...

    By the recurrence of Mann and Whitney, which Streitberg and Röhmel (1986) carry over to ties. All
    sums of one size stand side by side in one long integer, so a step of it is one shift and one
    addition.
    """
    width = len(scores) // 8 + 1  # bytes: no count exceeds 2^len(scores)
    packed = [1] + [0] * size
    for done, score in enumerate(scores, 1):
        for taken in range(min(done, size), 0, -1):
            packed[taken] += packed[taken - 1] << (8 * width * score)
    largest = sum(sorted(scores)[len(scores) - size :])
    return tuple(accumulate(_unpacked(packed[size], width, largest + 1)))


def _unpacked(packed: int, width: int, length: int) -> list[int]:
    """The `length` counts of `width` bytes each that stand side by side in `packed`."""
    raw = packed.to_bytes(width * length, "little")
    return [int.from_bytes(raw[at : at + width], "little") for at in range(0, len(raw), width)]


# Counts and order -----------------------------------------------------------------------------------


def fisher(base: int, base_of: int, candidate: int, candidate_of: int) -> float:
    """Fisher's exact test of two counts (1935): the chance, both margins held, of any table that is not
    more likely than the one seen. Whole numbers are compared, so equally likely tables are equal."""
    good, everyone = base + candidate, base_of + candidate_of

    def ways(k: int) -> int:
        return math.comb(base_of, k) * math.comb(candidate_of, good - k)

    seen = ways(base)
    every = [ways(k) for k in range(max(0, good - candidate_of), min(base_of, good) + 1)]
    return sum(w for w in every if w <= seen) / math.comb(everyone, good)


def trend(values: Sequence[float]) -> Test:
    """The test of Mann (1945) and Kendall for a trend: do later values lie above earlier ones?

    Exact up to EXACT_ORDER by counting orders by their inversions. Equal values speak for neither side
    and are judged by the distribution without ties, which is wider: p is then too large rather than
    too small.
    """
    n = len(values)
    seen: list[float] = []
    score = 0
    for v in values:
        score += bisect_left(seen, v) - (len(seen) - bisect_right(seen, v))
        insort(seen, v)
    pairs = n * (n - 1) // 2
    if n <= EXACT_ORDER:
        below = _inversions(n)
        fewest = (pairs - abs(score) + 1) // 2  # inversions, were there no ties
        return Test(min(1.0, 2 * below[fewest] / below[-1]), "Mann-Kendall, exact")
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    p = min(1.0, 2 * normal_tail((abs(score) - 1) / deviation))
    return Test(p, "Mann-Kendall, normal approximation")


@lru_cache(maxsize=128)
def _inversions(n: int) -> tuple[int, ...]:
    """Of all orders of n values, how many have at most 0, 1, 2, ... inversions (Knuth, 5.1.1)."""
    counts = [1]
    for size in range(2, n + 1):
        sums = list(accumulate(counts))
        length = len(counts) + size - 1
        counts = [sums[min(k, len(sums) - 1)] - (sums[k - size] if k >= size else 0) for k in range(length)]
    return tuple(accumulate(counts))
