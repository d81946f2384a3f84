"""Compares arms of receipts: refuses with the reason, or says which is faster and how well that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from compute_router import __version__
from compute_router.compare import answering, outcome, refusals, soundness, surfaces
from compute_router.compare.choosing import (
    blocks_of,
    chosen_late,
    declared,
    margin_of,
    metric_of,
    other_metrics,
    pairing_notes,
)
from compute_router.compare.gathering import Gathered, Group, place
from compute_router.compare.loaded import Loaded
from compute_router.compare.matching import match
from compute_router.compare.outcome import (
    Comparison,
    Contrast,
    Estimate,
    Metric,
    Refusal,
    Result,
    Role,
    Standing,
    Verdict,
)
from compute_router.compare.planning import N_VERDICT
from compute_router.compare.planning import standing as best_standing
from compute_router.compare.sight import Arm, Run, Sight
from compute_router.compare.varying import factors, paths_of
from compute_router.receipt.schema import RULES

__all__ = ["compare", "count", "summary"]

_STANDINGS = tuple(Standing)
_OPEN = ("CPU_FALLBACK", "NO_MEASUREMENT")
"""Why a receipt is no evidence where a rule of comparisons speaks of it: such a run is not left out."""


def compare(
    arms: Gathered | Sequence[Group],
    *,
    vary: Sequence[str] = (),
    allow: Mapping[str, str] | None = None,
    margin: float | None = None,
    metric: str | None = None,
    olympic: bool = False,
    signed: Callable[[Loaded], str] | None = None,
) -> Comparison:
    """The answer for arms as `gather` makes them: `arms[0]` is the base, each other one is held against it.

    `vary` names what differs on purpose (`varying.ALIASES`, paths); receipts of a study bring their own.
    `allow` maps a rule to the reason for which it is waived. `margin` is the practical one, 0.02 for 2 %;
    `metric` takes the place of the primary one. `signed` says why the signature of a receipt is not good,
    where signatures are asked for.

    Pure, and the same whatever the order of receipts within an arm. Raises `InputError`, with the mend, for
    what the caller wrote: unknown fields, rules and metrics. Whatever the receipts say is in the answer.
    """
    given = arms if isinstance(arms, Gathered) else Gathered(arms=tuple(arms))
    waived = refusals.waived(allow or {})
    notes = list(given.notes)
    made = [
        Arm(group.name, tuple(Run(one, group.name) for one in sorted(group.runs, key=place)))
        for group in given.arms
    ]
    runs = [run for arm in made for run in arm.runs]
    for run in runs:
        count(run)
    notes += _left_out(runs)
    named_vary, late, more = declared(vary, runs)
    notes += more
    effective = margin_of(margin, runs)
    late = [*late, *chosen_late(margin, olympic, runs)]
    top = _top(given, waived)
    contrasts: list[Contrast] = []
    named: list[str] = []
    if not any(not refusal.waived for refusal in top) and len(made) > 1:
        for candidate in made[1:]:
            chosen = metric_of(made[0], candidate, metric, False)[0]
            named.append(metric or (chosen.name if chosen else ""))
            others = [run for arm in made[1:] if arm is not candidate for run in arm.runs]
            contrasts.append(
                _contrast(
                    made[0],
                    candidate,
                    others=others,
                    given=given,
                    vary=named_vary,
                    late=late,
                    allow=waived,
                    margin=effective,
                    metric=metric,
                    olympic=olympic,
                    signed=signed,
                )
            )
        contrasts = _adjusted(contrasts)
    used = {r.code for c in contrasts for r in c.refusals if r.waived} | {r.code for r in top if r.waived}
    notes += [f"--allow {code} was not needed" for code in waived if code not in used]
    return Comparison(
        version=__version__,
        rules=RULES,
        arms=tuple(summary(arm) for arm in made),
        points=tuple(answering.point(run) for run in runs),
        contrasts=tuple(contrasts),
        refusals=tuple(top),
        waivers=refusals.waivers(waived, used),
        vary=tuple(named_vary),
        margin=effective,
        metric=next((name for name in named if name), ""),
        study=answering.study(runs),
        notes=tuple(dict.fromkeys(notes)),
    )


def count(run: Run) -> None:
    """Whether a run enters statistics, and why not."""
    one = run.loaded
    if run.seeding:
        run.counted, run.why = False, "made to fill a cache (`route warm`): never evidence"
    elif run.unexecuted:
        run.counted, run.why = False, "it never executed"
    elif not run.succeeded:
        reason = one.value("outcome.reason_code")
        run.counted = False
        run.why = f"{one.value('outcome.state') or 'no state told'}" + (f" ({reason})" if reason else "")
    else:
        why = [r for r in one.reasons if r.class_ == "invalid" and r.code not in _OPEN]
        if why:
            run.counted, run.why = False, why[0].sentence


def _left_out(runs: Iterable[Run]) -> list[str]:
    told = []
    for run in runs:
        if run.seeding:
            told.append(f"{run.loaded.ref} is a seeding run (`route warm`), and is left out")
        elif run.unexecuted:
            told.append(f"{run.loaded.ref} never executed, and counts neither for speed nor for success")
        elif run.succeeded and not run.counted:
            told.append(f"{run.loaded.ref} succeeded and does not count: {run.why}")
    return told


def _top(given: Gathered, allow: Mapping[str, str]) -> list[Refusal]:
    """What stands in the way before two arms are held against each other."""
    told = []
    for code in ("HASH_MISMATCH", "UNREADABLE_RECEIPT"):
        files = [one for one in given.unread if (one.code == "HASH_MISMATCH") == (code == "HASH_MISMATCH")]
        if files:
            rule = refusals.BY_CODE[code]
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            text = "; ".join(f"{one.ref}: {one.what}" for one in files[:3]) + more + f"\n{files[0].mend}"
            told.append(refusals.refusal(rule, text, allow))
    return told


def _contrast(
    base: Arm,
    candidate: Arm,
    *,
    others: Sequence[Run],
    given: Gathered,
    vary: Sequence[str],
    late: Sequence[str],
    allow: Mapping[str, str],
    margin: float,
    metric: str | None,
    olympic: bool,
    signed: Callable[[Loaded], str] | None,
) -> Contrast:
    from compute_router.compare import judging

    varied = frozenset(paths_of(vary))
    matched = match(base, candidate, varied)
    claimed = surfaces.claimed(matched.differences, varied)
    chosen, picked = metric_of(base, candidate, metric, claimed)
    blocks = blocks_of(base, candidate)
    of = [[run for run in arm.runs if run.tried] for arm in (base, candidate)]
    counts = judging.success(
        sum(r.succeeded for r in of[0]), len(of[0]), sum(r.succeeded for r in of[1]), len(of[1])
    )
    sight = Sight(
        base=base,
        candidate=candidate,
        metric=chosen,
        vary=tuple(vary),
        varied=varied,
        differences=matched.differences,
        unobserved=matched.unobserved,
        mixed=matched.mixed,
        success=counts,
        blocks=len(blocks),
        surface_claim=claimed,
        extra=given.extra,
        signed=signed,
        others=others,
    )
    found = sorted(refusals.found(sight, allow), key=lambda r: refusals.BY_CODE[r.code].effect != "refuses")
    stands = [r for r in found if not r.waived]
    refused = [r for r in stands if refusals.BY_CODE[r.code].effect == "refuses"]
    active = factors(vary, matched.differences)
    result = _result(matched.differences, refused, found)
    notes = pairing_notes(base, candidate, blocks)
    primary: Estimate | None = None
    rest: tuple[Estimate, ...] = ()
    if not refused and chosen is not None:
        primary = _estimate(sight, chosen, blocks, margin, olympic)
        rest = tuple(
            one
            for other in other_metrics(base, candidate, chosen)
            if not (claimed and surfaces.forbidden(other.name, matched.differences))
            and (one := _estimate(sight, other, blocks, margin, olympic)) is not None
        )
    if primary is not None:
        primary = msgspec.structs.replace(primary, notes=(*primary.notes, *notes, *_seed_notes(sight)))
    standing, reasons = _standing(sight, found, late, picked) if primary else (None, ())
    contrast = Contrast(
        base=base.name,
        candidate=candidate.name,
        result=result,
        verdict=primary.verdict if primary and not stands else None,
        standing=standing,
        label=_label(sight, active, olympic, found),
        refusals=tuple(found),
        differences=matched.differences,
        primary=primary,
        others=rest,
        success=counts,
        order=answering.order(sight),
        cannot=tuple(answering.cannot(sight, reasons, active, primary)),
    )
    return msgspec.structs.replace(contrast, sentence=answering.sentence(contrast))


def _result(differences: Iterable[Any], refused: Sequence[Refusal], found: Sequence[Refusal]) -> Result:
    if refused:
        return Result.REFUSED
    apart = any(
        d.role in (Role.FOLLOWS, Role.REFUSES) or (d.role is Role.VARIED and d.cls != "V")
        for d in differences
    )
    return Result.CONTROLLED if apart else Result.EQUAL


def _seed_notes(sight: Sight) -> tuple[str, ...]:
    told = [
        f"{arm.name} repeats seed {', '.join(map(str, again[:3]))}"
        for arm in sight.arms
        if (again := soundness.repeated_seeds(arm.counted))
    ]
    return tuple(told)


def _estimate(
    sight: Sight, metric: Metric, blocks: Sequence[tuple[Run, Run]], margin: float, olympic: bool
) -> Estimate | None:
    from compute_router.compare import judging

    def values(runs: Iterable[Run]) -> list[float]:
        return [f.value for run in runs if (f := run.figures.get(metric.name)) is not None]

    paired = bool(blocks) and all(metric.name in run.figures for pair in blocks for run in pair)
    sides = zip(*blocks, strict=True) if paired else (arm.counted for arm in sight.arms)
    one, other = (values(side) for side in sides)
    if not one or not other:
        return None
    made: Estimate = judging.estimate(
        one, other, metric=metric, paired=paired, margin=margin, olympic=olympic
    )
    return made


def _standing(
    sight: Sight, found: Sequence[Refusal], late: Sequence[str], picked: bool
) -> tuple[Standing, tuple[str, ...]]:
    """What a verdict may be used for, and every reason that lowers it."""
    caps: list[tuple[Standing, str]] = []
    for cls in ("exploratory", "anecdote", "invalid"):
        runs = [run for run in sight.runs if run.loaded.evidence == cls]
        if runs:
            reasons = sorted({r.code for run in runs for r in run.loaded.reasons if r.class_ == cls})
            standing = Standing.EXPLORATORY if cls == "exploratory" else Standing.ANECDOTE
            caps.append((standing, f"{len(runs)} receipts are {cls} ({', '.join(reasons[:4])})"))
    n = sight.blocks or min(len(arm.counted) for arm in sight.arms)
    if n < N_VERDICT:
        few = (
            "one run of an arm is an anecdote" if n < 2 else f"{n} runs of an arm are fewer than {N_VERDICT}"
        )
        caps.append((best_standing(n), few))
    for told in filter(None, (soundness.places(sight), soundness.at_once(sight))):
        caps.append((Standing.EXPLORATORY, told))
    for refusal in found:
        if refusal.waived:
            caps.append((Standing.EXPLORATORY, f"{refusal.code} was waived: {refusal.because}"))
    if late:
        caps.append((Standing.EXPLORATORY, f"{', '.join(late)} was declared after the study was made"))
    if picked and sight.metric:
        caps.append((Standing.EXPLORATORY, f"{sight.metric.name} is not the metric that was declared"))
    worst = max((_STANDINGS.index(standing) for standing, _ in caps), default=0)
    return _STANDINGS[worst], tuple(text for _, text in caps)


def _label(sight: Sight, active: Sequence[str], olympic: bool, found: Sequence[Refusal]) -> str:
    told = []
    if sight.surface_claim:
        told.append(surfaces.LABEL)
    if len(active) > 1:
        told.append(f"joint effect only ({', '.join(active)})")
    if any(r.waived for r in found):
        told.append("waived: " + ", ".join(r.code for r in found if r.waived))
    if olympic:
        told.append("fastest and slowest of each arm dropped")
    return "; ".join(told)


def _adjusted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """By Holm: the primary metrics of all contrasts are one family, everything else another."""
    from compute_router.compare import judging

    first = judging.holm([c.primary for c in contrasts if c.primary])
    second = judging.holm([e for c in contrasts for e in c.others])
    made, left, right = [], iter(first), iter(second)
    for c in contrasts:
        primary = next(left) if c.primary else None
        rest = tuple(next(right) for _ in c.others)
        verdict: Verdict | None = primary.verdict if primary and c.verdict is not None else None
        c = msgspec.structs.replace(c, primary=primary, others=rest, verdict=verdict)
        made.append(msgspec.structs.replace(c, sentence=answering.sentence(c)))
    return made


def summary(arm: Arm) -> outcome.Arm:
    return outcome.Arm(
        name=arm.name,
        given=len(arm.runs),
        succeeded=sum(run.succeeded for run in arm.runs),
        counted=len(arm.counted),
        keys=tuple(sorted({run.loaded.key for run in arm.counted})),
    )
