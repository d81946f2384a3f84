"""The measured block: what the supervisor itself saw of an attempt, as canonical bytes without floats."""

from __future__ import annotations

import hashlib
import json
import os

from . import closing, files, forking, group, inplace, logcap, masking
from .observing import (
    caches,
    compiling,
    computer,
    hardware,
    reports,
    sampling,
    software,
    storage,
    timeline,
)
from .observing.facts import Look, Observed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

    from .runs import Attempt

    Json = Dict[str, Any]


def canonical(value: Any) -> bytes:
    """The canonical bytes of `compute_router.records`: sorted, compact, UTF-8, no floats."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def least(attempt: Attempt, spec: Json, why: str) -> Json:
    """The block when it could not be made: the outcome alone, and what went wrong."""
    record = attempt.json("exit.json") or attempt.reserved() or {}
    return {
        "schema": "route.measured/1",
        "run_id": attempt.run.id,
        "attempt": attempt.number,
        "kind": spec.get("kind"),
        "purpose": spec.get("purpose"),
        "outcome": {
            **{k: record.get(k) for k in ("state", "reason", "detail", "exit_code", "signal")},
            "stage": "receipt",
        },
        "fault": why[:600],
    }


def block(attempt: Attempt, spec: Json, listed: Json, facts: Json) -> Json:
    """The measured block of a final attempt. Reads the attempt's own records and the machine, no more.

    A section that cannot be made says why, and costs no other.
    """
    o, look = Observed(), Look(attempt, spec, listed=listed, facts=facts)
    sections: Dict[str, Callable[[Observed, Look], Any]] = {
        "timing": timeline.timing,
        "hw": hardware.block,
        "machine": computer.block,
        "launch": launch,
        "storage": storage.block,
        "volumes": storage.volumes,
        "cache": caches.block,
        "kernel": reports.kernel,
        "fields": reports.fields,
        "data": reports.data,
        "env": software.block,
        "workload": software.imported,
        "startup": timeline.startup,
        "compile": compiling.block,
        "steady": reports.steady,
        "metrics": reports.reported,
        "promotion": reports.verdict,
        "mem": reports.memory,
        "checks": reports.checks,
        "distributed": reports.distributed,
        "log": log,
        "processes": processes,
        "samples": sampling.block,
        "clock": timeline.clock,
    }
    made: Json = {}
    for name, section in sections.items():
        try:
            made[name] = section(o, look)
        except Exception as e:
            forking.traceback()
            made[name] = o.seen(None, "it could not be made: %s: %s" % (type(e).__name__, str(e)[:200]))
    return {
        "schema": "route.measured/1",
        "run_id": attempt.run.id,
        "attempt": attempt.number,
        "key": spec.get("key"),
        "kind": spec.get("kind"),
        "purpose": spec.get("purpose"),
        "workload_digest": spec.get("workload_digest"),
        "spec_sha256": hashlib.sha256(
            files.read(os.path.join(attempt.run.path, "spec.json")) or b""
        ).hexdigest(),
        "outcome": outcome(look),
        "lifecycle": timeline.lifecycle(look),
        "artifacts": [f for f in listed["files"] if f["role"] in ("output", "in_place")],
        "skipped": listed["skipped"],
        **made,
    }


def outcome(look: Look) -> Json:
    attempt, record, executed = look.attempt, look.record, look.executed
    state = record.get("state")
    if state == "succeeded":
        stage = "collect"
    elif executed:
        stage = "launch" if record.get("reason") == "cannot_start" else "steady"
    else:
        stage = "lease"
    tail = closing.tail(attempt.at("log"), end=masking.end_of(attempt, 2**62))
    return {
        "state": state,
        "stage": stage,
        "reason": record.get("reason", ""),
        "detail": record.get("detail", ""),
        "exit_code": record.get("exit_code"),
        "signal": record.get("signal"),
        "log_tail_sha256": hashlib.sha256(tail).hexdigest(),
        "log_tail_bytes": len(tail),
        "executed": bool(executed),
        **({"first": record["first"]} if isinstance(record.get("first"), dict) else {}),
    }


def launch(o: Observed, look: Look) -> Json:
    spec, executed = look.spec, look.executed
    never, place = "the work was never executed", inplace.of(look.spec)
    argv = [str(word) for word in executed.get("argv") or []]
    digest = hashlib.sha256(b"\0".join(word.encode("utf-8", "surrogateescape") for word in argv)).hexdigest()
    return {
        # The words themselves stay on the machine: a receipt travels, and one may be a token.
        "program": o.seen(argv[0] if argv else None, never),
        "argv_sha256": o.seen(digest if argv else None, never),
        "launcher": spec.get("launcher", {}).get("name", "python"),
        "ranks": spec.get("launcher", {}).get("ranks", 1),
        "cwd": spec.get("cwd", "."),
        **({k: group.of(spec)[k] for k in ("nodes", "node_rank", "members")} if group.of(spec) else {}),
        # Variables of a fabric that were kept from ranks of one machine: see `work.leaked`.
        "scrubbed": o.seen(look.started.get("scrubbed"), never),
        **(_launched(o, place) if place else {}),
    }


def _launched(o: Observed, place: Json) -> Json:
    """What started the processes of a command in place, as far as its words and variables tell."""
    return {
        "launcher": o.seen(place.get("launcher"), "the command starts its processes itself"),
        "ranks": o.seen(place.get("ranks"), "nothing tells how many processes the command starts"),
    }


def log(o: Observed, look: Look) -> Json:
    attempt = look.attempt
    try:
        size = os.stat(attempt.at("log")).st_size
    except OSError:
        return {"bytes": o.seen(None, "there is no log"), "capped": o.seen(False)}
    begin, end = logcap.hole(attempt)
    error = files.hint_json(attempt.at("capped.json")).get("error")
    capped = (
        o.seen(None, "a cap was asked for and cannot be kept: %s" % error) if error else o.seen(end > begin)
    )
    clean, why = masking.told(attempt)
    return {
        "bytes": o.seen(size),
        "capped": capped,
        "dropped_bytes": o.seen(end - begin),
        # Whether it was looked through for secrets to its end.
        "scrubbed": o.seen(clean, why),
    }


def processes(o: Observed, look: Look) -> Json:
    facts, attempt = look.facts, look.attempt
    stuck = len(files.hint_json(attempt.at("stuck.json")).get("pids") or ())
    gone = "whoever waited for the work is gone"
    return {
        "strays": o.seen(facts.get("strays"), gone),
        "stuck": o.seen(max(int(facts.get("stuck") or 0), stuck)),
        "cgroup": o.seen(attempt.has("cgroup.json")),
    }
