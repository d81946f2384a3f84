"""Health checks over the measured block of a receipt, for kinds to choose from; none is about speed.

Every observed value stands as itself, as `{"v": value, ...}` or as `{"v": null, "why": reason}`. What
is missing, odd or unobserved makes a check `None` with the reason, never true.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compute_router.workload import Check

__all__ = [
    "end_marker",
    "eval_off",
    "exit_zero",
    "finite",
    "kernel_truth",
    "look",
    "no_oom",
    "observed_hw",
    "peak_memory",
    "reported",
    "steps",
    "steps_present",
    "verdict",
]

NOT_APPLICABLE = "not_applicable"
_OOM = ("oom_host", "oom_gpu", "oom_device", "oom")


def look(measured: Any, *path: str) -> tuple[Any, str]:
    """The value at `path` and, where it is None, why. Wrapped values are unwrapped on the way."""
    found = measured
    for key in path:
        found, why = _unwrap(found)
        if not isinstance(found, Mapping) or key not in found:
            return None, why or f"{'.'.join(path)} was not observed"
        found = found[key]
    found, why = _unwrap(found)
    if found is None or found == "unobserved":
        return None, why or f"{'.'.join(path)} was not observed"
    return found, ""


def _unwrap(found: Any) -> tuple[Any, str]:
    if isinstance(found, Mapping) and "v" in found:
        why = found.get("why")
        return found["v"], why if isinstance(why, str) else ""
    return found, ""


def _recorded(measured: Any, name: str) -> Check | None:
    """The check as whoever measured has recorded it, if they did."""
    value, _ = look(measured, "checks", name)
    if value == NOT_APPLICABLE:
        return Check(name=name, ok=True, why=NOT_APPLICABLE)
    return Check(name=name, ok=value) if isinstance(value, bool) else None


def exit_zero(measured: Any) -> Check:
    """The work ended by itself with exit code 0."""
    name = "exit_zero"
    signal, _ = look(measured, "outcome", "signal")
    if signal is not None:
        return Check(name=name, ok=False, why=f"ended by signal {signal}")
    code, why = look(measured, "outcome", "exit_code")
    if isinstance(code, int) and not isinstance(code, bool):
        return Check(name=name, ok=code == 0, why="" if code == 0 else f"exit code {code}")
    state, _ = look(measured, "outcome", "state")
    if isinstance(state, str) and state not in ("succeeded", "unknown"):
        return Check(name=name, ok=False, why=f"the run is {state}")
    return _recorded(measured, name) or Check(name=name, ok=None, why=why or "the exit code cannot be read")


def no_oom(measured: Any) -> Check:
    """Nothing was killed for want of memory, on the host or on a device."""
    name = "no_oom"
    for key in ("reason_code", "reason"):
        reason, _ = look(measured, "outcome", key)
        if reason in _OOM:
            return Check(name=name, ok=False, why=str(reason))
    if recorded := _recorded(measured, name):
        return recorded
    killed, _ = look(measured, "mem", "oom_kills")
    if isinstance(killed, int) and killed > 0:
        return Check(name=name, ok=False, why=f"{killed} processes were killed for want of memory")
    if exit_zero(measured).ok:
        return Check(name=name, ok=True)
    return Check(name=name, ok=None, why="it did not end well, and nothing tells of memory")


def _metrics(measured: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    found, _ = look(measured, "metrics")
    if isinstance(found, Mapping):
        yield from ((str(k), m if isinstance(m, Mapping) else {"value": m}) for k, m in found.items())
    elif isinstance(found, Sequence) and not isinstance(found, (str, bytes)):
        yield from ((str(m.get("name")), m) for m in found if isinstance(m, Mapping))


def finite(measured: Any) -> Check:
    """No reported value was NaN or infinite."""
    name = "finite"
    if recorded := _recorded(measured, name):
        return recorded
    bad, _ = look(measured, "steps", "not_finite")
    if isinstance(bad, int) and not isinstance(bad, bool):
        return Check(name=name, ok=bad == 0, why="" if bad == 0 else f"{bad} values were not finite")
    values = [(metric, look(data, "value")[0]) for metric, data in _metrics(measured)]
    for metric, value in values:
        if isinstance(value, (str, float)) and str(value).lower().strip("+-") in ("nan", "inf", "infinity"):
            return Check(name=name, ok=False, why=f"{metric} is {value}")
    if not any(value is not None for _, value in values):
        return Check(name=name, ok=None, why="the work reported no values")
    return Check(name=name, ok=None, why="nothing tells whether every reported value was finite")


def steps(measured: Any) -> int | None:
    """How many steps count, after those discarded by rule; None if that was not observed."""
    for path in (("steady", "n_steps"), ("steps", "n"), ("steps", "count")):
        found, _ = look(measured, *path)
        if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
            return found
    return None


def steps_present(measured: Any, *, least: int = 3) -> Check:
    """At least `least` steps count: one step is a rumour."""
    name = "steps_present"
    found = steps(measured)
    if found is not None:
        return Check(name=name, ok=found >= least, why="" if found >= least else f"{found} of {least} steps")
    recorded = _recorded(measured, name)
    return recorded or Check(name=name, ok=None, why="the work reported no steps (see route_report)")


def end_marker(measured: Any) -> Check:
    """The work said that it reached its end."""
    name = "end_marker"
    if recorded := _recorded(measured, name):
        return recorded
    for path in (("report", "end"), ("end_marker",)):
        found, _ = look(measured, *path)
        if isinstance(found, bool):
            return Check(name=name, ok=found, why="" if found else "the work did not report its end")
    return Check(name=name, ok=None, why="the work did not report its end")


def eval_off(measured: Any) -> Check:
    """No evaluation ran inside the measured window."""
    name = "eval_off"
    if recorded := _recorded(measured, name):
        return recorded
    spent, _ = look(measured, "timing", "eval_us")
    if isinstance(spent, int) and not isinstance(spent, bool):
        inside, _ = look(measured, "steady", "eval_us")
        bad = isinstance(inside, int) and inside > 0
        if spent == 0 or isinstance(inside, int):
            return Check(name=name, ok=not bad, why="evaluation ran inside the window" if bad else "")
    return Check(name=name, ok=None, why="the work did not report when it evaluates")


def observed_hw(measured: Any) -> Check:
    """The hardware seen on the machine is the hardware that was asked for, or one declared to do."""
    name = "observed_hw"
    match, why = look(measured, "hw", "match")
    if match in ("exact", "declared", NOT_APPLICABLE):
        return Check(name=name, ok=True, why=match if match == NOT_APPLICABLE else "")
    if isinstance(match, str):
        return Check(name=name, ok=False, why=f"hardware: {match}")
    return _recorded(measured, name) or Check(name=name, ok=None, why=why or "hw.match cannot be read")


def kernel_truth(measured: Any) -> Check:
    """The kernel that ran is the one that was asked for; true where there was none to choose."""
    name = "kernel_truth"
    asked, _ = look(measured, "kernel", "requested")
    ran, why = look(measured, "kernel", "observed")
    if NOT_APPLICABLE in (asked, ran):
        return Check(name=name, ok=True, why=NOT_APPLICABLE)
    if isinstance(asked, str) and isinstance(ran, str):
        return Check(name=name, ok=asked == ran, why="" if asked == ran else f"asked {asked}, ran {ran}")
    return _recorded(measured, name) or Check(name=name, ok=None, why=why or "no kernel was asked for")


def peak_memory(measured: Any) -> Check:
    """A figure for the most memory used stands beside the speed."""
    for key in ("peak_alloc_bytes", "peak_reserved", "host_rss_peak"):
        found, _ = look(measured, "mem", key)
        if found == NOT_APPLICABLE:
            continue
        if found not in (None, [], {}):
            return Check(name="peak_memory", ok=True)
    return Check(name="peak_memory", ok=None, why="peak memory was not observed")


def verdict(measured: Any) -> dict[str, Any] | None:
    """The last verdict the work reported, as `{"status", "criteria", "ready"}`; None without one.

    `status` is `accept` or `reject`, or as it was reported if it is neither; each criterion is
    `{"name", "ok", "why"}`; `ready` holds if it accepts, and no criterion says otherwise.
    """
    found: Any = None
    for path in (("promotion",), ("report", "verdict"), ("verdict",), ("report", "verdicts"), ("verdicts",)):
        found, _ = look(measured, *path)
        if isinstance(found, (list, tuple)):
            found = found[-1] if found else None
        if isinstance(found, (str, Mapping)):
            break
    if isinstance(found, str):
        found = {"status": found}
    if not isinstance(found, Mapping):
        return None
    status = next((s for key in ("status", "verdict") if isinstance(s := look(found, key)[0], str)), None)
    if status is None:
        return None
    status = {"accepted": "accept", "rejected": "reject"}.get(status.lower(), status.lower())
    criteria = _criteria(look(found, "criteria")[0])
    said, _ = look(found, "ready")
    ready = status == "accept" and said is not False and all(c["ok"] is True for c in criteria)
    return {"status": status, "criteria": criteria, "ready": ready}


def _criteria(found: Any) -> list[dict[str, Any]]:
    if isinstance(found, Mapping):
        pairs = [(str(name), value) for name, value in found.items()]
    elif isinstance(found, (list, tuple)):
        pairs = [(str(c.get("name", i)), c) for i, c in enumerate(found) if isinstance(c, Mapping)]
        pairs += [(c, None) for c in found if isinstance(c, str)]
    else:
        pairs = []
    criteria = []
    for name, value in pairs:
        value, why = _unwrap(value)
        if isinstance(value, Mapping):
            ok, why = look(value, "ok")[0], str(look(value, "why")[0] or "")
        else:
            ok = value
        criteria.append({"name": name, "ok": ok if isinstance(ok, bool) else None, "why": why})
    return criteria


def reported(measured: Any) -> bool:
    """Whether the work reported any figure at all, or any step that counts."""
    return bool(steps(measured)) or any(look(data, "value")[0] is not None for _, data in _metrics(measured))
