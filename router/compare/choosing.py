"""What a comparison is about: its variable, margin and metrics, and the pairs that runs make."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from compute_router.compare import surfaces
from compute_router.compare.outcome import Metric
from compute_router.compare.sight import Arm, Run
from compute_router.compare.varying import paths_of
from compute_router.errors import InputError

__all__ = [
    "MARGIN",
    "blocks_of",
    "chosen_late",
    "declared",
    "margin_of",
    "metric_of",
    "other_metrics",
    "pairing_notes",
]

MARGIN = 0.02


def declared(vary: Sequence[str], runs: Sequence[Run]) -> tuple[list[str], list[str], list[str]]:
    """What is declared to vary, what of it only after the study was made, and notes."""
    planned: dict[str, None] = {}
    in_study = False
    for run in runs:
        told = run.loaded.value("study.vary")
        in_study = in_study or run.loaded.value("study.sha256") is not None
        planned.update(dict.fromkeys(told or ()))
    asked = [name.strip() for text in vary for name in text.split(",") if name.strip()]
    notes = []
    known = []
    for name in planned:
        try:
            paths_of((name,))
            known.append(name)
        except InputError as e:
            notes.append(f"the study's variable {name[:60]!r} is passed over: {e.what}")
    paths_of(asked)
    if not in_study:
        return list(dict.fromkeys([*known, *asked])), [], notes
    covered = set(paths_of(known))
    late = [name for name in asked if not set(paths_of((name,))) <= covered]
    if late:
        notes.append(f"{', '.join(late)}: declared to vary after the study was made, which caps its verdict")
    return list(dict.fromkeys([*known, *late])), late, notes


def margin_of(margin: float | None, runs: Iterable[Run]) -> float:
    if margin is not None:
        if not 0 < margin < 1:
            raise InputError(f"--margin {margin}: it lies between 0 and 1", mend="0.02 is 2 %")
        return margin
    for run in runs:
        told = run.loaded.value("study.margin")
        if told is not None and 0 < float(told) < 1:
            return float(told)
    return MARGIN


def chosen_late(margin: float | None, olympic: bool, runs: Sequence[Run]) -> list[str]:
    """What the reader chose although the study had fixed it beforehand: each is a choice of answer."""
    plans = [told for run in runs if (told := run.loaded.value("study.margin")) is not None]
    in_study = any(run.loaded.value("study.sha256") is not None for run in runs)
    late = []
    if margin is not None and any(float(told) != margin for told in plans):
        late.append("the margin")
    if olympic and in_study:
        late.append("leaving out the fastest and the slowest runs")
    return late


def metric_of(base: Arm, candidate: Arm, asked: str | None, claimed: bool) -> tuple[Metric | None, bool]:
    """The metric of a contrast, and whether it was picked by the reader rather than declared beforehand."""
    runs = base.counted + candidate.counted
    primary = next((name for run in runs if (name := run.loaded.value("metrics.primary"))), None)
    if asked is None:
        cold = bool(runs) and runs[0].loaded.purpose == "cold-start"
        if claimed or cold:
            asked = primary = surfaces.ALLOWED[0]
        else:
            asked = primary
    known = {name: figure.metric for run in runs for name, figure in run.figures.items()}
    if asked is None:
        # A kind that is judged by a verdict has no figure of its own: what it took is the figure.
        return known.get("wall"), False
    if asked not in known:
        if asked == primary or not known:
            return Metric(name=asked), False
        near = difflib.get_close_matches(asked, list(known), 1, 0.4)
        raise InputError(
            f"--metric {asked[:60]}: no run has it",
            mend=f"did you mean {near[0]}?" if near else f"these have {', '.join(sorted(known))}",
        )
    return known[asked], asked != primary and not (claimed and asked in surfaces.ALLOWED)


def other_metrics(base: Arm, candidate: Arm, chosen: Metric) -> list[Metric]:
    """The other metrics that every counted run has, greater than 0 and made in the same way."""
    runs = base.counted + candidate.counted
    found = []
    for name, figure in runs[0].figures.items() if runs else ():
        if name == chosen.name:
            continue
        each = [run.figures.get(name) for run in runs]
        if all(f is not None and f.metric == figure.metric and f.value > 0 and f.direction for f in each):
            found.append(figure.metric)
    return found


def blocks_of(base: Arm, candidate: Arm) -> list[tuple[Run, Run]]:
    """The pairs of a study's blocks that hold each arm exactly once; none unless there are two."""
    sides: list[dict[int, list[Run]]] = [{}, {}]
    for arm, side in zip((base, candidate), sides, strict=True):
        for run in arm.counted:
            block = run.loaded.value("study.block")
            if block is None:
                return []
            side.setdefault(block, []).append(run)
    pairs = [
        (sides[0][block][0], sides[1][block][0])
        for block in sorted({*sides[0]} & {*sides[1]})
        if len(sides[0][block]) == len(sides[1][block]) == 1
    ]
    return pairs if len(pairs) > 1 else []


def pairing_notes(base: Arm, candidate: Arm, blocks: Sequence[tuple[Run, Run]]) -> tuple[str, ...]:
    if not blocks:
        return ()
    left = len(base.counted) + len(candidate.counted) - 2 * len(blocks)
    if not left:
        return ()
    return (f"{left} counted run{'s' if left > 1 else ''} stand in blocks without a partner, and in no pair",)
