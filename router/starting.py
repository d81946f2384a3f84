"""Start a planned run along its ranked offers: intent first, then one submission at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from compute_router import errors
from compute_router.adopting import records_of
from compute_router.backend import Backend, Handle, Offer, State, Status, Submission
from compute_router.durable import is_held
from compute_router.records import Record

if TYPE_CHECKING:
    from compute_router.journal import Journal
    from compute_router.policy import Decision
    from compute_router.snapshot import Snapshot
    from compute_router.store import RunFolder
    from compute_router.workload import Workload

__all__ = ["NOTHING_STARTED", "Intent", "Try", "guarded", "load_the_end", "noticed", "standing", "start"]

NOTHING_STARTED = (
    errors.Unavailable,
    errors.Rejected,
    errors.Refused,
    errors.PluginError,
    errors.InputError,  # a file that changed while it was sent
)
"""What `start` raises when no offer can have started the run."""

PAUSES = (0.0, 0.5, 2.0, 5.0)
"""Seconds before each look for a run whose answer was lost."""

T = TypeVar("T")


class Try(Record, frozen=True, kw_only=True):
    """One offer that did not start the run, and what it said. Times in epoch microseconds."""

    backend: str
    offer_id: str
    attempt: int
    code: str
    what: str
    at_us: int


class Intent(Record, frozen=True, kw_only=True):
    """What is about to be submitted; on disk before the first byte leaves, so that it is found again.

    `snapshot` holds the facts of what ships (see `Snapshot.facts`), `tries` the offers tried before.
    """

    schema: str = "route.intent/1"
    run_id: str
    key: str
    attempt: int
    backend: str
    offer_id: str
    tree_sha256: str
    snapshot: dict[str, Any] = {}
    at_us: int
    tries: tuple[Try, ...] = ()
    recorded: dict[str, Any] = {}
    """Of a command that another launcher started: what is known of that one."""


def guarded(name: str, call: Callable[[], T]) -> T:
    """Call a plugin. What its contract lets it raise passes; anything else becomes a `PluginError`."""
    try:
        return call()
    except (errors.RouteError, KeyboardInterrupt):
        raise
    except errors.Broken as e:
        raise errors.SubmitUnknown(f"{name} broke off: {e}", mend="route status asks again") from e
    except Exception as e:
        # A Ctrl-C that breaks into a lock can come out as another error with itself behind.
        if isinstance(e.__context__, KeyboardInterrupt):
            raise e.__context__ from None
        from compute_router.receipt.redacting import Redactor

        first = Redactor().text((str(e).splitlines() or ["no message"])[0][:500], "error")
        raise errors.PluginError(
            f"backend {name!r} raised {type(e).__name__}: {first}",
            mend="run it again with --debug and show the traceback to the plugin's author",
        ) from e


def start(
    run: RunFolder,
    workload: Workload,
    decision: Decision,
    *,
    offer_of: Callable[[str, str], Offer],
    backend_of: Callable[[str], Backend],
    snapshot: Snapshot,
    secrets: Mapping[str, str],
    key: str,
    attempt: int,
    journal: Journal,
    recorded: Mapping[str, Any] | None = None,
) -> Handle:
    """Try the ranked offers in turn until one has started `attempt`; never two at once.

    Raises `SubmitUnknown` as soon as an offer may have started it (no other is tried then), and
    the last refusal once every offer has said no; `intent.json` then lists all of them.
    """
    tries: list[Try] = []
    tell = journal.tell
    failure: errors.RouteError = errors.NoPlace("the decision ranks no offer")
    intent: Intent | None = None
    for ranked in decision.ranked:
        backend, offer = backend_of(ranked.backend), offer_of(ranked.backend, ranked.offer_id)
        intent = Intent(
            run_id=run.id,
            key=key,
            attempt=attempt,
            backend=ranked.backend,
            offer_id=ranked.offer_id,
            tree_sha256=snapshot.tree_sha256,
            snapshot=snapshot.facts(),
            at_us=time.time_ns() // 1000,
            tries=tuple(tries),
            recorded=dict(recorded or {}),
        )
        run.write("intent", intent)
        tell("staging", backend=offer.backend, offer=offer.id, attempt=attempt)
        submission = Submission(
            id=run.id,
            key=key,
            attempt=attempt,
            workload=workload,
            offer=offer,
            snapshot=snapshot,
            secrets=secrets,
            wait_us=decision.limits.wait_us,
            records=records_of(run),
            waits=journal.became,
        )
        try:
            handle = _submit(backend, submission)
        # Both promise that nothing was started, so the next offer may be tried.
        except (errors.Unavailable, errors.Rejected, errors.Refused, errors.PluginError) as e:
            if isinstance(e, (errors.Conflict, errors.PluginError)):
                raise
            failure = e
            tries.append(
                Try(
                    backend=offer.backend,
                    offer_id=offer.id,
                    attempt=attempt,
                    code=e.code.lower(),
                    what=e.what,
                    at_us=time.time_ns() // 1000,
                )
            )
            tell("refused", backend=offer.backend, offer=offer.id, what=e.what)
            continue
        run.write("handle", handle)
        spent = noticed(backend, handle).get("image_us")
        more = {} if spent is None else {"image_us": spent}
        tell("submitted", backend=offer.backend, offer=offer.id, attempt=attempt, **more)
        return handle
    if intent is not None:
        run.write("intent", msgspec.structs.replace(intent, tries=tuple(tries)))
    raise failure


def standing(run: RunFolder, known: Status | None, attempt: int) -> Status:
    """Where a run stands of which nothing was started yet. One that waits does so in a client, which holds
    the run meanwhile: without it nobody does."""
    if known is not None and known.state is State.WAITING and not is_held(run.file("run")):
        gone = "the client that waited for its machines is gone; route resume goes on"
        return Status(state=State.STAGING, attempt=attempt, detail=gone)
    return known or Status(state=State.STAGING, attempt=attempt)


def noticed(backend: Backend, handle: Handle) -> dict[str, int]:
    """What the backend measured on this side; nothing of one that fails: it costs no run."""
    try:
        found = guarded(backend.name, lambda: backend.noticed(handle))
        return {name: us for name, us in found.items() if type(us) is int and abs(us) < 2**53}
    except (errors.RouteError, AttributeError):
        return {}


def _submit(backend: Backend, submission: Submission) -> Handle:
    """One submission; if its answer was lost, the run is looked for before anything else is done."""
    try:
        return guarded(backend.name, lambda: backend.submit(submission))
    except (errors.SubmitUnknown, errors.PluginError) as lost:
        for pause in PAUSES:
            time.sleep(pause)
            try:
                handle = guarded(backend.name, lambda: backend.find(submission.key))
            except (errors.BackendError, errors.PluginError):
                continue
            if handle is not None and handle.attempt == submission.attempt:
                return handle
            # Surely not started: a lost question is asked again, a broken plugin is not.
            if isinstance(lost, errors.PluginError):
                raise
            return guarded(backend.name, lambda: backend.submit(submission))
        if isinstance(lost, errors.SubmitUnknown):
            raise
        raise errors.SubmitUnknown(lost.what, mend=lost.mend) from lost


def load_the_end() -> None:
    """Load what the end of a run needs. Takes a while, which is there as long as the work runs."""
    from compute_router.receipt.building import build

    del build
