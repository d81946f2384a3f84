"""Where the run and its volumes lie: the class of each storage, what was read and written."""

from __future__ import annotations

import os

from .. import machine, work
from .facts import LATER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from .facts import Look, Observed

    Json = Dict[str, Any]


def before(look: Look) -> Json:
    """What is seen before user code: classes, free space, counters."""
    return {}


def block(o: Observed, look: Look) -> List[Json]:
    """Where the run and its volumes lie."""
    places = [("root", look.attempt.run.root), ("checkpoints", work.checkpoints(look.attempt, look.spec))]
    places += [(v["role"], v["path"]) for v in look.started.get("volumes", [])]
    known, found = machine.mounts(), []
    for role, path in dict(places).items():
        if not os.path.isdir(path):
            continue
        mount = machine.mount_of(path, known)
        disk = os.statvfs(path)
        why = "there is no mount table here"
        found.append(
            {
                "role": role,
                "class": o.seen(None, LATER),
                "fs": o.seen(mount.fs if mount else None, why),
                "mount": o.seen(mount.point if mount else None, why),
                "device": o.seen(mount.device if mount else None, why),
                "free_bytes_end": o.seen(disk.f_bavail * disk.f_frsize),
            }
        )
    return found


def volumes(o: Observed, look: Look) -> List[Json]:
    return [
        {
            "name": v["name"],
            "role": v["role"],
            "event": [o.seen(v["event"], at=look.started["at_us"])],
            # A plain folder on a disk of the machine: a write is there once it was made.
            "committed": o.seen(True),
        }
        for v in look.started.get("volumes", [])
    ]
