"""The watcher: observes the work, holds it to its deadline, caps its log, ends it when asked to."""

from __future__ import annotations

import os
import select
import signal
import time

from . import cgroup, ending, files, group, machine, masking, notice, truth, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .runs import Attempt

    Json = Dict[str, Any]

NOTE = 128
GRACE_US = 10_000_000
SAMPLE_US = 10_000_000
FASTEST = 4e9
"""Bytes a second that no writer of a log is expected to exceed; sets how seldom its size is looked at."""


class Watcher:
    """Watches one attempt until it is over. `alive` is a pipe that ends with the waiter, or -1."""

    def __init__(self, attempt: Attempt, spec: Json, alive: int, secrets: Dict[str, str]) -> None:
        self.attempt, self.spec, self.alive, self.secrets = attempt, spec, alive, secrets
        look = masking.scrubber(secrets)
        self.masker = masking.Masker(attempt, look) if look is not None else None
        self.executed: Json = attempt.json("exec.json") or {}
        started = attempt.json("started.json") or {}
        self.keeper = int(started.get("waiter", {}).get("pid", 0)) if alive >= 0 else 0
        self.sample_us = int(spec.get("observe", {}).get("sample_us") or SAMPLE_US)
        self.cap: Optional[int] = spec.get("log_cap_bytes")
        timeout = spec.get("timeout_us")
        begun = self.executed.get("mono_us", machine.mono_us())
        self.deadline = None if timeout is None else (begun + timeout) / 1e6
        from .observing import sampling  # nobody who starts a watcher needs it himself

        self.sampler = sampling.Sampler(attempt, spec)
        self.traces = 0
        """Bytes that torch's traces may take of the disk, once they are ours to bound."""
        if spec.get("observe", {}).get("torch_trace"):
            from .observing import torchtrace

            self.traces = torchtrace.room(attempt)
        self.ended = False
        self.size = 0
        self.wake, self.bell = os.pipe()

    def run(self) -> None:
        for fd in (self.wake, self.bell):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.set_wakeup_fd(self.bell, warn_on_full_buffer=False)
        folder = notice.watch([(self.attempt.path, notice.NEW)])
        log = notice.watch([])
        poll = select.poll()
        work = machine.pidfd(int(self.executed.get("pid") or 0), int(self.executed.get("start") or 0))
        gauges = self.sampler.fd
        for fd in (self.wake, folder.fd, log.fd, gauges, self.alive, work if self.alive < 0 else -1):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        if self.alive >= 0:
            cgroup.enter(self.attempt, int(self.executed.get("pid") or 0))
        next_sample = time.monotonic() + self.sample_us / 1e6
        self.sample()
        while True:
            now = time.monotonic()
            if self.over():
                return self.leave()
            self.obey(now)
            if now >= next_sample:
                self.sample()
                next_sample = now + self.sample_us / 1e6
            until = [next_sample]
            if self.deadline is not None and not self.ended:
                until.append(self.deadline)
            try:
                look = self.cap_log(log)
            except OSError:
                look = 1.0
            if look is not None:
                until.append(now + look)
            look = self.masker.go(log) if self.masker is not None else None
            if look is not None:
                until.append(time.monotonic() + look)
            if self.alive < 0 and work < 0:
                until.append(now + 1.0)
            if folder.fd < 0:
                until.append(now + 0.2)
            poll_ms = max(0, int((min(until) - time.monotonic()) * 1000) + 1)
            for fd, _ in poll.poll(poll_ms):
                if fd == self.alive:
                    poll.unregister(fd)
                    os.close(fd)
                    self.alive, self.keeper = -1, 0
                    work = machine.pidfd(
                        int(self.executed.get("pid") or 0), int(self.executed.get("start") or 0)
                    )
                    if work >= 0:
                        poll.register(work, select.POLLIN)
                elif fd == folder.fd or fd == log.fd:
                    (folder if fd == folder.fd else log).drain()
                elif fd == work:
                    # It stays readable; from now on it is looked at by time, until its end is told.
                    poll.unregister(fd)
                    os.close(fd)
                    work = -1
                elif fd == gauges:
                    self.keep(self.sampler.late())
                    if self.sampler.fd < 0:
                        poll.unregister(fd)
                        gauges = -1
                elif fd == self.wake:
                    try:
                        os.read(fd, 512)
                    except BlockingIOError:
                        pass

    def over(self) -> bool:
        """Whether the attempt is final. With the waiter gone it is this process that finds that out."""
        if self.attempt.has("exit.json"):
            cgroup.leave(self.attempt)
            return True
        if self.alive >= 0:
            return False
        if truth.final(truth.of(self.attempt)):
            return True
        # Its records are gone, so nobody will ever tell its end: there is nothing left to watch.
        return not self.attempt.has("started.json") and not self.works()

    def works(self) -> bool:
        """Whether the work's own process still runs."""
        return machine.alive(self.executed.get("pid"), self.executed.get("start"))

    def leave(self) -> None:
        """With the waiter gone it is this process that knows what to look for in what the work left."""
        if self.alive >= 0 or self.masker is None:
            return
        from . import closing

        lock = files.lock(self.attempt.at("sup.lock"), patience=10.0)
        if lock >= 0:
            closing.settle(self.attempt, self.spec, {}, self.secrets)
            os.close(lock)

    def obey(self, now: float) -> None:
        """End the work if somebody asked for that, or if its time is up."""
        if self.ended:
            return
        why = ""
        if self.attempt.has("cancel.json"):
            why = "cancel"
        elif self.deadline is not None and now >= self.deadline:
            why = "timeout"
        elif self.attempt.has(group.END):
            why = "group"
        if why:
            self.ended = True
            grace = self.spec.get("grace_us")
            tree = ending.Tree(self.attempt, self.executed or None, self.keeper)
            left = tree.end(why, (GRACE_US if grace is None else grace) / 1e6)
            if left:
                files.write_hint(self.attempt.at("stuck.json"), wire.dumps({"pids": left}))

    def sample(self) -> None:
        """One line of what the machine is like, and the heartbeat; both are hints, never evidence."""
        try:
            line = self.sampler.sample()
            files.write_hint(self.attempt.at("heartbeat.json"), wire.dumps(line))
            self.keep([line])
        except (OSError, ValueError):
            pass
        if self.traces:
            from .observing import torchtrace

            try:
                torchtrace.bound(self.attempt, self.traces)
            except OSError:
                pass

    def keep(self, lines: List[Json]) -> None:
        """Append to the samples, as long as they are not too many."""
        try:
            fd = os.open(
                self.attempt.at("samples.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                if lines and os.fstat(fd).st_size < 64 << 20:
                    os.write(fd, b"".join(wire.dumps(line) + b"\n" for line in lines))
            finally:
                os.close(fd)
        except OSError:
            pass

    def cap_log(self, events: notice.Notice) -> Optional[float]:
        """Keep the log below its cap; seconds until it has to be looked at again, None = when it grows."""
        if self.cap is None:
            return None
        from . import logcap

        try:
            status = os.stat(self.attempt.at("log"))
        except OSError:
            return 1.0
        used = status.st_blocks * 512
        if logcap.due(self.cap, used):
            used = logcap.cap(self.attempt, self.cap, status.st_size)
            if used < 0:
                self.cap = None
                return None
        grew, self.size = status.st_size != self.size, status.st_size
        if not grew:
            if events.fd >= 0:
                events.once(self.attempt.at("log"))
                if os.stat(self.attempt.at("log")).st_size == self.size:
                    return None
            else:
                return 0.5
        return min(1.0, max(0.005, (self.cap - used) / FASTEST))


def prepare(attempt: Attempt) -> None:
    """Make the lock file with room for what its holder notes: a disk that is full later has none."""
    fd = os.open(attempt.at("watch.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        files.write_all(fd, b" " * NOTE)
    finally:
        os.close(fd)


def main(attempt: Attempt, spec: Json, alive: int, secrets: Optional[Dict[str, str]] = None) -> None:
    """Be the watcher of `attempt`, unless it has one."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    lock = files.lock(attempt.at("watch.lock"), patience=0.25)
    if lock < 0:
        return
    me = machine.process(os.getpid())
    try:
        os.pwrite(lock, wire.dumps({"pid": os.getpid(), "start": me.start if me else 0}).ljust(NOTE), 0)
    except OSError:
        pass  # `cancel` wakes it by the new file in its folder then
    try:
        import ctypes

        ctypes.CDLL(None).prctl(15, b"route-watcher", 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass
    made: Optional[Watcher] = None
    try:
        made = Watcher(attempt, spec, alive, secrets or {})
        made.run()
    except BaseException:
        import traceback

        traceback.print_exc()
    if made is not None:
        made.sampler.close()
    os.close(lock)


def adopt(attempt: Attempt, spec: Json) -> None:
    """Give an orphaned attempt a watcher again, in a process of its own; does nothing if it has one."""
    if files.held(attempt.at("watch.lock")):
        return
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                from .forking import close_others, detach

                close_others({0, 1, 2})
                detach(attempt.at("supervisor.log"))
                main(attempt, spec, -1)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def nudge(attempt: Attempt) -> None:
    """Wake the watcher, so that it sees a new `cancel.json` at once."""
    who = files.hint_json(attempt.at("watch.lock"))
    if machine.alive(who.get("pid"), who.get("start")):
        try:
            os.kill(int(who["pid"]), signal.SIGUSR1)
        except OSError:
            pass
