"""The computer and its system: what it calls itself, which boot."""

from __future__ import annotations

import os
import platform

from .. import machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from .facts import Look, Observed

    Json = Dict[str, Any]


def block(o: Observed, look: Look) -> Json:
    system = os.uname()
    release = {}
    for line in (machine.told("/etc/os-release") or machine.told("/usr/lib/os-release")).splitlines():
        name, _, value = line.decode("utf-8", "replace").partition("=")
        release[name] = value.strip().strip('"')
    return {
        "os": o.seen(release.get("PRETTY_NAME") or system.sysname),
        "kernel": o.seen(system.release),
        "arch": o.seen(system.machine),
        "python": o.seen(platform.python_version()),
        "machine_id": o.seen(machine.machine_id() or None, "this machine has no id of its own"),
        "boot_id": o.seen(machine.boot_id()),
    }
