"""Everything that is looked at before user code runs; kept in `before.json` for the measured block."""

from __future__ import annotations

from .. import files, forking, inplace, wire
from ..wire import Fault
from . import caches, hardware, software, storage, timeline
from .facts import Look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Tuple

    from ..runs import Attempt

    Json = Dict[str, Any]


def look(attempt: Attempt, spec: Json, devices: List[str], env: Dict[str, str]) -> None:
    """Let every probe look, and write what they saw.

    Raises `Fault` where the work must not start: hardware that is not what was asked for, a cache
    that cannot be written. Any other failure of a probe costs what it would have seen, no more.
    """
    at = Look(attempt, spec, devices=devices, env=env)
    probes: Tuple[Tuple[str, Callable[[Look], Json]], ...] = (
        ("hardware", hardware.before),
        ("storage", storage.before),
        ("caches", caches.before),
        ("software", software.before),
        ("timeline", timeline.before),
    )
    seen: Json = {}
    for name, probe in probes:
        try:
            seen[name] = probe(at)
        except Fault as fault:
            # What another launcher has started is observed, never stopped.
            if not inplace.of(spec):
                raise
            seen[name] = {"error": "%s: %s" % (fault.code, fault.what[:300])}
        except Exception as e:
            forking.traceback()
            seen[name] = {"error": "%s: %s" % (type(e).__name__, str(e)[:200])}
    files.write_hint(attempt.at("before.json"), wire.dumps(seen))
