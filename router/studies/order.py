"""The order of a study's runs: balanced in blocks, drawn by a seed, the same on every Python."""

from __future__ import annotations

import hashlib

__all__ = ["blocks", "least_blocks", "least_p"]


def blocks(arms: int, n: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """`n` blocks, each of which holds every arm (by number, from 0) once. Pure.

    Blocks come in pairs: the second runs the arms of the first backwards (ABBA or BAAB for two arms), so
    that over each pair every arm has the same mean position and a steady drift cancels. Which
    order a pair has is drawn: the arms sorted by sha256 of `route.order/1:SEED:PAIR:ARM`. Of an odd `n`
    the last block stands alone.
    """
    found: list[tuple[int, ...]] = []
    for pair in range((n + 1) // 2):
        first = tuple(sorted(range(arms), key=lambda arm, pair=pair: _draw(seed, pair, arm)))  # type: ignore[misc]
        found += [first, first[::-1]]
    return tuple(found[:n])


def _draw(seed: int, pair: int, arm: int) -> bytes:
    # Not `random`: its sequences are promised for a seed only within one version of Python.
    return hashlib.sha256(f"route.order/1:{seed}:{pair}:{arm}".encode()).digest()


def least_p(n: int, arms: int = 2) -> float:
    """The least p that an exact sign-flip test over `n` blocks can reach, two-sided, times the contrasts
    among `arms` arms (each against the base; Holm's first step)."""
    return min(1.0, 2.0 ** (1 - n) * (arms - 1))


def least_blocks(arms: int = 2, alpha: float = 0.05) -> int:
    """The fewest blocks with which a verdict can be reached at all: 6 for two arms."""
    n = 1
    while least_p(n, arms) >= alpha:
        n += 1
    return n
