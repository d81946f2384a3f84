"""Whether this is a container, since when it is up, and whether runs of this root were in it before."""

from __future__ import annotations

import os
import time

from .. import files, machine, wire
from .facts import at_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

    from ..runs import Attempt

    Json = Dict[str, Any]

INITIAL = "pid:[4026531836]"
"""The first namespace of processes (PROC_PID_INIT_INO in the kernel's proc_ns.h)."""
LAYERED = frozenset(("overlay", "overlayfs", "aufs", "fuse.fuse-overlayfs", "fuse.unionfs"))
"""File systems that are laid over others."""
FRESH_US = 600_000_000
"""A container that is up for less when a run is asked for may have been begun for it."""
SHARED = (
    "its root is an overlay, as in a container that shares the processes of its machine: when one began "
    "is not to be seen"
)


def inside(root: str = "/") -> bool:
    """Whether this is a namespace of processes of its own: a container, which is shown only its own."""
    try:
        return os.readlink(at_root(root, "/proc/self/ns/pid")) != INITIAL
    except OSError:
        return True


def here() -> Optional[Json]:
    """`{"key", "up_us"}` of the container that this is: a name for it within this boot, and for how long it
    is up; both None where that is not to be seen. None outside of one.

    A file that container runtimes leave (`/.dockerenv`) proves nothing: images of them are booted as
    machines too. What counts is a space of processes of its own, whose first one began with it.
    """
    if not machine.LINUX:
        return None
    if inside():
        first = machine.process(1)
        try:
            space = os.readlink("/proc/self/ns/pid")
            # Not /proc/uptime: containers may be shown their own there.
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            ticks = os.sysconf("SC_CLK_TCK")
        except (OSError, AttributeError, ValueError):
            first = None
            space, now, ticks = "", 0.0, 1
        if first is None:
            return {"key": None, "up_us": None}
        up = int((now - first.start / ticks) * 1_000_000)
        return {"key": "%s-%d" % (space[5:-1], first.start), "up_us": up if up >= 0 else None}
    root = machine.mount_of("/")
    return {"key": None, "up_us": None} if root is not None and root.fs in LAYERED else None


def look(attempt: Attempt) -> Optional[Json]:
    """`here`, with `again`: whether an earlier run of this root was in the same container."""
    found = here()
    if found is None or found["key"] is None:
        return found
    folder = os.path.join(attempt.run.root, "boots")
    # The dot hides it from whoever looks for boots.
    mark = os.path.join(folder, ".in-%s-%s" % (machine.boot_id(), found["key"]))
    os.makedirs(folder, 0o700, exist_ok=True)
    files.create_once(mark, wire.dumps({"run_id": attempt.run.id, "at_us": machine.now_us()}))
    first = files.hint_json(mark).get("run_id")
    return dict(found, again=first != attempt.run.id or attempt.number > 1)


def judged(seen: Json) -> Tuple[Optional[str], str]:
    """The class of a start in a container, or why it has none."""
    if seen.get("again"):
        return "warm_container", ""
    up = seen.get("up_us")
    if up is None:
        return None, SHARED if seen.get("key") is None else "when this container began is not to be seen"
    if up >= FRESH_US:
        return "warm_container", ""
    why = (
        "this container is up for %d s, and this is the first run in it: it may have been begun for it, and "
        "whether its image was there already is not to be seen from inside"
    )
    return None, why % (up // 1_000_000)


def warm(root: str) -> Optional[bool]:
    """Whether the next run of this root would find a container that is `warm_container`; None outside."""
    found = here()
    if found is None:
        return None
    mark = os.path.join(root, "boots", ".in-%s-%s" % (machine.boot_id(), found["key"]))
    again = found["key"] is not None and os.path.exists(mark)
    return judged(dict(found, again=again))[0] is not None
