"""What the work reported of itself, as observed fields: steps, figures, memory, kernel, checks."""

from __future__ import annotations

from . import metrics, ranks, timeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from .facts import Look, Observed

    Json = Dict[str, Any]

_KNOWN = ("cache", "kernel", "verdict", "end", "memory", "fields", "checkpoint", "data_wait")
_NOTE = ("event", "t_us", "mono_us")


def note(o: Observed, said: Json) -> Json:
    at = said.get("t_us")
    value = {k: v for k, v in said.items() if k not in _NOTE}
    return o.seen(value, src="workload", at=at if type(at) is int else None)


def last_note(o: Observed, look: Look, event: str, why: str) -> Json:
    notes = look.notes(event)
    return note(o, notes[-1]) if notes else o.seen(None, why)


def verdict(o: Observed, look: Look) -> Json:
    """What a validation said of what it validated."""
    return last_note(o, look, "verdict", "no verdict was reported")


def kernel(o: Observed, look: Look) -> Json:
    """The kernel that the work asked for and the one that it saw dispatched."""
    said = last_note(
        o, look, "kernel", "the work reported no kernel; route_report.kernel tells which one ran"
    )
    told = said["v"] or {}
    found = {name: told.get(name) for name in ("requested", "observed", "probe")}
    return {
        name: dict(said, v=v) if v not in (None, "unobserved") else o.seen(None, said.get("why", ""))
        for name, v in found.items()
    }


def fields(o: Observed, look: Look) -> Json:
    """What the work says of itself under the names of `[tool.route.fields]`; the last word counts."""
    told: Json = {}
    for said in look.notes("fields"):
        fact = note(o, said)
        told.update((name, dict(fact, v=v)) for name, v in fact["v"].items() if v is not None)
    return dict(list(told.items())[:100])


def data(o: Observed, look: Look) -> Json:
    why = "the work did not report it; route_report.fields(manifest_sha256=...) does"
    return {"manifest_sha256": fields(o, look).get("manifest_sha256") or o.seen(None, why)}


def steady(o: Observed, look: Look) -> Json:
    """The window of steps that count; nothing of it holds where the steps are no series of one work."""
    found = look.reported
    steps = found if found is not None and found.steps else None
    why = timeline.UNTOLD if steps is None else timeline.wrong(look)
    if why or steps is None:
        names = ("warmup_steps_discarded", "first_step", "last_step", "n_steps", "step_us", "inside")
        return {name: o.seen(None, why, "workload") for name in (*names, "series_ref")}
    most = "more than {:,} steps count: the series is kept, its quantiles are not".format(metrics.MOST_SERIES)
    lacking = steps.lacking or (most if steps.counted > metrics.MOST_SERIES else "no step counts")
    untimed = ", ".join(name for name in steps.untimed if name != "data_wait")
    return {
        "warmup_steps_discarded": o.seen(steps.discarded, src="workload"),
        "first_step": o.seen(steps.first_step, lacking, "workload"),
        "last_step": o.seen(steps.last_step, lacking, "workload"),
        "n_steps": o.seen(steps.counted, src="workload"),
        "step_us": o.seen(steps.quantiles(), lacking, "workload"),
        "inside": o.seen(
            None if untimed else dict(sorted(steps.inside.items())),
            "the work did not time its %s (see route_report.span)" % untimed,
            "workload",
        ),
        "series_ref": o.seen("metrics.jsonl"),
    }


def reported(o: Observed, look: Look) -> Json:
    """What the work said of itself, by name; numbers are decimal strings."""
    found, asked = look.reported, look.spec.get("metrics", {})
    primary = {"primary": asked.get("primary"), "higher_is_better": asked.get("higher_is_better")}
    if found is None:
        return {**primary, "read": o.seen(None, "the work reported nothing")}
    why = timeline.wrong(look)
    losses = [metrics.decimal((row or {}).get("loss")) for row in (found.first, found.last)]
    return {
        **primary,
        "read": o.seen(
            {"lines": found.read, "steps": found.steps, "unreadable": found.bad, "cut": found.truncated}
        ),
        "tok_s_global": o.seen(
            None if why else found.tok_s(), why or found.lacking or "no steady window", "workload"
        ),
        "loss_first": o.seen(losses[0], "no loss was reported", "workload"),
        "loss_last": o.seen(
            None if found.partial else losses[1], found.partial or "no loss was reported", "workload"
        ),
        "last": o.seen(found.values or None, "no values were reported", "workload"),
        "notes": o.seen(
            [n for n in found.notes if n.get("event") not in _KNOWN][:100] or None,
            "none",
        ),
    }


def memory(o: Observed, look: Look) -> Json:
    """Peak memory in bytes: of the largest process of the work, and on devices by rank."""
    return {
        "host_rss_peak": o.seen(look.facts.get("max_rss_bytes"), "whoever waited for the work is gone"),
        "host_rss_scope": "largest_process",
        "peak_alloc_bytes": _device(o, look, "peak_alloc_bytes", "peak_alloc_bytes"),
        "peak_reserved": _device(o, look, "peak_reserved", "peak_reserved_bytes"),
    }


def _device(o: Observed, look: Look, told: str, seen: str) -> Json:
    """By rank: as it was read in the processes of the work, else as these say themselves."""
    peaks = look.inside.peaks(seen)
    if peaks is not None:
        return o.seen(peaks, src="inside")
    said = ranks.peaks(look, told)
    return o.seen(said, "no process of the work used a device, or none said so", "workload")


def checks(o: Observed, look: Look) -> Json:
    found, record = look.reported, look.record
    steps = found is not None and found.steps > 0
    return {
        "exit_zero": o.seen(record.get("exit_code") == 0 if "exit_code" in record else None),
        "no_oom": o.seen(record.get("reason") not in ("oom_host", "oom_gpu")),
        "steps_present": o.seen(steps, src="workload"),
        "finite": o.seen(
            found.finite if found is not None and steps else None, "no steps were reported", "workload"
        ),
        "end_marker": end_marker(o, look),
        "eval_off": eval_off(o, look),
    }


def eval_off(o: Observed, look: Look) -> Json:
    """Whether every evaluation that was reported lay outside of the steps that count."""
    found = look.reported
    if found is None or not found.steps or timeline.wrong(look):
        return o.seen(None, timeline.UNTOLD)
    if found.inside.get("eval"):
        return o.seen(False, src="workload")
    said = [note.get("off") is True for note in look.notes("eval")]
    timed = "eval" in found.spans and "eval" not in found.untimed
    how = "the work did not say when it evaluates; route_report.span('eval') or note('eval', off=True) tells"
    return o.seen(True if timed or (said and all(said)) else None, how, "workload")


def distributed(o: Observed, look: Look) -> Json:
    """How long each rank took from the work's first instruction to the end of its first step."""
    first, why = ranks.first_steps(look)
    return {"first_step_us": o.seen(first, why, "workload")}


def end_marker(o: Observed, look: Look) -> Json:
    """Whether the work said that it got to its end (`route_report` does so by itself)."""
    said = bool(look.notes("end"))
    record = look.record
    if record.get("state") != "succeeded":
        # An exit code other than 0 may be an answer (a validation that rejects); a signal is none.
        return o.seen(said and record.get("exit_code") is not None)
    return o.seen(said or None, "the work did not say that it got to its end", "workload")
