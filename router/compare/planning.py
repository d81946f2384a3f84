"""How many runs a comparison needs, and what so many runs may be used for."""

from __future__ import annotations

import math

from compute_router.compare.distributions import normal_quantile, normal_tail
from compute_router.compare.exact import least_p
from compute_router.compare.outcome import Standing

__all__ = [
    "ALPHA",
    "N_GOOD",
    "N_TEST",
    "N_VERDICT",
    "PAIRS_GOOD",
    "POWER",
    "needed_for_difference",
    "needed_for_equivalence",
    "standing",
]

ALPHA = 0.05
"""A difference that is not there may be found in one of twenty comparisons."""
POWER = 0.8
"""The chance that what is asked for is found, in `needed`: Cohen's convention (1988)."""
N_TEST = 4
"""Runs of each arm (pairs) from which p is given: with 3 and 3 the least p that can be had is 0.1, with 4
and 4 it is 0.029. Below, an interval is withheld too: whether it excludes 1 is a test by another name."""
N_VERDICT = 6
"""Runs of each arm (pairs) from which there is a verdict: 5 pairs cannot reach 0.05 (2/32), 6 can (2/64),
and with 6 and 6 a true 5 % at a spread of 2 % is found in nine cases of ten."""
N_GOOD = 10
"""Runs of each arm that are recommended."""
PAIRS_GOOD = 8
"""Pairs that are recommended."""
MOST = 1_000_000
"""More runs than this are not worth a figure."""

BOTH = 1.2
"""How many more runs than Student's t test a verdict needs, because means and ranks must agree. Tests of
ranks alone need pi/3 = 1.05 times as many under normal noise (Hodges and Lehmann 1956); the rest is
measured, with 6 to 80 runs: 1.15 gives 79 to 85 % power where 80 % is asked for."""


def standing(runs: int) -> Standing:
    """What `runs` runs in the smaller arm (or pairs) allow at best: one is an anecdote."""
    if runs >= N_VERDICT:
        return Standing.CLAIM
    return Standing.EXPLORATORY if runs > 1 else Standing.ANECDOTE


def needed_for_difference(spread: float, margin: float, *, paired: bool, alpha: float = ALPHA) -> int | None:
    """Runs of each arm (pairs) with which a true difference of `margin` is found with chance POWER at
    level `alpha`.

    `spread` is the standard deviation of logs: of the runs of one arm, or of the pairs' differences.
    Of the t test by Guenther's formula (1981), times BOTH. None if more than MOST.
    """
    z = normal_quantile(1 - alpha / 2)
    runs = _runs(z, normal_quantile(POWER), spread / math.log1p(margin), paired=paired)
    if runs is None:
        return None
    fewest = next(n for n in range(N_TEST, 200) if least_p(n, n, paired=paired) < alpha)
    if not paired or runs > fewest:
        return max(runs, fewest)
    # With the fewest pairs p is below alpha only if all differences have the same sign: six at 0.05.
    same_sign = 1 - normal_tail(math.log1p(margin) / spread)
    return fewest + (same_sign**fewest < POWER)


def needed_for_equivalence(spread: float, margin: float, *, paired: bool) -> int | None:
    """Runs of each arm (pairs) with which two arms that do not differ at all are shown to be equivalent
    with chance POWER: two one-sided tests, each of which may fail (Schuirmann 1987). None if more
    than MOST."""
    z = normal_quantile(1 - ALPHA)
    return _runs(z, normal_quantile((1 + POWER) / 2), spread / math.log1p(margin), paired=paired)


def _runs(z: float, z_power: float, ratio: float, *, paired: bool) -> int | None:
    arms = 1 if paired else 2
    runs = (arms * ((z + z_power) * ratio) ** 2 + z * z / (2 * arms)) * BOTH
    return max(N_VERDICT, math.ceil(runs)) if runs <= MOST else None
