"""Overwrites secrets in what the work writes, byte for byte, and tells readers how far that has come.

The work writes into its log itself, so what it writes is on the disk before anybody can look at it.
Watcher and waiter, which alone hold the values, overwrite them in place; `scrubbed` beside the log
says up to where, and nobody reads beyond that. Runs without secrets have no such file.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time

from . import files, forking, logcap
from .scrub import LEAST_HALF, Scrubber

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from .notice import Notice
    from .runs import Attempt

    Json = Dict[str, Any]

MARK = "scrubbed"
DONE = 2**63 - 1
"""The mark of an attempt whose files are clean to their end."""
PIECE = 1 << 19
PAUSE = 0.005
"""Seconds between two looks at a log that grows all the time."""
LIVE = 0.1
"""Seconds for which the last bytes of a log are held back that may be the beginning of a secret."""
RECORDS = ("metrics.jsonl", "inside.jsonl")
WITHHELD = "withheld."
GONE = "the secrets' values were gone with their waiter, and nobody gave them again"


def _packed(offset: int) -> bytes:
    # Written twice, so that half a write is never taken for an offset.
    return struct.pack("<qq", offset, offset)


def read(attempt: Attempt) -> Optional[int]:
    """Up to which offset the log is clean; None where there is nothing to mask."""
    for _ in range(100):
        try:
            fd = os.open(attempt.at(MARK), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError:
            return 0
        try:
            data = os.read(fd, 16)
        finally:
            os.close(fd)
        if len(data) == 16 and data[:8] == data[8:]:
            return max(0, int(struct.unpack("<q", data[:8])[0]))
    return 0


def say(attempt: Attempt, offset: int) -> None:
    """Move the mark on; it never goes back. Waiter and watcher may both do so."""
    fd = os.open(attempt.at(MARK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        data = os.pread(fd, 16, 0)
        if len(data) < 16 or struct.unpack("<q", data[:8])[0] < offset:
            os.pwrite(fd, _packed(offset), 0)
    finally:
        os.close(fd)


def scrubber(secrets: Dict[str, str]) -> Optional[Scrubber]:
    """What looks for these secrets; None if there is nothing to look for."""
    made = Scrubber(secrets) if secrets else None
    return made if made is not None and made.forms else None


def begin(attempt: Attempt, secrets: Dict[str, str]) -> None:
    """Before the work's first byte: from here on nothing is read that was not looked through."""
    if scrubber(secrets) is not None:
        say(attempt, 0)


class Masker:
    """Masks one log as it grows. Everything before `clean` was looked through and begins no secret."""

    def __init__(self, attempt: Attempt, look: Scrubber) -> None:
        self.attempt, self.look = attempt, look
        # Who comes after another begins a little before the mark: what is masked is masked.
        self.clean = max(0, (read(attempt) or 0) - look.longest)
        self.held = 0.0
        self.size = -1

    def go(self, events: Notice) -> Optional[float]:
        """Mask what came; seconds until the next look is due, None = when the log grows."""
        if self.clean >= DONE:
            return None
        try:
            more = self.step()
            if more:
                return 0.0
            size = os.stat(self.attempt.at("log")).st_size
        except OSError:
            return 1.0
        grew, self.size = size != self.size, size
        if self.clean < size:
            if grew:
                self.held = time.monotonic() + LIVE
                return LIVE
            if self.held and time.monotonic() >= self.held and size - self.clean < LEAST_HALF:
                # Too little to tell anything: whoever follows a prompt wants to see its last character.
                say(self.attempt, size)
                self.held = 0.0
            elif self.held and size - self.clean < LEAST_HALF:
                return max(PAUSE, self.held - time.monotonic())
        if events.fd < 0:
            return 0.05
        if grew:
            return PAUSE
        events.once(self.attempt.at("log"))
        return None if os.stat(self.attempt.at("log")).st_size == size else PAUSE

    def step(self, end: bool = False) -> bool:
        """Mask one piece of the log and move the mark. True if more is there already."""
        fd = os.open(self.attempt.at("log"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            before, after = logcap.hole(self.attempt)
            if before <= self.clean < after:
                # What begins behind the hole may be the end of something that began in it.
                overwrite(fd, after, os.pread(fd, 2 * self.look.longest, after), self.look)
                cover(fd, after, after + self.look.longest)
                self.clean = after
                return True
            stop = before if self.clean < before < after else DONE
            limit = min(PIECE + self.look.longest, stop - self.clean)
            data = os.pread(fd, limit, self.clean)
            over = len(data) == limit and stop != DONE
            if not data:
                return False
            last = len(data) < limit or over
            overwrite(fd, self.clean, data, self.look)
            held = self.look.held(data)
            if last and (end or over):
                if len(data) - held >= LEAST_HALF:
                    cover(fd, self.clean + held, self.clean + len(data))
                held = len(data)
            self.clean += held
            say(self.attempt, self.clean)
            return not last or over
        finally:
            os.close(fd)


def overwrite(fd: int, offset: int, data: bytes, look: Scrubber) -> int:
    """Overwrite every form in `data`, which stands at `offset`; how many there were."""
    found = look.spans(data)
    for start, end, _ in found:
        cover(fd, offset + start, offset + end)
    return len(found)


def cover(fd: int, start: int, end: int) -> None:
    """Overwrite a range; never makes the file longer."""
    end = min(end, os.fstat(fd).st_size)
    while start < end:
        start += os.pwrite(fd, b"*" * min(end - start, 1 << 16), start)


def whole(fd: int, look: Scrubber) -> None:
    """Mask an open file from its beginning to its end."""
    at = 0
    while True:
        data = os.pread(fd, PIECE + look.longest, at)
        overwrite(fd, at, data, look)
        held = look.held(data)
        if len(data) < PIECE + look.longest:
            if len(data) - held >= LEAST_HALF:
                cover(fd, at + held, at + len(data))
            return
        at += held


def mask_file(path: str, look: Scrubber) -> None:
    """Mask a regular file of ours; one that is none is left alone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            whole(fd, look)
    finally:
        os.close(fd)


def finish(attempt: Attempt, spec: Json, secrets: Dict[str, str]) -> Tuple[Optional[Scrubber], List[Json]]:
    """After the end: everything of ours is clean, or what is not is named and stays here.

    Returns what looks for the secrets in outputs, and entries for the manifest's `skipped`.
    """
    mark = read(attempt)
    if mark is None:
        return None, []
    look = scrubber(secrets)
    if look is None or any(name not in secrets for name in spec.get("secrets", [])):
        unseen = [{"path": "outputs", "why": "not looked through for secrets: " + GONE}]
        return look, unseen if mark >= DONE else withhold(attempt) + unseen
    if mark >= DONE:
        return look, []
    if attempt.has("log"):
        masker = Masker(attempt, look)
        while masker.step(end=True):
            pass
    for name in (*RECORDS, "supervisor.log"):
        mask_file(attempt.at(name), look)
    for folder, _, names in os.walk(attempt.at("ranks")):
        for name in names:
            mask_file(os.path.join(folder, name), look)
    say(attempt, DONE)
    return look, []


def withhold(attempt: Attempt) -> List[Json]:
    """Put aside what may hold secrets that nobody can look for: it stays on this machine."""
    said = [{"path": "log", "why": "only its first %d bytes travel: %s" % (read(attempt) or 0, GONE)}]
    for name in (*RECORDS, "ranks"):
        if attempt.has(name):
            os.rename(attempt.at(name), attempt.at(WITHHELD + name))
            said.append({"path": name, "why": "stays on its machine: " + GONE})
    return said


def told(attempt: Attempt) -> Tuple[Optional[bool], str]:
    """Whether the log was looked through to its end, and why not or why there is nothing to say."""
    mark = read(attempt)
    if mark is None:
        return None, "no secret was declared"
    return mark >= DONE, "" if mark >= DONE else GONE


def end_of(attempt: Attempt, size: int) -> int:
    """How much of a log of `size` bytes may be read."""
    mark = read(attempt)
    return size if mark is None else min(mark, size)


def pending(attempt: Attempt) -> bool:
    """Whether the rest of what it left is still being looked through by somebody."""
    mark = read(attempt)
    if mark is None or mark >= DONE:
        return False
    return files.held(attempt.at("sup.lock")) or files.held(attempt.at("watch.lock"))


def hide(secrets: Dict[str, str]) -> None:
    """Take the values out of what /proc shows of this process: they may have come by its environment.

    What is forked from here on is as clean. Costs nothing but a look where there are no secrets.
    """
    if not secrets:
        return
    try:
        import ctypes

        # env_start and env_end; the fields are counted behind the name, which may hold anything.
        row = (files.read("/proc/self/stat", 1 << 16) or b"").rpartition(b")")[2].split()
        begin, end = int(row[47]), int(row[48])
        data = ctypes.string_at(begin, end - begin) if 0 < begin < end else b""
        for value in secrets.values():
            raw = value.encode("utf-8", "surrogateescape")
            at = data.find(b"=" + raw + b"\0") if raw else -1
            while at >= 0:
                ctypes.memset(begin + at + 1, ord("*"), len(raw))
                at = data.find(b"=" + raw + b"\0", at + 1)
    except (ImportError, OSError, ValueError, IndexError, AttributeError, UnicodeError):
        forking.traceback()


def secure(secrets: Dict[str, str]) -> None:
    """Keep the values of this process out of core dumps and away from debuggers of the same user.

    What it executes is not touched: an exec sets this back.
    """
    if not secrets:
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    except (ImportError, OSError, AttributeError):
        forking.traceback()
