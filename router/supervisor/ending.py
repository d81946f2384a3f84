"""Ends the processes of an attempt, all of them and no others; never by name."""

from __future__ import annotations

import os
import signal
import time

from . import cgroup, files, group, machine, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Set, Tuple

    from .machine import Process
    from .runs import Attempt

GIVE_UP = 30.0
"""Seconds after the first SIGKILL; what still lives then is stuck in the kernel and is reported."""


class Tree:
    """The processes of one attempt, found by descent, session, group, marker, lease, log and cgroup.

    `keeper` is the waiter's pid where it is alive: as a subreaper it is above everything the work
    left behind, so that nothing can hide from it.
    """

    def __init__(
        self,
        attempt: Attempt,
        executed: Optional[Dict[str, Any]],
        keeper: int = 0,
        watcher: int = 0,
        link: int = 0,
    ) -> None:
        self.attempt, self.keeper = attempt, keeper
        self.pid = int(executed["pid"]) if executed else 0
        self.start = int(executed["start"]) if executed else 0
        self.marker = ("ROUTE_RUN_ID=%s" % attempt.run.id).encode()
        self.aside = ("ROUTE_SHELL=%s" % attempt.run.id).encode()
        started = attempt.json("started.json") or {}
        self._ours = {os.getpid(), os.getppid() if keeper else 0, keeper, watcher, link}
        self._ours.add(keeper or int(started.get("waiter", {}).get("pid", 0)))
        for name in ("watch.lock", group.LINK):
            self._ours.add(int(files.hint_json(attempt.at(name)).get("pid", 0)))
        self._leases = _inodes(list(started.get("leases", [])))
        self._logs = _inodes([attempt.at("log"), attempt.at("metrics.jsonl")])
        self.killed = 0

    def members(self) -> List[Process]:
        """The processes of the attempt that are alive now, without the supervisor's own."""
        table = {p.pid: p for p in machine.processes() if p.state not in ("Z", "X", "x")}
        leader = machine.process(self.pid) if self.pid else None
        # Once the leader's pid belongs to somebody else, its session and group tell nothing.
        numbers_hold = leader is None or leader.start == self.start
        below = self._descendants(table)
        grouped = cgroup.members(self.attempt)
        found = []
        for p in table.values():
            if p.pid in self._ours or (machine.LINUX and p.start < self.start):
                continue
            mine = (
                p.pid in below
                or p.pid in grouped
                or (numbers_hold and self.pid and self.pid in (p.session, p.group, p.pid))
                or self._marked(p.pid)
                or self._holds(p.pid)
            )
            if mine and not self._keeps_another(p.pid, table):
                found.append(p)
        return found

    def _descendants(self, table: Dict[int, Process]) -> Set[int]:
        children: Dict[int, List[int]] = {}
        for p in table.values():
            children.setdefault(p.parent, []).append(p.pid)
        roots = [self.keeper] if self.keeper else []
        leader = table.get(self.pid)
        if leader is not None and leader.start == self.start:
            roots.append(self.pid)
        found: Set[int] = set()
        while roots:
            for child in children.get(roots.pop(), []):
                if child not in found and child not in self._ours:
                    found.add(child)
                    roots.append(child)
        return found

    def _marked(self, pid: int) -> bool:
        try:
            fd = os.open("/proc/%d/environ" % pid, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            data = b"\0"
            while True:
                got = os.read(fd, 1 << 16)
                if not got:
                    break
                data += got
        except OSError:
            return False
        finally:
            os.close(fd)
        # A user's shell beside the run has its variables and is none of it.
        data += b"\0"
        return b"\0" + self.marker + b"\0" in data and b"\0" + self.aside + b"\0" not in data

    def _holds(self, pid: int) -> bool:
        """Whether the process has our log open for writing, or a lease with our lock on it: both are
        inherited, with an empty environment too. Somebody who only looks at a lease has no lock."""
        folder = "/proc/%d/fd" % pid
        try:
            listed = os.listdir(folder)
        except OSError:
            return False
        for name in listed:
            try:
                status = os.stat("%s/%s" % (folder, name))
                inode = (status.st_dev, status.st_ino)
                if inode in self._leases or inode in self._logs:
                    facts = machine.told("/proc/%d/fdinfo/%s" % (pid, name))
                    if inode in self._leases and b"FLOCK" in facts and b"WRITE" in facts:
                        return True
                    if inode in self._logs and _writes(facts):
                        return True
            except (OSError, ValueError):
                continue
        return False

    def _keeps_another(self, pid: int, table: Dict[int, Process]) -> bool:
        """Whether the process is, or is below, the supervisor of another run that this one started.

        The work of a run that was only recorded here, in place, is ours to end; its supervisor is not.
        """
        at, hops = pid, 0
        while at in table and at not in self._ours and hops < 64:
            lock = self._kept_by(at)
            if lock:
                return at == pid or not _in_place(lock)
            at, hops = table[at].parent, hops + 1
        return False

    def _kept_by(self, pid: int) -> str:
        """The lock of another run that the process has open as its supervisor; nothing if it is none."""
        folder = "/proc/%d/fd" % pid
        try:
            listed = os.listdir(folder)
        except OSError:
            return ""
        for name in listed:
            try:
                target = os.readlink("%s/%s" % (folder, name))
            except OSError:
                continue
            if target.endswith(("/sup.lock", "/watch.lock")) and not target.startswith(self.attempt.path):
                return target
        return ""

    def _send(self, members: List[Process], number: int) -> None:
        for p in members:
            if send(p.pid, p.start, number):
                self.killed += number == signal.SIGKILL

    def end(self, why: str, grace: float) -> List[int]:
        """Ask all to end, wait `grace` seconds, then kill until two looks in a row find nothing.

        The first to signal says why in `killing.json`. Returns the pids that could not be ended.
        """
        members = self.members()
        if not members:
            return []
        announce(self.attempt, why)
        self._send(members, signal.SIGTERM)
        self._send(members, signal.SIGCONT)
        until = time.monotonic() + grace
        pause = 0.002
        while time.monotonic() < until:
            time.sleep(min(pause, max(0.0, until - time.monotonic())))
            pause = min(pause * 1.5, 0.1)
            if not any(machine.alive(p.pid, p.start) for p in members):
                members = self.members()
                if not members:
                    break
                self._send(members, signal.SIGTERM)
        quiet, until = 0, time.monotonic() + GIVE_UP
        while quiet < 2:
            members = self.members()
            if not members:
                quiet += 1
                continue
            quiet = 0
            if time.monotonic() > until:
                return [p.pid for p in members]
            if not any(self._kept_by(p.pid) for p in members):
                cgroup.kill(self.attempt, self._nested)
            self._send(members, signal.SIGKILL)
            time.sleep(0.005)
        return []

    def _nested(self, pids: Set[int]) -> bool:
        return any(self._kept_by(pid) for pid in pids)


def _in_place(lock: str) -> bool:
    """Whether the run that this lock of an attempt belongs to is one that is observed in place."""
    run = os.path.dirname(os.path.dirname(os.path.dirname(lock)))
    return bool(files.hint_json(os.path.join(run, "spec.json")).get("in_place"))


def _inodes(paths: List[str]) -> Set[Tuple[int, int]]:
    found = set()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found


def _writes(fdinfo: bytes) -> bool:
    for line in fdinfo.splitlines():
        if line.startswith(b"flags:"):
            return bool(int(line.split()[1], 8) & os.O_ACCMODE)
    return False


def announce(attempt: Attempt, why: str) -> bool:
    """Say why the tree is about to be signalled; the first to say so decides what the end is called."""
    record = {"why": why, "at_us": machine.now_us(), "mono_us": machine.mono_us(), "pid": os.getpid()}
    try:
        return files.create_once(attempt.at("killing.json"), wire.dumps(record))
    except OSError:
        # No space for the record: the name alone still says that the tree was signalled.
        return files.mark_once(attempt.at("killing.json"))


def reason(attempt: Attempt) -> str:
    """Why the tree was signalled; nothing if it was not."""
    if not attempt.has("killing.json"):
        return ""
    found = files.hint_json(attempt.at("killing.json")).get("why")
    return found if isinstance(found, str) else "cancel" if attempt.has("cancel.json") else "timeout"


def send(pid: int, start: int, number: int) -> bool:
    """Signal exactly the process that was seen; a pid that was reused meanwhile is left alone."""
    opened = getattr(os, "pidfd_open", None)
    try:
        if opened is not None and hasattr(signal, "pidfd_send_signal"):
            try:
                fd = opened(pid)
            except ProcessLookupError:
                return False
            except OSError:
                opened = None
            else:
                try:
                    now = machine.process(pid)
                    if now is None or now.start != start:
                        return False
                    signal.pidfd_send_signal(fd, number)
                    return True
                finally:
                    os.close(fd)
        now = machine.process(pid)
        if now is None or now.start != start:
            return False
        os.kill(pid, number)
        return True
    except OSError:
        return False
