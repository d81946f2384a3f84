"""Ends what was to be recorded and never ran: only its launcher may start it again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from compute_router.backend import State, Status
from compute_router.durable import held
from compute_router.journal import Journal, OnEvent
from compute_router.recording import RECORDED
from compute_router.starting import Intent, guarded

if TYPE_CHECKING:
    from compute_router.router import Router
    from compute_router.store import RunFolder

__all__ = ["close_unstarted", "end_committed"]


def close_unstarted(router: Router, run: RunFolder, on_event: OnEvent | None) -> None:
    """Make a run final whose recorder was gone before it was started; silent where it did start.

    Waits for a recorder that is just starting it: that one holds the lock.
    """
    with held(run.file("run")):
        status = run.read("status", Status)
        if run.has("handle") or (status is not None and status.state.final):
            return
        if run.read("intent", Intent) is not None:
            backend = router.backend(RECORDED)
            handle = guarded(RECORDED, lambda: backend.find(run.key))
            if handle is not None:
                run.write("handle", handle)
                return
        Journal(run, router.registry, on_event).became(
            Status(
                state=State.LOST,
                reason="never_executed",
                detail="whoever recorded it was gone before the command was started",
                ended_us=time.time_ns() // 1000,
            )
        )


def end_committed(router: Router, run: RunFolder, status: Status) -> bool:
    """Whether a run that was committed and never started has been made final; False for one that was
    final already. Waits for a recorder that is just starting it."""
    if status.state.final:
        return False
    with held(run.file("run")):
        if router.status(run).state is State.COMMITTED:
            router.cancel(run)
    return True
