"""Reads what torch wrote into TORCH_TRACE: cache hits and misses, compiles and when, graphs, breaks.

A trace is a file of structured log lines of one process: a header, one JSON object, and the payload in
lines that begin with a tab. Names as of torch 2.6 to 2.13 (torch/_logging/_internal.py,
torch/_dynamo/utils.py, torch/_inductor/compile_fx.py). What has another shape is not seen.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time

from .. import work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional

    from ..runs import Attempt

    Json = Dict[str, Any]

PREFIX = "dedicated_log_torch_trace_"
MOST_LINE = 1 << 20
MOST_BYTES = 1 << 30
MOST_SECONDS = 20.0
MOST_FILES = 4096
MOST_COMPILES = 10_000
MOST_DISK = 4 << 30
CUT = "too-large"
"""Stands in the folder once traces were thrown away, since they took more of the disk than they may."""
UNREAD = "torch's trace is too large to be read in full"
_CACHES = re.compile(rb'"name": "(fx_graph_cache|aotautograd_cache)_(hit|miss|bypass|disabled)"')
_METRICS = (b'{"compilation_metrics": ', b'{"bwd_compilation_metrics": ')
# A module that is called stands in the stack as this: of two, the outer one runs as it is.
_CALLED = "_wrapped_call_impl"


class Trace:
    """What one process compiled. Times in microseconds since the epoch, as torch gives them."""

    def __init__(self, rank: Optional[int]) -> None:
        self.rank, self.pid = rank, 0
        self.caches: Dict[str, int] = {}
        """Counts by name: `fx_graph_cache_hit`, `aotautograd_cache_miss`, ..."""
        self.compiles: List[Json] = []
        """`begin_us`, `us`, `again` (a frame that had been compiled before), `outer` (modules in the call
        stack, None if torch did not say), `frame`."""
        self.full = False
        """Whether there were more compiles than are kept."""
        self.graphs = self.generated = self.breaks = self.recompiles = 0
        """Graphs that dynamo captured; code that Inductor has for them; graph breaks; recompiles."""

    def add(self, line: bytes) -> None:
        at = line.find(b"] {")
        if at < 0:
            return
        head, body = line[:at], line[at + 2 :]
        cached = _CACHES.search(body, 0, 200)
        if cached:
            name = b"_".join(cached.groups()).decode()
            self.caches[name] = self.caches.get(name, 0) + 1
        elif body.startswith(b'{"dynamo_output_graph"'):
            self.graphs += 1
        elif body.startswith(b'{"inductor_output_code"'):
            self.generated += 1
        elif body.startswith(b'{"artifact": {"name": "dynamo_graph_break_reason"'):
            self.breaks += 1
        elif body.startswith(b'{"artifact": {"name": "recompile_reasons"'):
            self.recompiles += 1
        elif body.startswith(_METRICS):
            self._compile(body)
        if not self.pid:
            words = head.split()
            self.pid = int(words[2]) if len(words) > 2 and words[2].isdigit() else 0

    def _compile(self, body: bytes) -> None:
        try:
            ((name, said),) = [
                (k, v) for k, v in json.loads(body).items() if k.endswith("compilation_metrics")
            ]
            begin = _us(said.get("start_time"))
        except (ValueError, AttributeError, RecursionError):
            return
        # Of a backward pass that is compiled when it is first run only Inductor's own time is told.
        key = "inductor_compile_time_s" if name.startswith("bwd") else "entire_frame_compile_time_s"
        spent = _us(said.get(key))
        if begin is None or spent is None:
            return
        if len(self.compiles) >= MOST_COMPILES:
            self.full = True
            return
        frame, _, number = str(said.get("compile_id") or "").partition("/")
        stack = said.get("stack_trace")
        outer = None
        if isinstance(stack, list) and stack:
            outer = sum(isinstance(row, str) and _CALLED in row for row in stack)
        self.compiles.append(
            {
                "begin_us": begin,
                "us": spent,
                "again": number not in ("", "0"),
                "frame": frame[:40],
                "outer": outer,
                "backward": name.startswith("bwd"),
            }
        )

    @property
    def us(self) -> int:
        return sum(each["us"] for each in self.compiles)

    def count(self, word: str) -> int:
        """Hits, misses, bypasses (`bypass`) or `disabled` of the graph cache; of that above it where it
        is the only one that tells (it then holds the graphs itself)."""
        low = {k: v for k, v in self.caches.items() if k.startswith("fx_")}
        return (
            low.get("fx_graph_cache_" + word, 0) if low else self.caches.get("aotautograd_cache_" + word, 0)
        )


class Traces:
    """The traces of all processes of an attempt."""

    def __init__(self) -> None:
        self.each: List[Trace] = []
        self.bytes = 0
        self.why = ""

    @property
    def cut(self) -> bool:
        """Whether not all of it was read; `why` says what stands against it."""
        return bool(self.why)

    def total(self, word: str) -> int:
        return sum(trace.count(word) for trace in self.each)

    def above(self, word: str) -> int:
        return sum(trace.caches.get("aotautograd_cache_" + word, 0) for trace in self.each)

    @property
    def generated(self) -> int:
        return sum(trace.generated for trace in self.each)

    @property
    def us(self) -> int:
        """Time spent compiling, of the process that spent most: they do so side by side."""
        return max([trace.us for trace in self.each] or [0])


def _us(seconds: Any) -> Optional[int]:
    if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 <= seconds < 2**33:
        return int(seconds * 1_000_000)
    return None


class TooMuch(Exception):
    """There is more than is read, or reading takes too long."""


def heads(fd: int, until: float = float("inf")) -> Iterator[bytes]:
    """The lines that are no payload, each at most 1 MiB of it. Raises `TooMuch` after `MOST_BYTES`, or
    once the monotonic clock is past `until`."""
    rest, whole, read = b"", True, 0  # `whole`: `rest` begins where a line begins
    while True:
        data = os.read(fd, 1 << 20)
        read += len(data)
        if read > MOST_BYTES or (data and time.monotonic() > until):
            raise TooMuch
        if not data:
            break
        rows = (rest + data).split(b"\n")
        rest = rows.pop()
        for row in rows:
            if whole and row and row[:1] != b"\t":
                yield row[:MOST_LINE]
            whole = True
        if len(rest) > MOST_LINE or (rest[:1] == b"\t" and whole):
            if whole and rest[:1] != b"\t":
                yield rest[:MOST_LINE]
            rest, whole = b"", False
    if rest and whole and rest[:1] != b"\t":
        yield rest


def read(folder: str) -> Traces:
    """Every trace in `folder`, in bounded memory and time; none if there is no folder."""
    found = Traces()
    until = time.monotonic() + MOST_SECONDS
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith(PREFIX))
    except OSError:
        return found
    if os.path.lexists(os.path.join(folder, CUT)):
        found.why = "torch's trace took more of the disk than it may, and was thrown away"
        return found
    for name in names[:MOST_FILES]:
        rank = re.match(r"rank_(\d{1,6})_", name[len(PREFIX) :])
        trace = Trace(int(rank.group(1)) if rank else None)
        try:
            fd = os.open(
                os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except OSError:
            found.why = UNREAD
            continue
        try:
            found.bytes += os.fstat(fd).st_size
            for line in heads(fd, until):
                trace.add(line)
        except (OSError, TooMuch):
            found.why = UNREAD
        finally:
            os.close(fd)
        found.each.append(trace)
    if len(names) > MOST_FILES or any(trace.full for trace in found.each):
        found.why = UNREAD
    return found


def bound(attempt: Attempt, most: int) -> None:
    """Throw the traces away once they take more than `most` bytes of the disk, and from then on.

    They are emptied where they are, since torch goes on writing to them; what it has to say then is
    not told. Raises `OSError`.
    """
    where, used, paths = folder(attempt), 0, []
    try:
        with os.scandir(where) as entries:
            for entry in entries:
                if entry.name.startswith(PREFIX) and entry.is_file(follow_symlinks=False):
                    used += entry.stat(follow_symlinks=False).st_blocks * 512
                    paths.append(entry.path)
    except FileNotFoundError:
        return
    mark = os.path.join(where, CUT)
    cut = os.path.lexists(mark)
    if not cut and used <= most:
        return
    if not cut:
        # First, so that nobody takes what is left for the whole.
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    for path in paths:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)


def room(attempt: Attempt) -> int:
    """Bytes that traces may take of the disk: `MOST_DISK`, and no more than a quarter of what is free."""
    disk = os.statvfs(attempt.path)
    return min(MOST_DISK, disk.f_bavail * disk.f_frsize // 4)


def folder(attempt: Attempt) -> str:
    return attempt.at(work.TRACES)


def drop(attempt: Attempt) -> None:
    """Remove the traces: what counts of them is in the measured block."""
    shutil.rmtree(folder(attempt), ignore_errors=True)
