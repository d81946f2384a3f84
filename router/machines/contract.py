"""Machine and Stream: all that core needs of a computer in order to run work on it."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from compute_router.backend import Backend, Freed, Handle, Kept, Offer, Shell, Status, Submission, There
from compute_router.errors import Rejected, RouteError
from compute_router.records import Record
from compute_router.workload import Workload

if TYPE_CHECKING:
    from compute_router.machines.running import Running

__all__ = ["Interpreter", "Machine", "MachineBackend", "Stream"]


@runtime_checkable
class Stream(Protocol):
    """Both ends of one command that runs on a machine.

    Every method raises `compute_router.errors.Broken` once the stream is gone: the command may
    have run, and may still run.
    """

    def read(self, limit: int) -> bytes:
        """At least one byte and at most `limit`; `b""` at the end of the command's output.
        Waits while the other side keeps silent (a deadline is the caller's, through `close`)."""
        ...  # without it a checker takes the docstring for a body that returns None

    def write(self, data: bytes) -> None:
        """Hand over all of `data`; returns when it was taken, not when it was read."""

    def close_write(self) -> None:
        """Say that no more input comes. May be repeated."""

    def exit_status(self, timeout: float) -> int | None:
        """The command's exit status, waiting at most `timeout` seconds; None if it has not ended."""

    def close(self) -> None:
        """Let go of the stream, from any thread; a `read` in progress ends. May be repeated, never
        raises. The command is not killed by this: ending work is `cancel`, never a lost connection."""


class Machine(ABC):
    """One computer we can open a command on.

    `name` stands in messages and handles; `root` is the folder on the machine that everything is
    kept below: absolute, or `~/...` below the home folder there, on a disk of the machine itself.
    """

    name: str
    root: str = "~/.route"

    @abstractmethod
    def open(self, argv: Sequence[str], *, deadline: float) -> Stream:
        """Start a command and return its two ends, within `deadline` seconds.

        `argv` is a constant of core: it never holds a user's string or a secret, so a transport
        that has only a shell on the other side may quote and join it. Raises `Unavailable` when
        the command did not run, `Broken` when it may have.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of connections; work that was started goes on. May be repeated."""


class Interpreter(Record, frozen=True, kw_only=True):
    """The Python of the work: how it is started on the machine, and what is known of what it holds.

    `stack` names the versions that compiled code depends on (`torch`, `triton`, `jax`, `python`),
    or the digest of the `lock` or `image` that fixes them all. `source` says where it comes from:
    `uv` (an environment of the dependencies listed, locked by `lock_sha256`, its text beside it in
    `route-lock.txt`), `current` (the client's own), `path` (the one asked for) or `machine` (what is
    there). Of `uv` also: whether this call `built` it or found it built, and the microseconds that
    took (`build_us`, resolving included); None where nobody looked.
    """

    python: str
    stack: dict[str, str] = {}
    source: str = "machine"
    lock_sha256: str | None = None
    built: bool | None = None
    build_us: int | None = None


class MachineBackend(Backend):
    """A backend whose places are machines.

    Subclasses give `health`, `offers`, `places` and `machines`; the rest is made once, above
    `Machine.open`, in `running.py`.
    """

    @abstractmethod
    def places(self) -> Sequence[Machine]:
        """Every machine of this backend: `find` asks them, and handles name one of them. No I/O."""

    @abstractmethod
    def machines(self, offer: Offer) -> Sequence[Machine]:
        """The machines behind `offer`, in rank order; more than one = all are prepared, then all
        committed, or none. No I/O."""

    def interpreter(self, workload: Workload) -> Interpreter:
        """The Python that `workload` runs under. May build it; raises `PreflightFailed` or `Rejected`.

        This default knows nothing of the machine but that `python3` is there.
        """
        if workload.dependencies and workload.python is None:
            raise Rejected(
                f"{self.name} cannot build an environment for the dependencies listed",
                mend='set python = "/path/on/the/machine", or python = "current" for its python3',
            )
        if workload.python in (None, "current"):
            return Interpreter(python="python3")
        return Interpreter(python=workload.python or "python3", source="path")

    def interpreter_on(self, machine: Machine, submission: Submission) -> Interpreter:
        """The Python that `submission` runs under on `machine`, which its offer names. May build it there;
        raises as `interpreter` does, or `Unavailable`. This default knows one Python for all machines."""
        return self.interpreter(submission.workload)

    def environment(self, workload: Workload) -> Mapping[str, Any] | None:
        """What `interpreter` would return, as far as it can be told without building anything: `source`,
        `python`, `lock_sha256`, and `sentence`, which says it to a person. None if nothing can be told.

        This default tells what needs no building.
        """
        if workload.dependencies and workload.python is None:
            return None
        try:
            found = self.interpreter(workload)
        except RouteError:
            return None
        said = {"current": "the Python of this client", "path": "the one asked for"}
        sentence = f"{found.python}, {said.get(found.source, 'what is there')}"
        return {"source": found.source, "python": found.python, "lock_sha256": None, "sentence": sentence}

    def leases(self, offer: Offer) -> Sequence[str]:
        """Named leases a run on `offer` holds while it is there, besides those of its devices."""
        return ()

    def keeps(self) -> int:
        """Microseconds for which the outputs of a run stay on its machine once a client has collected
        them, for another client; they give way earlier where room gets scarce. A day."""
        return 86_400_000_000

    def meeting(self, machine: Machine) -> tuple[str, str | None]:
        """Where the other machines of a run reach `machine`, and the network interface there that leads
        to them (None = whatever the work finds). This default takes its name for its address."""
        return machine.name, None

    def in_place(self, submission: Submission) -> Mapping[str, Any] | None:
        """Where and how a command is observed that another launcher started; None = it is staged here."""
        return None

    @functools.cached_property
    def _running(self) -> Running:
        from compute_router.machines.grouped import Grouped

        return Grouped(cast("Any", self))  # two names of one module, as type checkers see the source roots

    def expect(self, offer: Offer) -> None:
        self._running.expect(offer)

    def submit(self, submission: Submission) -> Handle:
        return self._running.submit(submission)

    def find(self, key: str) -> Handle | None:
        return self._running.find(key)

    def status(self, handle: Handle) -> Status:
        return self._running.status(handle)

    def logs(self, handle: Handle, offset: int = 0, follow: bool = False) -> Iterator[bytes]:
        return self._running.logs(handle, offset, follow)

    def attached(self, handle: Handle, offset: int = 0) -> Iterator[bytes | Status]:
        return self._running.attached(handle, offset)

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        return self._running.fetch(handle, into)

    def cancel(self, handle: Handle) -> None:
        self._running.cancel(handle)

    def noticed(self, handle: Handle) -> Mapping[str, int]:
        return self._running.noticed(handle)

    def cleanup(self, handle: Handle) -> None:
        self._running.cleanup(handle)

    def kept(self, ref: str) -> Kept | None:
        from compute_router.machines.others import kept

        return kept(cast("Any", self), cast("Any", self._running), ref)

    def there(self) -> Sequence[There]:
        from compute_router.machines.others import there

        found: Sequence[There] = there(cast("Any", self), cast("Any", self._running))
        return found

    def sweep(self, before_us: int, *, delete: bool) -> Sequence[Freed]:
        from compute_router.machines.others import sweep

        freed: Sequence[Freed] = sweep(
            cast("Any", self), cast("Any", self._running), before_us, delete=delete
        )
        return freed

    def node(self, handle: Handle, rank: int) -> Handle:
        from compute_router.machines.grouped import Grouped

        running = self._running
        return running.node(handle, rank) if isinstance(running, Grouped) else super().node(handle, rank)

    def shell(
        self, handle: Handle, argv: Sequence[str] = (), *, size: tuple[int, int] | None = None
    ) -> Shell:
        from compute_router.machines.shell import open_shell

        return open_shell(self._running.machine_of(handle), handle.run_id, argv, size=size)
