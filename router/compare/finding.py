"""How each rule of a comparison finds what it is about: functions of two arms that give a text or nothing."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from compute_router.compare import surfaces
from compute_router.compare.figures import DERIVED
from compute_router.compare.outcome import Difference, Role
from compute_router.compare.planning import N_VERDICT
from compute_router.compare.sight import Run, Sight

COLD = ("startup.class", "cache")
KERNEL = ("kernel.observed",)
METRIC = ("metrics.primary", "metrics.values")
APART = 0.9
"""Share of pairs of runs in which the one arm came first, from which the order is no interleaving."""


def nothing(sight: Sight) -> str:
    """Of rules that fire before there are arms."""
    return ""


def named(runs: Iterable[Run], most: int = 3) -> str:
    names = [run.loaded.ref or run.loaded.run_id for run in runs]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def listed(values: Iterable[Any], most: int = 4) -> str:
    told = [str(v) for v in values]
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")


def _sides(d: Difference) -> str:
    return f"{d.field} ({d.base} vs {d.candidate})"


def where(sight: Sight, holds: Callable[[Run], bool]) -> list[Run]:
    return [run for run in sight.runs if holds(run)]


def of_window(sight: Sight) -> bool:
    """Whether the metric is one of the steady window: reported by the work, not made of its times."""
    return sight.metric is not None and sight.metric.name not in DERIVED


def kinds(sight: Sight) -> str:
    told = []
    for name in ("kind", "purpose"):
        sides = [sorted({getattr(run.loaded, name) for run in arm.counted}) for arm in sight.arms]
        if len({*sides[0], *sides[1]}) > 1:
            told.append(f"{name} {'/'.join(sides[0])} vs {'/'.join(sides[1])}")
    return ", ".join(told)


def hardware(sight: Sight) -> str:
    if "hw.observed.sku" in sight.varied or sight.surface_claim:
        return ""
    wrong: dict[str, list[Run]] = {}
    for run in sight.runs:
        told = run.loaded.value("hw.match")
        if told not in (None, "exact", "declared", "cpu_fallback"):
            one = run.loaded
            asked = f"{one.value('hw.requested.class')} x {one.value('hw.requested.count')}"
            got = f"{one.value('hw.observed.sku')} x {one.value('hw.observed.count')}"
            wrong.setdefault(f"asked for {asked}, ran on {got} ({told})", []).append(run)
    return listed(f"{text}: {named(runs)}" for text, runs in wrong.items())


def fallback(sight: Sight) -> str:
    runs = where(sight, lambda run: run.loaded.value("hw.match") == "cpu_fallback")
    return f"ran on the CPU: {named(runs)}" if runs else ""


def cold(sight: Sight) -> str:
    """Other start states: unless they are what is measured, or come with another surface or posture."""
    told = []
    for path in COLD:
        d = sight.difference(path)
        mixed = sight.mixed.get(path)
        if d is None and not mixed:
            continue
        if path in sight.unobserved:
            continue
        measured = sight.purpose == "cold-start" and any(p in sight.varied for p in COLD)
        follows = d is not None and d.role is Role.FOLLOWS
        if follows and path == "cache" and not sight.surface_claim and not measured:
            follows = not any(_is_cold(run) for run in sight.runs)
        if (measured or follows) and not mixed:
            continue
        if mixed:
            told += [f"within {arm} {path} is {' and '.join(values)}" for arm, values in mixed.items()]
        if d is not None and not (measured or follows) and (not mixed or d.base != d.candidate):
            told.append(f"base {path}={d.base}, candidate {path}={d.candidate}")
    return "; ".join(dict.fromkeys(told))


def _is_cold(run: Run) -> bool:
    rows = run.loaded.value("cache") or ()
    return any(
        row.state in ("empty", "partial") or row.verdict in ("miss", "partial", "failed_load") for row in rows
    )


def confounded(sight: Sight) -> str:
    skip = {*COLD, *METRIC, "kind", "purpose", "study.sha256", *sight.unobserved}
    told = [d for d in sight.differences if d.role is Role.REFUSES and d.field not in skip]
    if not told:
        return ""
    declared = (
        f"the declared variable is {{{', '.join(sight.vary)}}}" if sight.vary else "no variable is declared"
    )
    names = ",".join(_wide(d.field) for d in told)
    mend = f"make them equal, or declare what was to vary: --vary {','.join(dict.fromkeys(names.split(',')))}"
    return f"differs in {{{', '.join(_sides(d) for d in told[:6])}}} but {declared}\n{mend}"


def _wide(path: str) -> str:
    """The variable that a field is commonly changed by, for a mend that can be typed."""
    from compute_router.compare.varying import alias_of

    return alias_of(path) or path


def definition(sight: Sight) -> str:
    told = [
        f"base {d.base}, candidate {d.candidate}"
        for d in sight.differences
        if d.field in METRIC and d.cls == "K"
    ]
    if sight.metric is not None:
        made = {
            (m.unit, m.definition, m.higher_is_better)
            for run in sight.runs
            if (f := run.figures.get(sight.metric.name)) is not None and (m := f.metric)
        }
        if len(made) > 1:
            ways = (
                f"{d or 'no definition'}, {u or 'no unit'}{'' if h else ', less is better'}"
                for u, d, h in made
            )
            told.append(f"{sight.metric.name} is made in {len(made)} ways: {'; '.join(sorted(ways))}")
    return "; ".join(told)


def kernel(sight: Sight) -> str:
    wrong: dict[str, list[Run]] = {}
    for run in sight.runs:
        asked, ran = run.loaded.value("kernel.requested"), run.loaded.value("kernel.observed")
        if asked is None or (ran is None and "kernel.observed" in run.loaded.inapplicable):
            continue
        if ran is None:
            wrong.setdefault(f"{asked} requested, dispatch not observed", []).append(run)
        elif run.loaded.value("checks.kernel_truth") is False or (
            asked != ran
            and run.loaded.value("checks.kernel_truth") is not True
            and asked not in ("auto", "any")
        ):
            wrong.setdefault(f"{asked} requested, {ran} dispatched", []).append(run)
    return listed(f"{text}: {named(runs)}" for text, runs in wrong.items())


def few(sight: Sight) -> str:
    if sight.blocks:
        if sight.blocks >= N_VERDICT:
            return ""
        return f"{sight.blocks} pairs; a verdict needs at least {N_VERDICT}"
    one, other = (len(arm.counted) for arm in sight.arms)
    if min(one, other) >= N_VERDICT:
        return ""
    return f"{one} and {other} runs; a verdict needs at least {N_VERDICT} of each arm"


def study(sight: Sight) -> str:
    """Whether the receipts are those of one study, all of it and nothing else."""
    given = [run for run in (*sight.given, *sight.others) if not run.unexecuted]
    plans = {sha for run in given if (sha := run.loaded.value("study.sha256"))}
    if not plans:
        return ""
    if len(plans) > 1:
        return f"{len(plans)} studies are mixed: {listed(sorted(p[:8] for p in plans))}"
    told = []
    outside = [run for run in given if not run.loaded.value("study.sha256") and not run.seeding]
    extra = [*(run.loaded.ref for run in outside), *(one.ref for one in sight.extra)]
    if extra:
        told.append(f"{len(extra)} receipts beside it do not belong to it ({listed(extra, 3)})")
    planned = {n for run in given if isinstance(n := run.loaded.value("study.n_planned"), int)}
    if len(planned) != 1:
        told.append(
            "how many runs it has is not told alike" if planned else "how many runs it has is not told"
        )
        return "; ".join(told)
    (count,) = planned
    indexes = [i for run in given if isinstance(i := run.loaded.value("study.index"), int)]
    here = set(indexes)
    missing = [i for i in range(1, min(count, 10_000) + 1) if i not in here]
    if missing:
        told.insert(
            0,
            f"the study has {count} runs, {len(set(indexes))} of them have receipts here; missing index"
            f" {listed(missing, 8)}",
        )
    twice = sorted(i for i, times in Counter(indexes).items() if times > 1)
    if twice:
        told.append(f"index {listed(twice)} was run more than once")
    beyond = sorted({i for i in indexes if not 1 <= i <= count})
    if beyond:
        told.append(f"index {listed(beyond)} was never planned")
    return "; ".join(told)


def order(sight: Sight) -> str:
    if min(len(arm.counted) for arm in sight.arms) < 2:
        return ""
    # Blocks are what was planned; when the runs really started decides.
    times = [[by_client(run) for run in arm.counted] for arm in sight.arms]
    known = [[at for at in each if at is not None] for each in times]
    if known != times:
        return "" if sight.blocks else "when the runs started is not known of all of them"
    starts = [[begun for begun, _ in each] for each in known]
    share = earlier_share(starts[0], starts[1])
    if APART > share > 1 - APART:
        return ""
    first, last = ("base", "candidate") if share >= APART else ("candidate", "base")
    at = 0 if first == "base" else 1
    if max(ended for _, ended in known[at]) <= min(starts[1 - at]):
        return f"all {first} runs ended before the first {last} run; drift cannot be told apart"
    return f"nearly all {first} runs started before the {last} runs; drift cannot be told apart"


def by_client(run: Run) -> tuple[int, int] | None:
    """When a run started and ended, by the clock of the client: those of machines may be hours apart."""
    begun, ended = run.loaded.value("outcome.started_us"), run.loaded.value("outcome.ended_us")
    if begun is None:
        return None
    offset = int(run.loaded.value("clock.offset_us") or 0)
    return int(begun) - offset, int(ended or 0) - offset


def earlier_share(base: Sequence[int], candidate: Sequence[int]) -> float:
    """Of all pairs of runs, the share in which that of the base started first."""
    later = sorted(candidate)
    # Twice the number of those that started later; of those at the same moment half are.
    twice = sum(2 * len(later) - bisect_left(later, b) - bisect_right(later, b) for b in base)
    return twice / (2 * len(base) * len(later))


def mixed(sight: Sight) -> str:
    skip = {*COLD, *METRIC, "kind", "purpose", "study.sha256", *sight.unobserved}
    told = [
        f"within {arm} {path} is {' and '.join(values[:3])}"
        for path, each in sight.mixed.items()
        if path not in skip
        for arm, values in each.items()
    ]
    return "; ".join(told[:6])


MENDS = {
    "workload.imported": "start the script with Python 3.8 or later, so that it can be seen from inside",
    "storage": "put data and caches on a volume whose storage can be told, or the same device of one boot",
    "kernel": "report what was dispatched: `route_report.kernel`",
    "data": "declare it ([tool.route.fields]), or report it: `route_report.fields`",
    "numerics": "declare it ([tool.route.fields]), or report it: `route_report.fields`",
    "distributed": "declare it ([tool.route.fields]), or report it: `route_report.fields`",
    "workload.family": "declare it: [tool.route.fields] family",
    "startup": "run it on a machine that the supervisor can look at before the start",
    "cache": "put the compile cache on a volume (`volumes = { compile-cache = ... }`), or report it",
    "metrics": "report the metric: `route_report`",
    "surface": "say so: `route record --surface`",
    "hw": "`route doctor` tells what keeps the hardware from being seen",
}


def unobserved(sight: Sight) -> str:
    told = {p: refs for p, refs in sight.unobserved.items() if not (p in KERNEL and kernel(sight))}
    if not told:
        return ""
    first = next(iter(told))
    mend = next((mend for start, mend in MENDS.items() if first.startswith(start)), "")
    names = ", ".join(f"{path} ({listed(dict.fromkeys(refs), 2)})" for path, refs in list(told.items())[:6])
    return f"not observed: {names}" + (f"\n{mend}" if mend else "")


def same(sight: Sight) -> str:
    names = {(run.loaded.run_id, run.loaded.attempt) for run in sight.base.runs}
    runs = [run for run in sight.candidate.runs if (run.loaded.run_id, run.loaded.attempt) in names]
    return f"in both arms: {named(runs)}" if runs else ""


def no_runs(sight: Sight) -> str:
    empty = [f"{arm.name} (of {len(arm.runs)} given)" for arm in sight.arms if not arm.counted]
    return f"no run counts: {', '.join(empty)}" if empty else ""


def success(sight: Sight) -> str:
    told = sight.success
    if told is None or not told.base_of or not told.candidate_of:
        return ""
    # By more than one run: of the smaller arm, where they differ in size.
    apart = abs(told.base / told.base_of - told.candidate / told.candidate_of)
    if apart * min(told.base_of, told.candidate_of) <= 1 + 1e-9:
        return ""
    return f"base {told.base}/{told.base_of} succeeded, candidate {told.candidate}/{told.candidate_of}"


def surface_metric(sight: Sight) -> str:
    if not sight.surface_claim or sight.metric is None:
        return ""
    return surfaces.forbidden(sight.metric.name, sight.differences)
