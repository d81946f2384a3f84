"""The compile caches of a run: state before, verdict after from counters, the stamp of a seeded one."""

from __future__ import annotations

import os

from .. import files, machine, wire, work
from .facts import Look
from .reports import note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from ..runs import Attempt
    from .facts import Observed

    Json = Dict[str, Any]


def before(look: Look) -> Json:
    """The state of every cache before user code. Raises `Fault` if one that is asked for cannot be used."""
    return {}


def block(o: Observed, look: Look) -> List[Json]:
    """Every cache: its state before, the verdict after, the counters."""
    return [note(o, said) for said in look.notes("cache")]


def stamp(attempt: Attempt, spec: Json) -> None:
    """After a success: write the cache key into the compile-cache volume, so that it counts as seeded."""
    name, key = spec.get("volumes", {}).get("compile-cache"), spec.get("cache_key")
    record = attempt.json("exit.json") or {}
    if not name or not key or record.get("state") != "succeeded":
        return
    folder = os.path.join(work.volume(attempt.run.root, "compile-cache", name), ".route")
    if os.path.isdir(folder):
        note = {"key": key, "run_id": attempt.run.id, "attempt": attempt.number, "at_us": machine.now_us()}
        notes = Look(attempt, spec).notes("cache")
        verdicts = [str(n["verdict"]) for n in notes if n.get("verdict") is not None]
        files.write(os.path.join(folder, key + ".json"), wire.dumps(dict(note, verdicts=verdicts)))
