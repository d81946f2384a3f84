"""What a receipt may be used for: rules as data over its facts, and the map of what must be equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from compute_router.receipt.facts import at_path, missing, value
from compute_router.receipt.schema import ENUMS, TABLE
from compute_router.records import digest

__all__ = ["RULES", "Rule", "comparability", "evidence"]

ORDER = ENUMS["evidence"]
CHECKS = (
    "finite",
    "exit_zero",
    "steps_present",
    "no_oom",
    "end_marker",
    "observed_hw",
    "kernel_truth",
    "eval_off",
)
_CACHE = ("state", "verdict")
_UNSEEN = "unobserved"


class Rule(NamedTuple):
    """Where `finds` names something, the run is at best evidence of class `cap`; `{}` takes the names."""

    code: str
    cap: str
    sentence: str
    finds: Callable[[Mapping[str, Any]], str]


def _unless(good: bool, name: str = "yes") -> str:
    return "" if good else name


def _checks(receipt: Mapping[str, Any], want: bool) -> str:
    context = receipt.get("context")
    facts = {name: at_path(context, f"checks.{name}") for name in (*CHECKS, "success")}
    if want:
        return ", ".join(name for name, fact in facts.items() if at_path(fact, "v") is False)
    return ", ".join(name for name, fact in facts.items() if missing(fact) == "unobserved")


def _unseen_keys(receipt: Mapping[str, Any]) -> str:
    context = receipt.get("context")
    paths = [f.path for f in TABLE if f.cls == "K" and f.block != "receipt"]
    return ", ".join(path for path in paths if _unseen(path, at_path(context, path), context))


def _unseen(path: str, fact: Any, context: Any) -> bool:
    """Whether nobody saw a field, or a part of it that makes the key."""
    if missing(fact) == "unobserved":
        return True
    if path != "storage" or missing(fact):
        return False
    return any(not _lies_on(item, context) for item in _compared(fact["v"]))


def _lies_on(item: Mapping[str, Any], context: Any) -> str:
    """What a storage is compared by: its class. Where that hides (the disk of a virtual machine), the
    same device of the same boot is still the same storage, and equals nothing else. Else nothing."""
    if item.get("class") not in (None, _UNSEEN):
        return str(item["class"])
    known = [value(context, "clock.boot_id"), *(item.get(name) for name in ("device", "fs", "backing"))]
    if not all(isinstance(part, str) and part for part in known):
        return ""
    return f"{_UNSEEN}, one device of one boot: {digest(known)[:16]}"


def _compared(v: Any) -> list[Mapping[str, Any]]:
    """The items of `storage` whose class must be equal."""
    listed = v if isinstance(v, list) else []
    return [i for i in listed if isinstance(i, Mapping) and i.get("role") in ("data", "compile-cache")]


def _hardware(receipt: Mapping[str, Any], *, fallback: bool) -> str:
    found = value(receipt.get("context"), "hw.match")
    if fallback:
        return found if found == "cpu_fallback" else ""
    return found if found not in (None, "exact", "declared", "cpu_fallback") else ""


def _hardware_errors(receipt: Mapping[str, Any]) -> str:
    found = value(receipt.get("context"), "hw.observed.errors")
    return "; ".join(str(said) for said in found) if isinstance(found, list) else ""


def _peak(receipt: Mapping[str, Any]) -> str:
    facts = [at_path(receipt.get("context"), f"mem.{n}") for n in ("peak_alloc_bytes", "host_rss_peak")]
    first = next((fact for fact in facts if missing(fact) != "not_applicable"), None)
    return _unless(first is not None and not missing(first))


def _steps(receipt: Mapping[str, Any]) -> str:
    fact = at_path(receipt.get("context"), "steady.n_steps")
    count = at_path(fact, "v")
    return str(count) if type(count) is int and count < 3 else ""


def _self_told(receipt: Mapping[str, Any]) -> str:
    """Figures of the work alone, on hardware or with a kernel that we did not see ourselves."""
    context = receipt.get("context")
    if at_path(context, "metrics.values.src") != "workload":
        return ""
    told = []
    # Where no kernel need be chosen and none was asked for, a word about it too many costs nothing.
    chosen = missing(at_path(context, "kernel.probe")) != "not_applicable"
    chosen = chosen or at_path(context, "kernel.requested.src") == "requested"
    for path in ("hw.observed.sku", *(["kernel.observed"] if chosen else [])):
        fact = at_path(context, path)
        if missing(fact) == "unobserved" or at_path(fact, "src") == "workload":
            told.append(path)
    return ", ".join(told)


def _recorded_blindly(receipt: Mapping[str, Any]) -> str:
    """What was not seen by us of a recorded run's hardware and kernel."""
    context = receipt.get("context")
    if value(context, "started_by.mode") != "recorded":
        return ""
    told = []
    for path in ("hw.observed.sku", "hw.observed.count", "kernel.observed", "surface"):
        fact = at_path(context, path)
        if missing(fact) == "unobserved" or at_path(fact, "src") == "workload":
            told.append(path)
    return ", ".join(told)


def _context(path: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda receipt: value(receipt.get("context"), path)


_state, _dirty, _diff = _context("outcome.state"), _context("code.dirty"), _context("code.diff_sha256")
_recompiles = _context("compile.recompiles")
_success, _verdict = _context("checks.success"), _context("promotion.status")

RULES: tuple[Rule, ...] = (
    Rule("NO_MEASUREMENT", "invalid", "no measured block", lambda r: _unless(r.get("measured") is not None)),
    Rule(
        "NOT_SUCCEEDED",
        "invalid",
        "the run {}; it is counted, but enters no statistics",
        # A validation that rejects may well exit with 1: its kind says whether the run did its duty.
        lambda r: (
            ""
            if _state(r) == "succeeded" or (_verdict(r) == "reject" and _success(r) is True)
            else f"is {_state(r)}"
        ),
    ),
    Rule(
        "STATES_DIFFER",
        "invalid",
        "the machine says {}, the client does not",
        lambda r: _differs(at_path(r, "measured.outcome.state"), _state(r)),
    ),
    Rule(
        "SEEDING",
        "invalid",
        "it was made to fill a cache, and is never evidence",
        lambda r: _unless(value(r.get("context"), "startup.seeding") is not True),
    ),
    Rule("CPU_FALLBACK", "invalid", "it ran on the CPU", lambda r: _hardware(r, fallback=True)),
    Rule("CHECK_FAILED", "anecdote", "checks failed: {}", lambda r: _checks(r, True)),
    Rule("FEW_STEPS", "anecdote", "only {} steps count; one step is a rumour", _steps),
    Rule(
        "NO_FIGURE",
        "anecdote",
        "no figure was reported",
        lambda r: _unless(missing(at_path(r.get("context"), "metrics.values")) != "unobserved"),
    ),
    Rule(
        "PURPOSE",
        "exploratory",
        "a run made for {} carries no claim",
        lambda r: str(r["purpose"]) if r.get("purpose") in ("smoke", "bringup") else "",
    ),
    Rule("HW_NOT_AS_REQUESTED", "exploratory", "hardware: {}", lambda r: _hardware(r, fallback=False)),
    Rule("HW_ERRORS", "anecdote", "the hardware failed while it ran: {}", _hardware_errors),
    Rule("CHECK_UNOBSERVED", "exploratory", "checks not observed: {}", lambda r: _checks(r, False)),
    Rule("KEY_UNOBSERVED", "exploratory", "not observed: {}", _unseen_keys),
    Rule(
        "RECOMPILED",
        "exploratory",
        "compiled {} times inside the steady window",
        lambda r: str(_recompiles(r)) if type(_recompiles(r)) is int and _recompiles(r) > 0 else "",
    ),
    Rule("SELF_REPORTED", "exploratory", "reported by the work alone, without {} seen by us", _self_told),
    Rule(
        "RECORDED",
        "exploratory",
        "recorded, not routed: its launcher chose the place, and we did not see {}",
        _recorded_blindly,
    ),
    Rule("NO_PEAK_MEMORY", "exploratory", "peak memory was not observed", _peak),
    Rule(
        "DIRTY_TREE",
        "exploratory",
        "the tree was dirty and what differed is not recorded",
        lambda r: _unless(not (_dirty(r) is True and _diff(r) is None)),
    ),
    Rule(
        "MIXED_ATTEMPTS",
        "exploratory",
        "attempt {}: an earlier one was started",
        lambda r: str(r["attempt"]) if type(r.get("attempt")) is int and r["attempt"] > 1 else "",
    ),
)


def _differs(machine: Any, client: Any) -> str:
    if isinstance(machine, Mapping):
        machine = machine.get("v")
    return str(machine)[:40] if isinstance(machine, str) and machine != client else ""


def evidence(receipt: Mapping[str, Any]) -> tuple[str, list[dict[str, str]]]:
    """The class of a receipt and every reason that lowers it, by `RULES`. Pure."""
    worst, reasons = 0, []
    for rule in RULES:
        named = rule.finds(receipt)
        if named:
            sentence = rule.sentence.replace("{}", named[:400])
            reasons.append({"code": rule.code, "class": rule.cap, "sentence": sentence})
            worst = max(worst, ORDER.index(rule.cap))
    return ORDER[worst], reasons


def comparability(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """`{"key", "fields"}`: the values of every field of class K, and the digest of that map.

    What was not observed carries the run's id, so that it equals nothing; what does not apply
    equals itself. Of lists only the parts that make the key are taken.
    """
    fields: dict[str, Any] = {}
    for field in TABLE:
        if field.cls != "K":
            continue
        if field.block == "receipt":
            fields[field.path] = receipt.get(field.path)
            continue
        fact = at_path(receipt.get("context"), field.path)
        gone = missing(fact)
        if _unseen(field.path, fact, receipt.get("context")):
            fields[field.path] = {"unobserved": f"{receipt.get('run_id')}/{receipt.get('attempt')}"}
        elif gone:
            fields[field.path] = {"not_applicable": True}
        else:
            fields[field.path] = _of_key(field.path, fact["v"], receipt)
    return {"key": digest(fields), "fields": fields}


def _of_key(path: str, v: Any, receipt: Mapping[str, Any]) -> Any:
    if path == "cache":
        # A state that nobody saw is that of this run alone: it equals no other.
        own = f"{_UNSEEN}: {receipt.get('run_id')}/{receipt.get('attempt')}"
        told = ([_text(i.get(n)) for n in ("kind", *_CACHE)] for i in v)
        return sorted([own if text == _UNSEEN else text for text in row] for row in told)
    if path == "storage":
        context = receipt.get("context")
        return sorted([_text(i.get("role")), _lies_on(i, context)] for i in _compared(v))
    if path == "metrics.values":
        primary = value(receipt.get("context"), "metrics.primary")
        rows = [i for i in v if i.get("name") == primary] or v
        return sorted([_text(i.get(n)) for n in ("name", "unit", "definition_id")] for i in rows)
    if path == "env.stack":
        return {str(name): _text(item) for name, item in sorted(v.items())}
    return v


def _text(v: Any) -> str:
    return v if isinstance(v, str) else "unobserved"
