"""Machine and Stream: all that core needs of a computer in order to run work on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from compute_router.backend import Backend, Offer

__all__ = ["Machine", "MachineBackend", "Stream"]


@runtime_checkable
class Stream(Protocol):
    """Both ends of one command that runs on a machine.

    Every method raises `compute_router.errors.Broken` once the stream is gone: the command may
    have run, and may still run.
    """

    def read(self, limit: int) -> bytes:
        """At least one byte and at most `limit`; `b""` at the end of the command's output.
        Waits while the other side keeps silent (a deadline is the caller's, through `close`)."""

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
    """One computer we can open a command on."""

    name: str

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


# The rest of a MachineBackend (submit, find, status, logs, fetch, cancel, cleanup) is made once,
# above `Machine.open`, in `running.py`; a backend gives its offers and its machines.
class MachineBackend(Backend):
    """A backend whose places are machines. Subclasses give `health`, `offers` and `machines`."""

    @abstractmethod
    def machines(self, offer: Offer) -> Sequence[Machine]:
        """The machines behind `offer`, in rank order; more than one = all are prepared, then all
        committed, or none."""
