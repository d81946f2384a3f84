"""An answer in words: runs as points, the order they ran in, one sentence, and what cannot be concluded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compute_router.compare import finding, soundness
from compute_router.compare.figures import timing
from compute_router.compare.outcome import Contrast, Estimate, Metric, Point, Result, Role, Verdict
from compute_router.compare.sight import Run, Sight
from compute_router.compare.varying import paths_of

__all__ = ["cannot", "order", "point", "sentence", "study"]


def point(run: Run) -> Point:
    """One run as it is shown."""
    one, seen = run.loaded, run.loaded.seen
    sku, count = seen["hw.observed.sku"], seen["hw.observed.count"]
    return Point(
        ref=one.ref,
        receipt_id=one.receipt_id,
        run_id=one.run_id,
        attempt=one.attempt,
        arm=run.arm,
        state=seen["outcome.state"] or "unobserved",
        evidence=one.evidence,
        counted=run.counted,
        why=run.why,
        kind=one.kind,
        purpose=one.purpose,
        name=seen["workload.name"] or "",
        started_us=seen["outcome.started_us"],
        ended_us=seen["outcome.ended_us"],
        index=seen["study.index"],
        block=seen["study.block"],
        startup=seen["startup.class"] or "unobserved",
        surface=seen["surface"] or "",
        backend=seen["backend"] or "",
        hardware=f"{count} x {sku}" if count and sku else sku or "",
        storage=_storage(seen["storage"]),
        cache=_cache(seen["cache"]),
        caveats=tuple(seen["caveats"] or ()),
        figures={name: figure.value for name, figure in run.figures.items()},
        timing=timing(one),
    )


def _storage(rows: Any) -> str:
    told = {row.role: row.class_ for row in rows or () if isinstance(row.role, str)}
    shown = [n for n in told if n in ("data", "compile-cache")] or [n for n in told if n == "root"]
    return ", ".join(f"{name} on {told[name] or 'unobserved'}" for name in shown)


def _cache(rows: Any) -> str:
    return ", ".join(
        f"{row.kind} {row.state} -> {row.verdict}" for row in rows or () if isinstance(row.kind, str)
    )


def study(runs: Sequence[Run]) -> Mapping[str, str]:
    """What the receipts tell of their study; empty if they belong to none."""
    found: dict[str, str] = {}
    for run in runs:
        for name in ("id", "sha256", "n_planned", "order_seed"):
            if name not in found and (told := run.loaded.value(f"study.{name}")) is not None:
                found[name] = str(told)
    return found if "sha256" in found else {}


def order(sight: Sight) -> str:
    """In which order the runs of two arms were made."""
    planned = f"{sight.blocks} blocks" if sight.blocks else ""
    times = [[finding.by_client(run) for run in arm.counted] for arm in sight.arms]
    starts = [[at[0] for at in each if at is not None] for each in times]
    if not all(starts) or [len(each) for each in starts] != [len(each) for each in times]:
        return f"planned in {planned}" if planned else "unknown"
    share = finding.earlier_share(starts[0], starts[1])
    if planned and finding.APART > share > 1 - finding.APART:
        return f"interleaved, {planned}"
    if share >= finding.APART:
        return "base first"
    return "candidate first" if share <= 1 - finding.APART else "mixed"


_WORDS = {
    Verdict.FASTER: ("FASTER", "BETTER"),
    Verdict.SLOWER: ("SLOWER", "WORSE"),
}


def verdict_word(verdict: Verdict, metric: Metric) -> str:
    """`FASTER`; of a metric that is no rate `BETTER`."""
    return _WORDS[verdict][0 if metric.rate else 1] if verdict in _WORDS else verdict.value.upper()


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if abs(ratio - 1) >= 0.1 else f"{ratio:.3f}"


def _figure(e: Estimate) -> str:
    """`0.71x tokens/s (95% 0.69 to 0.73), p = 0.031, 6 blocks`."""
    if e.ratio is None:
        return ""
    text = f"{_times(e.ratio)}x {e.metric.name}"
    if e.interval is not None:
        text += f" (95% {_times(e.interval[0])} to {_times(e.interval[1])})"
    p = e.p if e.p_adjusted is None else e.p_adjusted
    if p is not None:
        text += f", p = {p:.3f}" if p >= 0.001 else ", p < 0.001"
    runs = f"{e.n_base} blocks" if e.paired else f"{e.n_base} and {e.n_candidate} runs"
    return f"{text}, {runs}"


def sentence(c: Contrast) -> str:
    """The answer in one sentence."""
    stands = [r for r in c.refusals if not r.waived]
    if c.result is Result.REFUSED:
        first, more = stands[0], len(stands) - 1
        beside = f" (and {more} more)" if more else ""
        return f"{c.candidate} and {c.base} cannot be compared: {first.code}: {first.what}{beside}"
    e, tail = c.primary, f"; {c.standing.value}" if c.standing else ""
    label = f", {c.label}" if c.label else ""
    if e is None:
        return f"{c.candidate} and {c.base} may be compared, and have no figure to compare"
    if c.verdict is None:
        codes = ", ".join(r.code for r in stands)
        return f"no verdict on {c.candidate} against {c.base} ({codes}): {_figure(e)}{tail}{label}"
    word = verdict_word(c.verdict, e.metric)
    if c.verdict is Verdict.EQUIVALENT:
        return (
            f"{c.candidate} is EQUIVALENT to {c.base} within {100 * e.margin:g}%: {_figure(e)}{tail}{label}"
        )
    if c.verdict is Verdict.INCONCLUSIVE:
        need = (
            f"; about {e.needed} {'blocks' if e.paired else 'runs of each arm'} would tell"
            if e.needed
            else ""
        )
        return f"{c.candidate} against {c.base} is INCONCLUSIVE: {_figure(e)}{need}{tail}{label}"
    return f"{c.candidate} is {word} than {c.base}: {_figure(e)}{tail}{label}"


def cannot(
    sight: Sight, reasons: Sequence[str], active: Sequence[str], primary: Estimate | None
) -> list[str]:
    """What cannot be concluded, one sentence each."""
    told = []
    if len(active) > 1:
        told.append(f"Which of {', '.join(active)} made the difference: they were changed together.")
    follows = [d.field for d in sight.differences if d.role is Role.FOLLOWS]
    if follows:
        told.append(f"What it would be with {', '.join(follows[:8])} alike: they differ with the variable.")
    if sight.surface_claim:
        told.append(
            "How fast the steady state of either surface is: this holds end to end, for this work alone."
        )
        if primary is not None and sight.metric is not None:
            told.append("That one backend is faster than the other in general.")
    differing = {d.field for d in sight.differences}
    unset = [name for name in sight.vary if name not in active and not differing & set(paths_of((name,)))]
    if unset:
        told.append(f"Anything about {', '.join(unset)}: declared to vary, and alike in both arms.")
    if reasons:
        told.append(f"A claim: {'; '.join(reasons)}.")
    if primary is not None and not sight.blocks and not _in_study(sight):
        told.append("That the number of runs was fixed beforehand: they belong to no study.")
    if primary is not None and (hidden := soundness.unwatched(sight)):
        told.append(f"That nothing disturbed the steady window: {hidden}.")
    if primary is not None and (clocks := soundness.clocks(sight)):
        told.append(f"That the accelerators ran at the same clocks: {clocks}.")
    warned = [d.field for d in sight.differences if d.role is Role.WARNS]
    if warned:
        told.append(f"That nothing else differed: {', '.join(warned[:8])} did.")
    return told


def _in_study(sight: Sight) -> bool:
    return all(run.loaded.value("study.sha256") for run in sight.runs)
