"""Looks whether runs can be had on machines: all of them side by side, each finding one line and its mend."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from compute_router.backend import HealthCheck
from compute_router.errors import Broken, ConfigError, CredentialsError, RouteError, Unavailable
from compute_router.machines.contract import Machine
from compute_router.machines.entry import MachineEntry
from compute_router.machines.judging import clock, facts, looks_at_gpus
from compute_router.machines.session import Session

__all__ = ["check", "check_all"]

T = TypeVar("T")
SLOW_US = 300_000
"""A command that takes longer is one whose login shell does more than it should."""
MOST_NOISE = 1 << 20
_NO_PYTHON = (
    "install Python 3.8 or later there, first on the PATH that `ssh MACHINE 'command -v python3'` sees"
)
_QUIET = "let the shell's rc file print on a terminal only: [ -t 1 ] || return"


def check(
    machine: Machine, entry: MachineEntry, *, deadline: float = 8.0, quick: bool = False
) -> tuple[HealthCheck, ...]:
    """What stands in the way of runs on `machine`, within `deadline` seconds. Never raises.

    A check that is not `ok` means that runs cannot be had there; one that `warns` stops none. The first
    is always that of reaching it. `quick` only opens it and greets. Starts nothing that stays.
    """
    return check_all({machine.name: (machine, entry)}, deadline, quick=quick)[machine.name]


def check_all(
    machines: Mapping[str, tuple[Machine, MachineEntry]], deadline: float = 8.0, *, quick: bool = False
) -> dict[str, tuple[HealthCheck, ...]]:
    """`check` of several, side by side, in `deadline` seconds in all."""
    end = time.monotonic() + deadline
    # A little earlier, so that who was asked in vain can say so himself.
    sooner = end - min(0.5, deadline / 10)
    looks = {name: _Look(machine, entry, sooner, quick) for name, (machine, entry) in machines.items()}
    going = {name: _Later(look.look) for name, look in looks.items()}
    found = {}
    for name, look in looks.items():
        over = going[name].wait(end)
        seen = tuple(look.found)
        found[name] = seen if over else (*seen, look.late(deadline))
    return found


class _Later(Generic[T]):
    """Something done in a thread that the process does not wait for at its end."""

    def __init__(self, what: Callable[[], T]) -> None:
        self._what = what
        self._made: T | None = None
        self._raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._made = self._what()
        except BaseException as e:
            self._raised = e

    def wait(self, end: float) -> bool:
        """Whether it is over at `end` (of the monotonic clock)."""
        self._thread.join(max(0.0, end - time.monotonic()))
        return not self._thread.is_alive()

    def result(self) -> T:
        if self._raised is not None:
            raise self._raised
        return self._made  # type: ignore[return-value]


class _Look:
    """The look at one machine; `found` grows while it goes on."""

    def __init__(self, machine: Machine, entry: MachineEntry, end: float, quick: bool) -> None:
        self.machine, self.entry, self.end, self.quick = machine, entry, end, quick
        self.found: list[HealthCheck] = []
        self.step = "connecting"

    def note(self, name: str, seen: str, *, mend: str = "", ok: bool = True, warns: bool = False) -> None:
        self.found.append(HealthCheck(name=name, ok=ok, seen=seen, mend=mend, warns=warns))

    @property
    def left(self) -> float:
        return max(0.2, self.end - time.monotonic())

    def late(self, deadline: float) -> HealthCheck:
        return HealthCheck(
            name="in time",
            ok=False,
            seen=f"no answer within {deadline:.0f} s while {self.step}",
            mend="look at the network, the login shell and the disks of that machine",
        )

    def look(self) -> None:
        try:
            self._quick() if self.quick else self._whole()
        except RouteError as e:
            self._stopped(e)
        except Broken as e:
            self.note("connection", f"it broke while {self.step}: {e}", ok=False, mend="try again")
        except Exception as e:  # a check that fails is a finding, and no end of the others
            self.note("check", f"internal error: {type(e).__name__}: {str(e)[:200]}", ok=False)

    # What stops it

    def _stopped(self, e: RouteError) -> None:
        what = e.what.removeprefix(f"{self.machine.name}: ").removeprefix(f"{self.machine.name}, ")
        mend = "" if e.mend.startswith("route machine check") else e.mend
        name = "reachable" if isinstance(e, Unavailable) else "login"
        if isinstance(e, ConfigError):
            name = "settings"
        elif isinstance(e, CredentialsError) and "KEY" in what:
            name = "key"
        self.note(name, what, ok=False, mend=mend)

    def _not_greeted(self, e: RouteError) -> None:
        """Why no supervisor answered where commands can be run."""
        what = e.what.removeprefix(f"{self.machine.name}: ")
        if e.told == "OLD_PYTHON":
            self.note("python3", what, ok=False, mend=_NO_PYTHON)
        elif isinstance(e, (CredentialsError, ConfigError)):
            self._stopped(e)
        elif not isinstance(e, Unavailable):
            self.note("root", what, ok=False, mend=e.mend)
        else:
            status, said = self._said(("python3", "--version"))
            if status in (126, 127) or (status and not said.startswith("Python")):
                seen = said or f"python3 ends with status {status}"
                self.note("python3", seen, ok=False, mend=_NO_PYTHON)
            else:
                self.note("supervisor", what, ok=False, mend=f"it is started with {said or 'python3'} there")

    def _said(self, argv: tuple[str, ...]) -> tuple[int | None, str]:
        """The exit status of a command, and the last line that it or its shell said."""
        try:
            status, noise, complaint, _ = self._run(argv)
        except RouteError as e:
            return None, e.what
        last = noise.decode("utf-8", "replace").strip().splitlines()[-1:]
        return status, complaint or (last[0][:300] if last else "")

    def _run(self, argv: tuple[str, ...]) -> tuple[int | None, bytes, str, int]:
        """Exit status of a command of core, what came on its output, its last complaint, and the
        microseconds from being connected to its end."""
        stream = self.machine.open(argv, deadline=self.left)
        began = time.monotonic_ns()
        guard = threading.Timer(self.left, stream.close)
        guard.daemon = True
        guard.start()
        data, complaint = bytearray(), ""
        try:
            while len(data) < MOST_NOISE and (piece := stream.read(1 << 16)):
                data += piece
        except Broken as e:
            # A command that says nothing is no broken stream; one with complaints has them in there.
            complaint = str(e).partition(": ")[2]
        finally:
            guard.cancel()
        status = stream.exit_status(min(1.0, self.left))
        stream.close()
        if status is None and not data:
            raise Unavailable(f"{self.machine.name}: a command did not end in time", mend="try it with ssh")
        return status, bytes(data), complaint, (time.monotonic_ns() - began) // 1000

    # What is looked at

    def _greeted(self) -> Session:
        return Session(self.machine, opening=self.left)

    def _quick(self) -> None:
        began = time.monotonic_ns()
        try:
            session = Session(self.machine, opening=self.left, glance=True)
        except RouteError as e:
            if e.told:
                self._not_greeted(e)
                return
            raise
        took = (time.monotonic_ns() - began) // 1_000_000
        python = f"Python {session.hello['python']}, " if "python" in session.hello else "new here, "
        self.note("reachable", f"{python}answers within {took} ms")
        session.close()

    def _whole(self) -> None:
        began = time.monotonic_ns()
        greeting = _Later(self._greeted)
        status, noise, complaint, shell_us = self._run(("true",))
        took = (time.monotonic_ns() - began) // 1_000_000
        self.note("reachable", f"{self.entry.address} answers in {took} ms")
        if status != 0:
            said = complaint or noise.decode("utf-8", "replace").strip()[:200]
            self.note(
                "login shell",
                f"a command ends there with status {status}" + (f": {said}" if said else ""),
                ok=False,
                mend="give the user a login shell, and lift a ForceCommand",
            )
            return
        self._noise(noise)
        self.step = "starting the supervisor"
        greeting.wait(self.end)
        try:
            session = greeting.result()
        except RouteError as e:
            self._not_greeted(e)
            return
        if session is None:
            raise Unavailable(f"{self.machine.name}: its supervisor did not answer in time", mend="try again")
        self.note("python3", str(session.hello.get("python")))
        self.step = "looking at its disks and GPUs"
        # The clock is told best by an answer that takes no time.
        session.ask("status", deadline=self.left, run_ids=[])
        if shell_us > SLOW_US and self.left * 1e6 > 2 * shell_us:
            # It was measured beside a supervisor that started; alone it may be quicker.
            shell_us = min(shell_us, self._run(("true",))[3])
        self._shell(shell_us)
        self.found.append(clock(session.clock))
        answer = session.ask(
            "checkup",
            deadline=self.left,
            within_us=max(500_000, int((self.left - 0.4) * 1e6)),
            gpus=looks_at_gpus(self.entry),
        )
        self.found += facts(answer.head, self.entry)
        session.close()

    def _noise(self, noise: bytes) -> None:
        if noise:
            begins = noise[:60].decode("utf-8", "replace")
            self.note(
                "banner",
                f"each command brings {len(noise)} bytes that nobody asked for, which begin {begins!r}",
                warns=True,
                mend=_QUIET,
            )

    def _shell(self, took_us: int) -> None:
        slow = took_us > SLOW_US
        self.note(
            "login shell",
            f"a command takes {took_us // 1000} ms",
            warns=slow,
            mend="shorten what its rc files do where no terminal is" if slow else "",
        )
