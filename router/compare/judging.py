"""What two arms' figures come to: the estimate of one metric, its verdict, and what to do without one.

The rule of a verdict. Two methods look at the same runs: one of means (the geometric-mean ratio with
its interval of Student's t, and the exact test), one of ranks (the Hodges-Lehmann shift with its exact
interval). Each may establish a direction (p < 0.05, and its 95 % interval excludes 1), equivalence (its
90 % interval lies inside the margin), both, or nothing. What both establish is the verdict.

A direction and equivalence together mean a small but certain difference: the verdict is the direction,
`within` is set, and the note says that it is less than what was declared to matter.

Simulated (2,000 studies to a figure, spread of 2 % between runs, tests/test_statistics_power.py): at most
5.1 % of verdicts say FASTER or SLOWER where nothing differs, with 6 or 10 runs of each arm and 6, 7 or 10
pairs, normal, heavy-tailed or skewed noise, and drift. A true 5 % is found in 94 % with 6 runs of each arm
or 7 pairs, in 78 % with 6 pairs. That both methods must agree costs half a point of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from compute_router.compare import exact, intervals, remarks
from compute_router.compare.distributions import t_quantile
from compute_router.compare.outcome import Estimate, Metric, Success, Verdict
from compute_router.compare.planning import (
    ALPHA,
    N_TEST,
    N_VERDICT,
    needed_for_difference,
    needed_for_equivalence,
)

__all__ = ["estimate", "failures_differ", "holm", "noise_model_holds", "self_check", "success"]

LEAST, MOST = 1e-40, 1e40
"""No figure of a receipt that is greater than 0 lies outside; inside, no interval overflows."""
SUCCESS_SLACK = 1
"""Failures by which arms may differ before a verdict on speed is withheld: one may be chance."""
TRIM = 1
"""Runs that `olympic` drops at each end."""


class _Seen(NamedTuple):
    """What was computed of two arms, on logs."""

    centre: intervals.Centre
    shift: intervals.Shift
    test: exact.Test
    spread: float | None
    """Standard deviation of logs within an arm, or of the pairs' differences."""


def estimate(
    base: Sequence[float],
    candidate: Sequence[float],
    *,
    metric: Metric,
    paired: bool,
    margin: float,
    olympic: bool = False,
) -> Estimate:
    """One metric of two arms: the ratio candidate over base, its uncertainty and the verdict.

    One figure for each run, in the order in which the runs started; `paired`: the same place in both is the
    same block. With fewer than N_TEST runs in an arm there are values and a ratio alone, with fewer
    than N_VERDICT no verdict but INCONCLUSIVE. `olympic` drops the fastest and the slowest run of each
    arm (of pairs, those with the smallest and the largest ratio); n counts what is left. Deterministic.

    Raises ValueError, before anything is computed, if a value is not a number from 1e-40 to 1e40 (so
    zero, negative, infinite and NaN ones), if pairs are not of equal number, or if the margin does
    not lie between 0 and 1. An arm may be empty: nothing is then said of it.
    """
    _check(base, candidate, paired=paired, margin=margin)
    trim = TRIM if olympic and min(len(base), len(candidate)) > 2 * TRIM else 0
    dropped: list[str] = []
    kept_base, kept_candidate = _kept(base, candidate, trim, paired=paired)
    if trim:
        dropped.append(remarks.olympic(base, candidate, paired=paired))
    elif olympic:
        dropped.append("olympic: too few runs to drop any")
    n = min(len(kept_base), len(kept_candidate))
    found = Estimate(
        metric=metric,
        n_base=len(kept_base),
        n_candidate=len(kept_candidate),
        paired=paired,
        base=_geometric(kept_base),
        candidate=_geometric(kept_candidate),
        base_range=(min(kept_base), max(kept_base)) if kept_base else None,
        candidate_range=(min(kept_candidate), max(kept_candidate)) if kept_candidate else None,
        margin=margin,
    )
    drifts = [
        note for name, arm in (("base", base), ("candidate", candidate)) if (note := remarks.drift(name, arm))
    ]
    if n == 0:
        return msgspec.structs.replace(found, notes=("no runs to compare",))
    seen = _look(base, candidate, paired=paired, trim=trim)
    found = msgspec.structs.replace(found, ratio=math.exp(seen.centre.at))
    if n >= N_TEST:
        found = msgspec.structs.replace(
            found,
            interval=_ratios(seen.centre.interval(0.95)),
            interval90=_ratios(seen.centre.interval(0.90)),
            shift=math.exp(seen.shift.at),
            shift_interval=_ratios(seen.shift.interval),
            shift_interval90=_ratios(seen.shift.interval90),
            p=seen.test.p,
            test=seen.test.name,
        )
    notes = (*dropped, *remarks.size_notes(found), *drifts)
    return _judged(msgspec.structs.replace(found, notes=notes), seen.spread)


def _check(base: Sequence[float], candidate: Sequence[float], *, paired: bool, margin: float) -> None:
    for name, arm in (("base", base), ("candidate", candidate)):
        for at, value in enumerate(arm, 1):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not LEAST <= value <= MOST:
                shown = repr(value)
                raise ValueError(
                    f"{name}: value {at} is {shown if len(shown) < 40 else shown[:36] + '...'}; "
                    f"a ratio needs positive finite numbers"
                )
    if paired and len(base) != len(candidate):
        raise ValueError(
            f"{len(base)} and {len(candidate)} runs cannot be paired; each block has one of each"
        )
    if not 0 < margin < 1:
        raise ValueError(f"the margin is {margin!r}; it lies between 0 and 1, such as 0.02 for 2 %")


def _kept(
    base: Sequence[float], candidate: Sequence[float], trim: int, *, paired: bool
) -> tuple[list[float], list[float]]:
    if paired:
        blocks = sorted(zip(base, candidate, strict=True), key=lambda pair: pair[1] / pair[0])
        blocks = blocks[trim : len(blocks) - trim]
        return [b for b, _ in blocks], [c for _, c in blocks]
    return sorted(base)[trim : len(base) - trim], sorted(candidate)[trim : len(candidate) - trim]


def _look(base: Sequence[float], candidate: Sequence[float], *, paired: bool, trim: int) -> _Seen:
    if paired:
        # The log of the ratio, not a difference of logs: equal ratios stay equal to the last digits.
        logs = [math.log(c / b) for b, c in zip(base, candidate, strict=True)]
        centre = intervals.difference(logs, trim=trim)
        shift = intervals.signed_rank_shift(logs)
        test = exact.sign_flip(logs)
        runs = len(logs) - 2 * trim
        spread = None if centre.error is None else centre.error * math.sqrt(runs)
    else:
        b, c = [math.log(v) for v in base], [math.log(v) for v in candidate]
        centre = intervals.welch(b, c, trim=trim)
        shift = intervals.hodges_lehmann(b, c)
        test = exact.mann_whitney(base, candidate)
        n, m = len(base) - 2 * trim, len(candidate) - 2 * trim
        spread = None if centre.error is None else centre.error / math.sqrt(1 / n + 1 / m)
    if trim:
        p = centre.p()
        name = "trimmed t, " + ("Tukey-McLaughlin" if paired else "Yuen-Welch")
        # Dropping by value and then testing what is left finds too much: see `intervals._mean`.
        test = exact.Test(test.p, test.name) if p is None else exact.Test(p, name)
    return _Seen(centre, shift, test, spread)


# Verdict --------------------------------------------------------------------------------------------


def _judged(found: Estimate, spread: float | None) -> Estimate:
    """`found` with verdict, `beyond`, `within`, `needed` and the notes that go with them."""
    if min(found.n_base, found.n_candidate) < N_VERDICT or found.p is None:
        return _inconclusive(found, spread, ())
    notes: list[str] = []
    interval, interval90 = found.interval, found.interval90
    if interval is None:
        interval, interval90 = found.shift_interval, found.shift_interval90
        notes.append(
            "the runs do not differ within an arm, so there is no spread to make an interval from; "
            "ranks alone decide: see that this figure is measured"
        )
    bound = 1 + found.margin
    means = (_side(interval) if found.p < ALPHA else 0), _inside(interval90, bound)
    ranks = _side(found.shift_interval), _inside(found.shift_interval90, bound)
    side = means[0] if means[0] == ranks[0] else 0
    within = means[1] and ranks[1]
    words = [_words(found.metric, *claims) for claims in (means, ranks)]
    if side:
        beyond = interval is not None and (interval[0] > bound or interval[1] < 1 / bound)
        if within:
            notes.append(remarks.small(found.margin))
        verdict = _direction(found.metric, side)
        return msgspec.structs.replace(
            found, verdict=verdict, beyond=beyond, within=within, needed=None, notes=(*found.notes, *notes)
        )
    if within:
        return msgspec.structs.replace(
            found, verdict=Verdict.EQUIVALENT, within=True, needed=None, notes=(*found.notes, *notes)
        )
    if means != ranks:
        notes.append(
            f"the methods disagree: the geometric-mean ratio says {words[0]}, "
            f"the Hodges-Lehmann shift says {words[1]}"
        )
    return _inconclusive(found, spread, notes)


def _side(interval: intervals.Interval | None) -> int:
    """+1 or -1 if the interval of ratios lies above or below 1, else 0."""
    if interval is None:
        return 0
    return (interval[0] > 1) - (interval[1] < 1)


def _inside(interval: intervals.Interval | None, bound: float) -> bool:
    """Two one-sided tests at 5 % (Schuirmann 1987): the 90 % interval lies inside 1/bound .. bound."""
    return interval is not None and 1 / bound < interval[0] and interval[1] < bound


def _direction(metric: Metric, side: int) -> Verdict:
    return Verdict.FASTER if (side > 0) == metric.higher_is_better else Verdict.SLOWER


def _words(metric: Metric, side: int, inside: bool) -> str:
    claims = [_direction(metric, side).value] if side else []
    claims += ["within the margin" if side else "equivalent"] if inside else []
    return ", ".join(claims) or "inconclusive"


def _inconclusive(
    found: Estimate, spread: float | None, notes: Sequence[str], *, alpha: float = ALPHA
) -> Estimate:
    needed, more = None, list(notes)
    if spread:
        needed = needed_for_difference(spread, found.margin, paired=found.paired, alpha=alpha)
        same = needed_for_equivalence(spread, found.margin, paired=found.paired)
        if needed is not None and same is not None:
            more.append(remarks.enough(spread, found.margin, needed, same, paired=found.paired))
    return msgspec.structs.replace(
        found,
        verdict=Verdict.INCONCLUSIVE,
        beyond=False,
        within=False,
        needed=needed,
        notes=(*found.notes, *more),
    )


# Many metrics ---------------------------------------------------------------------------------------


def holm(estimates: Sequence[Estimate]) -> tuple[Estimate, ...]:
    """The same estimates as one family, with p adjusted by Holm (1979), and judged anew by it.

    The chance that any difference is found among those that are not there is 5 % at most. Families are the
    caller's: the primary metric is declared beforehand and is a family of its own (with several
    candidates: one primary for each), so that looking at other metrics too costs it nothing; all other
    metrics of all candidates are the second. Those without p are left as they are. Equivalence is not
    adjusted: each is at its own 5 %.
    """
    family = sorted((i for i, e in enumerate(estimates) if e.p is not None), key=lambda i: _p(estimates[i]))
    out = list(estimates)
    running = 0.0
    for rank, i in enumerate(family):
        running = max(running, min(1.0, (len(family) - rank) * _p(estimates[i])))
        out[i] = _adjusted(estimates[i], running, len(family))
    return tuple(out)


def _p(found: Estimate) -> float:
    return 1.0 if found.p is None else found.p


def _adjusted(found: Estimate, p: float, size: int) -> Estimate:
    adjusted = msgspec.structs.replace(found, p_adjusted=p)
    if found.verdict not in (Verdict.FASTER, Verdict.SLOWER) or p < ALPHA:
        return adjusted
    note = f"p {_p(found):.2g} is {p:.2g} by Holm over {size} tests"
    least = exact.least_p(found.n_base, found.n_candidate, paired=found.paired)
    if least * size >= ALPHA:
        unit = "blocks" if found.paired else "runs"
        note += f"; {found.n_base} {unit} cannot pass as the first of so many"
    kept = (one for one in found.notes if one != remarks.small(found.margin))
    adjusted = msgspec.structs.replace(adjusted, beyond=False, notes=(*kept, note))
    if found.within:
        return msgspec.structs.replace(adjusted, verdict=Verdict.EQUIVALENT)
    return _inconclusive(adjusted, _spread(found), (), alpha=ALPHA / size)


def _spread(found: Estimate) -> float | None:
    """The spread that made the interval: of arms of unequal spread a little more, as the degrees of
    freedom are taken to be the most there can be."""
    if found.interval is None:
        return None
    reach = math.log(found.interval[1] / found.interval[0]) / 2
    if found.paired:
        return reach / t_quantile(0.975, found.n_base - 1) * math.sqrt(found.n_base)
    error = reach / t_quantile(0.975, found.n_base + found.n_candidate - 2)
    return error / math.sqrt(1 / found.n_base + 1 / found.n_candidate)


# Failures, and an arm against itself ----------------------------------------------------------------


def success(base_ok: int, base_of: int, candidate_ok: int, candidate_of: int) -> Success:
    """How many runs of each arm succeeded, with the p of Fisher's exact test; no p if an arm is empty.

    Raises ValueError unless 0 <= ok <= of.
    """
    for name, ok, of in (("base", base_ok, base_of), ("candidate", candidate_ok, candidate_of)):
        if not 0 <= ok <= of:
            raise ValueError(f"{name}: {ok} of {of} succeeded; it can be none of them up to all")
    p = exact.fisher(base_ok, base_of, candidate_ok, candidate_of) if base_of and candidate_of else None
    return Success(base=base_ok, base_of=base_of, candidate=candidate_ok, candidate_of=candidate_of, p=p)


def failures_differ(counts: Success) -> bool:
    """Whether arms failed so unequally that a verdict on speed is withheld: by more than one run."""
    failed = counts.base_of - counts.base, counts.candidate_of - counts.candidate
    return abs(failed[0] - failed[1]) > SUCCESS_SLACK


def self_check(values: Sequence[float], *, metric: Metric, margin: float) -> Estimate:
    """One arm against itself: its runs, in the order they started, dealt to two halves as ABBA.

    Whatever is FASTER or SLOWER here is the noise's doing: runs are not independent, or something changed
    between them in that rhythm. Steady drift cancels out in ABBA; the notes tell of it. Raises as
    `estimate` does.
    """
    first = [v for i, v in enumerate(values) if i % 4 in (0, 3)]
    second = [v for i, v in enumerate(values) if i % 4 in (1, 2)]
    found = estimate(first, second, metric=metric, paired=False, margin=margin)
    note = remarks.drift("all runs", values)
    return msgspec.structs.replace(found, notes=(*found.notes, note)) if note else found


def noise_model_holds(false_verdicts: int, checks: int) -> bool:
    """Whether so many verdicts in so many checks of arms against themselves can still be the 5 % that are
    expected: False if chance would give as many in fewer than 5 % of cases (exact binomial)."""
    ways = (math.comb(checks, k) * ALPHA**k * (1 - ALPHA) ** (checks - k) for k in range(false_verdicts))
    return 1 - math.fsum(ways) > ALPHA - 1e-12  # one of one is just 5 %


def _geometric(values: Sequence[float]) -> float | None:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


def _ratios(interval: intervals.Interval | None) -> intervals.Interval | None:
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
