"""Bring a run's files and its specification to a machine, in as few exchanges as they allow."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compute_router.backend import Submission
from compute_router.errors import Broken, PreflightFailed, RouteError, SubmitUnknown
from compute_router.machines.blobs import Blob
from compute_router.machines.framing import Frame, encode
from compute_router.machines.session import Session
from compute_router.progress import transfer

__all__ = ["AT_ONCE", "Tries", "bring", "finish", "ship"]

AT_ONCE = 1 << 18
"""Files of fewer bytes than this, all together, are sent without asking which are there already."""
MOST_AT_ONCE = 500
BLOBS = 8000
"""Digests in one `prepare`, so that its line stays within what the protocol allows."""
UNREAD = 4
"""Requests for what is wanted that are sent before an answer is read."""
WRITE = 1 << 17
"""Bytes that are gathered before they are handed over: a frame of its own for each small file is slow."""


class Tries:
    """How often a delivery that breaks off is begun again: three times in a row without getting further,
    and some more, with pauses, once a part of it has arrived.

    Iterating gives for each try whether it is to have a fresh session.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._least: int | None = None
        self.underway = False
        """Whether a part has arrived: then a machine that cannot be reached for a moment is no refusal."""
        self.there: set[str] = set()
        """What the machine said it has: not asked again, as long as no commit has found it missing."""
        self.committed = False

    def __iter__(self) -> Iterator[bool]:
        yield False
        while self._failures < (7 if self.underway else 2):
            time.sleep(min(3.0, 0.05 * 2**self._failures) if self._failures else 0.0)
            self._failures += 1
            yield True

    def owed(self, size: int) -> None:
        """So many bytes are not there yet, as a try is told when it begins."""
        if self._least is not None and size < self._least:
            self._failures, self.underway = 0, True
        self._least = size if self._least is None else min(size, self._least)


def ship(
    session: Session,
    submission: Submission,
    spec: bytes,
    *,
    tries: Tries | None = None,
) -> list[str]:
    """Send everything up to `commit`; returns the requests whose answers are still to be read.

    Raises `InputError` for a file that changed since the snapshot (nothing is committed then),
    `PreflightFailed` where there is no room for it, `Broken` as every request does.
    """
    from compute_router.machines.staging import shards_of

    shards = [shard.blob for shard in shards_of(submission)] if submission.workload.stage else []
    snapshot, tries = submission.snapshot, tries or Tries()
    if tries.committed:
        tries.there.clear()
    blobs = [
        Blob(sha256, size, functools.partial(snapshot.chunks, sha256))
        for sha256, (_, size) in snapshot.sources.items()
    ]
    about: dict[str, Any] = {"run_id": submission.id, "spec_sha256": hashlib.sha256(spec).hexdigest()}
    commit = encode({"op": "commit", "run_id": submission.id}, spec)
    few = sum(blob.size for blob in blobs) < AT_ONCE and len(blobs) <= MOST_AT_ONCE
    if few and not shards:
        frames = [encode({"op": "prepare", **about, "blobs": [[b.sha256, b.size] for b in blobs]})]
        for blob in blobs:
            frames += _frames(blob, 0)
        session.write(b"".join([*frames, commit]), expect=("prepare", "commit"))
        return ["prepare", "commit"]
    bring(session, "prepare", about, [*blobs, *shards], tries)
    tries.committed = True
    session.write(commit, expect=("commit",))
    return ["commit"]


def bring(session: Session, op: str, about: Mapping[str, Any], blobs: Sequence[Blob], tries: Tries) -> None:
    """Ask by `op` which of `blobs` are wanted, and send those. Not awaited: the answer to the next request
    tells whether they arrived."""
    by_digest = {blob.sha256: blob for blob in blobs}
    asked = [blob for blob in blobs if blob.sha256 not in tries.there]
    wanted: list[tuple[Blob, int]] = []
    free: Any = None
    parts = [asked[start : start + BLOBS] for start in range(0, len(asked), BLOBS)] or [[]]
    for start in range(0, len(parts), UNREAD):
        some = parts[start : start + UNREAD]
        for part in some:
            listed: dict[str, Any] = {"blobs": [], "shards": []}
            for blob in part:
                listed["shards" if blob.shard else "blobs"].append([blob.sha256, blob.size])
            session.send(op, b"", **about, **listed)
        for _ in some:
            answer = session.reply(op).head
            wanted += _wanted(session, answer, by_digest)
            free = answer.get("free_bytes")
    total = sum(blob.size for blob in blobs)
    owed = sum(blob.size - offset for blob, offset in wanted)
    if type(free) is int and owed > free:
        raise PreflightFailed(
            f"{session.machine.name} has {free >> 20:,} MiB free, {owed >> 20:,} MiB are to be sent",
            mend="route gc frees space there",
        )
    tries.owed(owed)
    tries.there |= by_digest.keys() - {blob.sha256 for blob, _ in wanted}
    if not wanted:
        return
    gathered = bytearray()
    with transfer("send", session.machine.name, total, done=total - owed) as add:
        for blob, offset in wanted:
            for frame in _frames(blob, offset):
                gathered += frame
                if len(gathered) >= WRITE:
                    session.write(bytes(gathered))
                    add(len(gathered))
                    gathered.clear()
        session.write(bytes(gathered))
        add(len(gathered))


def _frames(blob: Blob, offset: int) -> Iterator[bytes]:
    for at, piece, last in blob.pieces(offset):
        yield encode({"op": "blob", "sha256": blob.sha256, "offset": at, "last": last}, piece)


def _wanted(session: Session, answer: dict[str, Any], blobs: Mapping[str, Blob]) -> list[tuple[Blob, int]]:
    """What is to be sent and from where. A digest that was not offered is not ours to send."""
    try:
        wanted = [(blobs[str(sha256)], int(offset)) for sha256, offset in answer["want"]]
        if all(0 <= offset <= blob.size for blob, offset in wanted):
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
            session.reply(op)
        except RouteError as e:
            first = first or e
    try:
        return session.reply(pending[-1])
    except RouteError as e:
        raise (first if first and not isinstance(e, SubmitUnknown) else e) from e
