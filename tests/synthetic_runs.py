"""Makes studies whose truth is known: two arms, their difference, and the noise of their runs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

SHAPES = ("log-normal", "heavy", "skewed")


@dataclass(frozen=True)
class Noise:
    """How runs of one arm differ. Every shape has the same standard deviation of logs, `cv`."""

    cv: float = 0.02
    drift: float = 0.0
    """Part by which each run is slower than the one before it, whatever its arm."""
    shape: str = "log-normal"
    """`heavy`: Student's t with 4 degrees of freedom. `skewed`: now and then much slower, never
    much faster."""

    def draw(self, rng: random.Random) -> float:
        """One deviation of a log from its mean."""
        if self.shape == "log-normal":
            return self.cv * rng.gauss(0, 1)
        if self.shape == "heavy":
            chi = sum(rng.gauss(0, 1) ** 2 for _ in range(4))
            return self.cv * rng.gauss(0, 1) / math.sqrt(chi / 4) / math.sqrt(2)
        return self.cv * (1 - rng.expovariate(1))


@dataclass(frozen=True)
class Run:
    """One run of a study: its place in the order from 1, its arm and block, its figure (a rate)."""

    index: int
    arm: str
    block: int
    value: float


def study(rng: random.Random, n: int, noise: Noise, *, effect: float = 1.0) -> list[Run]:
    """`n` blocks of one run of each arm, in the order they ran: ABBA or BAAB by chance, two blocks at a time.
    `effect` is the true ratio candidate over base."""
    runs: list[Run] = []
    order = ["base", "candidate"]
    for block in range(1, n + 1):
        if block % 2:
            rng.shuffle(order)
        else:
            order.reverse()
        for arm in order:
            at = len(runs)
            level = math.log(100) - noise.drift * at + (math.log(effect) if arm == "candidate" else 0)
            runs.append(Run(at + 1, arm, block, math.exp(level + noise.draw(rng))))
    return runs


def arms(runs: list[Run]) -> tuple[list[float], list[float]]:
    """The figures of base and candidate, each in the order of blocks."""
    base = [run.value for run in runs if run.arm == "base"]
    return base, [run.value for run in runs if run.arm == "candidate"]
