"""Facts of the machine for offers and health: what it has, what is leased, which caches are warm."""

from __future__ import annotations

import os

from . import files, leases, machine, names, stamps
from .observing import hardware, tpus
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    Json = Dict[str, Any]


def probe(root: str, head: Json) -> Json:
    keys = head.get("keys") or []
    if not isinstance(keys, list):
        raise Fault("BAD_REQUEST", "`keys` is a list", "see docs/protocol.md")
    keys = [names.word(key, "a cache key") for key in keys[:1000]]
    system = os.uname()
    disk = os.statvfs(root)
    mount = machine.mount_of(root)
    host = {
        "cpus": hardware.cpus(),
        "cpu_model": hardware.cpu_model(),
        "memory_bytes": hardware.memory_bytes(),
        "kernel": system.release,
        "arch": system.machine,
        "load_milli": int(os.getloadavg()[0] * 1000),
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "fs": mount.fs if mount else None,
    }
    return {
        "host": host,
        "devices": gpus(),
        "tpus": tpus.look(),
        "leases": held(),
        "caches": {key: stamped(root, key) for key in keys},
    }


def gpus() -> Json:
    from . import devices

    try:
        return {"list": devices.listing(), "error": None}
    except Fault as fault:
        return {"list": [], "error": fault.told()}


def held() -> List[Json]:
    """The leases that somebody has now, and who."""
    found = []
    try:
        folder = leases.folder()
        listed = sorted(name for name in os.listdir(folder) if name.endswith(".lock"))
    except (Fault, OSError):
        return []
    for name in listed:
        path = os.path.join(folder, name)
        try:
            if files.held(path):
                who = leases.holder(path)
                lease = name[: -len(".lock")]
                found.append({"lease": lease, **{k: who.get(k) for k in ("run_id", "attempt", "since_us")}})
        except OSError:
            continue
    return found


def stamped(root: str, key: str) -> Json:
    """Whether some compile-cache volume was seeded under this key, and by which run."""
    above = os.path.join(root, "volumes", "compile-cache")
    try:
        volumes = sorted(os.listdir(above))
    except OSError:
        volumes = []
    for name in volumes:
        volume = os.path.join(above, name)
        if os.path.exists(stamps.path_of(volume, key)) and stamps.state(volume, key) == "warm_same_key":
            found = stamps.read(volume, key)
            return {
                "state": "warm_same_key",
                "volume": name,
                **{k: found.get(k) for k in ("run_id", "at_us", "verdicts")},
            }
    return {"state": "empty"}
