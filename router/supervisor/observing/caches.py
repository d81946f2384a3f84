"""The compile caches of a run: state before, verdict after from counters, the stamp of a seeded one.

Listed is what the run had to do with: a cache whose counters were seen and are zero is left out. The
CUDA driver's own cache counts nothing that can be read, so it is never told of.
"""

from __future__ import annotations

import errno
import json
import os
import time

from .. import files, inplace, machine, stamps, volumes, work
from ..wire import Fault
from . import verdicts
from .facts import Look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fractions import Fraction
    from typing import Any, Dict, List, Optional

    from ..runs import Attempt
    from .facts import Observed

    Json = Dict[str, Any]

PLACES = {
    "inductor": "TORCHINDUCTOR_CACHE_DIR",
    "triton": "TRITON_CACHE_DIR",
    "xla_hlo": "XLA_PERSISTENT_CACHE_PATH",
    "jax_pcc": "JAX_COMPILATION_CACHE_DIR",
    "ccache": "CCACHE_DIR",
    "torch_extensions": "TORCH_EXTENSIONS_DIR",
}
"""The kinds that are looked at, and the variable that says where the cache of each lies."""
COUNTED_BY = {"inductor": "torch", "triton": "triton", "xla_hlo": "torch_xla", "jax_pcc": "jax"}
"""Whose own counters tell of a kind: where it was loaded and counted nothing, nothing was used."""
ALWAYS = ("xla_hlo", "jax_pcc")
"""Whoever names a folder for these must be able to write it: found out later it costs a device's time."""
MOST_FILES = 20_000
MOST_SECONDS = 0.2
SECONDS = 5.0
"""What a folder on a file system of another computer may take to show that it can be written."""
BLIND = (
    "nobody could look into the work: no Python of it was seen (another program, `python -I` or `-S`, "
    "or ROUTE_OBSERVE=0)"
)


def before(look: Look) -> Json:
    """The state of every cache before user code. Raises `Fault` if one that is asked for cannot be used."""
    env, spec, found = look.env, look.spec, {}
    name = spec.get("volumes", {}).get("compile-cache")
    volume = work.volume(look.attempt.run.root, "compile-cache", name) if name else None
    for kind, variable in PLACES.items():
        folder = env.get(variable)
        # A bucket's address is no folder of this machine.
        local = bool(folder) and "://" not in str(folder)
        ours = local and volume is not None and within(str(folder), volume)
        broken = False
        if local and folder and (ours or kind in ALWAYS):
            try:
                usable(kind, variable, folder, far=not ours)
            except Fault:
                # What another launcher has started is told of, not stopped.
                if not inplace.of(spec):
                    raise
                broken = True
        off = verdicts.turned_off(kind, env)
        if broken:
            found[kind] = {"state": "unwritable"}
            continue
        if not (ours or off):
            continue
        told: Json = {"state": "unobserved"}
        if ours and folder and volume:
            state = stamps.of_kind(volume, spec.get("cache_key"), spec.get("cache_parts"), kind, folder)
            told = {"state": state, "folder": folder, **sized(folder)}
        if off:
            told.update(state="disabled", off=off)
        found[kind] = told
    kept: Json = {"kinds": found, "traced": int(env.get("TORCH_TRACE") == look.attempt.at(work.TRACES))}
    if volume:
        from . import building

        kept.update(building.before(env))
    return kept


def within(path: str, folder: str) -> bool:
    return os.path.normpath(path).startswith(folder + os.sep)


def usable(kind: str, variable: str, folder: str, *, far: bool) -> None:
    """`writable`, for a folder that may be `far` away, on a file system that does not answer."""
    from . import apart, mounted

    if not far or mounted.Places().far(folder) is None:
        writable(kind, variable, folder)
        return

    def told() -> Json:
        try:
            writable(kind, variable, folder)
        except Fault as fault:
            return fault.told()
        return {}

    try:
        said = apart.do(told, SECONDS)
    except apart.Failed as e:
        what = "the %s cache cannot be looked at: %s: %s" % (kind, folder, e)
        said = {"code": "PREFLIGHT", "what": what, "mend": "set %s to another folder" % variable}
    if said:
        raise Fault(str(said["code"]), str(said["what"]), str(said.get("mend", "")))


def writable(kind: str, variable: str, folder: str) -> None:
    """Raises `Fault` PREFLIGHT or NO_SPACE if nothing can be written where this cache is to be."""
    there = folder
    while not os.path.lexists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    try:
        if not os.path.isdir(there):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        volumes.probe(there)
    except OSError as e:
        code = "NO_SPACE" if e.errno in volumes.FULL else "PREFLIGHT"
        what = "the %s cache cannot be written: %s: %s" % (kind, folder, e.strerror or type(e).__name__)
        raise Fault(code, what, "make it writable or make room, or set %s to another folder" % variable)


def sized(folder: str) -> Json:
    """Bytes and files below `folder`, as information; nothing where there are too many to count quickly."""
    until, size, entries = time.monotonic() + MOST_SECONDS, 0, 0
    for entry in stamps.walk(folder):
        try:
            size += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
        entries += 1
        if entries > MOST_FILES or (entries % 256 == 0 and time.monotonic() > until):
            return {"bytes": None, "entries": None}
    return {"bytes": size, "entries": entries}


def block(o: Observed, look: Look) -> Json:
    """Every cache that the run had to do with: its state before, the verdict after, the counters.

    A list that is empty says that none was used; where nobody could look there is no list.
    """
    from . import building
    from .reports import note

    look_at = {
        "inductor": inductor,
        "triton": triton,
        "xla_hlo": xla,
        "jax_pcc": jax,
        "ccache": building.ccache,
        "torch_extensions": building.extensions,
    }
    said = {n["kind"]: n for n in look.notes("cache") if isinstance(n.get("kind"), str)}
    items: List[Json] = []
    for kind, looked in look_at.items():
        found = looked(look)
        if found is None:
            # Counted and nothing there: the work's word for it is not asked.
            if kind in COUNTED_BY and look.inside.loaded(COUNTED_BY[kind]):
                said.pop(kind, None)
            continue
        if found["verdict"] == "unobserved" and kind in said:
            continue
        said.pop(kind, None)
        items.append(o.seen(_item(look, kind, found), src="inside"))
    for kind, reported in said.items():
        reported = {k: v for k, v in reported.items() if k not in ("state", "key_sha256")}
        told = note(o, reported)
        items.append(dict(told, v=dict(_item(look, kind, {}), **told["v"])))
    if not items and not look.inside.seen:
        return o.seen(None, BLIND)
    return o.seen(items, src="inside")


def _item(look: Look, kind: str, found: Json) -> Json:
    """One cache with every column; `found` is what its counters say."""
    was = look.before.get("caches", {}).get("kinds", {}).get(kind, {})
    state = was.get("state", "unobserved")
    if found.get("verdict") == "disabled" and state not in ("unwritable",):
        state = "disabled"
    now = sized(was["folder"]) if was.get("folder") else {}
    return {
        "kind": kind,
        "key_sha256": look.spec.get("cache_key"),
        "state": state,
        "verdict": found.get("verdict", "unobserved"),
        "hits": found.get("hits"),
        "misses": found.get("misses"),
        "seconds": seconds(found.get("us")),
        "bytes_start": was.get("bytes"),
        "entries_start": was.get("entries"),
        "bytes_end": now.get("bytes"),
        "entries_end": now.get("entries"),
        "seed_source": _source(state),
    }


def seconds(us: Any) -> Optional[str]:
    """Microseconds as decimal text in seconds."""
    if type(us) is not int:
        return None
    from fractions import Fraction

    from .metrics import decimal

    value: Fraction = Fraction(us, 1_000_000)
    return decimal(value)


def _source(state: str) -> str:
    if state.startswith("warm") or state == "partial":
        return "previous_run"
    return "unobserved" if state == "unobserved" else "none"


# The kinds


def inductor(look: Look) -> Optional[Json]:
    """Inductor: from torch's trace where that is ours and whole, else from the counters of its processes."""
    from . import compiling

    traces, ran = look.traces, look.inside.loaded("torch")
    off = look.before.get("caches", {}).get("kinds", {}).get("inductor", {}).get("off", "")
    if look.traced and not traces.cut and (traces.each or not compiling.counted_graphs(look)):
        counts = {word: traces.total(word) for word in ("hit", "miss", "bypass")}
        found = verdicts.inductor(
            dict(counts, above=traces.above("miss")), bool(traces.generated), complete=True, off=off
        )
        return dict(found, us=traces.us) if found else None
    if not ran:
        return None
    counted = look.inside.counted("dynamo")
    if counted is None or counted["bad"] or counted["processes"] < len(ran):
        return {"verdict": "unobserved"}
    counts = {word: counted.get("fxgraph_cache_" + word, 0) for word in ("hit", "miss", "bypass")}
    if not any(counts.values()):
        counts = {word: counted.get("autograd_cache_" + word, 0) for word in ("hit", "miss", "bypass")}
    above = counted.get("autograd_cache_miss", 0)
    return verdicts.inductor(dict(counts, above=above), bool(counted.get("graphs")), complete=False, off=off)


def triton(look: Look) -> Optional[Json]:
    """Triton: from what its listener was told, in every process that compiles."""
    ran, told = look.inside.loaded("triton"), look.inside.triton
    off = look.before.get("caches", {}).get("kinds", {}).get("triton", {}).get("off", "")
    if told["hits"] or told["misses"]:
        verdict = "disabled" if off else verdicts.judge(told["hits"], told["misses"])
        return {"verdict": verdict, **told}
    deaf = [p for p in ran if p.groups.get("triton", {}).get("listening") is not True]
    # A Triton before 3.4 has no listener, and a process that was killed did not say whether it had one.
    compiled = look.traces.generated and look.spec.get("devices", {}).get("family") == "gpu"
    return {"verdict": "unobserved"} if deaf and compiled else None


def xla(look: Look) -> Optional[Json]:
    return _of_group(look, "torch_xla", "xla", "xla_hlo")


def jax(look: Look) -> Optional[Json]:
    return _of_group(look, "jax", "jax", "jax_pcc")


def _of_group(look: Look, package: str, group: str, kind: str) -> Optional[Json]:
    ran, counted = look.inside.loaded(package), look.inside.counted(group)
    if not ran:
        return None
    if counted is None or counted["processes"] < len(ran):
        return {"verdict": "unobserved"}
    if group == "xla":
        return verdicts.xla(counted)
    off = look.before.get("caches", {}).get("kinds", {}).get(kind, {}).get("off", "")
    return verdicts.jax(counted, off)


# After the end


def settled(attempt: Attempt, spec: Json) -> None:
    """Once the measured block is written: stamp a volume that was hit or seeded, drop the traces.

    A cache that could not be loaded takes its stamp away; one that was off, or that nobody saw,
    leaves what stands there as it is.
    """
    from . import torchtrace

    torchtrace.drop(attempt)
    name, key = spec.get("volumes", {}).get("compile-cache"), spec.get("cache_key")
    record = attempt.json("exit.json") or {}
    if not name or not key or record.get("state") != "succeeded":
        return
    volume = work.volume(attempt.run.root, "compile-cache", name)
    measured = json.loads(files.read(attempt.at("measured.json")) or b"{}")
    listed = (measured.get("cache") or {}).get("v") or []
    told = [row["v"] if isinstance(row, dict) and "v" in row else row for row in listed]
    seen = {str(row["kind"]): str(row["verdict"]) for row in told if isinstance(row, dict)}
    if "failed_load" in seen.values():
        stamps.drop(volume, key)
    elif set(seen.values()) & set(stamps.SEEDED):
        good = {kind: verdict for kind, verdict in seen.items() if verdict in stamps.SEEDED}
        stamp = {
            "schema": "route.stamp/1",
            "key": key,
            "parts": spec.get("cache_parts") or {},
            "run_id": attempt.run.id,
            "attempt": attempt.number,
            "at_us": machine.now_us(),
            "caches": good,
            "verdicts": sorted(good.values()),
        }
        stamps.write(volume, key, dict(stamp, versions=Look(attempt, spec).inside.versions()))
