"""Student's t and the normal distribution, from the standard library alone."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

__all__ = ["incomplete_beta", "normal_quantile", "normal_tail", "t_quantile", "t_tail"]

_NORMAL = NormalDist()
_ROUNDS = 10_000
"""Of the continued fraction: it needs some sqrt(max(a, b)), so a million degrees of freedom still end."""


def normal_tail(z: float) -> float:
    """The chance that a standard normal exceeds `z` (DLMF 7.2.2, without cancellation)."""
    return 0.5 * math.erfc(z / math.sqrt(2))


@lru_cache(maxsize=64)
def normal_quantile(p: float) -> float:
    """The value that a standard normal stays below with chance `p`, 0 < p < 1 (Wichura 1988, AS 241)."""
    return _NORMAL.inv_cdf(p)


def incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for a, b > 0.

    `y` is 1 - x, given apart because near x = 1 the subtraction would lose it. By the continued
    fraction DLMF 8.17.22, evaluated as Lentz did (1976; modified by Thompson and Barnett 1986);
    where that is slow, by the reflection DLMF 8.17.4.
    """
    if x <= 0:
        return 0.0
    if y <= 0:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, y, x)
    front = a * math.log(x) + b * math.log(y) - math.log(a)
    front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, _ROUNDS):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + factor * d
            c = 1 + factor / c
            d = 1 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(front) * value


def t_tail(t: float, df: float) -> float:
    """The chance that Student's t with `df` > 0 degrees of freedom exceeds `t`.

    Half of I_x(df/2, 1/2) at x = df / (df + t^2) (Abramowitz and Stegun 26.7.1; DLMF 8.17).
    """
    square = t * t
    half = 0.5 * incomplete_beta(df / 2, 0.5, df / (df + square), square / (df + square))
    return half if t >= 0 else 1 - half


@lru_cache(maxsize=256)
def t_quantile(p: float, df: float) -> float:
    """The value that Student's t with `df` degrees of freedom stays below with chance `p`, 0 < p < 1.

    By Newton's method from the normal quantile, from three degrees of freedom on corrected for them
    (Abramowitz and Stegun 26.7.5). The tail is convex right of 0, so the steps climb to the root.
    """
    if not 0 < p < 1 or not df > 0:
        raise ValueError(f"no t quantile for p={p}, df={df}; p lies between 0 and 1, df above 0")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    if p == 0.5:
        return 0.0
    tail = 1 - p
    constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    t = z = normal_quantile(p)
    if df >= 3:
        t += (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    for _ in range(200):
        density = math.exp(constant - (df + 1) / 2 * math.log1p(t * t / df))
        step = (t_tail(t, df) - tail) / density
        t += step
        if abs(step) <= 1e-7 * max(1.0, t):  # each step squares the error
            break
    return t
