"""What was compiled: the posture, programs, recompiles inside the steady window, graph breaks."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from .facts import Look, Observed

    Json = Dict[str, Any]

BLIND = "nobody could look into the work: no Python of it was seen"
UNTOLD = "torch did not say what called what it compiled"
KILLED = "a process that had torch loaded ended without telling what it counted"


def block(o: Observed, look: Look) -> Json:
    """What of the work was compiled, by whom it was seen: torch's trace, else counters of its processes."""
    found = seen(look)
    said = look.notes("compile")
    told = said[-1] if said else {}
    why = str(found.pop("why", ""))
    whys: Dict[str, str] = {"posture": UNTOLD, "warmup_reason": "there was one"} if found["warmup"] else {}
    made = {name: o.seen(value, whys.get(name, why), "inside") for name, value in found.items()}
    for name in ("posture", "warmup", "warmup_reason"):
        if made.get(name, {}).get("v") is None and told.get(name) is not None:
            made[name] = o.seen(told[name], src="workload")
    return made


def seen(look: Look) -> Json:
    """The fields of the block as plain values, None where nobody saw; `why` says why."""
    fields = ("posture", "programs", "recompiles", "cache_hits", "warmup", "warmup_reason", "compile_us")
    nothing: Json = dict.fromkeys((*fields, "recompiles_all", "graph_breaks"))
    inside, traces = look.inside, look.traces
    xla, jax = inside.counted("xla"), inside.counted("jax")
    if not inside.seen and not traces.each:
        return dict(nothing, why=BLIND)
    if xla or jax:
        return dict(nothing, **_whole_steps(xla or {}, jax or {}))
    if not look.traced or traces.cut:
        return dict(nothing, **_by_counters(look))
    if not traces.each:
        # Without a trace nothing was compiled, unless a process was told to trace elsewhere, or cannot.
        return dict(nothing, **(_by_counters(look) if counted_graphs(look) else _eager()))
    compiles = [each for trace in traces.each for each in trace.compiles]
    breaks = max(trace.breaks for trace in traces.each)
    graphs = max(trace.graphs for trace in traces.each)
    if not graphs and not compiles:
        return dict(nothing, **_eager())
    again, why = inside_window(look, compiles)
    warmup = _warmup(look, compiles)
    return dict(
        nothing,
        posture=posture(compiles, breaks),
        programs=graphs,
        recompiles=again,
        cache_hits=max(trace.count("hit") for trace in traces.each),
        warmup=warmup,
        compile_us=traces.us,
        recompiles_all=max(trace.recompiles for trace in traces.each),
        graph_breaks=breaks,
        why=why or UNTOLD,
    )


def counted_graphs(look: Look) -> bool:
    """Whether the processes' own counters say that dynamo captured a graph."""
    counted = look.inside.counted("dynamo")
    return bool(counted and counted.get("graphs"))


def _eager() -> Json:
    return {
        "posture": "eager",
        "programs": 0,
        "recompiles": 0,
        "cache_hits": 0,
        "warmup": False,
        "warmup_reason": "eager mode",
        "compile_us": 0,
        "recompiles_all": 0,
        "graph_breaks": 0,
    }


def _by_counters(look: Look) -> Json:
    """Without a trace: how much was compiled, and not when or what called it."""
    ran, counted = look.inside.loaded("torch"), look.inside.counted("dynamo")
    if not ran:
        return _eager()
    if counted is None or counted["processes"] < len(ran) or counted["bad"]:
        return {"why": KILLED}
    if not counted.get("graphs"):
        return _eager()
    return {
        "programs": _most(look, "graphs"),
        "cache_hits": _most(look, "fxgraph_cache_hit"),
        "graph_breaks": _most(look, "graph_breaks"),
        "why": "%s, and its counters do not tell when or what it compiled"
        % (look.traces.why or "torch was not traced"),
    }


def _most(look: Look, name: str) -> int:
    """A counter of dynamo in the process that has most of it: ranks compile the same, side by side."""
    rows = [p.groups.get("dynamo", {}) for p in look.inside.processes.values()]
    return max([int(row[name]) for row in rows if type(row.get(name)) is int] or [0])


def _whole_steps(xla: Json, jax: Json) -> Json:
    """XLA compiles whole steps; its counters say how many programs, not when."""
    hits = xla.get("PersistentCacheHit", 0) + jax.get("hits", 0)
    programs = xla.get("UncachedCompile", 0) + xla.get("PersistentCacheHit", 0) + jax.get("requests", 0)
    spent = xla.get("compile_us", 0) + jax.get("us", 0)
    if not programs and not spent:
        return _eager()
    return {
        "posture": "xla_step",
        "programs": programs,
        "cache_hits": hits,
        "compile_us": spent,
        "why": "the counters do not tell when",
    }


def posture(compiles: List[Json], breaks: int) -> Optional[str]:
    """`whole_graph` if what was compiled is what the program itself calls and nothing broke it up;
    `regional` if modules above it, or code between breaks, ran as they are; `mixed` if there is both."""
    outer = [each["outer"] for each in compiles if not each["backward"]]
    if not outer or None in outer:
        return "regional" if breaks else None
    inner = [depth > 1 for depth in outer]
    if breaks or all(inner):
        return "regional"
    return "mixed" if any(inner) else "whole_graph"


def inside_window(look: Look, compiles: List[Json]) -> Tuple[Optional[int], str]:
    """How often something was compiled while the steps ran that count, and why that cannot be told."""
    reported = look.reported
    window = reported.window_us if reported is not None else None
    if window is None:
        return None, "the work reported no steps with their time"
    begin, end = window
    return sum(begin <= each["begin_us"] < end for each in compiles), ""


def _warmup(look: Look, compiles: List[Json]) -> Optional[bool]:
    """Whether compiling had begun before the first step that counts."""
    reported = look.reported
    window = reported.window_us if reported is not None else None
    if window is None or not compiles:
        return None
    return bool(min(each["begin_us"] for each in compiles) < window[0])
