"""What the work reported of itself, as observed fields: steps, figures, memory, kernel, checks."""

from __future__ import annotations

from . import metrics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from .facts import Look, Observed

    Json = Dict[str, Any]

_KNOWN = ("cache", "kernel", "verdict", "end", "memory")


def note(o: Observed, said: Json) -> Json:
    at = said.get("t_us")
    value = {k: v for k, v in said.items() if k not in ("event", "t_us", "mono_us")}
    return o.seen(value, src="workload", at=at if type(at) is int else None)


def last_note(o: Observed, look: Look, event: str, why: str) -> Json:
    notes = look.notes(event)
    return note(o, notes[-1]) if notes else o.seen(None, why)


def verdict(o: Observed, look: Look) -> Json:
    """What a validation said of what it validated."""
    return last_note(o, look, "verdict", "no verdict was reported")


def kernel(o: Observed, look: Look) -> Json:
    return last_note(o, look, "kernel", "the work reported no kernel")


def steady(o: Observed, look: Look) -> Json:
    why = "the work reported no steps"
    found = look.reported
    steps = found if found is not None and found.steps else None
    return {
        "warmup_steps_discarded": o.seen(steps.discarded if steps else None, why, "workload"),
        "first_step": o.seen(steps.first_step if steps else None, why, "workload"),
        "last_step": o.seen(steps.last_step if steps else None, why, "workload"),
        "n_steps": o.seen(steps.counted if steps else None, why, "workload"),
        "step_us": o.seen(steps.quantiles() if steps else None, (steps and steps.lacking) or why, "workload"),
    }


def reported(o: Observed, look: Look) -> Json:
    """What the work said of itself, by name; numbers are decimal strings."""
    found = look.reported
    if found is None:
        return {
            "primary": look.spec.get("metrics", {}).get("primary"),
            "read": o.seen(None, "the work reported nothing"),
        }
    rate = found.tok_s()
    losses = [metrics.decimal((row or {}).get("loss")) for row in (found.first, found.last)]
    return {
        "primary": look.spec.get("metrics", {}).get("primary"),
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


def memory(o: Observed, look: Look) -> Json:
    """Peak memory in bytes: of the largest process of the work, and on devices as the work reports it."""
    said = last_note(o, look, "memory", "the work reported no device memory")
    told = said["v"] or {}
    return {
        "host_rss_peak": o.seen(look.facts.get("max_rss_bytes"), "whoever waited for the work is gone"),
        **{
            name: o.seen(told.get(name), said.get("why", ""), "workload", said.get("at"))
            for name in ("peak_alloc_bytes", "peak_reserved")
        },
    }


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
    }


def end_marker(o: Observed, look: Look) -> Json:
    """Whether the work said that it got to its end (`route_report` does so by itself)."""
    said = bool(look.notes("end"))
    record = look.record
    if record.get("state") != "succeeded":
        # An exit code other than 0 may be an answer (a validation that rejects); a signal is none.
        return o.seen(said and record.get("exit_code") is not None)
    return o.seen(said or None, "the work did not say that it got to its end", "workload")
