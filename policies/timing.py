"""Time to the first trustworthy result of an offer, where each part of it comes from, and what ties."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from compute_router.backend import Estimate, Offer, Source, StartClass
from compute_router.policies.words import listed, spoken
from compute_router.policy import History, Past
from compute_router.workload import Framework, Role, Workload

__all__ = ["MINUTES", "PARTS", "Rows", "Time", "compiles", "indexed", "tied", "time_to_result"]

PARTS = ("queue", "start", "staging", "compile")
MINUTES = 120_000_000
"""Microseconds within which two times count as equal, however short they are."""

Rows = Mapping[tuple[str, str, StartClass, bool], Past]
T = TypeVar("T")


def compiles(workload: Workload) -> bool:
    """Whether compiling may stand between the start of the work and its first result.

    Not for work on no framework, nor for work without an accelerator that names neither a
    framework nor a compile cache nor shapes: then there is no compile time to know.
    """
    framework, needs = workload.needs.framework, workload.needs
    if framework is Framework.NONE:
        return False
    plain = needs.accelerator.family == "cpu" and framework is Framework.ANY
    return not plain or Role.COMPILE_CACHE in workload.volumes or workload.shapes is not None


def indexed(history: History) -> Rows:
    """The rows of the key asked for, by place and start state; of two for one place, that of more runs.

    A start that was not observed is no state, and so never the same as another one.
    """
    rows: dict[tuple[str, str, StartClass, bool], Past] = {}
    for row in history.rows:
        if row.n < 1 or row.start_class is StartClass.UNOBSERVED:
            continue
        if history.key and row.key != history.key:
            continue
        at = (row.backend, row.offer_id, row.start_class, row.warm)
        if at not in rows or _weight(row) > _weight(rows[at]):
            rows[at] = row
    return rows


def _weight(row: Past) -> tuple[int, str, tuple[int, ...]]:
    figures = (row.queue_us, row.start_us, row.staging_us, row.compile_us)
    return row.n, row.key, tuple(-1 if figure is None else figure for figure in figures)


class Time(NamedTuple):
    """The parts in microseconds in the order of `PARTS`, None where nobody knows, and their sum,
    None as soon as one is unknown. The parts named in `observed` come from `n` earlier runs, the
    others from the backend. `source` is `observed` if nothing that takes time is a guess."""

    parts: tuple[int | None, int | None, int | None, int | None]
    total_us: int | None
    source: Source
    observed: tuple[str, ...] = ()
    n: int = 0

    @property
    def text(self) -> str:
        """The time and who says so, as a part of a sentence."""
        total = self.total_us
        if total is None:
            missing = listed(name for name, us in zip(PARTS, self.parts, strict=True) if us is None)
            known = sum(part or 0 for part in self.parts)
            least = f", at least {spoken(known)}" if known else ""
            return f"time to the first result not known ({missing}){least}"
        runs = f"{self.n} earlier run" + ("s" if self.n != 1 else "")
        if self.source is Source.OBSERVED:
            origin = runs
        elif self.observed:
            origin = f"{listed(self.observed)} from {runs}, the rest estimated"
        else:
            origin = "estimated"
        return f"first result in about {spoken(total)} ({origin})"


def time_to_result(offer: Offer, rows: Rows, *, warm: bool, compiling: bool) -> Time:
    """queue + start + staging + compile of `offer`: from earlier runs in the same start state, else
    as the backend estimates it.

    A queue that is seen now counts before the queues of the past; a place that is not busy and says
    nothing of a queue has none.
    """
    given = offer.estimates
    queue, start, staging, compile_ = (
        _us(given.queue),
        _us(given.start),
        _us(given.staging),
        _us(given.compile),
    )
    if compile_ is None and not compiling:
        compile_ = 0
    if queue is None and not offer.busy:
        queue = 0
    observed: list[str] = []
    row = rows.get((offer.backend, offer.id, offer.start_class, warm)) if rows else None
    if row is not None:
        seen_now = given.queue is not None and given.queue.source is Source.OBSERVED
        if row.queue_us is not None and not offer.busy and not seen_now:
            queue = max(0, row.queue_us)
            observed.append("queue")
        if row.start_us is not None:
            start = max(0, row.start_us)
            observed.append("start")
        if row.staging_us is not None:
            staging = max(0, row.staging_us)
            observed.append("staging")
        if row.compile_us is not None:
            compile_ = max(0, row.compile_us)
            observed.append("compile")
    parts = (queue, start, staging, compile_)
    unknown = queue is None or start is None or staging is None or compile_ is None
    total = None if unknown else (queue or 0) + (start or 0) + (staging or 0) + (compile_ or 0)
    if row is None or not observed:
        return Time(parts, total, Source.ESTIMATED)
    if len(observed) == len(PARTS):
        return Time(parts, total, Source.OBSERVED, PARTS, row.n)
    sources = zip(PARTS, parts, (given.queue, given.start, given.staging, given.compile), strict=True)
    guessed = any(
        part != 0 and name not in observed and (told is None or told.source is not Source.OBSERVED)
        for name, part, told in sources
    )
    source = Source.ESTIMATED if guessed else Source.OBSERVED
    return Time(parts, total, source, tuple(observed), row.n)


def _us(estimate: Estimate | None) -> int | None:
    return None if estimate is None else max(0, estimate.us)


def tied(things: Iterable[T], total: Callable[[T], int | None]) -> list[Sequence[T]]:
    """`things` in groups that tie, quickest first: within max(10 %, 2 min) of the best of the group.

    Measured against the group's best and not pairwise, so that the groups do not depend on the
    order of `things`. Those of unknown time come last, as one group.
    """
    known: list[tuple[int, T]] = []
    unknown: list[T] = []
    for thing in things:
        us = total(thing)
        if us is None:
            unknown.append(thing)
        else:
            known.append((us, thing))
    known.sort(key=lambda pair: pair[0])
    groups: list[list[T]] = []
    edge = -1
    for us, thing in known:
        if us > edge:
            groups.append([])
            edge = us + max(us // 10, MINUTES)
        groups[-1].append(thing)
    return [*groups, unknown] if unknown else list(groups)
