"""Bring a run's files and its specification to a machine, in as few exchanges as they allow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from compute_router.backend import Submission
from compute_router.errors import Broken, RouteError, SubmitUnknown
from compute_router.machines.framing import Frame, encode
from compute_router.machines.session import Session

__all__ = ["AT_ONCE", "finish", "ship"]

AT_ONCE = 1 << 18
"""Files of fewer bytes than this, all together, are sent without asking which are there already."""
MOST_AT_ONCE = 500
BLOBS = 8000
"""Digests in one `prepare`, so that its line stays within what the protocol allows."""
PATIENCE = 120.0
"""Seconds the other side may take to put on disk what it was sent."""


def ship(session: Session, submission: Submission, spec: bytes) -> list[str]:
    """Send everything up to `commit`; returns the requests whose answers are still to be read.

    Raises `InputError` for a file that changed since the snapshot (nothing is committed then),
    `Broken` as every request does.
    """
    blobs = [(sha256, size) for sha256, (_, size) in submission.snapshot.sources.items()]
    about: dict[str, Any] = {"run_id": submission.id, "spec_sha256": hashlib.sha256(spec).hexdigest()}
    commit = encode({"op": "commit", "run_id": submission.id}, spec)
    if sum(size for _, size in blobs) < AT_ONCE and len(blobs) <= MOST_AT_ONCE:
        frames = [encode({"op": "prepare", **about, "blobs": blobs})]
        for sha256, _ in blobs:
            frames += _frames(submission, sha256, 0)
        session.write(b"".join([*frames, commit]), expect=("prepare", "commit"))
        return ["prepare", "commit"]
    for start in range(0, len(blobs), BLOBS):
        part = blobs[start : start + BLOBS]
        answer = session.ask("prepare", **about, blobs=part, deadline=PATIENCE).head
        if answer.get("committed") == about["spec_sha256"]:
            break
        for sha256, offset in _wanted(session, answer, dict(part)):
            for frame in _frames(submission, sha256, offset):
                session.write(frame)
    session.write(commit, expect=("commit",))
    return ["commit"]


def _frames(submission: Submission, sha256: str, offset: int) -> Iterator[bytes]:
    for at, piece, last in submission.snapshot.chunks(sha256, offset):
        yield encode({"op": "blob", "sha256": sha256, "offset": at, "last": last}, piece)


def _wanted(session: Session, answer: dict[str, Any], sizes: dict[str, int]) -> list[tuple[str, int]]:
    """What is to be sent and from where. A digest that was not offered is not ours to send."""
    try:
        wanted = [(str(sha256), int(offset)) for sha256, offset in answer["want"]]
        if all(0 <= offset <= sizes[sha256] for sha256, offset in wanted):
            return wanted
    except (TypeError, ValueError, KeyError):
        pass
    session.close()
    raise Broken(f"{session.machine.name} wants what was not offered")


def finish(session: Session, pending: Sequence[str]) -> Frame:
    """Read the answers to `pending` and return that of the last one.

    All are read, so that the session can be used again. The last one decides: what it reports
    as done is done, whatever an earlier one said; else the first refusal is the reason.
    """
    first: RouteError | None = None
    for op in pending[:-1]:
        try:
            session.reply(op, deadline=PATIENCE)
        except RouteError as e:
            first = first or e
    try:
        return session.reply(pending[-1], deadline=PATIENCE)
    except RouteError as e:
        raise (first if first and not isinstance(e, SubmitUnknown) else e) from e
