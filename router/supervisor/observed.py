"""What the supervisor sees of the machine itself: processors, memory, system, storage, volumes."""

from __future__ import annotations

import os
import platform

from . import machine, work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .runs import Attempt

    Json = Dict[str, Any]

LATER = "the supervisor does not observe this yet"
_DEVICE = "topology mig power_limit_w driver cc ecc clock_sm_mhz throttle_reasons cotenants"


class Observed:
    """Makes observed fields; `at` is when the block was made unless it is known better."""

    def __init__(self) -> None:
        self.at = machine.now_us()

    def seen(self, value: Any, why: str = "", src: str = "supervisor", at: Optional[int] = None) -> Json:
        if value is None:
            return {"v": None, "why": why or "could not be read"}
        return {"v": value, "src": src, "at": self.at if at is None else at}


def hardware(o: Observed, spec: Json, started: Json) -> Json:
    asked = spec.get("devices", {})
    plain = asked.get("family", "cpu") == "cpu"
    # A run without an accelerator has none to observe: that is a value, and equal to itself.
    none = "not_applicable" if plain else None
    return {
        "requested": asked,
        "observed": {
            "sku": o.seen("cpu" if plain else None, LATER),
            "count": o.seen(0 if plain else len(started.get("devices", []))),
            "uuid": o.seen([] if plain else started.get("devices", [])),
            "cpu_model": o.seen(cpu_model()),
            "cpus": o.seen(cpus()),
            "mem_bytes": o.seen(memory_bytes()),
            **{name: o.seen(none, LATER) for name in _DEVICE.split()},
        },
    }


def cpus() -> Optional[int]:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count()


def cpu_model() -> Optional[str]:
    for line in machine.told("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(b":")
        if name.strip() in (b"model name", b"Hardware", b"cpu model"):
            return value.decode("utf-8", "replace").strip()[:200]
    return platform.processor() or platform.machine() or None


def memory_bytes() -> Optional[int]:
    for line in machine.told("/proc/meminfo").splitlines():
        if line.startswith(b"MemTotal:"):
            return int(line.split()[1]) * 1024
    try:
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return None


def computer(o: Observed) -> Json:
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


def storage(o: Observed, attempt: Attempt, started: Json, spec: Json) -> List[Json]:
    """Where the run and its volumes lie. The class of a storage is named by a later piece."""
    places = [("root", attempt.run.root), ("checkpoints", work.checkpoints(attempt, spec))]
    places += [(v["role"], v["path"]) for v in started.get("volumes", [])]
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


def volumes(o: Observed, started: Json) -> List[Json]:
    return [
        {
            "name": v["name"],
            "role": v["role"],
            "event": [o.seen(v["event"], at=started["at_us"])],
            # A plain folder on a disk of the machine: a write is there once it was made.
            "committed": o.seen(True),
        }
        for v in started.get("volumes", [])
    ]
