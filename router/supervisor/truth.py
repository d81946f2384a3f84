"""What is true of a run: read in the order of docs/protocol.md, and made final where it is over."""

from __future__ import annotations

import os
import time

from . import files, group, inplace, machine
from .runs import FINAL, Attempt, Run
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    Json = Dict[str, Any]

# A waiter that died may have left a child that holds the lock until its exec; that takes moments.
PATIENCE = 2.0
HELD = "it has its leases and waits until every machine of its group is ready"
KILLED = {"cancel": "cancelled", "timeout": "timed_out", "group": "failed"}


def status(run: Run) -> Optional[Json]:
    """One look at a run, None if it was never committed here. What is found over is made final."""
    if not run.committed:
        return None
    attempt = run.newest()
    found = told("committed", 1) if attempt is None else of(attempt)
    several = group.noted(run)
    if several is None:
        return found
    return dict(found, group=dict(several, devices=group.devices(attempt) if attempt else []))


def told(state: str, attempt: int, **more: Any) -> Json:
    base = {
        "state": state,
        "attempt": attempt,
        "reason": "",
        "detail": "",
        "exit_code": None,
        "signal": None,
        "started_us": None,
        "ended_us": None,
        "position": None,
        "holder": None,
        "boot_id": machine.boot_id(),
    }
    base.update(more)
    return base


def ended(record: Json, executed: Optional[Json]) -> Json:
    """The status that an exit record means."""
    more = {"first": record["first"]} if isinstance(record.get("first"), dict) else {}
    return told(
        record["state"],
        record["attempt"],
        **more,
        reason=record["reason"],
        detail=record["detail"],
        exit_code=record.get("exit_code"),
        signal=record.get("signal"),
        started_us=executed["at_us"] if executed else None,
        ended_us=record["ended_us"],
        boot_id=record.get("boot_id"),
    )


def of(attempt: Attempt) -> Json:
    """The status of one attempt, by the truth table."""
    began = time.monotonic()
    while True:
        spent = time.monotonic() - began
        found = _look(attempt, patient=spent < PATIENCE)
        if found is not None:
            return found
        if spent > 15 * PATIENCE:
            raise Fault(
                "DAMAGED", "the lock of run %s is held by nobody we know" % attempt.run.id, "ask again"
            )
        time.sleep(0.002)


def _look(attempt: Attempt, patient: bool) -> Optional[Json]:
    """One pass through the table; None when somebody holds the lock who may not be the waiter."""
    record = attempt.json("exit.json")
    if record is not None:
        return ended(record, attempt.json("exec.json"))
    started = attempt.json("started.json")
    held = files.held(attempt.at("sup.lock"))
    if started is None:
        if not held:
            # It may have become final, or started, between the two looks.
            if attempt.has("exit.json") or attempt.has("started.json"):
                return None
            unheld = files.hint_json(attempt.at(group.UNHELD)).get("detail")
            if unheld:
                return told("committed", attempt.number, reason="never_executed", detail=unheld)
            return told("committed", attempt.number)
        waiting = files.hint_json(attempt.at("waiting.json"))
        if not waiting:
            if attempt.has(group.HELD):
                return told("starting", attempt.number, reason="held", detail=HELD)
            return told("starting", attempt.number)
        return told(
            "waiting",
            attempt.number,
            reason="busy",
            detail=waiting.get("detail", ""),
            position=waiting.get("position"),
            holder=waiting.get("holder"),
        )
    elsewhere(started)
    executed = attempt.json("exec.json")
    if started["boot_id"] == machine.boot_id() and held:
        waiter = started["waiter"]
        # Only a look at the lock, or somebody who makes the state final, holds it without the waiter.
        if not machine.alive(waiter["pid"], waiter["start"]) and patient:
            return None
        return live("running" if executed else "starting", attempt, executed)
    return _over(attempt)


def live(state: str, attempt: Attempt, executed: Optional[Json], **more: Any) -> Json:
    return told(state, attempt.number, started_us=executed["at_us"] if executed else None, **more)


def elsewhere(started: Json) -> None:
    here, there = machine.machine_id(), started.get("machine_id") or ""
    if here and there and here != there:
        raise Fault(
            "ELSEWHERE",
            "this run was started on another machine (%s) that shares this folder" % there[:12],
            "ask that machine; give each machine a root on its own disk",
        )


def _over(attempt: Attempt) -> Optional[Json]:
    """The waiter is gone. Take its lock and say what became of the run; None if the lock was lost again."""
    fd = files.lock(attempt.at("sup.lock"))
    if fd < 0:
        return None
    try:
        record = attempt.json("exit.json")
        if record is None:
            record = conclude(attempt)
        executed = attempt.json("exec.json")
        if record is None:
            return live(
                "orphaned",
                attempt,
                executed,
                reason="waiter_died",
                detail="the waiter is gone, the work goes on; its exit code will not be known",
            )
        return ended(record, executed)
    finally:
        os.close(fd)


def conclude(attempt: Attempt) -> Optional[Json]:
    """The exit record of an attempt whose waiter is gone, made now; None while its work goes on.

    The caller holds `sup.lock`.
    """
    started = attempt.json("started.json")
    if started is None:
        return None
    executed = attempt.json("exec.json")
    kept = attempt.reserved()
    if kept is not None:
        return attempt.settle(kept)
    if started["boot_id"] != machine.boot_id():
        never = "" if executed else "; the work had not been executed"
        return attempt.finish("lost", "rebooted", "the machine was started again while it ran" + never)
    if executed is None:
        return attempt.finish("lost", "never_executed", "the waiter was gone before the work was executed")
    if machine.alive(executed["pid"], executed["start"]) or leases_held(attempt, started):
        return None
    from . import ending

    why = ending.reason(attempt)
    if why in KILLED:
        detail = "killed after its waiter was gone; exit code not known"
        record = attempt.finish(KILLED[why], why, detail)
    else:
        detail = "the waiter was gone when the work ended; exit code not known"
        record = attempt.finish("lost", "waiter_died", detail)
    if not inplace.of(attempt.run.spec()):
        ending.Tree(attempt, executed).end(why="lost", grace=0.2)
    return record


def leases_held(attempt: Attempt, started: Json) -> List[str]:
    """Those lease files of this attempt that some process of it still holds."""
    found = []
    for path in started.get("leases", []):
        holder = files.hint_json(path)
        mine = holder.get("run_id") == attempt.run.id and holder.get("attempt") == attempt.number
        if mine and files.held(path):
            found.append(path)
    return found


def final(found: Optional[Json]) -> bool:
    return found is not None and found["state"] in FINAL


def settled(attempt: Attempt) -> bool:
    """Whether a final attempt has also been collected from: manifest and measured block stand."""
    return attempt.has("done.json")
