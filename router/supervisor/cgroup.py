"""A control group of its own for the work, where one may be made (cgroup v2, delegated)."""

from __future__ import annotations

import os

from . import files, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Set

    from .runs import Attempt


def _v2() -> str:
    """Where cgroup v2 is mounted, or nothing."""
    for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if os.path.exists(path + "/cgroup.procs"):
            return path
    return ""


def own(pid: object = "self") -> Dict[str, str]:
    """The cgroup path of a process by controller; the empty name is v2."""
    found = {}
    for line in (files.read("/proc/%s/cgroup" % pid) or b"").decode("utf-8", "replace").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for name in controllers.split(","):
            found[name] = path
    return found


def _delegated(path: str) -> bool:
    """Whether a group of ours may be made below `path` without taking it from its manager."""
    if not os.access(path + "/cgroup.procs", os.W_OK) or not os.access(path, os.W_OK):
        return False
    if os.geteuid() != 0:
        return True
    for name in ("trusted.delegate", "user.delegate"):
        try:
            if os.getxattr(path, name) == b"1":
                return True
        except (OSError, AttributeError):
            pass
    # A root that no manager runs is ours to divide.
    return path == _v2() and not os.path.isdir("/run/systemd/system")


def enter(attempt: Attempt, pid: int) -> Optional[str]:
    """Put `pid` into a group of its own; its path, or None where that cannot be done.

    The kernel takes some twenty milliseconds for this, so it is done beside the work: children that
    were made before stay outside and are found in the other ways.
    """
    base = _v2()
    mine = own().get("")
    if not base or mine is None or attempt.has("cgroup.json"):
        return None
    above = os.path.normpath(base + "/" + mine)
    try:
        if not _delegated(above):
            return None
        path = "%s/route-%s-%d" % (above, attempt.run.id, attempt.number)
        os.mkdir(path)
        files.write_hint(attempt.at("cgroup.json"), wire.dumps({"path": path}))
        _write(path + "/cgroup.procs", str(pid))
    except OSError:
        leave(attempt)
        return None
    return path


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _recorded(attempt: Attempt) -> str:
    path = str(files.hint_json(attempt.at("cgroup.json")).get("path") or "")
    name = "route-%s-%d" % (attempt.run.id, attempt.number)
    return path if os.path.basename(path) == name and os.path.isdir(path) else ""


def _below(path: str) -> List[str]:
    return [folder for folder, _, _ in os.walk(path)]


def members(attempt: Attempt) -> Set[int]:
    """The pids in the attempt's group and in groups below it."""
    path = _recorded(attempt)
    found: Set[int] = set()
    for folder in _below(path) if path else []:
        try:
            found.update(int(pid) for pid in (files.read(folder + "/cgroup.procs") or b"").split())
        except OSError:
            continue
    return found


def kill(attempt: Attempt, spared: Callable[[Set[int]], bool]) -> None:
    """Kill the whole group at once, unless it holds a process that is to be spared."""
    path = _recorded(attempt)
    if path and os.path.exists(path + "/cgroup.kill") and not spared(members(attempt)):
        try:
            _write(path + "/cgroup.kill", "1")
        except OSError:
            pass


def io(attempt: Attempt, path: str = "") -> Optional[Dict[str, List[int]]]:
    """Bytes read and written by the attempt's group, by device `major:minor`; None where the kernel does
    not count that for groups. Whole disks only: a group is not charged by partition."""
    path = path or _recorded(attempt)
    try:
        data = files.read(path + "/io.stat") if path else None
    except OSError:
        return None
    if data is None:
        return None
    found = {}
    for line in data.decode("ascii", "replace").splitlines():
        number, _, rest = line.partition(" ")
        cells = {name: value for name, _, value in (cell.partition("=") for cell in rest.split())}
        counts = [cells.get(name, "") for name in ("rbytes", "wbytes")]
        if all(count.isdigit() for count in counts):
            found[number] = [int(count) for count in counts]
    return found


def leave(attempt: Attempt) -> None:
    """Remove the attempt's group once it is empty."""
    path = _recorded(attempt)
    for folder in reversed(_below(path)) if path else []:
        try:
            os.rmdir(folder)
        except OSError:
            pass


def oom_kills(pid: object = "self") -> Optional[int]:
    """How often the kernel has killed for memory in the group of `pid`; None where it does not say."""
    groups = own(pid)
    tries = []
    if "" in groups and _v2():
        tries.append((_v2() + groups[""] + "/memory.events", b"oom_kill"))
    if "memory" in groups:
        # In a container the path may be the one outside; its own group is then the mount itself.
        for path in (groups["memory"], ""):
            tries.append(("/sys/fs/cgroup/memory" + path + "/memory.oom_control", b"oom_kill"))
    for path, key in tries:
        try:
            found = _counter(path, key)
        except OSError:
            continue
        if found is not None:
            return found
    return None


def machine_oom_kills() -> Optional[int]:
    """The same for the whole machine, from /proc/vmstat."""
    try:
        return _counter("/proc/vmstat", b"oom_kill")
    except OSError:
        return None


def _counter(path: str, key: bytes) -> Optional[int]:
    for line in (files.read(path) or b"").splitlines():
        name, _, value = line.partition(b" ")
        if name == key:
            return int(value)
    return None
