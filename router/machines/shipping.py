"""Bring a run's files and its specification to a machine, in as few exchanges as they allow."""

from __future__ import annotations

import functools
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
WRITE = 1 << 16
"""Bytes that are gathered before they are handed over, and acknowledged together: a write of its own for
each small file is slow."""
LEAST_FLIGHT = 1 << 18
MOST_FLIGHT = 16 << 20
"""Bounds of the bytes that are under way at a time."""


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
            mend="`route gc --older-than 0` shows what can go there",
        )
    tries.owed(owed)
    tries.there |= by_digest.keys() - {blob.sha256 for blob, _ in wanted}
    if not wanted:
        return
    with transfer("send", session.machine.name, total, done=total - owed) as add:
        flight = _Flight(session, add)
        for blob, offset in wanted:
            for frame in _frames(blob, offset, flight):
                flight.send(frame)
        flight.land()


class _Flight:
    """What was sent and is not known to be taken: no more of it than the way holds, since all of it is lost
    when the way breaks."""

    def __init__(self, session: Session, add: Callable[[int], None]) -> None:
        self.session, self.add = session, add
        self._gathered = bytearray()
        self._unmarked = 0
        self._sent: deque[tuple[int, float]] = deque()
        """Of each piece that will be acknowledged: bytes since the one before, and when it was sent."""
        self._size, self._most = 0, float(LEAST_FLIGHT)
        self._rtt, self._rate = 60.0, 0.0
        self._base, self._last = session.acks, 0.0

    def mark(self, size: int) -> bool:
        """Whether a frame of so many bytes is to be acknowledged."""
        self._unmarked += size
        return self._unmarked >= WRITE

    def send(self, frame: bytes) -> None:
        self._gathered += frame
        if self._unmarked >= WRITE:
            self.flush()

    def flush(self) -> None:
        self.session.write(bytes(self._gathered))
        if self._unmarked < WRITE:
            self.add(len(self._gathered))
        else:
            self._sent.append((len(self._gathered), time.monotonic()))
            self._size += len(self._gathered)
        self._gathered.clear()
        self._unmarked = 0
        while self._size > self._most:
            self._take()

    def land(self) -> None:
        """Send the last of it. What is still on its way counts as moved: the answer to the next request
        tells whether it arrived, and a transfer that is over with less than all of it broke off."""
        self.flush()
        self.add(self._size)

    def _take(self) -> None:
        """Wait until one more piece is taken, and learn from that how much the way holds."""
        while self.session.acks <= self._base:
            if self.session.frame(acked=True).head.get("ack") is not True:
                self.session.close()
                raise Broken(f"{self.session.machine.name} answered what was not asked")
        self._base += 1
        size, at = self._sent.popleft()
        now = time.monotonic()
        self._size -= size
        self.add(size)
        self._rtt = min(self._rtt, now - at)
        if self._last and now > self._last:
            self._rate = 0.8 * self._rate + 0.2 * size / (now - self._last)
        self._last = now
        # Twice what fills the way, so that it is seen when the way can take more.
        self._most = min(MOST_FLIGHT, max(LEAST_FLIGHT, 2 * self._rate * self._rtt))


def _frames(blob: Blob, offset: int, flight: _Flight | None = None) -> Iterator[bytes]:
    for at, piece, last in blob.pieces(offset):
        head: dict[str, Any] = {"op": "blob", "sha256": blob.sha256, "offset": at, "last": last}
        if flight is not None and flight.mark(len(piece) + 150):
            head["ack"] = True
        yield encode(head, piece)


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
