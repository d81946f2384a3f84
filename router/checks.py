"""Health checks over the measured block of a receipt, for kinds to choose from; none is about speed.

Every observed value stands as itself, as `{"v": value, ...}` or as `{"v": null, "why": reason}`. What
is missing, odd or unobserved makes a check `None` with the reason, never true.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compute_router.supervisor.observing.skus import judge
from compute_router.workload import Check

__all__ = [
    "end_marker",
    "eval_off",
    "exit_zero",
    "figures",
    "finite",
    "kernel_truth",
    "look",
    "no_oom",
    "notes",
    "observed_hw",
    "peak_memory",
    "reported",
    "steps",
    "steps_present",
    "verdict",
]

NOT_APPLICABLE = "not_applicable"
_OOM = ("oom_host", "oom_gpu", "oom_device", "oom")


_FALSE = {
    "finite": "a reported value was not finite",
    "end_marker": "the work did not reach its end",
    "no_oom": "it ran out of memory",
    "exit_zero": "it did not end with exit code 0",
    "eval_off": "evaluation ran inside the window",
    "steps_present": "the work reported no steps",
}


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
    if not isinstance(value, bool):
        return None
    return Check(name=name, ok=value, why="" if value else _FALSE.get(name, "measured to be false"))


def exit_zero(measured: Any) -> Check:
    """The work ended by itself with exit code 0."""
    name = "exit_zero"
    signal, _ = look(measured, "outcome", "signal")
    if signal is not None and signal != NOT_APPLICABLE:
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


def figures(measured: Any) -> dict[str, Any]:
    """Every figure the work reported, by name: `metrics` as a table of values or as a list with names."""
    found, _ = look(measured, "metrics")
    pairs: list[tuple[str, Any]] = []
    if isinstance(found, Mapping):
        pairs = [
            (str(k), look(v)[0]) for k, v in found.items() if k not in ("primary", "read", "notes", "last")
        ]
        last, _ = look(found, "last")
        pairs += [(str(k), v) for k, v in last.items()] if isinstance(last, Mapping) else []
    elif isinstance(found, (list, tuple)):
        pairs = [(str(m.get("name")), m) for m in found if isinstance(m, Mapping)]
    values = {name: look(v, "value")[0] if isinstance(v, Mapping) else v for name, v in pairs}
    return {name: value for name, value in values.items() if value is not None}


def notes(measured: Any, event: str) -> list[Mapping[str, Any]]:
    """What the work noted under the name `event`."""
    found, _ = look(measured, "metrics", "notes")
    listed = found if isinstance(found, (list, tuple)) else ()
    return [note for note in listed if isinstance(note, Mapping) and note.get("event") == event]


def finite(measured: Any) -> Check:
    """No reported value was NaN or infinite."""
    name = "finite"
    if recorded := _recorded(measured, name):
        return recorded
    bad, _ = look(measured, "steps", "not_finite")
    if isinstance(bad, int) and not isinstance(bad, bool):
        return Check(name=name, ok=bad == 0, why="" if bad == 0 else f"{bad} values were not finite")
    values = figures(measured)
    for metric, value in values.items():
        if str(value).lower().strip("+-") in ("nan", "inf", "infinity"):
            return Check(name=name, ok=False, why=f"{metric} is {value}")
    why = "nothing tells whether every reported value was finite" if values else "the work reported no values"
    return Check(name=name, ok=None, why=why)


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
    """No evaluation ran inside the measured window. The work says so: `note("eval", off=True)`."""
    name = "eval_off"
    if recorded := _recorded(measured, name):
        return recorded
    said = notes(measured, "eval")
    if any(note.get("off") is not True for note in said):
        return Check(name=name, ok=False, why="the work reported an evaluation")
    spent, _ = look(measured, "timing", "eval_us")
    if said or (spent == 0 and not isinstance(spent, bool)):
        return Check(name=name, ok=True)
    return Check(name=name, ok=None, why="the work did not say whether it evaluates meanwhile")


def _family(measured: Any) -> str:
    """`cpu`, `gpu` or `tpu`: what was asked for; empty if that is not told."""
    found, _ = look(measured, "hw", "requested", "family")
    return found if isinstance(found, str) else ""


def observed_hw(measured: Any) -> Check:
    """The hardware seen on the machine is the hardware that was asked for, or one declared to do."""
    name = "observed_hw"
    match, _ = look(measured, "hw", "match")
    if match in ("exact", "declared", NOT_APPLICABLE):
        return Check(name=name, ok=True, why=match if match == NOT_APPLICABLE else "")
    if isinstance(match, str):
        return Check(name=name, ok=False, why=f"hardware: {match}")
    if recorded := _recorded(measured, name):
        return recorded
    if _family(measured) == "cpu":
        return Check(name=name, ok=True, why=NOT_APPLICABLE)
    asked = {key: look(measured, "hw", "requested", key)[0] for key in ("family", "sku", "count")}
    seen, whys = zip(*(look(measured, "hw", "observed", key) for key in ("sku", "count")), strict=True)
    if None in seen:
        return Check(name=name, ok=None, why=next(filter(None, whys), "it was not observed"))
    others, _ = look(measured, "hw", "requested", "substitutes")
    declared = [str(other).partition(":") for other in others] if isinstance(others, (list, tuple)) else []
    listed = [
        {"sku": sku, "count": int(count) if count.isdigit() else asked["count"]} for sku, _, count in declared
    ]
    if judge(asked, listed, *seen) in ("exact", "declared"):
        return Check(name=name, ok=True)
    why = f"asked {asked['sku']}:{asked['count']}, found {seen[0]}:{seen[1]}"
    return Check(name=name, ok=False, why=why)


def kernel_truth(measured: Any) -> Check:
    """The kernel that ran is the one that was asked for; true where there was none to choose."""
    name = "kernel_truth"
    asked, _ = look(measured, "kernel", "requested")
    ran, why = look(measured, "kernel", "observed")
    if NOT_APPLICABLE in (asked, ran):
        return Check(name=name, ok=True, why=NOT_APPLICABLE)
    if isinstance(asked, str) and isinstance(ran, str):
        return Check(name=name, ok=asked == ran, why="" if asked == ran else f"asked {asked}, ran {ran}")
    if recorded := _recorded(measured, name):
        return recorded
    if asked is None and ran is None and _family(measured) == "cpu":
        return Check(name=name, ok=True, why=NOT_APPLICABLE)
    return Check(name=name, ok=None, why=why or "which kernel was asked for was not reported")


def peak_memory(measured: Any) -> Check:
    """A figure for the most memory used stands beside the speed: the device's, without one the host's."""
    keys = ("host_rss_peak",) if _family(measured) == "cpu" else ("peak_alloc_bytes", "peak_reserved")
    whys = []
    for key in keys:
        found, why = look(measured, "mem", key)
        if found not in (None, NOT_APPLICABLE, [], {}):
            return Check(name="peak_memory", ok=True)
        whys.append(why)
    return Check(name="peak_memory", ok=None, why=next(filter(None, whys), "peak memory was not observed"))


def verdict(measured: Any) -> dict[str, Any] | None:
    """The last verdict the work reported, as `{"status", "criteria", "ready"}`; None without one.

    `status` is `accept` or `reject` (`accepted` and `rejected` are read as these), or what was
    reported instead; each criterion is `{"name", "ok", "why"}`. `ready` holds for an `accept`
    that every criterion bears out and that the work itself does not hold back.
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
    met = all(c["ok"] is True for c in criteria) or (
        said is True and not any(c["ok"] is False for c in criteria)
    )
    return {"status": status, "criteria": criteria, "ready": status == "accept" and said is not False and met}


def _criteria(found: Any) -> list[dict[str, Any]]:
    """Criteria as they may be reported: a table, or a list of tables, of pairs or of bare names."""
    if isinstance(found, Mapping):
        pairs = [(name, value) for name, value in found.items()]
    else:
        pairs = []
        for index, item in enumerate(found if isinstance(found, (list, tuple)) else ()):
            if isinstance(item, Mapping):
                pairs.append((item.get("name", index), item))
            elif isinstance(item, (list, tuple)) and len(item) == 2:
                pairs.append((item[0], item[1]))
            else:
                pairs.append((item, None))
    criteria = []
    for name, value in pairs:
        value, why = _unwrap(value)
        if isinstance(value, Mapping):
            met = next((look(value, key)[0] for key in ("ok", "met", "passed") if key in value), None)
            value, why = met, str(look(value, "why")[0] or "")
        criteria.append({"name": str(name), "ok": value if isinstance(value, bool) else None, "why": why})
    return criteria


def reported(measured: Any) -> bool:
    """Whether the work reported any figure at all, or any step that counts."""
    return bool(steps(measured)) or bool(figures(measured))
