"""What the kind of a run makes of it: checks, success and promotion, as facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from compute_router.receipt.evidence import CHECKS
from compute_router.receipt.facts import at_path, misfit, missing, not_applicable, seen, unobserved
from compute_router.workload import Check, Kind

__all__ = ["judged"]


def judged(
    kind: Kind | None, measured: Mapping[str, Any] | None, context: Mapping[str, Any], at: int
) -> dict[str, Any]:
    """The fields below `checks` and `promotion`. A kind that fails on hostile data observed nothing."""
    facts: dict[str, Any] = {}
    if kind is None or measured is None:
        why = "the machine left no measurements" if measured is None else "its kind is not installed"
        for name in (*CHECKS, "own", "success"):
            facts[f"checks.{name}"] = unobserved(why)
        if missing(at_path(context, "promotion.status")) == "unobserved":
            facts.update({f"promotion.{name}": unobserved(why) for name in ("status", "criteria", "ready")})
        return facts
    seen_so = _merged(measured, _shown(context))
    try:
        checks = [_plain(check) for check in kind.checks(seen_so)]
        success = _plain(kind.success(seen_so))
        promotion = kind.promotion(seen_so)
    # A plugin's judgement of what a hostile machine said may fail in any way.
    except Exception as e:
        why = f"the kind could not judge it ({type(e).__name__})"
        return {f"checks.{name}": unobserved(why) for name in (*CHECKS, "own", "success")}
    by_name = {check.name: check for check in checks}
    for name in CHECKS:
        check = by_name.get(name)
        facts[f"checks.{name}"] = (
            not_applicable(f"no check of the kind {kind.name}") if check is None else _fact(check, at)
        )
    rows = [{"name": c.name, "ok": c.ok, "why": c.why} for c in checks]
    facts["checks.own"] = seen(rows, "derived", at)
    facts["checks.success"] = _fact(success, at)
    if promotion is not None:
        facts.update(_promotion(promotion, at))
    return facts


def _plain(check: Check) -> Check:
    """The check with nothing in it but what its type allows: a plugin may have put anything there."""
    ok = check.ok if isinstance(check.ok, bool) else None
    return Check(name=str(check.name)[:200], ok=ok, why=str(check.why)[:500])


def _fact(check: Check, at: int) -> dict[str, Any]:
    if check.why == "not_applicable":
        return not_applicable("nothing to check")
    return unobserved(check.why) if check.ok is None else seen(check.ok, "derived", at)


def _promotion(promotion: Mapping[str, Any], at: int) -> dict[str, Any]:
    criteria = []
    for row in promotion.get("criteria") or ():
        if isinstance(row, Mapping):
            ok = row.get("ok")
            criteria.append(
                {
                    "name": str(row.get("name"))[:200],
                    "ok": ok if isinstance(ok, bool) else None,
                    "why": str(row.get("why") or "")[:500],
                }
            )
    found = {"status": promotion.get("status"), "criteria": criteria, "ready": promotion.get("ready")}
    types = {"status": "text", "criteria": "list:checks", "ready": "bool"}
    return {
        f"promotion.{name}": unobserved("no verdict")
        if v is None or misfit(types[name], v)
        else seen(v, "derived", at)
        for name, v in found.items()
    }


def _shown(data: Any) -> Any:
    """Facts as checks look at them: the words `not_applicable` where there is nothing to see."""
    if isinstance(data, Mapping):
        if "v" in data:
            return "not_applicable" if missing(data) == "not_applicable" else data
        return {name: _shown(item) for name, item in data.items()}
    return data


def _is_section(item: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(item, Mapping) and "v" not in item


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`, section by section; what `high` has not seen does not hide what `low` has."""
    found = dict(low)
    for name, item in high.items():
        below = found.get(name)
        if _is_section(item) and isinstance(below, Mapping) and isinstance(below.get("v"), Mapping):
            below = below["v"]  # one fact on the machine, a section of facts here
        if _is_section(item) and _is_section(below):
            found[name] = _merged(below, item)
        elif below is None or not (isinstance(item, Mapping) and item.get("v", 0) is None):
            found[name] = item
    return found
