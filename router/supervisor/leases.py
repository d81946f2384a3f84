"""Leases: kernel locks on files local to the machine, all or none, in the order of asking."""

from __future__ import annotations

import os
import stat

from . import files, machine, wire
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Sequence, Tuple

    Json = Dict[str, Any]


def folder() -> str:
    """The lease folder of this machine, made if need be. Raises `Fault` PREFLIGHT if none can be used."""
    asked = os.environ.get("ROUTE_LEASE_DIR")
    tries = [asked] if asked else ["/run/lock/route", "/dev/shm/route", "/tmp/.route-leases"]
    for path in tries:
        try:
            if not os.path.isdir(os.path.dirname(path)):
                continue
            try:
                os.mkdir(path, 0o700)
                os.chmod(path, 0o1777)
            except FileExistsError:
                pass
            found = os.lstat(path)
            # Without the sticky bit anyone could take away the file that another's lock is on.
            trusted = found.st_uid == os.geteuid() or found.st_mode & stat.S_ISVTX
            if stat.S_ISDIR(found.st_mode) and trusted and os.access(path, os.W_OK):
                mount = machine.mount_of(path)
                if mount is None or not machine.is_network(mount.fs):
                    return path
        except OSError:
            continue
    raise Fault(
        "PREFLIGHT",
        "no folder for leases can be used (%s)" % ", ".join(tries),
        "mkdir -m 1777 /run/lock/route",
    )


def path_of(name: str) -> str:
    return os.path.join(folder(), name + ".lock")


def _open(path: str) -> int:
    """Open a lease file that any user of the machine can lock.

    Never with O_CREAT on one that exists: in a sticky folder the kernel refuses that across users.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            pass
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        os.fchmod(fd, 0o666)
        return fd


def holder(path: str) -> Json:
    """Who wrote himself down in a lease file; empty if nobody, or what stands there is no record."""
    found = files.hint_json(path)
    return found if isinstance(found.get("run_id"), str) and type(found.get("pid")) is int else {}


def _lock(path: str) -> int:
    """The descriptor of the lease, locked, or -1 if it is held."""
    os.close(_open(path))
    fd = files.lock(path, create=False)
    if fd < 0:
        who = holder(path)
        # Nobody alive claims it: it may be a passing look at the lock, or a child of a dead waiter.
        if not machine.alive(who.get("pid"), who.get("start")):
            fd = files.lock(path, create=False, patience=0.1)
    return fd


def take(wanted: Sequence[str], mark: Json) -> Tuple[List[int], Optional[Json]]:
    """Take all of `wanted` (sorted names) or none; the descriptors, and who is in the way if none.

    The descriptors are not inheritable until `pass_on`.
    """
    taken: List[int] = []
    for name in sorted(set(wanted)):
        path = path_of(name)
        fd = _lock(path)
        if fd < 0:
            release(taken)
            who = holder(path)
            return [], {
                "lease": name,
                "run_id": who.get("run_id"),
                "attempt": who.get("attempt"),
                "since_us": who.get("since_us"),
            }
        taken.append(fd)
    for fd in taken:
        write_mark(fd, mark)
    return taken, None


def take_some(names: Sequence[str], count: int, mark: Json) -> Tuple[List[str], List[int], Optional[Json]]:
    """Take any `count` of `names`, or none: the names, their descriptors, and who is in the way if none."""
    got: List[str] = []
    fds: List[int] = []
    blocked: Optional[Json] = None
    for name in sorted(names):
        if len(got) == count:
            break
        one, who = take([name], mark)
        if one:
            got.append(name)
            fds.extend(one)
        else:
            blocked = blocked or who
    if len(got) < count:
        release(fds)
        return [], [], blocked or {"lease": "device", "run_id": None, "attempt": None, "since_us": None}
    return got, fds, None


def write_mark(fd: int, mark: Json) -> None:
    data = wire.dumps(mark)
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)


def release(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def pass_on(fds: Sequence[int]) -> None:
    """Let the work inherit them: a device stays leased as long as anything of the work lives."""
    for fd in fds:
        os.set_inheritable(fd, True)


class Place:
    """A place in the queue of those who wait. It ends with the process that holds it."""

    def __init__(self, wanted: Sequence[str], mark: Json) -> None:
        self.folder = os.path.join(folder(), "queue")
        try:
            os.mkdir(self.folder, 0o700)
            os.chmod(self.folder, 0o1777)
        except FileExistsError:
            pass
        self.wanted = frozenset(wanted)
        self.name = "%020d.%s.%s" % (machine.mono_us(), mark["run_id"], mark["attempt"])
        hidden = os.path.join(self.folder, "." + self.name)
        self.fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        os.fchmod(self.fd, 0o666)
        os.pwrite(self.fd, wire.dumps(dict(mark, wanted=sorted(self.wanted))), 0)
        import fcntl

        # Locked before it is seen: a name in the queue whose lock is free is one that was left behind.
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        os.rename(hidden, os.path.join(self.folder, self.name))

    def leave(self) -> None:
        try:
            os.unlink(os.path.join(self.folder, self.name))
        except OSError:
            pass
        os.close(self.fd)


def ahead(wanted: Sequence[str], before: str = "~") -> List[Json]:
    """Those who wait for any of `wanted` and came before the place `before`, first comer first."""
    where = os.path.join(folder(), "queue")
    try:
        listed = sorted(name for name in os.listdir(where) if not name.startswith(".") and name < before)
    except OSError:
        return []
    found = []
    for name in listed:
        path = os.path.join(where, name)
        record = files.hint_json(path)
        if not frozenset(wanted).intersection(record.get("wanted") or ()):
            continue
        try:
            if files.held(path):
                found.append(record)
            else:
                os.unlink(path)
        except OSError:
            continue
    return found


def describe(holder: Json) -> str:
    """Who is in the way, as a sentence."""
    if holder.get("foreign"):
        return str(holder["foreign"])
    name = holder.get("lease")
    if not holder.get("run_id"):
        return "the lease %s is held" % name
    if name == "queue":
        return "run %s waits for the same lease and came first" % holder["run_id"]
    if name == "machine":
        return "run %s has the whole machine" % holder["run_id"]
    return "run %s holds the lease %s" % (holder["run_id"], name)


def refused(holder: Json, wanted: Sequence[str] = ()) -> Fault:
    """The refusal of a start whose lease somebody else has, and the place in line it would have had."""
    position = len(ahead(wanted)) + 1
    facts = {k: holder.get(k) for k in ("lease", "run_id", "attempt", "since_us")}
    if holder.get("foreign"):
        mend = "end that process, or ask for other devices"
        return Fault("FOREIGN", describe(holder), mend, holder=facts, position=position)
    mend = "route run --wait 30m waits for it"
    return Fault("BUSY", describe(holder), mend, holder=facts, position=position)
