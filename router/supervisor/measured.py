"""The measured block: what the supervisor itself saw of an attempt, as canonical bytes without floats."""

from __future__ import annotations

import hashlib
import json
import os

from . import closing, files, logcap, machine, metrics, wire, work
from .observed import LATER, Observed, computer, hardware, storage, volumes

_SPANS = """submit_us image_us boot_us bootstrap_us import_us compile_us first_step_us warmup_us eval_us
checkpoint_us data_wait_us idle_us"""
_KNOWN = ("cache", "kernel", "verdict", "end", "memory")
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

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
    """The measured block of a final attempt. Reads the attempt's own records and the machine, no more."""
    o = Observed()
    record = attempt.json("exit.json") or attempt.reserved() or {}
    started = attempt.json("started.json") or {}
    executed = attempt.json("exec.json") or {}
    committed = files.hint_json(os.path.join(attempt.run.path, "committed.json"))
    discard = int(spec.get("metrics", {}).get("discard_steps", 1))
    found = metrics.summarise(attempt.at("metrics.jsonl"), discard)
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
        "outcome": outcome(o, attempt, record, executed),
        "timing": timing(o, committed, started, executed, record, facts),
        "hw": hardware(o, spec, started),
        "machine": computer(o),
        "launch": launch(o, spec, executed),
        "storage": storage(o, attempt, started, spec),
        "volumes": volumes(o, started),
        "cache": caches(o, found),
        "kernel": kernel(o, found),
        "env": {"stack": {"python": o.seen(None, LATER), "torch": o.seen(None, LATER)}},
        "startup": {"class": o.seen(None, LATER)},
        "compile": {"posture": o.seen(None, LATER)},
        "steady": steady(o, found),
        "metrics": reported(o, found, spec),
        "promotion": last_note(o, found, "verdict", "no verdict was reported"),
        "mem": memory(o, facts, found),
        "checks": checks(o, record, found),
        "log": log(o, attempt),
        "processes": processes(o, facts, attempt),
        "samples": samples(o, attempt),
        "lifecycle": lifecycle(facts, committed, started, executed, record),
        "clock": {
            "boot_id": o.seen(started.get("boot_id") or machine.boot_id()),
            "offset_us": o.seen(None, "the client measures this"),
        },
        "artifacts": [f for f in listed["files"] if f["role"] == "output"],
        "skipped": listed["skipped"],
    }


def outcome(o: Observed, attempt: Attempt, record: Json, executed: Json) -> Json:
    state = record.get("state")
    if state == "succeeded":
        stage = "collect"
    elif executed:
        stage = "launch" if record.get("reason") == "cannot_start" else "steady"
    else:
        stage = "lease"
    tail = closing.tail(attempt.at("log"))
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
    }


def _between(begin: Json, end: Json) -> Optional[int]:
    """Microseconds between two records of one boot, by the monotonic clock."""
    if "mono_us" in begin and "mono_us" in end and begin.get("boot_id") == end.get("boot_id"):
        return max(0, int(end["mono_us"]) - int(begin["mono_us"]))
    return None


def timing(o: Observed, committed: Json, started: Json, executed: Json, record: Json, facts: Json) -> Json:
    asked = dict(started.get("asked") or {}, boot_id=started.get("boot_id"))
    never = "the work was never executed"
    seen = record.get("exit_code") is not None or record.get("signal") is not None
    return {
        "stage_in_us": o.seen(committed.get("stage_us"), "the run was not committed by this supervisor"),
        "queue_us": o.seen(_between(asked, started), "it never started"),
        "spawn_us": o.seen(_between(started, executed), never),
        "run_us": o.seen(
            _between(executed, record) if seen else None, "nobody saw its end" if executed else never
        ),
        "collect_us": o.seen(facts.get("collect_us")),
        "cpu_us": o.seen(facts.get("cpu_us"), "whoever waited for the work is gone"),
        **{name: o.seen(None, LATER) for name in _SPANS.split()},
    }


def launch(o: Observed, spec: Json, executed: Json) -> Json:
    never = "the work was never executed"
    argv = [str(word) for word in executed.get("argv") or []]
    digest = hashlib.sha256(b"\0".join(word.encode("utf-8", "surrogateescape") for word in argv)).hexdigest()
    return {
        # The words themselves stay on the machine: a receipt travels, and one may be a token.
        "program": o.seen(argv[0] if argv else None, never),
        "argv_sha256": o.seen(digest if argv else None, never),
        "launcher": spec.get("launcher", {}).get("name", "python"),
        "ranks": spec.get("launcher", {}).get("ranks", 1),
        "cwd": spec.get("cwd", "."),
    }


def _notes(found: Optional[metrics.Summary], event: str) -> List[Json]:
    return [n for n in found.notes if n.get("event") == event] if found else []


def _note(o: Observed, note: Json) -> Json:
    at = note.get("t_us")
    value = {k: v for k, v in note.items() if k not in ("event", "t_us", "mono_us")}
    return o.seen(value, src="workload", at=at if type(at) is int else None)


def last_note(o: Observed, found: Optional[metrics.Summary], event: str, why: str) -> Json:
    notes = _notes(found, event)
    return _note(o, notes[-1]) if notes else o.seen(None, why)


def caches(o: Observed, found: Optional[metrics.Summary]) -> List[Json]:
    return [_note(o, note) for note in _notes(found, "cache")]


def kernel(o: Observed, found: Optional[metrics.Summary]) -> Json:
    return last_note(o, found, "kernel", "the work reported no kernel")


def steady(o: Observed, found: Optional[metrics.Summary]) -> Json:
    why = "the work reported no steps"
    steps = found if found is not None and found.steps else None
    return {
        "warmup_steps_discarded": o.seen(steps.discarded if steps else None, why, "workload"),
        "first_step": o.seen(steps.first_step if steps else None, why, "workload"),
        "last_step": o.seen(steps.last_step if steps else None, why, "workload"),
        "n_steps": o.seen(steps.counted if steps else None, why, "workload"),
        "step_us": o.seen(steps.quantiles() if steps else None, (steps and steps.lacking) or why, "workload"),
    }


def reported(o: Observed, found: Optional[metrics.Summary], spec: Json) -> Json:
    """What the work said of itself, by name; numbers are decimal strings."""
    if found is None:
        return {
            "primary": spec.get("metrics", {}).get("primary"),
            "read": o.seen(None, "the work reported nothing"),
        }
    rate = found.tok_s()
    losses = [metrics.decimal((row or {}).get("loss")) for row in (found.first, found.last)]
    return {
        "primary": spec.get("metrics", {}).get("primary"),
        "read": o.seen(
            {"lines": found.read, "steps": found.steps, "unreadable": found.bad, "cut": found.truncated}
        ),
        "tok_s_global": o.seen(rate, found.lacking or "no steady window", "workload"),
        "loss_first": o.seen(losses[0], "no loss was reported", "workload"),
        "loss_last": o.seen(losses[1], "no loss was reported", "workload"),
        "last": o.seen(found.values or None, "no values were reported", "workload"),
        "notes": o.seen(
            [n for n in found.notes if n.get("event") not in _KNOWN][:100] or None,
            "none",
        ),
    }


def memory(o: Observed, facts: Json, found: Optional[metrics.Summary]) -> Json:
    """Peak memory in bytes: of the largest process of the work, and on devices as the work reports it."""
    said = last_note(o, found, "memory", "the work reported no device memory")
    told = said["v"] or {}
    return {
        "host_rss_peak": o.seen(facts.get("max_rss_bytes"), "whoever waited for the work is gone"),
        **{
            name: o.seen(told.get(name), said.get("why", ""), "workload", said.get("at"))
            for name in ("peak_alloc_bytes", "peak_reserved")
        },
    }


def checks(o: Observed, record: Json, found: Optional[metrics.Summary]) -> Json:
    steps = found is not None and found.steps > 0
    return {
        "exit_zero": o.seen(record.get("exit_code") == 0 if "exit_code" in record else None),
        "no_oom": o.seen(record.get("reason") not in ("oom_host", "oom_gpu")),
        "steps_present": o.seen(steps, src="workload"),
        "finite": o.seen(
            found.finite if found is not None and steps else None, "no steps were reported", "workload"
        ),
        "end_marker": end_marker(o, record, found),
    }


def end_marker(o: Observed, record: Json, found: Optional[metrics.Summary]) -> Json:
    """Whether the work said that it got to its end (`route_report` does so by itself)."""
    said = bool(_notes(found, "end"))
    if record.get("state") != "succeeded":
        # An exit code other than 0 may be an answer (a validation that rejects); a signal is none.
        return o.seen(said and record.get("exit_code") is not None)
    return o.seen(said or None, "the work did not say that it got to its end", "workload")


def log(o: Observed, attempt: Attempt) -> Json:
    try:
        size = os.stat(attempt.at("log")).st_size
    except OSError:
        return {"bytes": o.seen(None, "there is no log"), "capped": o.seen(False)}
    begin, end = logcap.hole(attempt)
    error = files.hint_json(attempt.at("capped.json")).get("error")
    capped = (
        o.seen(None, "a cap was asked for and cannot be kept: %s" % error) if error else o.seen(end > begin)
    )
    return {"bytes": o.seen(size), "capped": capped, "dropped_bytes": o.seen(end - begin)}


def processes(o: Observed, facts: Json, attempt: Attempt) -> Json:
    stuck = len(files.hint_json(attempt.at("stuck.json")).get("pids") or ())
    gone = "whoever waited for the work is gone"
    return {
        "strays": o.seen(facts.get("strays"), gone),
        "stuck": o.seen(max(int(facts.get("stuck") or 0), stuck)),
        "cgroup": o.seen(attempt.has("cgroup.json")),
    }


def samples(o: Observed, attempt: Attempt) -> Json:
    """The least free memory and disk among the samples. A hint: the watcher looks seldom."""
    least: Dict[str, int] = {}
    count = 0
    for line in closing.tail(attempt.at("samples.jsonl"), 8 << 20).splitlines():
        try:
            row = wire.loads(line)
        except ValueError:
            continue
        count += 1
        for name in ("mem_free_bytes", "disk_free_bytes"):
            value = row.get(name) if isinstance(row, dict) else None
            before = least.get(name)
            if isinstance(value, int) and (before is None or value < before):
                least[name] = value
    return {
        "count": count,
        "mem_free_bytes_min": o.seen(least.get("mem_free_bytes"), "no sample was taken"),
        "disk_free_bytes_min": o.seen(least.get("disk_free_bytes"), "no sample was taken"),
    }


def lifecycle(facts: Json, committed: Json, started: Json, executed: Json, record: Json) -> List[Json]:
    found = list(facts.get("events") or [])
    if not found:
        for event, row in (("leased", started), ("exec", executed)):
            if row:
                found.append(
                    {"event": event, "t_us": row["at_us"], "mono_us": row["mono_us"], "actor": "supervisor"}
                )
        found.append(
            {
                "event": record.get("state"),
                "t_us": record.get("ended_us"),
                "mono_us": record.get("mono_us"),
                "actor": "supervisor",
            }
        )
    if committed:
        first = {"event": "committed", "t_us": committed.get("at_us"), "mono_us": committed.get("mono_us")}
        found.insert(0, dict(first, actor="supervisor"))
    return [dict(row, seq=number) for number, row in enumerate(found, 1)]


def stamp(attempt: Attempt, spec: Json) -> None:
    """After a success: write the cache key into the compile-cache volume, so that it counts as seeded."""
    name, key = spec.get("volumes", {}).get("compile-cache"), spec.get("cache_key")
    record = attempt.json("exit.json") or {}
    if not name or not key or record.get("state") != "succeeded":
        return
    folder = os.path.join(work.volume(attempt.run.root, "compile-cache", name), ".route")
    if os.path.isdir(folder):
        note = {"key": key, "run_id": attempt.run.id, "attempt": attempt.number, "at_us": machine.now_us()}
        found = metrics.summarise(attempt.at("metrics.jsonl"), 0)
        notes = _notes(found, "cache")
        verdicts = [str(n["verdict"]) for n in notes if n.get("verdict") is not None]
        files.write(os.path.join(folder, key + ".json"), wire.dumps(dict(note, verdicts=verdicts)))
