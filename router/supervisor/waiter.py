"""The waiter: parent of the work. Holds its lock and leases, waits, and writes the exit."""

from __future__ import annotations

import os
import select
import signal
import time

from . import cgroup, closing, files, forking, group, inplace, leases, machine, masking, watcher, wire, work
from .forking import traceback
from .observing import before
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .forking import Told
    from .link import Keeper
    from .runs import Attempt

    Json = Dict[str, Any]

POLL = 0.05
"""Seconds between two tries for a lease; the only poll there is."""
BESIDE = 0.03
"""Seconds that the work runs before it is watched: shorter work is over before that would pay."""
SLOW = 1.0
"""The same where each try asks nvidia-smi."""
RESPAWN = (0.0, 0.1, 0.5, 2.0, 10.0)


class Waiter:
    """One attempt from the first lock to the last record."""

    def __init__(self, attempt: Attempt, spec: Json, secrets: Dict[str, str], asked: Json) -> None:
        self.attempt, self.spec, self.secrets, self.asked = attempt, spec, secrets, asked
        self.fds: List[int] = []
        self.devices: List[str] = []
        self.names: List[str] = []
        self.pid = self.watcher = 0
        self.end = -1
        self.link: Optional[Keeper] = None
        self.usage: Any = None
        self.events: List[Json] = []
        self.note("asked")

    def note(self, event: str, actor: str = "supervisor") -> None:
        self.events.append(
            {"event": event, "t_us": machine.now_us(), "mono_us": machine.mono_us(), "actor": actor}
        )

    def run(self, told: Told, wait_us: Optional[int]) -> None:
        """All of it. What goes wrong before the exec leaves nothing started, and is told: to the server
        as long as it listens, else as the outcome. Whatever is told, `sup.lock` is free by then."""
        lock = files.lock(self.attempt.at("sup.lock"), patience=0.25)
        if lock < 0:
            return told.say("other")
        try:
            self._run(told, wait_us)
        except (Fault, OSError) as e:
            fault = e if isinstance(e, Fault) else forking.refusal(e)
            if not isinstance(e, Fault):
                traceback()
            if told.fd < 0 and not self.attempt.has("started.json"):
                reason = "wait_expired" if fault.code in ("BUSY", "FOREIGN") else fault.code.lower()
                self.attempt.finish("failed", reason, "never executed; " + fault.what)
                forget(self.attempt.at("waiting.json"))
            os.close(lock)
            return told.say("fault", **fault.told())
        os.close(lock)
        return told.say("already")

    def _run(self, told: Told, wait_us: Optional[int]) -> None:
        attempt = self.attempt
        if attempt.has("exit.json") or attempt.has("started.json"):
            return
        if attempt.run.spec() != self.spec:
            raise Fault("CONFLICT", "run %s has got another specification meanwhile" % attempt.run.id)
        for name in ("waiting.json", group.HELD):
            forget(attempt.at(name))
        attempt.reserve()
        if attempt.has("cancel.json"):
            attempt.finish("cancelled", "cancel", "cancelled before it started")
            return
        adopts = forking.name_process("route-waiter")
        if self.spec.get("volumes"):
            self.volumes()
        if not self.lease(told, wait_us):
            return
        watcher.prepare(attempt)
        made = self.volumes(make=True) if self.spec.get("volumes") else []
        work.make_folders(attempt, self.spec)
        log = os.open(
            attempt.at("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        env = work.environment(attempt, self.spec, {}, self.devices)
        self.note("leased")
        before.look(attempt, self.spec, self.devices, env)
        if self.spec.get("import_probes"):
            from .observing import probes

            told.say("starting")  # importing takes longer than a client waits for an answer
            probes.run(attempt, self.spec, env)
            self.note("probed")
            if attempt.has("cancel.json"):
                attempt.finish("cancelled", "cancel", "cancelled before it started")
                return
        hold = group.hold(attempt, self.spec, self.devices)
        if hold is not None:
            if not hold.wait(told):
                os.close(log)
                return
            self.note("released", "client")
        go = hold.go if hold is not None else {}
        argv = work.command(attempt, self.spec, go)
        env = work.environment(attempt, self.spec, self.secrets, self.devices, go)
        masking.secure(self.secrets)
        masking.begin(attempt, self.secrets)
        me = machine.process(os.getpid())
        started = {
            "schema": "route.started/1",
            "attempt": attempt.number,
            "boot_id": machine.boot_id(),
            "machine_id": machine.machine_id(),
            "waiter": {"pid": os.getpid(), "start": me.start if me else 0, "supervisor": forking.own()},
            "leases": [leases.path_of(name) for name in self.names],
            "devices": self.devices,
            "scrubbed": work.leaked(self.spec, os.environ),
            "volumes": made,
            "adopts": adopts,
            "oom": {"group": cgroup.oom_kills(), "machine": cgroup.machine_oom_kills()},
            "asked": self.asked,
            "at_us": machine.now_us(),
            "mono_us": machine.mono_us(),
        }
        if not files.create_once(attempt.at("started.json"), wire.dumps(started)):
            return
        for name in ("waiting.json", group.HELD):
            forget(attempt.at(name))
        if hold is not None:
            from . import link

            self.link = link.Keeper(attempt, self.spec, go, hold.link)
        self.spawn(argv, env, log, told)
        if self.link is not None:
            self.link.start()
        del env
        closing.close(self, self.wait())

    def volumes(self, make: bool = False) -> List[Json]:
        """See that every volume can be used: before a lease is asked for, and again (it may have waited
        for hours) where they are to be made."""
        from . import volumes

        volumes.check(self.attempt, self.spec)
        return volumes.make(self.attempt, self.spec) if make else []

    def beside(self) -> None:
        """What is done while the work runs already: nothing of it may cost the outcome."""
        try:
            if not self.watcher:
                self.watch()
            if self.link is not None:
                self.link.start()
            # All that the end needs is loaded now: the folder it comes from may be gone by then.
            from . import manifest, measured
            from .observing import building, inside, torchtrace

            del manifest, measured, building, inside, torchtrace
        except Exception:
            traceback()

    # Leases

    def lease(self, told: Told, wait_us: Optional[int]) -> bool:
        """Take every lease, waiting as long as was allowed. False if it was cancelled meanwhile; raises
        `Fault` BUSY or FOREIGN when the time is up."""
        until = None if wait_us is None else time.monotonic() + wait_us / 1e6
        place: Optional[leases.Place] = None
        if inplace.of(self.spec):
            # The place is its launcher's to give: nothing is leased, what it left visible is noted.
            if self.spec.get("devices", {}).get("family") == "gpu":
                self.devices = self._visible()
            return True
        wanted = [*self.spec.get("leases", ())]
        found: Optional[Json] = None
        if self.spec.get("devices", {}).get("family") == "gpu":
            from . import devices

            found = devices.seen()
            wanted += devices.choices(self.spec["devices"], found)
        if not wanted:
            return True
        me = machine.process(os.getpid())
        mark = {
            "run_id": self.attempt.run.id,
            "attempt": self.attempt.number,
            "pid": os.getpid(),
            "start": me.start if me else 0,
            "since_us": machine.now_us(),
        }
        seen: Optional[Json] = None
        try:
            while True:
                front = leases.ahead(wanted, place.name if place else "~")
                holder = self._try(mark, found) if not front else dict(front[0], lease="queue")
                found = None
                if holder is None:
                    return True
                now = time.monotonic()
                if until is not None and now >= until:
                    raise leases.refused(holder, wanted)
                if place is None:
                    place = leases.Place(wanted, mark)
                said = {
                    "since_us": mark["since_us"],
                    "leases": wanted,
                    "holder": {k: holder.get(k) for k in ("lease", "run_id", "attempt", "since_us")},
                    "position": len(leases.ahead(wanted, place.name)) + 1,
                    "detail": leases.describe(holder),
                }
                if said != seen:
                    seen = said
                    files.write_hint(self.attempt.at("waiting.json"), wire.dumps(said))
                told.say("waiting")
                pause = SLOW if self.spec.get("devices", {}).get("family") == "gpu" else POLL
                time.sleep(pause if until is None else max(0.0, min(pause, until - now)))
                if self.attempt.has("cancel.json"):
                    self.attempt.finish("cancelled", "cancel", "cancelled while it waited")
                    forget(self.attempt.at("waiting.json"))
                    return False
        finally:
            if place is not None:
                place.leave()

    def _visible(self) -> List[str]:
        from . import devices

        try:
            return inplace.visible(os.environ, [gpu["uuid"] for gpu in devices.listing() if gpu["uuid"]])
        except Fault:
            traceback()
            return []

    def _try(self, mark: Json, found: Optional[Json]) -> Optional[Json]:
        """One try for all leases; None when they are ours, else who is in the way. `found` is what
        was just seen of the GPUs, or None to look now."""
        named = list(self.spec.get("leases", ()))
        fds, blocked = leases.take(named, mark)
        if blocked is not None:
            return blocked
        if self.spec.get("devices", {}).get("family") == "gpu":
            from . import devices

            try:
                got, more, blocked = devices.take(self.spec["devices"], mark, found or devices.seen())
            except Fault:
                leases.release(fds)
                raise
            if blocked is not None:
                leases.release(fds)
                return blocked
            fds += more
            self.devices = [devices.uuid_of(name) for name in got]
            named += got
        self.fds, self.names = fds, named
        return None

    # The work

    def spawn(self, argv: List[str], env: Dict[str, str], log: int, told: Told) -> None:
        leases.pass_on(self.fds)
        self.note("spawn")
        hear, say = os.pipe()
        tag = {"schema": "route.exec/1", "attempt": self.attempt.number, "argv": argv}
        me = machine.process(os.getpid())
        inplace.tell(self.spec, waiter={"pid": os.getpid(), "start": me.start if me else 0})
        self.pid = os.fork()
        if self.pid == 0:
            os.close(hear)
            if told.fd >= 0:
                os.close(told.fd)
            work.become(self.attempt, self.spec, argv, env, log, say, tag)
        os.close(say)
        os.close(log)
        child = machine.process(self.pid)
        inplace.tell(self.spec, work={"pid": self.pid, "start": child.start if child else 0})
        given = inplace.stdin(self.spec)
        if given >= 0:
            # A writer to the work's stdin is to see when the work has closed it.
            os.close(given)
        why = os.read(hear, 4096).decode("utf-8", "replace")  # empty: it is executed
        os.close(hear)
        if why and not self.attempt.has("exec.json"):
            self.attempt.finish("failed", "cannot_start", "never executed; " + why)
        for fd in self.fds:
            os.set_inheritable(fd, False)
        self.note("exec")
        told.say("started")

    def watch(self) -> None:
        """Start a watcher beside this waiter."""
        alive, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(end)
                forking.close_others({0, 1, 2, alive})
                watcher.main(self.attempt, self.spec, alive, self.secrets)
            finally:
                os._exit(0)
        os.close(alive)
        if self.end >= 0:
            os.close(self.end)
        self.end, self.watcher = end, pid

    def wait(self) -> int:
        """Wait for the work; bring the watcher back should it die. Its exit code, or minus a signal."""
        wake, bell = os.pipe()
        os.set_blocking(bell, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
        deaths = 0
        again: Optional[float] = time.monotonic() + BESIDE
        while True:
            status = self._ended()
            if status is not None:
                self.note("exit", "work")
                break
            kept = self._kept()
            self._bury()
            if self._kept() < kept:
                again = time.monotonic() + RESPAWN[min(deaths, len(RESPAWN) - 1)]
                deaths += 1
            if again is not None and time.monotonic() >= again:
                again = None
                self.beside()
                if not self.watcher or (self.link is not None and not self.link.pid):
                    again = time.monotonic() + RESPAWN[-1]
            timeout = None if again is None else max(0.0, again - time.monotonic())
            if select.select([wake], [], [], timeout)[0]:
                try:
                    os.read(wake, 512)
                except BlockingIOError:
                    pass
        signal.set_wakeup_fd(-1)
        return status

    def _kept(self) -> int:
        """How many processes live beside the work that are to be brought back should they die."""
        return (self.watcher > 0) + (self.link is not None and self.link.pid > 0)

    def _ended(self) -> Optional[int]:
        """The work's exit code, or minus a signal; None while it lives.

        It is not reaped yet: as long as it is a zombie nobody else can get its pid.
        """
        if hasattr(os, "waitid"):
            done = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if done is None:
                return None
            return done.si_status if done.si_code == os.CLD_EXITED else -done.si_status
        pid, status, self.usage = os.wait4(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)

    def _bury(self) -> None:
        """Wait for whatever else has ended: the watcher, and what the work left to us as its subreaper."""
        while True:
            if hasattr(os, "waitid"):
                done = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                pid = done.si_pid if done is not None else 0
            else:
                pid = os.waitpid(self.watcher, os.WNOHANG)[0] if self.watcher else 0
            if pid in (0, self.pid):
                return
            if hasattr(os, "waitid"):
                os.waitpid(pid, os.WNOHANG)
            if pid == self.watcher:
                self.watcher = 0
            if self.link is not None and pid == self.link.pid:
                self.link.pid = 0

    def reap(self) -> Any:
        """Reap the work, once nothing needs its pid any more; what it and its children used."""
        try:
            return os.wait4(self.pid, 0)[2]
        except ChildProcessError:
            return self.usage


def forget(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
