"""Holds arms against themselves: whether the noise is what the statistics take it for (an A/A check)."""

from __future__ import annotations

from compute_router import __version__
from compute_router.compare import answering, judging
from compute_router.compare.choosing import margin_of
from compute_router.compare.comparing import count, summary
from compute_router.compare.gathering import Gathered, place
from compute_router.compare.outcome import Comparison, Contrast, Result, Standing, Verdict
from compute_router.compare.planning import N_VERDICT
from compute_router.compare.sight import Arm, Run
from compute_router.errors import InputError
from compute_router.receipt.schema import RULES

__all__ = ["self_check"]


def self_check(given: Gathered, *, metric: str | None = None, margin: float | None = None) -> Comparison:
    """Each arm's runs dealt to two halves in the rhythm ABBA, and the halves compared. Pure.

    A verdict here is the noise's doing. One in twenty is what chance gives; where more than that come
    about, the note says that verdicts of such runs are not to be trusted. Raises `InputError` if no
    arm has a run with the metric.
    """
    points, arms, contrasts, notes = [], [], [], []
    wanted = margin_of(margin, [Run(one, group.name) for group in given.arms for one in group.runs])
    false = checks = 0
    for group in given.arms:
        arm = Arm(group.name, tuple(Run(one, group.name) for one in sorted(group.runs, key=place)))
        for run in arm.runs:
            count(run)
        points += [answering.point(run) for run in arm.runs]
        arms.append(summary(arm))
        able = arm.counted
        name = metric or next((n for run in able if (n := run.loaded.value("metrics.primary"))), "wall")
        figures = [figure for run in able if (figure := run.figures.get(name)) is not None]
        if not figures:
            notes.append(f"{group.name}: no run that counts has {name}")
            continue
        values = [figure.value for figure in figures if figure.value > 0]
        found = judging.self_check(values, metric=figures[0].metric, margin=wanted)
        able_to = min(found.n_base, found.n_candidate) >= N_VERDICT
        wrong = found.verdict in (Verdict.FASTER, Verdict.SLOWER)
        checks, false = checks + able_to, false + wrong
        said = "differs from itself: the noise's doing" if wrong else "shows no difference from itself"
        if not able_to:
            said = f"has too few runs to tell: {2 * N_VERDICT} are needed"
        if len(arms[-1].keys) > 1:
            notes.append(f"{group.name} holds runs that are no runs of one thing ({len(arms[-1].keys)} keys)")
        contrasts.append(
            Contrast(
                base=f"{group.name}, one half",
                candidate=f"{group.name}, other half",
                result=Result.EQUAL,
                verdict=found.verdict if able_to else None,
                standing=Standing.EXPLORATORY,
                sentence=f"{group.name} {said} (by {name})",
                label="an arm held against itself",
                primary=found,
                order="dealt to halves as ABBA",
                cannot=("which of two things is faster: an arm was held against itself",),
            )
        )
    if not contrasts:
        raise InputError("no arm has a figure to check", mend="name a metric that the runs have: --metric")
    if checks and not judging.noise_model_holds(false, checks):
        notes.append(
            f"{false} of {checks} arms differ from themselves: verdicts on such runs are not to be trusted"
        )
    return Comparison(
        version=__version__,
        rules=RULES,
        arms=tuple(arms),
        points=tuple(points),
        contrasts=tuple(contrasts),
        margin=wanted,
        metric=contrasts[0].primary.metric.name if contrasts[0].primary else "",
        notes=tuple(notes),
    )
