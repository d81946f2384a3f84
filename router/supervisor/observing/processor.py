"""The processors and memory of this machine, and what of them a run may use."""

from __future__ import annotations

import os

from .. import cgroup, machine
from .facts import at_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional

    Json = Dict[str, Any]

MOST_POLICIES = 16
"""Frequency policies whose governor is looked at: some machines have one for each of 256 processors."""
UNLIMITED = 1 << 60
"""What cgroup v1 writes for no limit lies above this."""


def look(root: str = "/") -> Json:
    """Everything, as plain values; what cannot be read is left out. A few hundred microseconds."""
    sysfs, proc = at_root(root, "/sys/devices/system"), at_root(root, "/proc")
    count = cpus()
    memory = meminfo(proc)
    asks: Dict[str, Callable[[], Any]] = {
        "model": lambda: model(proc),
        "count": lambda: count,
        "cpu_milli": lambda: allowed(count, root),
        "sockets": lambda: sockets(sysfs),
        "numa_nodes": lambda: ranges(_text(sysfs + "/node/online")),
        "governor": lambda: governor(sysfs),
        "boost": lambda: boost(sysfs),
        "virtual": lambda: virtual(proc),
        "load_milli": lambda: int(os.getloadavg()[0] * 1000),
        "memory_bytes": lambda: memory.get("MemTotal"),
        "memory_free_bytes": lambda: memory.get("MemAvailable"),
        "memory_limit_bytes": lambda: memory_limit(root),
    }
    found: Json = {}
    for name, ask in asks.items():
        try:
            value = ask()
        except (OSError, ValueError, IndexError):
            continue
        if value is not None:
            found[name] = value
    return found


def _text(path: str) -> str:
    return machine.told(path).decode("utf-8", "replace").strip()


def cpus() -> Optional[int]:
    """Processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count()


def _first(proc: str) -> List[bytes]:
    """What the kernel says of the first processor: for each further one it may ask that one first."""
    try:
        with open(proc + "/cpuinfo", "rb", buffering=0) as f:
            return (f.read(8192) or b"").splitlines()
    except OSError:
        return []


def model(proc: str = "/proc") -> Optional[str]:
    for line in _first(proc):
        name, _, value = line.partition(b":")
        if name.strip() in (b"model name", b"Hardware", b"cpu model"):
            return value.decode("utf-8", "replace").strip()[:200]
    return os.uname().machine or None


def meminfo(proc: str = "/proc") -> Dict[str, int]:
    found = {}
    for line in machine.told(proc + "/meminfo").splitlines()[:8]:
        name, _, rest = line.partition(b":")
        if rest.split()[:1] and rest.split()[0].isdigit():
            found[name.decode("ascii", "replace")] = int(rest.split()[0]) * 1024
    return found


def memory_bytes() -> Optional[int]:
    found = meminfo().get("MemTotal")
    if found is not None:
        return found
    try:
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return None


def ranges(text: str) -> Optional[int]:
    """How many numbers `0-3,8` names; None if it is no such text."""
    if not text:
        return None
    total = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def sockets(sysfs: str) -> Optional[int]:
    """Packages, found by one processor of each."""
    seen: List[str] = []
    online = _text(sysfs + "/cpu/online")
    if not online:
        return None
    known: set[int] = set()
    for number in numbers(online):
        if number in known:
            continue
        topology = "%s/cpu/cpu%d/topology/" % (sysfs, number)
        mates = _text(topology + "package_cpus_list") or _text(topology + "core_siblings_list")
        if not mates:
            return None
        known.update(numbers(mates))
        seen.append(mates)
    return len(seen)


def numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def governor(sysfs: str) -> Optional[str]:
    """`performance`, `powersave`, ...; several are joined by a plus sign."""
    folder = sysfs + "/cpu/cpufreq"
    policies = sorted(name for name in os.listdir(folder) if name.startswith("policy"))[:MOST_POLICIES]
    words = {_text("%s/%s/scaling_governor" % (folder, name)) for name in policies}
    return "+".join(sorted(words - {""})) or None


def boost(sysfs: str) -> Optional[str]:
    """Whether clocks may rise above their rated value: `on` or `off`."""
    said = _text(sysfs + "/cpu/cpufreq/boost")
    if said in ("0", "1"):
        return "on" if said == "1" else "off"
    said = _text(sysfs + "/cpu/intel_pstate/no_turbo")
    return {"0": "on", "1": "off"}.get(said)


def virtual(proc: str) -> Optional[str]:
    """`yes` in a virtual machine, `no` on the metal; None where the processor does not tell."""
    for line in _first(proc):
        if line.startswith(b"flags"):
            return "yes" if b"hypervisor" in line.split() else "no"
    return None


def _above(root: str, controller: str) -> Iterator[str]:
    """The folder of our group for a controller, and those above it."""
    groups = cgroup.own() if root == "/" else {"": "/", controller: "/"}
    for base, path in (
        ("/sys/fs/cgroup", groups.get("")),
        ("/sys/fs/cgroup/" + controller, groups.get(controller)),
    ):
        folder = at_root(root, base)
        if path is None or not os.path.isdir(folder):
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        # In a container the path may be the one outside: what is not here is skipped.
        for depth in range(len(parts), -1, -1):
            yield os.path.join(folder, *parts[:depth])


def allowed(count: Optional[int], root: str = "/") -> Optional[int]:
    """Processor time that may be used, in thousandths of a processor: the least of affinity and quotas."""
    if count is None:
        return None
    least = count * 1000
    for folder in _above(root, "cpu"):
        limit, _, period = _text(folder + "/cpu.max").partition(" ")
        if not limit:
            limit, period = _text(folder + "/cpu.cfs_quota_us"), _text(folder + "/cpu.cfs_period_us")
        if limit.isdigit() and period.isdigit() and int(period):
            least = min(least, int(limit) * 1000 // int(period))
    return least


def memory_limit(root: str = "/") -> Optional[int]:
    """The least limit of the groups we are in; None without one."""
    least: Optional[int] = None
    for folder in _above(root, "memory"):
        said = _text(folder + "/memory.max") or _text(folder + "/memory.limit_in_bytes")
        if said.isdigit() and int(said) < UNLIMITED and (least is None or int(said) < least):
            least = int(said)
    return least


def group_file(*names: str) -> Optional[str]:
    """The first of these files in our own memory group that is there."""
    for folder in _above("/", "memory"):
        for name in names:
            if os.path.exists(os.path.join(folder, name)):
                return os.path.join(folder, name)
    return None
