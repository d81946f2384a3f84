"""How the rules about single runs find what they are about: the window, the code, what a run left."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import median

from compute_router.compare.figures import DERIVED
from compute_router.compare.finding import by_client, listed, named, of_window, where
from compute_router.compare.loaded import WARNED
from compute_router.compare.outcome import Role
from compute_router.compare.planning import N_VERDICT
from compute_router.compare.sight import Run, Sight

STEP_SHARE = 0.10
LIKE_POWER = 20
"""Percentage points by which the shares of samples at the power limit may differ."""
PLACES = (
    *("hw.observed.uuid", "hw.observed.driver", "hw.observed.ecc", "hw.observed.mem_bytes"),
    *("hw.observed.cpu_milli", "hw.observed.governor"),
)
"""Fields of class W by which machines of one model differ."""
CLOCK_SHARE = 0.05
"""By how much the clocks of two arms may differ without a word."""
OVERLAP_SHARE = 0.01
"""Of the shorter of two runs: less is the roundness of clocks."""
WATCHED = {
    "hw.observed.cotenants": "processes of others",
    "hw.observed.throttle_reasons": "lowered clocks",
    "compile.recompiles": "recompiles",
}
"""What may disturb a steady window, and can only be ruled out where somebody looked."""
_SHARE = re.compile(r"^(.*?) (\d+)%$")


def unstable(sight: Sight) -> str:
    if not of_window(sight):
        return ""
    told: dict[str, list[Run]] = {}
    power: list[int] = []
    for run in sight.runs:
        one = run.loaded
        if (count := one.value("compile.recompiles") or 0) > 0:
            told.setdefault(f"{count} recompiles inside the steady window", []).append(run)
        if (count := one.value("hw.observed.cotenants") or 0) > 0:
            told.setdefault(f"{count} processes of others on the accelerators", []).append(run)
        for error in one.value("hw.observed.errors") or ():
            told.setdefault(f"the hardware failed: {error}", []).append(run)
        capped = 0
        for reason in one.value("hw.observed.throttle_reasons") or ():
            match = _SHARE.match(reason)
            name, share = (match[1], int(match[2])) if match else (reason, 100)
            if "power_cap" in name:
                capped = max(capped, share)  # of several machines each tells its own
            elif share:
                told.setdefault(f"throttled by {name} in {share}% of samples", []).append(run)
        power.append(capped)
    if power and max(power) - min(power) > LIKE_POWER:
        told[f"throttled by the power cap in {min(power)}% to {max(power)}% of samples"] = where(
            sight, lambda run: True
        )
    return "; ".join(f"{text}: {named(runs)}" for text, runs in list(told.items())[:4])


def dirty(sight: Sight) -> str:
    runs = where(
        sight,
        lambda run: run.loaded.value("code.dirty") is True and run.loaded.value("code.diff_sha256") is None,
    )
    return f"uncommitted changes without a recorded digest: {named(runs)}" if runs else ""


def evaluated(sight: Sight) -> str:
    if not of_window(sight):
        return ""
    runs = where(
        sight,
        lambda run: (
            run.loaded.value("checks.eval_off") is False
            or any((run.loaded.value("steady.inside") or {}).values())
        ),
    )
    return f"steps that count hold an evaluation or a checkpoint: {named(runs)}" if runs else ""


def memory(sight: Sight) -> str:
    if not of_window(sight) or sight.metric is None or not sight.metric.rate:
        return ""
    runs = where(sight, lambda run: "peak_memory" not in run.figures)
    return f"no peak of memory: {named(runs)}" if runs else ""


def partial(sight: Sight) -> str:
    runs = where(sight, lambda run: run.loaded.value("checks.end_marker") is False or not run.loaded.measured)
    return f"no end marker, or no measurements: {named(runs)}" if runs else ""


def signature(sight: Sight) -> str:
    if sight.signed is None:
        return ""
    told = [(run, why) for run in sight.given if (why := sight.signed(run.loaded))]
    return "; ".join(f"{run.loaded.ref}: {why}" for run, why in told[:3])


def uncommitted(sight: Sight) -> str:
    runs = where(
        sight,
        lambda run: any(
            v.committed is False or "commit_failed" in (v.event or ())
            for v in run.loaded.value("volumes") or ()
        ),
    )
    return f"writes to a volume were not committed: {named(runs)}" if runs else ""


def seeds(sight: Sight) -> str:
    if sight.metric is None or sight.metric.rate or sight.metric.name in DERIVED:
        return ""
    told = [
        f"{arm.name}: seed {listed(again)}" for arm in sight.arms if (again := repeated_seeds(arm.counted))
    ]
    return f"seeds repeat within an arm ({'; '.join(told)})" if told else ""


def repeated_seeds(runs: Sequence[Run]) -> list[int]:
    found = [seed for run in runs if isinstance(seed := run.loaded.value("numerics.seed"), int)]
    return sorted(seed for seed, times in Counter(found).items() if times > 1)


def attempts(sight: Sight) -> str:
    told: dict[str, list[Run]] = {}
    for run in sight.runs:
        if run.loaded.attempt > 1:
            told.setdefault("started again after an earlier attempt", []).append(run)
        elif (
            run.loaded.value("startup.class") == "resumed_checkpoint" and "startup.class" not in sight.varied
        ):
            told.setdefault("went on from a checkpoint", []).append(run)
    return "; ".join(f"{text}: {named(runs)}" for text, runs in told.items())


def steps(sight: Sight) -> str:
    if not of_window(sight):
        return ""
    counts = [n for run in sight.runs if isinstance(n := run.loaded.value("steady.n_steps"), int)]
    if not counts or max(counts) <= min(counts) * (1 + STEP_SHARE):
        return ""
    return f"between {min(counts)} and {max(counts)} steps count"


def _figure(sight: Sight, run: Run) -> float | None:
    figure = run.figures.get(sight.metric.name) if sight.metric else None
    return figure.value if figure else None


def no_figure(sight: Sight) -> str:
    for arm in sight.arms:
        if arm.counted and all(_figure(sight, run) is None for run in arm.counted):
            return f"{arm.name}: no run has {sight.metric.name if sight.metric else 'a metric'}"
    return ""


def figure_missing(sight: Sight) -> str:
    if no_figure(sight):
        return ""
    runs = where(sight, lambda run: _figure(sight, run) is None)
    return f"without {sight.metric.name if sight.metric else 'a metric'}: {named(runs)}" if runs else ""


def bad_value(sight: Sight) -> str:
    runs = where(sight, lambda run: (v := _figure(sight, run)) is not None and v <= 0)
    return f"{sight.metric.name} is not greater than 0: {named(runs)}" if runs and sight.metric else ""


def direction(sight: Sight) -> str:
    if sight.metric is None:
        return ""
    told = [f for run in sight.runs if (f := run.figures.get(sight.metric.name)) is not None]
    if all(f.direction for f in told):
        return ""
    return f"whether more {sight.metric.name} is better is not told"


def places(sight: Sight) -> str:
    """By which fields each arm ran on a few machines of its own: running in turn does not cure it. Where
    every run is on another machine, as on surfaces that give out a fresh one, the machines are drawn with
    the runs, and chance tells them apart as it does those."""
    told = []
    for path in PLACES:
        d = sight.difference(path)
        if d is None or d.role is not Role.WARNS:
            continue
        at = WARNED.index(path)
        sides = [{run.loaded.warned[at] for run in arm.counted} for arm in sight.arms]
        if not sides[0] & sides[1] and min(map(len, sides)) < N_VERDICT:
            told.append(path)
    if not told:
        return ""
    return (
        f"{', '.join(told)} differ between the arms in every run, and whatever else these machines differ in"
    )


def at_once(sight: Sight) -> str:
    """How many runs shared their machine with another of them: what they do to each other nobody measured."""
    boots: dict[str, list[tuple[int, int, Run]]] = {}
    for run in sight.runs:
        boot, times = run.loaded.seen["clock.boot_id"], by_client(run)
        if isinstance(boot, str) and times is not None and times[0] < times[1]:
            boots.setdefault(boot, []).append((*times, run))
    shared: dict[int, Run] = {}
    for each in boots.values():
        each.sort(key=lambda row: row[:2])
        last = each[0]
        for row in each[1:]:
            overlap = min(last[1], row[1]) - row[0]
            if overlap > OVERLAP_SHARE * min(last[1] - last[0], row[1] - row[0]):
                shared |= {id(last[2]): last[2], id(row[2]): row[2]}
            # The one that lasts longest is the one that a later run may still meet.
            last = max(last, row, key=lambda row: row[1])
    return f"{len(shared)} runs shared their machine with another of them" if shared else ""


def unwatched(sight: Sight) -> str:
    """What could have disturbed the steady window without anybody seeing it."""
    if not of_window(sight):
        return ""
    told = []
    for path, name in WATCHED.items():
        each = [run.loaded for run in sight.runs]
        count = sum(one.seen[path] is None and path not in one.inapplicable for one in each)
        if count:
            told.append(f"{name} in {count} of {len(each)} runs")
    return f"nobody looked for {', '.join(told)}" if told else ""


def clocks(sight: Sight) -> str:
    """Whether the GPUs ran at other clocks, which no rule judges: code that is faster may draw more power."""
    middles = []
    for arm in sight.arms:
        each = [run.loaded.seen["hw.observed.clock_sm_mhz"] for run in arm.counted]
        known = [v for one in each if isinstance(one, dict) and type(v := one.get("p50")) is int and v > 0]
        middles.append(median(known) if known else 0)
    if not all(middles) or max(middles) <= min(middles) * (1 + CLOCK_SHARE):
        return ""
    names = (arm.name for arm in sight.arms)
    return ", ".join(f"{middle:g} MHz in {name}" for name, middle in zip(names, middles, strict=True))
