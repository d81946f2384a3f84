"""Facts for whoever asks whether runs can be had here: root, leases, login, GPUs and who is on them.

Nothing is judged here, nothing raises but a request that is none, and no fact takes longer than its deadline.
"""

from __future__ import annotations

import os
import re
import stat

from . import cgroup, files, leases, machine, names
from .observing import apart, container, gpus, mounted, skus
from .observing.facts import at_root
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Set

    Json = Dict[str, Any]

PATIENCE = 1.0
"""Seconds for what a healthy machine tells in milliseconds: each of these facts hangs where a disk does."""
LOGIND = ("/run/systemd", "/etc/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd")
LINGER = "/var/lib/systemd/linger"
XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d{1,4})\b")
MOST_LOG = 16 << 20


def checkup(root: str, head: Json) -> Json:
    """What is known of this machine, within `within_us` (7 s where it is left out), and of its GPUs unless
    `gpus` is false.

    A fact that could not be had is `{"why": ...}`.
    """
    seconds = names.whole(head.get("within_us", 7_000_000), "within_us", 1, 60_000_000) / 1e6
    end = machine.mono_us() + int(seconds * 1e6)
    found = {
        "root": _fact(lambda: place(root)),
        "leases": _fact(lease_folder),
        "login": _fact(login),
    }
    if head.get("gpus") is not False:
        # The library, and after it the tool for at most two seconds.
        left = (end - machine.mono_us()) / 1e6
        found["gpus"] = boards(max(0.5, left - 2.2))
        found["xids"] = _fact(xids)
    return found


def _fact(look: Callable[[], Json]) -> Json:
    try:
        return apart.do(look, PATIENCE)
    except (apart.Failed, OSError) as e:
        return {"why": str(e)}


def place(root: str) -> Json:
    """What the root lies on, and whether files there can be written and executed."""
    disk = os.statvfs(root)
    lies = mounted.Places().of(root)
    found: Json = {
        "path": root,
        "fs": lies["fs"],
        "class": lies["class"],
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "total_bytes": disk.f_blocks * disk.f_frsize,
        # A file system that counts no inodes has as many as it wants.
        "free_inodes": disk.f_favail if disk.f_files else None,
        "mode": stat.S_IMODE(os.stat(root).st_mode),
    }
    found.update(_tried(os.path.join(root, "stage", ".checkup.%d" % os.getpid())))
    return found


def _tried(path: str) -> Json:
    """Write a small program and run it: what the options of a mount say is not all that may forbid it."""
    import subprocess

    found: Json = {"written": None, "executed": None}
    try:
        fd = os.open(path, files.NEW, 0o700)
        try:
            # Not synced: a disk that is busy is no reason to call a machine unfit.
            files.write_all(fd, b"#!/bin/sh\nexit 0\n" + b"#" * 4096)
        finally:
            os.close(fd)
        found["written"] = True
        try:
            found["executed"] = subprocess.call([path], stdin=-3, stdout=-3, stderr=-3) == 0
        except OSError as e:
            found.update(executed=False, why_not=e.strerror)
    except OSError as e:
        found.update(written=False, why_not=e.strerror)
    finally:
        try:
            os.unlink(path)
        except OSError:
            pass
    return found


def lease_folder() -> Json:
    """Where leases are kept, and whether everybody who works here can keep theirs beside."""
    try:
        folder = leases.folder()
    except Fault as fault:
        return {"folder": None, "error": fault.told()}
    mode = os.stat(folder).st_mode
    return {"folder": folder, "shared": mode & 0o1777 == 0o1777, "mode": stat.S_IMODE(mode)}


def login() -> Json:
    """Who we are, and whether the system ends what a login leaves behind."""
    scope = any("/session-" in path and ".scope" in path for path in cgroup.own().values())
    user = user_of(os.geteuid())
    return {
        "user": user,
        "uid": os.geteuid(),
        "session_scope": scope,
        "kills": _kills(user) if scope else None,
        "linger": os.path.exists(os.path.join(LINGER, user)),
    }


def user_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _kills(user: str, tops: Any = LOGIND) -> bool:
    """Whether logind ends what is left of a session of `user`, as its files say: a drop-in wins over a
    file, the last name over those before, and of one name the first folder."""
    chosen: Dict[str, str] = {}
    for top in reversed(tops):
        for name in _listed(top + "/logind.conf.d"):
            if name.endswith(".conf"):
                chosen[name] = "%s/logind.conf.d/%s" % (top, name)
    main = [path for path in (top + "/logind.conf" for top in tops) if os.path.exists(path)]
    values = {"KillUserProcesses": "no", "KillExcludeUsers": "root", "KillOnlyUsers": ""}
    for path in [*main[:1], *(chosen[name] for name in sorted(chosen))]:
        for line in machine.told(path).decode("utf-8", "replace").splitlines():
            key, sign, value = line.strip().partition("=")
            if sign and key.strip() in values:
                values[key.strip()] = value.strip()
    if values["KillUserProcesses"].lower() not in ("yes", "true", "on", "1"):
        return False
    only = values["KillOnlyUsers"].split()
    return user not in values["KillExcludeUsers"].split() and (not only or user in only)


def _listed(folder: str) -> List[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def boards(seconds: float, root: str = "/") -> Json:
    """Every GPU, as `devices.listing` and who is on it; `boards` counts what is plugged in, `error` says why
    nothing answers."""
    found: Json = {"boards": plugged(root), "error": None, "list": []}
    try:
        seen = gpus.look(root=root, seconds=seconds)
    except gpus.NoAnswer as e:
        found["error"] = {"what": str(e), "mend": e.mend}
        return found
    except OSError as e:
        found["error"] = {"what": str(e), "mend": "free memory or processes there"}
        return found
    leased = _leased()
    found.update(source=seen["source"], driver=seen.get("driver"), missing=seen.get("missing", []))
    for gpu in seen["gpus"]:
        wrong = gpus.sick(gpu)
        row = {name: gpu.get(name) for name in ("index", "uuid", "name", "memory_bytes", "memory_used_bytes")}
        row.update(
            called=gpus.called(gpu),
            sku=skus.short(gpu["sku"]),
            full=gpu["sku"],
            sick=wrong[0] if wrong else None,
            mend=wrong[1] if wrong else None,
            leased=gpu.get("uuid") in leased,
        )
        # Those of a run of ours are not foreign; which of them are its own is the run's to tell.
        row["foreign"] = None if row["leased"] or not gpus.foreign(gpu) else users(gpu)
        found["list"].append(row)
    return found


def _leased() -> Set[str]:
    from . import devices, probing

    held = [lease["lease"] for lease in probing.held()]
    return {name[len(devices.PREFIX) :] for name in held if name.startswith(devices.PREFIX)}


def users(gpu: Json) -> List[Json]:
    """Who computes on it: `pid`, and where it can be told `user` and `name`. Empty for memory that is taken
    by somebody who cannot be seen."""
    rows = []
    for pid in list(gpu.get("processes") or ())[:16]:
        name = machine.told("/proc/%d/comm" % pid).decode("utf-8", "replace").strip()
        try:
            user: Optional[str] = user_of(os.stat("/proc/%d" % pid).st_uid)
        except OSError:
            user = None
        rows.append({"pid": pid, "user": user, "name": name or None})
    return rows


def xids(log: str = "/dev/kmsg") -> Json:
    """The errors of GPUs that the driver has told the kernel's log of since the machine was started, as far
    as that reaches back and may be read: `[{bus, xid, count, ago_us}]`."""
    try:
        fd = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        return {"why": "%s: %s" % (log, e.strerror)}
    seen: Dict[Any, Json] = {}
    try:
        for record in _records(fd):
            told = XID.search(record)
            if told is None:
                continue
            row = seen.setdefault(
                told.groups(), {"bus": told.group(1), "xid": int(told.group(2)), "count": 0}
            )
            row["count"] += 1
            head = record.partition(";")[0].split(",")
            if len(head) > 2 and head[2].isdigit():
                row["ago_us"] = max(0, machine.mono_us() - int(head[2]))
    finally:
        os.close(fd)
    return {"list": sorted(seen.values(), key=lambda row: (row["bus"], row["xid"]))[:64]}


def _records(fd: int) -> Iterator[str]:
    """What stands in the kernel's log: each read of the device is one record."""
    left, rest = MOST_LOG, ""
    while left > 0:
        try:
            data = os.read(fd, 8192)
        except BlockingIOError:
            break
        except BrokenPipeError:  # it was overwritten while we read; the next read goes on behind
            left -= 8192
            continue
        except OSError:
            break
        if not data:
            break
        left -= len(data)
        *lines, rest = (rest + data.decode("utf-8", "replace")).split("\n")
        for line in lines:
            yield line


def plugged(root: str = "/") -> Optional[int]:
    """How many NVIDIA boards the bus has; None where it cannot be told (in a container /sys is the whole
    machine's)."""
    bus = at_root(root, "/sys/bus/pci/devices")
    if container.inside(root) or not os.path.isdir(bus):
        return None
    return sum(gpus.is_board(os.path.join(bus, name)) for name in _listed(bus))
