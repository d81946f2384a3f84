"""Proves by simulated studies how often verdicts are wrong, and how often true differences are found.

Every figure is printed: `pytest tests/test_statistics_power.py -rP`.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from synthetic_runs import SHAPES, Noise, arms, study

from compute_router.compare import exact, judging, planning
from compute_router.compare.outcome import Estimate, Metric, Verdict

pytestmark = pytest.mark.slow

RATE = Metric(name="tok_s_global", unit="tokens/s")
DESIGNS = [(6, False), (10, False), (6, True), (7, True), (10, True)]


def simulated(
    n: int,
    paired: bool,
    noise: Noise,
    *,
    effect: float = 1.0,
    studies: int = 2000,
    olympic: bool = False,
) -> dict[Verdict, float]:
    """The part of studies that end in each verdict."""
    rng = random.Random(f"{n} {paired} {noise} {effect}")
    counts: Counter[Verdict] = Counter()
    significant = apart = 0
    for _ in range(studies):
        base, candidate = arms(study(rng, n, noise, effect=effect))
        found = judging.estimate(base, candidate, metric=RATE, paired=paired, margin=0.02, olympic=olympic)
        counts[found.verdict] += 1
        significant += found.p is not None and found.p < planning.ALPHA
        apart += found.interval is not None and not found.interval[0] <= 1 <= found.interval[1]
    parts = {verdict: counts[verdict] / studies for verdict in Verdict}
    print(
        f"{'pairs' if paired else 'arms'} n={n} true ratio {effect:.4g} {noise}{' olympic' * olympic}: "
        + ", ".join(f"{verdict.value} {part:.1%}" for verdict, part in parts.items())
        + f"; p alone {significant / studies:.1%}, interval alone {apart / studies:.1%}"
    )
    return parts


def false(parts: dict[Verdict, float]) -> float:
    return parts[Verdict.FASTER] + parts[Verdict.SLOWER]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n", "paired"), DESIGNS)
def test_arms_that_do_not_differ_are_rarely_told_apart(n: int, paired: bool, shape: str) -> None:
    assert false(simulated(n, paired, Noise(shape=shape))) <= 0.06


@pytest.mark.parametrize(("n", "paired"), DESIGNS)
def test_drift_makes_no_difference_in_interleaved_studies(n: int, paired: bool) -> None:
    assert false(simulated(n, paired, Noise(drift=0.01))) <= 0.06


@pytest.mark.parametrize("effect", [1.05, 1 / 1.05])
@pytest.mark.parametrize(("n", "paired"), [(6, False), (7, True)])
def test_a_true_five_percent_is_found(n: int, paired: bool, effect: float) -> None:
    parts = simulated(n, paired, Noise(), effect=effect)
    right, wrong = Verdict.FASTER, Verdict.SLOWER
    if effect < 1:
        right, wrong = wrong, right
    assert parts[right] >= 0.9
    assert parts[wrong] == 0


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize(("n", "paired"), [(6, False), (7, True)])
def test_other_shapes_of_noise_cost_little_power(n: int, paired: bool, shape: str) -> None:
    assert simulated(n, paired, Noise(shape=shape), effect=1.05, studies=1000)[Verdict.FASTER] > 0.85


def test_six_pairs_are_the_fewest_and_find_less() -> None:
    assert 0.7 < simulated(6, True, Noise(), effect=1.05)[Verdict.FASTER] < 0.85


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize(("n", "paired"), [(8, False), (8, True)])
def test_olympic_does_not_find_what_is_not_there(n: int, paired: bool, shape: str) -> None:
    assert false(simulated(n, paired, Noise(shape=shape), olympic=True)) <= 0.06


def test_steps_are_no_samples() -> None:
    """What the unit of a run saves from: steps of one run are alike, whatever their number."""
    rng = random.Random(3)
    found = 0
    for _ in range(300):
        sides: list[list[float]] = [[], []]
        for side in sides:
            for _ in range(6):
                level, near = rng.gauss(0, 0.02), 0.0
                for _ in range(100):
                    near = 0.6 * near + 0.8 * rng.gauss(0, 0.03)
                    side.append(level + near)
        found += exact.mann_whitney(*sides).p < planning.ALPHA
    print(f"steps as samples: {found / 300:.1%} false")
    assert found > 0.6 * 300


def test_a_noisier_and_smaller_arm_does_not_mislead() -> None:
    """Ranks alone are misled by it, and so is a t test that pools the spread; Welch's interval is not."""
    rng = random.Random(6)
    counts: Counter[str] = Counter()
    for _ in range(2000):
        base = [100 * 1.02 ** rng.gauss(0, 1) for _ in range(24)]
        candidate = [100 * 1.08 ** rng.gauss(0, 1) for _ in range(6)]
        found = judging.estimate(base, candidate, metric=RATE, paired=False, margin=0.02)
        counts["verdict"] += found.verdict in (Verdict.FASTER, Verdict.SLOWER)
        counts["ranks"] += exact.mann_whitney(base, candidate).p < 0.05
    print({what: f"{count / 2000:.1%}" for what, count in counts.items()})
    assert counts["ranks"] > 0.10 * 2000
    assert counts["verdict"] <= 0.06 * 2000


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("cv", [0.008, 0.011, 0.02])
def test_the_runs_that_are_asked_for_suffice(cv: float, paired: bool) -> None:
    """With the number said, a difference of the margin is found, or shown not to be there."""
    spread = cv * (2**0.5 if paired else 1)
    n = planning.needed_for_difference(spread, 0.02, paired=paired)
    m = planning.needed_for_equivalence(spread, 0.02, paired=paired)
    assert n is not None
    assert m is not None
    chance = 3 * (0.8 * 0.2 / 400) ** 0.5
    assert (
        simulated(n, paired, Noise(cv=cv), effect=1.02, studies=400)[Verdict.FASTER] > planning.POWER - chance
    )
    same = simulated(m, paired, Noise(cv=cv), studies=400)
    small = same[Verdict.EQUIVALENT] + false(same)  # a false difference is within the margin too
    assert small > planning.POWER - chance


@pytest.mark.parametrize(("n", "paired"), [(6, True), (10, False)])
def test_a_difference_of_the_margin_is_rarely_called_equivalent(n: int, paired: bool) -> None:
    assert simulated(n, paired, Noise(cv=0.01), effect=1.02)[Verdict.EQUIVALENT] <= 0.06


def test_many_metrics_of_arms_that_do_not_differ_are_rarely_told_apart() -> None:
    """Of eight metrics, one or more falsely so in 5 % of comparisons by Holm, in far more without."""
    rng = random.Random(8)
    plain = adjusted = 0
    for _ in range(400):
        family: list[Estimate] = []
        for _ in range(8):
            base, candidate = arms(study(rng, 8, Noise()))
            family.append(judging.estimate(base, candidate, metric=RATE, paired=False, margin=0.02))
        plain += told(family)
        adjusted += told(judging.holm(family))
    print(f"one of eight metrics falsely: {plain / 400:.1%} without Holm, {adjusted / 400:.1%} with")
    assert plain > 0.15 * 400
    assert adjusted <= 0.06 * 400


def told(family: list[Estimate] | tuple[Estimate, ...]) -> bool:
    return any(found.verdict in (Verdict.FASTER, Verdict.SLOWER) for found in family)


def test_halves_of_one_arm_hardly_ever_differ() -> None:
    rng = random.Random(12)
    found = Counter(
        judging.self_check(arms(study(rng, 20, Noise(drift=0.002)))[0], metric=RATE, margin=0.02).verdict
        for _ in range(400)
    )
    print(found)
    assert found[Verdict.FASTER] + found[Verdict.SLOWER] <= 0.06 * 400
