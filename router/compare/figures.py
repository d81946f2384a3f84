"""One number per run and metric, and where its time went: made from a receipt alone.

A figure that follows from the times of a run says in its definition from when to when it counts, so that
runs of which less was seen are not held against others.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

from compute_router.compare.loaded import Loaded
from compute_router.compare.outcome import Metric

__all__ = ["DERIVED", "TRUSTED_STEPS", "Figure", "figures", "timing"]

DERIVED = ("wall", "time_to_first_step", "time_to_first_trustworthy_result", "cost", "peak_memory")
TRUSTED_STEPS = 3
"""One step is a rumour: so many that count make a first result that can be trusted."""
_SPEED_UNITS = ("/s", "s", "ms", "us", "min", "h", "flops", "flop/s", "hz")
_SPEED_NAMES = ("tok_s", "per_s", "_sec", "throughput", "latency", "flops", "time", "duration", "bandwidth")
_NO_SPEED = ("loss", "acc", "norm", "perplexity", "error")


class Figure(NamedTuple):
    """The value of a metric for one run. `direction` is whether anybody said which way is better."""

    metric: Metric
    value: float
    direction: bool = True


def figures(run: Loaded) -> dict[str, Figure]:
    """Every figure of a run, by name: those reported, and those that follow from its times and bill."""
    found = _reported(run)
    found.update((name, figure) for name, figure in _derived(run).items() if name not in found)
    return found


def _reported(run: Loaded) -> dict[str, Figure]:
    found = {}
    for row in run.seen["metrics.values"] or ():
        if not isinstance(row.name, str) or not isinstance(row.value, str):
            continue
        unit = row.unit if isinstance(row.unit, str) else ""
        more = row.higher_is_better
        definition = row.definition_id if isinstance(row.definition_id, str) else ""
        metric = _metric(row.name, unit, definition, more is not False, _is_rate(row.name, unit))
        found[row.name] = Figure(metric, float(row.value), isinstance(more, bool))
    return found


@functools.lru_cache(maxsize=1024)
def _metric(name: str, unit: str, definition: str, more: bool, rate: bool) -> Metric:
    """One record for all runs that have it."""
    return Metric(name=name, unit=unit, higher_is_better=more, definition=definition, rate=rate)


@functools.lru_cache(maxsize=1024)
def _is_rate(name: str, unit: str) -> bool:
    """Whether better means faster. By its unit where it has one, else by its name."""
    name, unit = name.lower(), unit.lower()
    if any(word in name for word in _NO_SPEED):
        return False
    return unit.endswith("/s") or unit in _SPEED_UNITS or any(word in name for word in _SPEED_NAMES)


def _derived(run: Loaded) -> dict[str, Figure]:
    found: dict[str, Figure] = {}

    def say(name: str, value: float, unit: str, definition: str, rate: bool = True) -> None:
        found[name] = Figure(_metric(name, unit, definition, False, rate), value)

    seen = run.seen
    before, run_us = before_us(run), seen["timing.run_us"]
    since = "start" if before is None else "submit"
    before = before or 0
    if run_us is not None:
        say("wall", (before + run_us) / 1e6, "s", f"{since}_to_end/1")
    steps = seen["distributed.first_step_us"]
    first = max(steps) if steps else None
    if first is not None:
        say("time_to_first_step", (before + first) / 1e6, "s", f"{since}_to_first_step/1")
    trusted, how = _trusted(run, first)
    if trusted is not None:
        say("time_to_first_trustworthy_result", (before + trusted) / 1e6, "s", f"{since}_to_{how}/1")
    currency = seen["cost.currency"]
    for which in ("actual", "estimate"):
        amount = seen[f"cost.{which}"]
        if amount is not None and isinstance(currency, str):
            say("cost", float(amount), currency, f"cost_{which}/1", False)
            break
    peaks, rss = seen["mem.peak_alloc_bytes"], seen["mem.host_rss_peak"]
    if peaks:
        say("peak_memory", float(max(peaks)), "bytes", "peak_alloc_of_any_rank/1", False)
    elif rss is not None:
        scope = seen["mem.host_rss_scope"] or "unobserved"
        say("peak_memory", float(rss), "bytes", f"host_rss_{scope}/1", False)
    return found


def _trusted(run: Loaded, first: int | None) -> tuple[int | None, str]:
    """From the work's first instruction to its first result that can be trusted, in microseconds: the end of
    the third step that counts; of work that tells of no steps, its end."""
    seen = run.seen
    count, steady = seen["steady.n_steps"], seen["timing.steady_us"]
    if count is None:
        return seen["timing.run_us"], "end"
    warmup, spent = seen["timing.warmup_us"], seen["timing.first_step_us"]
    if first is None or warmup is None or steady is None or count < TRUSTED_STEPS:
        return None, ""
    # The first step lies within the warm-up where steps are discarded at all.
    discarded = seen["steady.warmup_steps_discarded"]
    rest = max(0, warmup - (spent or 0)) if discarded else 0
    counted = TRUSTED_STEPS if discarded else TRUSTED_STEPS - 1
    return first + rest + counted * steady // count, f"{TRUSTED_STEPS}_steps"


def before_us(run: Loaded) -> int | None:
    """From the submission to the work's first instruction; None if the submission was not seen.

    The end is that of the machine's clock, brought to the client's by the offset measured between them.
    """
    seen = run.seen
    begun, ended, run_us = run.submitted_us, seen["outcome.ended_us"], seen["timing.run_us"]
    if begun is None or ended is None or run_us is None:
        return None
    offset = seen["clock.offset_us"] or 0
    return max(0, int(ended) - int(offset) - begun - int(run_us))


_PARTS = tuple(
    (name, f"timing.{name}_us")
    for name in (
        *("queue", "image", "boot", "stage_in", "run", "bootstrap", "import", "warmup", "steady"),
        *("eval", "checkpoint", "compile"),
    )
)


def timing(run: Loaded) -> Mapping[str, int]:
    """Where the time of a run went, from its submission to its end, in microseconds: parts that do not
    overlap and add up to the whole.

    Of what lies before the work's first instruction, `start` is what neither queue, image, boot nor staging
    explain. Compiling is taken out of the warm-up, then out of `idle`, where it happens. Evaluations and
    checkpoints are counted as far as they lie between steps.
    """
    seen = run.seen
    us = {name: seen[path] or 0 for name, path in _PARTS}
    found: dict[str, int] = {}

    def take(name: str, wanted: int, left: int) -> int:
        part = min(wanted, left)
        if part <= 0:
            return left
        found[name] = found.get(name, 0) + part
        return left - part

    before = before_us(run)
    left = sum(us[n] for n in ("queue", "image", "boot", "stage_in")) if before is None else before
    for name in ("queue", "image", "boot", "stage_in"):
        left = take(name, us[name], left)
    take("start", left, left)
    left = us["run"]
    compiled = min(us["compile"], us["warmup"])
    left = take("bootstrap", us["bootstrap"], left)
    left = take("import", us["import"], left)
    left = take("compile", compiled, left)
    left = take("warmup", us["warmup"] - compiled, left)
    left = take("steady", us["steady"], left)
    idle = seen["timing.idle_us"]
    between = left if idle is None else max(0, left - idle)
    rest = left - between if idle is not None else 0
    before_eval = between
    between = take("eval", us["eval"], between)
    between = take("checkpoint", us["checkpoint"], between)
    rest += between if idle is not None or before_eval else 0
    rest = take("compile", us["compile"] - compiled, rest)
    take("idle" if idle is not None else "other", rest, rest)
    return found
