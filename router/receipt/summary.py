"""The few lines that tell a reader what a receipt says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compute_router.receipt.facts import at_path, missing, value

__all__ = ["lines"]


def lines(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, text) of what a run came to: state, duration, hardware, storage, cache, metric, evidence.

    Never raises, whatever the receipt is.
    """
    context = receipt.get("context")
    found = [
        ("state", _state(context)),
        ("run", f"{receipt.get('run_id')} ({receipt.get('kind')}, {receipt.get('purpose')})"),
        ("duration", _duration(context)),
        ("place", _place(context)),
        ("hardware", _hardware(context)),
        ("storage", _storage(context)),
        ("cache", _cache(context)),
        ("metric", _metric(context)),
        ("memory", _memory(context)),
        ("verdict", _verdict(context)),
        ("checks", _checks(context)),
        ("left out", _left_out(receipt)),
        ("evidence", _evidence(receipt)),
    ]
    return [(label, text) for label, text in found if text]


def span(us: int) -> str:
    """A duration in words of two parts at most: `0.42 s`, `3 min 5 s`, `2 h 1 min`."""
    seconds = us / 1e6
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def amount(count: int) -> str:
    """A number of bytes: `512 MiB`, `1.5 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _left_out(receipt: Mapping[str, Any]) -> str:
    """What the work left and nobody brought back, with the reason: the first three."""
    rows = at_path(receipt, "measured.skipped")
    rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    told = [f"{str(row.get('path'))[:200]}: {str(row.get('why'))[:200]}" for row in rows[:3]]
    return "; ".join([*told, f"and {len(rows) - 3:,} more"] if len(rows) > 3 else told)


def _word(context: Any, path: str) -> str:
    fact = at_path(context, path)
    gone = missing(fact)
    return gone.replace("_", " ") if gone else str(fact["v"])


def _state(context: Any) -> str:
    state = _word(context, "outcome.state")
    code, number = value(context, "outcome.exit_code"), value(context, "outcome.signal")
    if code:
        state += f" with exit code {code}"
    if number:
        state += f" by signal {number}"
    detail = value(context, "outcome.detail")
    stage = value(context, "outcome.stage")
    if state != "succeeded" and stage:
        state += f" (stage {stage})"
    return f"{state}: {detail}" if detail and str(detail).removeprefix("ended ") not in state else state


def _duration(context: Any) -> str:
    begun, over = value(context, "outcome.started_us"), value(context, "outcome.ended_us")
    if type(begun) is not int or type(over) is not int:
        return ""
    parts = []
    for name, label in (("queue_us", "queue"), ("stage_in_us", "staging"), ("compile_us", "compile")):
        us = value(context, f"timing.{name}")
        if type(us) is int and us >= 10_000:
            parts.append(f"{label} {span(us)}")
    return span(over - begun) + (f" ({', '.join(parts)})" if parts else "")


def _place(context: Any) -> str:
    backend = value(context, "backend")
    if value(context, "started_by.mode") == "recorded":
        launcher = _word(context, "started_by.launcher")
        return f"started by {launcher} ({_word(context, 'surface')}), recorded and not routed"
    if not backend:
        return ""
    return "/".join(str(v) for v in (backend, value(context, "offer.id")) if v) + (
        f" ({_word(context, 'surface')}, chosen by {_word(context, 'decision.policy')})"
    )


def _hardware(context: Any) -> str:
    asked, count = value(context, "hw.requested.class"), value(context, "hw.requested.count")
    wanted = f"{asked}:{count}" if count else str(asked or "nothing")
    sku, got = value(context, "hw.observed.sku"), value(context, "hw.observed.count")
    if not sku:
        return f"asked {wanted}; what it got was not observed"
    nodes = value(context, "distributed.nodes")
    if type(nodes) is int and nodes > 1 and value(context, "nodes"):
        names = " and ".join(str(node.get("machine")) for node in value(context, "nodes"))
        wanted, got = f"{nodes} x {wanted}", f"{nodes} x {got}"
        sku = f"{sku} on {names}"
    return f"asked {wanted}, got {got} x {sku} ({_word(context, 'hw.match').replace('_', ' ')})"


def _storage(context: Any) -> str:
    found = value(context, "storage")
    if not isinstance(found, list) or not found:
        return _word(context, "storage") if missing(at_path(context, "storage")) else ""
    roles: dict[str, list[str]] = {}
    for item in found:
        if isinstance(item, Mapping):
            what, fs = item.get("class"), item.get("fs")
            known = what not in (None, "unobserved")
            kind = str(what) if known else f"{fs}, class unobserved" if fs else "unobserved"
            roles.setdefault(kind, []).append(str(item.get("role")))
    return "; ".join(f"{', '.join(names)} on {kind}" for kind, names in roles.items())


def _cache(context: Any) -> str:
    found = value(context, "cache")
    if not isinstance(found, list):
        return _word(context, "cache")
    texts = []
    for item in found:
        if isinstance(item, Mapping):
            counts = [f"{n} {item[n]}" for n in ("hits", "misses") if type(item.get(n)) is int]
            words = [str(item.get("state")).replace("_", " "), f"then {item.get('verdict')}", *counts]
            texts.append(f"{item.get('kind')}: {', '.join(words)}")
    return "; ".join(texts) or "none"


def _metric(context: Any) -> str:
    rows, primary = value(context, "metrics.values"), value(context, "metrics.primary")
    if not isinstance(rows, list):
        return ""
    rows = [row for row in rows if isinstance(row, Mapping)]
    row = next((r for r in rows if r.get("name") == primary), rows[0] if rows else None)
    if row is None:
        return ""
    count = f" over {row['n']} steps" if type(row.get("n")) is int and row["n"] > 1 else ""
    unit = f" {row.get('unit')}" if row.get("unit") else ""
    by = at_path(context, "metrics.values.src")
    return f"{row.get('name')} = {_short(row.get('value'))}{unit}{count} ({by})"


def _short(number: Any) -> str:
    """A decimal with the digits a reader can use; the receipt keeps them all."""
    try:
        return f"{float(number):,.5g}" if abs(float(number)) < 1e5 else f"{float(number):,.0f}"
    except (TypeError, ValueError, OverflowError):
        return str(number)


def _memory(context: Any) -> str:
    peak = value(context, "mem.host_rss_peak")
    ranks = value(context, "mem.peak_alloc_bytes")
    texts = [f"{amount(max(ranks))} on the accelerator"] if isinstance(ranks, list) and ranks else []
    if type(peak) is int:
        texts.append(f"{amount(peak)} on the host")
    return "peak " + ", ".join(texts) if texts else ""


def _verdict(context: Any) -> str:
    status = value(context, "promotion.status")
    if not status:
        return ""
    return f"{status}, {'ready' if value(context, 'promotion.ready') else 'not ready'} to be promoted"


def _checks(context: Any) -> str:
    rows = value(context, "checks.own")
    if not isinstance(rows, list):
        return ""
    bad = [row for row in rows if isinstance(row, Mapping) and row.get("ok") is False]
    gone = [row for row in rows if isinstance(row, Mapping) and row.get("ok") is None]
    texts = [f"{row.get('name')} failed: {row.get('why')}" for row in bad]
    if gone:
        texts.append("not observed: " + ", ".join(str(row.get("name")) for row in gone))
    return "; ".join(texts) or "all good"


def _evidence(receipt: Mapping[str, Any]) -> str:
    reasons = receipt.get("evidence_reasons")
    first = ""
    if isinstance(reasons, list):
        mine = [
            r for r in reasons if isinstance(r, Mapping) and r.get("class") == receipt.get("evidence_class")
        ]
        if mine:
            sentence = str(mine[0].get("sentence"))
            sentence = sentence if len(sentence) <= 160 else sentence[:157] + "..."
            more = len(reasons) - 1
            first = f": {sentence}" + (f" (and {more} more)" if more else "")
    return f"{receipt.get('evidence_class')}{first}"
