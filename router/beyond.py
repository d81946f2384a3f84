"""What a backend may do beyond running and collecting; every method has a default that does without."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from compute_router.errors import InputError, Rejected
from compute_router.records import Record

if TYPE_CHECKING:
    from compute_router.backend import Cost, Handle, Offer, Quote
    from compute_router.workload import Workload

__all__ = ["Beyond", "Freed", "Kept", "Node", "Shell", "There"]


class Node(Record, frozen=True, kw_only=True):
    """One machine of a run on several, as it was last seen. `state` and `last` are values of `State`,
    `since_us` and `position` as in `Status`; `devices` are the ids of those that it has leased there,
    empty before that and of work that needs none."""

    rank: int
    name: str
    state: str
    reason: str = ""
    detail: str = ""
    last: str | None = None
    since_us: int | None = None
    position: int | None = None
    devices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """A run that was found where it is, and what the client that submitted it left there.

    `records` are the lines of `Submission.records` as they came; empty if it left none. `place` is
    what people call the place.
    """

    handle: Handle
    place: str
    records: bytes = b""


@dataclasses.dataclass(frozen=True, kw_only=True)
class There:
    """One run that a place has, whoever submitted it. `about` is the record `run` that its client left
    (`name`, `kind`, `created_us`, ...), empty if it left none; `collected` says that somebody has."""

    run_id: str
    place: str
    state: str
    attempt: int
    ended_us: int | None = None
    collected: bool = False
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freed:
    """What a sweep has removed at one place, or would remove: collected runs by id, files that no run there
    needs, and about how many bytes that is. `why` says that this place could not be asked."""

    place: str
    runs: Sequence[str] = ()
    files: int = 0
    size_bytes: int = 0
    why: str = ""


class Shell(Protocol):
    """One command that runs beside a run, with this terminal's bytes.

    `read` raises `compute_router.errors.Broken` once the connection is gone, and so does everything
    that writes; the command is then asked to end over there. Reading and writing may be done by two
    threads.
    """

    def read(self) -> tuple[int, bytes] | None:
        """Which of its outputs (1, or 2 where there is no terminal), and some bytes; None at its end."""
        ...

    def write(self, data: bytes) -> None:
        """Bytes for its input."""

    def close_write(self) -> None:
        """Say that no more input comes."""

    def resize(self, rows: int, columns: int) -> None:
        """The terminal has another size now."""

    def exit_code(self) -> int:
        """Once `read` returned None: its exit code; 128+n if signal n ended it."""
        ...

    def close(self) -> None:
        """Let go of it, from any thread; the command gets a SIGHUP. May be repeated."""


class Beyond:
    """The optional half of the contract; `Backend` inherits it."""

    def expect(self, offer: Offer) -> None:
        """A submission to `offer` is likely within moments: connect in the background if that helps.
        Returns at once, never raises, starts nothing. This default does nothing."""

    def quote(self, workload: Workload, offer: Offer) -> Quote | None:
        """The price of `offer`, frozen in the receipt. None = no price is known."""
        return offer.quote

    def cost(self, handle: Handle) -> Cost | None:
        """What the run cost, once it is final. None = not known."""
        return None

    def noticed(self, handle: Handle) -> Mapping[str, int]:
        """What was measured here (docs/writing-a-backend.md, "Measured by the client"). Never raises."""
        return {}

    # Runs that another client submitted

    def kept(self, ref: str) -> Kept | None:
        """The run whose id or key is `ref`, whoever submitted it, with what its client left there.

        None = there surely is none. Raises `Unavailable` when that cannot be known, naming who could not
        be asked. Changes nothing. This default knows of no runs but those whose handle it is given.
        """
        return None

    def there(self) -> Sequence[There]:
        """Every run that the places of this backend have, newest first, whoever submitted it.

        Raises `Unavailable` only if no place could be asked at all. This default knows of none.
        """
        return ()

    def sweep(self, before_us: int, *, delete: bool) -> Sequence[Freed]:
        """Remove at every place the runs that a client has collected and that ended before `before_us`
        (epoch microseconds), and what is as old and needed by no run there. Without `delete` nothing is
        removed, and what would be is told. Runs that nobody has collected stay.

        Repeatable, and never raises for a place that cannot be asked: its `Freed` says why. This default
        keeps nothing anywhere.
        """
        return ()

    def node(self, handle: Handle, rank: int) -> Handle:
        """The handle of the part that node `rank` has in a run on several machines: `status`, `logs`,
        `attached` and `shell` take it as they take the run's own. No I/O.

        Raises `InputError` if the run has no such node. This default knows runs at one place: their
        node 0 is the run itself.
        """
        if rank:
            raise InputError(f"run {handle.run_id} has no node {rank}: it is on one", mend="leave out --node")
        return handle

    def shell(
        self, handle: Handle, argv: Sequence[str] = (), *, size: tuple[int, int] | None = None
    ) -> Shell:
        """Start `argv` (the user's own shell where it is empty) beside the run: in its folder, with its
        ROUTE_* variables, without its secrets. With `size` (rows, columns) it gets a terminal.

        Raises `Rejected` where there is no such thing, or nothing of the run is left there;
        `Unavailable` if it cannot be reached. This default has none.
        """
        raise Rejected(f"backend {handle.backend!r} has no shell", mend="route logs shows what the run says")
