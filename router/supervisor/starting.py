"""The operations `start` and `cancel`: who may start what, and what is said about it."""

from __future__ import annotations

import os
import time

from . import files, follow, forking, group, holding, machine, masking, names, stage, truth, watcher, wire
from .runs import Attempt
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

    from .runs import Run

    Json = Dict[str, Any]

TRIES = 3
"""Waiters made in a row that die before they have started anything."""
PATIENCE = 10.0
"""Seconds that another waiter of the same attempt may take to get from its lock to a state."""


def start(run: Run, head: Json, body: bytes) -> Json:
    """See that the attempt is started, once, by whomever; its status. May be repeated at any time."""
    asked: Json = {"at_us": machine.now_us(), "mono_us": machine.mono_us()}
    run.need()
    number = names.whole(head.get("attempt", 1), "attempt", 1, 10_000)
    wait_us = head.get("wait_us", 0)
    if wait_us is not None:
        names.whole(wait_us, "wait_us")
    asked["environment"] = _environment(head.get("environment"))
    if head.get("spec_sha256") is not None:
        same_spec(run, names.digest(head["spec_sha256"]))
    newest = run.newest()
    if newest is not None and newest.number > number:
        raise Fault(
            "ATTEMPT", "attempt %d of run %s is already here" % (newest.number, run.id), "ask for its status"
        )
    attempt = Attempt(run, number)
    if newest is None or newest.number < number:
        permit(run, newest, number)
    elif begun(attempt):
        found = follow.look(run)
        if found is not None:
            return found
    spec = run.spec()
    secrets = secret_values(spec, body)
    masking.hide(secrets)
    stage.renew(run, spec)
    group.note(run, spec)
    os.makedirs(run.attempts, 0o700, exist_ok=True)
    until, tries = time.monotonic() + PATIENCE, 0
    while True:
        told = forking.launch(attempt, spec, dict(secrets), wait_us, asked)
        answer = told.pop("answer", "gone")
        if answer == "fault":
            raise Fault(told.pop("code"), told.pop("what"), told.pop("mend", ""), **told)
        if answer != "other":
            found = truth.of(attempt)
            if answer == "started" and found["state"] == "committed":
                # It removes its own records: that it was started is known all the same.
                return dict(found, state="starting", detail="its records are gone")
            # A waiter that died before `started.json` left nothing started: another may try.
            tries += 1
            if found["state"] != "committed" or tries >= TRIES:
                return found
        elif begun(attempt) or attempt.has("waiting.json") or holding.current(attempt):
            return truth.of(attempt)
        if time.monotonic() >= until:
            return truth.of(attempt)
        time.sleep(0.005)


def _environment(told: Any) -> Json:
    """What the client says of the environment it prepared: whether it built it, and the time that took."""
    told = told if isinstance(told, dict) else {}
    built, spent = told.get("built"), told.get("build_us")
    return {
        "built": built if isinstance(built, bool) else None,
        "build_us": spent if type(spent) is int and 0 <= spent < 2**53 else None,
    }


def same_spec(run: Run, digest: str) -> None:
    """Whether the run is the one that is meant. Raises `Fault` CONFLICT; nothing is started then."""
    import hashlib

    found = hashlib.sha256(files.read(os.path.join(run.path, "spec.json")) or b"").hexdigest()
    if found != digest:
        raise Fault(
            "CONFLICT",
            "run %s is here with another specification" % run.id,
            "use another key, or the workload as it was",
            spec_sha256=found,
        )


def begun(attempt: Attempt) -> bool:
    return attempt.has("started.json") or attempt.has("exit.json")


def permit(run: Run, newest: Optional[Attempt], number: int) -> None:
    """Whether attempt `number` may be made: the first one, or the next after one that does not count.

    The one before must be final, and either proven never to have executed, or preempted.
    """
    last = newest.number if newest is not None else 0
    if number != last + 1:
        raise Fault(
            "ATTEMPT", "attempt %d cannot follow attempt %d" % (number, last), "start attempt %d" % (last + 1)
        )
    if newest is None:
        return
    found = truth.of(newest)
    if found["state"] == "committed" and group.noted(run):
        found = holding.forgo(newest)
    if not truth.final(found):
        raise Fault("ATTEMPT", "attempt %d is %s" % (last, found["state"]), "wait for its end")
    unexecuted = found["state"] in ("lost", "failed") and not newest.has("exec.json")
    if not unexecuted and found["state"] != "preempted":
        raise Fault(
            "ATTEMPT",
            "attempt %d is %s and was executed: it is not started again" % (last, found["state"]),
            "submit it as a new run",
        )
    # Its waiter may still be at its last records, with the leases in hand.
    fd = files.lock(newest.at("sup.lock"), patience=PATIENCE)
    if fd < 0:
        raise Fault("ATTEMPT", "attempt %d is still being cleared away" % last, "try again")
    os.close(fd)


def given(body: bytes) -> Dict[str, Any]:
    """The secrets that came with a request."""
    try:
        found = wire.loads(body) if body else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Fault("BAD_REQUEST", "the secrets are no JSON object", "see docs/protocol.md")
    return found


def secret_values(spec: Json, body: bytes) -> Dict[str, str]:
    """The secrets that came with `start`: exactly those the specification names."""
    found = given(body)
    wanted = spec.get("secrets", [])
    missing = [name for name in wanted if name not in found]
    if missing:
        raise Fault(
            "PREFLIGHT", "missing secret %s" % missing[0], "export %s and start it again" % missing[0]
        )
    for name in wanted:
        value = found[name]
        if not isinstance(value, str) or "\0" in value:
            raise Fault(
                "PREFLIGHT", "secret %s is no text that a variable can hold" % name, "look at its value"
            )
    return {name: found[name] for name in wanted}


def cancel(run: Run) -> Json:
    """Ask the newest attempt to end; one that was never started is made final here. May be repeated."""
    attempt = run.newest() or Attempt(run, 1)
    found = truth.of(attempt)
    if truth.final(found):
        return found
    os.makedirs(attempt.path, 0o700, exist_ok=True)
    note = {"at_us": machine.now_us(), "mono_us": machine.mono_us()}
    try:
        files.create_once(attempt.at("cancel.json"), wire.dumps(note))
    except OSError:
        # A full disk is a reason to cancel: the name alone says it.
        if not files.mark_once(attempt.at("cancel.json")) and not attempt.has("cancel.json"):
            raise
    if not begun(attempt):
        lock = files.lock(attempt.at("sup.lock"), patience=0.05)
        if lock >= 0:
            try:
                if not begun(attempt):
                    attempt.finish("cancelled", "cancel", "cancelled before it started")
            finally:
                os.close(lock)
    watcher.nudge(attempt)
    return follow.look(run) or truth.of(attempt)
