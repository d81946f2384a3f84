"""Facts of the machine for offers and health: what it has, what is leased, which caches are warm."""

from __future__ import annotations

import os

from . import files, leases, machine, names, stamps, work
from .observing import container, hardware, installed, timeline, tpus
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

    Json = Dict[str, Any]


LOOKS = ("host", "devices", "tpus", "leases", "caches")
"""What is told unless the request picks some of it: the drivers of devices can take seconds to answer."""
MOST = 64


def probe(root: str, head: Json) -> Json:
    keys, look = listed(head, "keys"), listed(head, "look") or LOOKS
    keys = [names.word(key, "a cache key") for key in keys[:1000]]
    asks: Dict[str, Callable[[], Any]] = {
        "host": lambda: host(root),
        "devices": gpus,
        "tpus": tpus.look,
        "leases": held,
        "caches": lambda: {key: stamped(root, key) for key in keys},
        "checkup": lambda: fitness(root),
    }
    found: Json = {name: asks[name]() for name in asks if name in look}
    if head.get("python") is not None:
        found["python"] = interpreter(root, str(head["python"]), listed(head, "dists"))
    if head.get("volumes") is not None:
        found["volumes"] = volumes(root, listed(head, "volumes")[:MOST])
    return found


def fitness(root: str) -> Json:
    """What `checkup` tells but for GPUs, so that whoever wants both asks once."""
    from . import checkup

    return checkup.checkup(root, {"gpus": False})


def listed(head: Json, name: str) -> List[Any]:
    value = head.get(name) or []
    if not isinstance(value, list):
        raise Fault("BAD_REQUEST", "`%s` is a list" % name, "see docs/protocol.md")
    return value


def host(root: str) -> Json:
    system = os.uname()
    disk = os.statvfs(root)
    mount = machine.mount_of(root)
    return {
        "cpus": hardware.cpus(),
        "cpu_model": hardware.cpu_model(),
        "memory_bytes": hardware.memory_bytes(),
        "kernel": system.release,
        "arch": system.machine,
        "load_milli": int(os.getloadavg()[0] * 1000),
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "fs": mount.fs if mount else None,
        "rebooted": timeline.rebooted(root),
        "warm_container": container.warm(root),
    }


def interpreter(root: str, asked: str, dists: List[Any]) -> Json:
    """What `asked` is on this machine: `path`, its full `version`, and as `stack` the versions of `dists`
    that are installed for it, by the names of folders; or `why` it is none."""
    path = installed.resolved(os.path.expanduser(asked), root, dict(os.environ))
    if path is None or not os.path.isfile(path):
        return {"why": "there is no Python at %s" % asked[:200]}
    path = itself(path)
    full = installed.version(path, root)
    if full is None:
        return {"why": "%s does not start, or is no Python" % path[:200]}
    minor = ".".join(full.split(".")[:2])
    found = installed.distributions(installed.folders(path, minor, dict(os.environ)))
    stack = {name: found[name][0] for name in map(str, dists[:MOST]) if name in found and found[name][0]}
    return {"path": path, "version": full, "stack": dict(stack, python=minor)}


def itself(path: str) -> str:
    """The interpreter that a script stands for, as version managers put them on the PATH."""
    try:
        with open(path, "rb") as f:
            if f.read(2) != b"#!":
                return path
    except OSError:
        return path
    told = machine.said([path, "-I", "-S", "-c", "import sys; print(sys.executable)"])
    return told if os.path.isabs(told) else path


def volumes(root: str, asked: List[Any]) -> List[Json]:
    """What each of these volumes holds for its cache key, by its stamps alone, and where it lies. It need
    not be there yet, and is not made."""
    from .observing.mounted import Places

    found, places = [], Places()
    for entry in asked:
        if not isinstance(entry, dict):
            raise Fault("BAD_REQUEST", "a volume is an object", "see docs/protocol.md")
        role, name = (names.word(entry.get(part), "the %s of a volume" % part) for part in ("role", "name"))
        key, parts = entry.get("key"), entry.get("parts")
        path = work.volume(root, role, name)
        there = path
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        try:
            disk = os.statvfs(there)
            free = disk.f_bavail * disk.f_frsize
        except OSError:
            free = None
        found.append(
            {
                "role": role,
                "state": stamps.state(
                    path, str(key) if key else None, parts if isinstance(parts, dict) else None
                ),
                "storage": places.of(path)["class"],
                "free_bytes": free,
            }
        )
    return found


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
