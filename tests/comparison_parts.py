"""Parts of which samples of comparisons are made: a run, a row of values, its estimate, an arm."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import geometric_mean, median
from typing import Any

from compute_router.compare.outcome import (
    Arm,
    Comparison,
    Contrast,
    Difference,
    Estimate,
    Metric,
    Point,
    Role,
)
from compute_router.records import digest, key_run_id

AT = 1_790_000_000_000_000
SECOND = 1_000_000
TOK = Metric(name="tok_s_global", unit="tokens/s", definition="tok_s_global/1")
FIRST = Metric(
    name="time_to_first_result_s", unit="s", higher_is_better=False, definition="time_to_first_result/1"
)
MEMORY = Metric(name="peak_memory_gib", unit="GiB", higher_is_better=False, rate=False)
LOSS = Metric(name="loss_last", higher_is_better=False, rate=False)
WARM = {
    "queue": 1.2,
    "image": 0.4,
    "stage_in": 2.1,
    "bootstrap": 1.4,
    "import": 3.8,
    "compile": 6.5,
    "warmup": 2.2,
}
COLD = {**WARM, "image": 41.0, "boot": 12.0, "compile": 148.0}


def point(arm: str, order: int, value: float | None, **more: Any) -> Point:
    """One run; `order` is when it ran, from 0. Without a value it failed."""
    parts = more.pop("parts", WARM)
    steady = more.pop("steady", 60.0)
    spread = random.Random(f"{arm!a}{order}")
    timing = {name: round(s * SECOND * spread.uniform(0.9, 1.1)) for name, s in parts.items()}
    if value is not None:
        timing |= {
            "steady": round(steady * SECOND),
            "checkpoint": 700_000,
            "idle": 300_000,
            "collect": 250_000,
        }
    begun = AT + order * 150 * SECOND
    failed = {
        "state": "failed",
        "evidence": "invalid",
        "counted": False,
        "why": "it failed: exit code 1 (steady)",
    }
    given: dict[str, Any] = {
        "ref": f"receipts/{arm}-{order}.json",
        "receipt_id": digest({"arm": ascii(arm), "order": order}),
        "run_id": key_run_id(f"{arm!a} {order}"),
        "attempt": 1,
        "arm": arm,
        "state": "succeeded",
        "evidence": "claim",
        "counted": True,
        "kind": "train",
        "purpose": "benchmark",
        "name": "char-gpt",
        "started_us": begun,
        "ended_us": begun + sum(timing.values()),
        "index": order + 1,
        "startup": "warm_machine_fresh_process",
        "surface": "reserved",
        "backend": "ssh",
        "hardware": "8 x H200-SXM-141GB",
        "storage": "data on local_nvme",
        "cache": "inductor warm_same_key -> hit",
        "figures": {}
        if value is None
        else {"tok_s_global": value, "time_to_first_result_s": 70 - order / 10},
        "timing": timing,
        **(failed if value is None else {}),
        **more,
    }
    return Point(**given)


def estimate(
    base: Sequence[float],
    candidate: Sequence[float],
    *,
    metric: Metric = TOK,
    paired: bool = False,
    **more: Any,
) -> Estimate:
    """The figures of two rows of values; p, verdict and what else is said are given."""
    logs = (
        [math.log(c / b) for b, c in zip(base, candidate, strict=True)]
        if paired
        else [math.log(c / b) for b in base for c in candidate]
    )
    ratio = geometric_mean(candidate) / geometric_mean(base)
    walsh = [math.exp((x + y) / 2) for i, x in enumerate(logs) for y in logs[i:]] if paired else []
    intervals: dict[str, Any] = {}
    if min(len(base), len(candidate)) > 1:
        df = len(base) - 1 if paired else len(base) + len(candidate) - 2
        wide, narrow = _t(1.959964, df), _t(1.644854, df)
        se = _se(logs, len(logs)) if paired else math.hypot(_se(_logs(base)), _se(_logs(candidate)))
        shift = median(walsh) if walsh else median(math.exp(x) for x in logs)
        intervals = {
            "interval": (ratio * math.exp(-wide * se), ratio * math.exp(wide * se)),
            "interval90": (ratio * math.exp(-narrow * se), ratio * math.exp(narrow * se)),
            "shift": shift,
            "shift_interval": (shift * math.exp(-1.08 * wide * se), shift * math.exp(1.1 * wide * se)),
        }
    return Estimate(
        metric=metric,
        n_base=len(base),
        n_candidate=len(candidate),
        paired=paired,
        base=geometric_mean(base),
        candidate=geometric_mean(candidate),
        base_range=(min(base), max(base)),
        candidate_range=(min(candidate), max(candidate)),
        ratio=ratio,
        **{**intervals, **more},
    )


def _t(z: float, df: int) -> float:
    # Hill's expansion of Student's quantile: good to a thousandth from four degrees of freedom.
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


def _logs(values: Sequence[float]) -> list[float]:
    return [math.log(v) for v in values]


def _se(logs: Sequence[float], n: int | None = None) -> float:
    mean = sum(logs) / len(logs)
    return math.sqrt(sum((x - mean) ** 2 for x in logs) / (len(logs) - 1) / (n or len(logs)))


def values(name: str, n: int, about: float, cv: float) -> list[float]:
    spread = random.Random(name)
    return [round(about * math.exp(spread.gauss(0, cv)), 2) for _ in range(n)]


def difference(field: str, base: str, candidate: str, role: Role, cls: str = "K") -> Difference:
    return Difference(field=field, cls=cls, base=base, candidate=candidate, role=role)


def arm(points: Sequence[Point], name: str) -> Arm:
    mine = [p for p in points if p.arm == name]
    return Arm(
        name=name,
        given=len(mine),
        succeeded=sum(p.state == "succeeded" for p in mine),
        counted=sum(p.counted for p in mine),
        keys=(digest({"key": ascii(name)}),),
    )


def comparison(points: Sequence[Point], contrasts: Sequence[Contrast], **more: Any) -> Comparison:
    names = list(dict.fromkeys(p.arm for p in points))
    return Comparison(
        version="0.1.0",
        rules=3,
        points=tuple(points),
        arms=tuple(arm(points, name) for name in names),
        contrasts=tuple(contrasts),
        **{"metric": "tok_s_global", **more},
    )


def interleaved(name: str, base: Sequence[float], candidate: Sequence[float]) -> list[Point]:
    """Blocks of two, the order within a block turned round every time."""
    points = []
    for i, (b, c) in enumerate(zip(base, candidate, strict=True)):
        pair = [("flash", b), (name, c)]
        for place, (of, value) in enumerate(reversed(pair) if i % 2 else pair):
            points.append(point(of, 2 * i + place, value, block=i + 1))
    return points
