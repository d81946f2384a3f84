"""A run that another client submitted: what is left for others with each start, and how a client takes it on.

An adopted run has a folder here like any other, made of the records its client left beside it on the
machine. It is watched, ended and collected from here; nothing of it is ever started by adopting it.
"""

from __future__ import annotations

import functools
import json
import time
from typing import TYPE_CHECKING, Any

import msgspec

from compute_router import errors
from compute_router.backend import Backend, Kept, There
from compute_router.gather import side_by_side
from compute_router.records import plain
from compute_router.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from compute_router.router import Router
    from compute_router.store import RunFolder

__all__ = ["adopt", "found", "is_adopted", "records_of", "there"]

MOST = (1 << 20) - (1 << 16)
"""Bytes of the records that travel with a start; the rest of 1 MiB is the backend's."""
NAMES = ("run", "workload", "intent", "decision", "offers")
NEEDED = {"run", "workload", "intent"}
DEADLINE = 10.0
"""Seconds a backend may take to look for a run."""


def records_of(run: RunFolder) -> bytes:
    """What another client needs in order to go on with `run`: a line `{"<record>": {...}}` for each record.

    They hold no secret, for what is written into a run's folder holds none. If they are too many bytes,
    the offers that were not taken are left out, then whatever else is not needed.
    """
    records = {name: found for name in NAMES if (found := run.read_json(name)) is not None}
    lines = _lines(records)
    if len(lines) > MOST and "offers" in records:
        taken = [
            offer
            for offer in records["offers"].get("offers", [])
            if (offer.get("backend"), offer.get("id"))
            == tuple(records.get("intent", {}).get(name) for name in ("backend", "offer_id"))
        ]
        lines = _lines({**records, "offers": {**records["offers"], "offers": taken}})
    if len(lines) > MOST:
        lines = _lines({name: record for name, record in records.items() if name in NEEDED})
    return lines if len(lines) <= MOST else b""


def _lines(records: dict[str, Any]) -> bytes:
    return b"".join(
        msgspec.json.encode({name: records[name]}) + b"\n" for name in NAMES if records.get(name) is not None
    )


def found(router: Router, ref: str) -> RunFolder:
    """The run that `ref` names in this store; else the one of that id or key wherever it is, adopted.

    Raises `NotFound` if there surely is none, `SubmitUnknown` if a place that may have it could not be
    asked, `Refused` for a run whose client left no records.
    """
    try:
        return router.store.open(ref)
    except errors.NotFound as e:
        # What is the beginning of runs here, or counts back from the newest, was meant of this store.
        latest, several = ref.lower().startswith("latest"), "beginning of several" in e.what
        if latest or several or not ref.strip() or not ref.isprintable():
            raise
        return _elsewhere(router, ref.strip(), e)


def _elsewhere(router: Router, ref: str, none: errors.NotFound) -> RunFolder:
    unseen: list[str] = []
    asked = ref.lower() if len(ref) == 26 else ref
    for name, answer in _ask(router, lambda backend: backend.kept(asked)).items():
        if isinstance(answer, Kept):
            return adopt(router, answer)
        if isinstance(answer, BaseException):
            unseen.append(_why(name, answer))
    if unseen:
        raise errors.SubmitUnknown(
            f"{none.what} here; whether there is one elsewhere cannot be told: {'; '.join(unseen)}",
            mend="try again once that can be reached",
        )
    raise none


def _ask(router: Router, call: Callable[[Backend], Any]) -> dict[str, Any]:
    """What each backend answers to `call`, side by side; an exception in place of no answer."""
    backends: dict[str, Backend] = {}
    answers: dict[str, Any] = {}
    for name in router.registry.backends():
        try:
            backends[name] = router.backend(name)
        except errors.RouteError as e:
            answers[name] = e
    got = side_by_side({name: functools.partial(call, each) for name, each in backends.items()}, DEADLINE)
    late = errors.Unavailable(f"no answer within {DEADLINE:.0f} s")
    return {**answers, **{name: got.get(name, late) for name in backends}}


def adopt(router: Router, kept: Kept) -> RunFolder:
    """Make a run of this store from what its client left; all of it appears at once.

    Repeatable. Raises `Refused` if it left nothing, or nothing that this version can read.
    """
    records = _read(kept.records)
    run_id = kept.handle.run_id
    if missing := NEEDED - records.keys():
        raise errors.Refused(
            f"run {run_id} is on {kept.place}, but its client left no {', '.join(sorted(missing))} there",
            mend="ask the client that submitted it, or update it",
        )
    from compute_router.planning import Plan
    from compute_router.policy import Decision
    from compute_router.starting import Intent

    try:
        workload = msgspec.convert(records.pop("workload"), Workload)
        msgspec.convert(records["intent"], Intent)
    except msgspec.ValidationError as e:
        raise errors.Refused(
            f"run {run_id} on {kept.place} was submitted by another version of the router: {e}",
            mend="upgrade compute-router",
        ) from e
    try:
        msgspec.convert(records["decision"], Decision)
        Plan.read(records["offers"])
    except (msgspec.ValidationError, KeyError, TypeError, AttributeError):
        # What was offered and decided is for the receipt to tell; without it, it tells less.
        records.pop("decision", None)
        records.pop("offers", None)
    told = records.pop("run")
    adopted = {"at_us": time.time_ns() // 1000, "place": kept.place}
    about: dict[str, Any] = {"adopted": adopted}
    # Ids and digests are this store's to say: what came from elsewhere must not name another run.
    if type(told.get("created_us")) is int:
        about["created_us"] = told["created_us"]
    if isinstance(told.get("labels"), dict):
        about["labels"] = {str(name): str(text) for name, text in told["labels"].items()}
    run = router.store.create(
        run_id,
        workload,
        key=kept.handle.key,
        records={**records, "run": about, "handle": plain(kept.handle)},
    )
    event = {"event": "adopted", "run_id": run.id, **adopted}
    run.append_event(event)
    router.registry.notify(run.id, event)
    return run


def _read(lines: bytes) -> dict[str, Any]:
    records: dict[str, Any] = {}
    for line in lines.splitlines():
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        for name in NAMES:
            if isinstance(told, dict) and isinstance(told.get(name), dict):
                records[name] = told[name]
    return records


def is_adopted(run: RunFolder) -> bool:
    """Whether another client submitted this run."""
    return bool(run.about.get("adopted"))


def there(router: Router, backend: str | None = None) -> tuple[list[tuple[str, There]], list[str]]:
    """Runs that places have and this store does not know, newest first, each with its backend's name; and
    a sentence for each backend that could not be asked."""
    listed: list[tuple[str, There]] = []
    unseen: list[str] = []
    answers = _ask(router, lambda each: each.there() if backend in (None, each.name) else ())
    for name, answer in answers.items():
        if isinstance(answer, BaseException):
            unseen.append(_why(name, answer))
        else:
            listed += [(name, run) for run in answer if not (router.store.runs / run.run_id).is_dir()]
    return sorted(listed, key=lambda item: item[1].run_id, reverse=True), unseen


def _why(name: str, error: BaseException) -> str:
    return f"{name}: {error.what if isinstance(error, errors.RouteError) else error}"
