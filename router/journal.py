"""What happens to a run, written down as it happens: its events and its state."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from compute_router.backend import State, Status
from compute_router.records import plain
from compute_router.scrubbing import cleaned

if TYPE_CHECKING:
    from compute_router.registry import Registry
    from compute_router.store import RunFolder

__all__ = ["Journal", "OnEvent"]

OnEvent = Callable[[dict[str, Any]], None]


class Journal:
    """Writes the events and states of one run, then tells plugins and the caller."""

    def __init__(self, run: RunFolder, registry: Registry, on_event: OnEvent | None) -> None:
        self._run, self._registry, self._on_event = run, registry, on_event

    def tell(self, event: str, **facts: Any) -> None:
        """Something happened: appended to `events.jsonl` first, told after."""
        line = {"event": event, "run_id": self._run.id, "at_us": time.time_ns() // 1000, **cleaned(facts)}
        self._run.append_event(line)
        self._registry.notify(self._run.id, line)
        if self._on_event is not None:
            self._on_event(line)

    def became(self, status: Status) -> Status:
        """Write `status` down if it tells something new, and return what stands now.

        A final state is never replaced within its attempt. For `unknown` the last state that was
        seen and since when it cannot be seen are kept through any number of looks.
        """
        known = self._run.read("status", Status)
        if known is not None and known.state.final and known.attempt >= status.attempt:
            return known
        if status.state is State.UNKNOWN:
            again = known is not None and known.state is State.UNKNOWN
            status = msgspec.structs.replace(
                status,
                last=status.last if known is None else known.last if again else known.state,
                since_us=(known.since_us if known and again else None)
                or status.since_us
                or time.time_ns() // 1000,
            )
        if known != status:
            self._run.write("status", status)
            if known is not None and known.state is State.UNKNOWN and status.state is not State.UNKNOWN:
                gone = time.time_ns() // 1000 - (known.since_us or 0)
                self.tell("back", attempt=status.attempt, state=status.state.value, after_us=max(0, gone))
            self.tell("state", **{name: value for name, value in plain(status).items() if value is not None})
        return status
