"""Pushes log and status of a run as they come: by event, and never longer than the client listens."""

from __future__ import annotations

import os
import select
import time

from . import files, logcap, machine, masking, notice, truth, watcher, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .runs import Attempt, Run
    from .wire import Wire

    Json = Dict[str, Any]

BEAT = 5.0
ADOPT = 0.5, 60.0
"""Seconds until an orphan is given another watcher: the first time, and at most. One that cannot stay
alive there is not started again and again."""
POLL = 0.05
"""Seconds between two looks where the system tells of no events."""
PIECES = 16


def read_log(attempt: Optional[Attempt], offset: int, limit: int) -> tuple[int, bytes, int]:
    """At most `limit` bytes from `offset` on, skipping what was not kept: where they begin, they, the end."""
    if attempt is None:
        return offset, b"", 0
    begin, end = logcap.hole(attempt)
    if begin <= offset < end:
        offset = end
    elif offset < begin < end:
        limit = min(limit, begin - offset)
    try:
        fd = os.open(attempt.at("log"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return offset, b"", 0
    try:
        # Asked before the bytes are read: what it speaks of was masked by then.
        size = masking.end_of(attempt, os.fstat(fd).st_size)
        data = os.pread(fd, max(0, min(limit, size - offset)), offset)
    finally:
        os.close(fd)
    # The middle may have been cut out while it was read; then what was read is no output.
    begin, end = logcap.hole(attempt)
    if begin < offset + len(data) and offset < end:
        data = data[: max(0, begin - offset)]
        if not data:
            return read_log(attempt, end, limit) if end > offset else (offset, b"", size)
    return offset, data, size


class Follower:
    """One `follow`: from the first look until the run is final and all was sent, or the client speaks."""

    def __init__(self, run: Run, stream: Wire, offset: int) -> None:
        self.run, self.wire, self.offset = run, stream, offset
        self.status: Optional[Json] = None
        self.attempt: Optional[Attempt] = None
        self.folders: Optional[notice.Notice] = None
        self.log: Optional[notice.Notice] = None
        self.watched: List[str] = []
        self.waiter = -1
        self.adopt_at, self.adopt_pause = 0.0, ADOPT[0]

    def go(self) -> None:
        beat = time.monotonic() + BEAT
        over, changed = False, True
        try:
            while True:
                if changed:
                    # Armed first, looked at then: what happens in between makes an event.
                    self.arm()
                    over = self.look()
                more = self.send_log()
                unclean = over and not more and self.attempt is not None and masking.pending(self.attempt)
                if over and not more and not unclean:
                    if self.send_log():
                        continue
                    return self.end()
                now = time.monotonic()
                until = min(POLL, beat - now) if unclean else beat - now
                if now >= beat:
                    self.wire.send({"re": "follow", "beat": True})
                    beat, changed = now + BEAT, True
                    continue
                spoken, changed = self.pause(0.0 if more else until)
                if spoken:
                    return self.end()
        finally:
            self.disarm()

    def end(self) -> None:
        self.wire.send({"re": "follow", "end": True, "offset": self.offset, "status": self.status})

    def arm(self) -> None:
        """Watch the newest attempt's folder and log, or the place where one will appear."""
        newest = self.run.newest()
        if newest is not None and (self.attempt is None or newest.number != self.attempt.number):
            if self.attempt is not None:
                self.offset = 0
            self.attempt = newest
        paths = [self.run.attempts]
        if self.attempt is not None:
            mark = self.attempt.at(masking.MARK)
            paths += [self.attempt.path, mark if os.path.exists(mark) else self.attempt.at("log")]
        paths = [path for path in paths if os.path.exists(path)]
        blind = self.folders is None or self.log is None or self.folders.fd < 0 or self.log.fd < 0
        if paths != self.watched or blind:
            self._let_go()
            self.watched = paths
            logs = [p for p in paths if p.endswith(("/log", "/" + masking.MARK))]
            self.log = notice.watch((p, notice.MODIFY) for p in logs)
            self.folders = notice.watch((p, notice.NEW | notice.DELETE) for p in paths if p not in logs)
        if self.waiter < 0 and self.attempt is not None:
            started = files.hint_json(self.attempt.at("started.json")).get("waiter") or {}
            self.waiter = machine.pidfd(started.get("pid", 0), started.get("start", 0))

    def _let_go(self) -> None:
        for notices in (self.folders, self.log):
            if notices is not None:
                notices.close()

    def disarm(self) -> None:
        self._let_go()
        if self.waiter >= 0:
            os.close(self.waiter)

    def look(self) -> bool:
        """Tell the status if it changed. True once it is final. Raises `Fault` NOT_COMMITTED once the
        run is not here any more."""
        now = time.monotonic()
        found = look(self.run, adopts=now >= self.adopt_at)
        if found is None:
            self.run.need()
        elif found["state"] == "orphaned" and now >= self.adopt_at:
            self.adopt_at, self.adopt_pause = now + self.adopt_pause, min(self.adopt_pause * 2, ADOPT[1])
        if found != self.status:
            self.status = found
            self.wire.send({"re": "follow", "status": found})
        return truth.final(found)

    def send_log(self) -> bool:
        """Send what there is, a few pieces at a time. True if there may be more."""
        for _ in range(PIECES):
            self.offset, data, _size = read_log(self.attempt, self.offset, wire.CHUNK)
            if not data:
                return False
            self.wire.send({"re": "follow", "log": True, "offset": self.offset}, data)
            self.offset += len(data)
        return True

    def pause(self, timeout: float) -> tuple[bool, bool]:
        """Wait for an event: whether the client spoke or has gone, whether more than the log changed."""
        if self.wire.buffered:
            return True, True
        folders = self.folders.fd if self.folders is not None else -1
        log = self.log.fd if self.log is not None else -1
        poll = select.poll()
        poll.register(self.wire.source, select.POLLIN)
        for fd in (folders, log, self.waiter):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        # Of a run that is being removed nothing may be left to watch, and something to see.
        going = self.attempt is not None and self.attempt.path not in self.watched
        blind = folders < 0 or log < 0 or going
        spoken, changed = False, blind
        for fd, _ in poll.poll(int(min(timeout, POLL if blind else timeout) * 1000) + (timeout > 0)):
            if fd == folders and self.folders is not None:
                self.folders.drain()
                changed = True
            elif fd == log and self.log is not None:
                self.log.drain()
            elif fd == self.waiter:
                os.close(self.waiter)
                self.waiter, changed = -1, True
            elif fd == self.wire.source:
                spoken = True
        return spoken, changed


def look(run: Run, adopts: bool = True) -> Optional[Json]:
    """The status of a run; one that is found orphaned gets its watcher back if `adopts`."""
    found = truth.status(run)
    if adopts and found is not None and found["state"] == "orphaned":
        attempt = run.newest()
        if attempt is not None:
            watcher.adopt(attempt, run.spec())
    return found
