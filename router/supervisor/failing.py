"""Which rank failed first: out of what each left when it failed, and of what its launcher says at the end."""

from __future__ import annotations

import os
import re
import time

from . import files, group, wire, work
from .observing import ranks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .runs import Attempt

    Json = Dict[str, Any]

FOLLOWS = (
    *("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed", "end of file"),
    *("remote process exited", "ncclremoteerror", "nccl communicator was aborted", "peer has closed"),
    *("watchdog caught collective operation timeout", "collective operation timed out", "recv timeout"),
    *("timed out waiting", "application timeout caused pair closure", "wait timeout", "timed out after"),
    *("store is likely shut down", "rendezvousconnectionerror", "distnetworkerror", "diststoreerror"),
    *("signalexception", "signal 15 ", "sigterm"),
)
"""What a rank says that fails because another one has failed, in lower case."""
TAIL = 1 << 17
MOST_FILES = 4096
MOST_WHAT = 300
_ENTRY = re.compile(
    rb"(?:\n\s+time\s*:\s*(\S+)\s*\n\s+host\s*:[^\n]*)?"
    rb"\n\s+rank\s*:\s*(\d+) \(local_rank: (\d+)\)\s*\n\s+exitcode\s*:\s*(-?\d+) \(pid: \d+\)[^\n]*\n"
    rb"\s+error_file\s*:\s*([^\n]*)\n\s+traceback\s*:\s*([^\n]*)"
)
ZONE = 900
"""Seconds: clocks of two time zones differ by a multiple of it."""


def first(attempt: Attempt, spec: Json, tail: bytes, status: int = 1) -> Optional[Json]:
    """The rank that failed first, of those started here: `rank`, `local_rank`, `what`, `at_us` (this
    machine's clock, null if nobody saw when), `follows` (it only failed because another did), and
    `exit_code` or `signal` where the launcher told; None if nothing tells. `tail` is the log's end,
    `status` what the work ended with (minus a signal): without torchrun a node of a group is one rank."""
    if spec.get("launcher", {}).get("name") != "torchrun":
        return _alone(spec, tail, status) if group.of(spec) else None
    base = ranks.first_rank(spec)
    found: Dict[int, Json] = {}
    for local, what, at_us in _left(attempt):
        rank = base + local
        if rank not in found or (at_us or 0) < (found[rank]["at_us"] or 0):
            found[rank] = {"rank": rank, "local_rank": local, "what": what, "at_us": at_us}
    times: Dict[int, str] = {}
    for match in _ENTRY.finditer(tail):
        rank, local, code = (int(match.group(n)) for n in (2, 3, 4))
        one = found.setdefault(rank, {"rank": rank, "local_rank": local, "what": "", "at_us": None})
        one["signal" if code < 0 else "exit_code"] = abs(code)
        times[rank] = (match.group(1) or b"").decode("ascii", "replace")
        if not one["what"]:
            said = _said(rank, tail) if code == -6 else ""
            one["what"] = "signal %d" % -code if code < 0 else "exit code %d" % code
            one["what"] += ": " + said if said else ""
    for rank, at_us in _seen(times).items():
        # The launcher also kills, after half a minute, those that do not end by themselves once one has
        # failed: they leave no file either, and were not first.
        if found[rank]["at_us"] is None:
            found[rank]["at_us"] = at_us
    for one in found.values():
        one["follows"] = one.get("signal") == 15 or _follows(one["what"])
    # A rank that was killed has left no file, and is seen to the second: it went before those that lived
    # to tell of its going.
    order = sorted(found.values(), key=lambda one: (one["follows"], one["at_us"] or 0, one["rank"]))
    return order[0] if order else None


def _follows(what: str) -> bool:
    text = what.lower()
    return any(word in text for word in FOLLOWS)


def _alone(spec: Json, tail: bytes, status: int) -> Json:
    """The one rank of a node that no torchrun has started."""
    rank = int(group.of(spec)["node_rank"])
    lines = tail.decode("utf-8", "replace").split("\n")
    last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
    what = "signal %d" % -status if status < 0 else last[:MOST_WHAT] or "exit code %d" % status
    found: Json = {"rank": rank, "local_rank": 0, "what": what, "at_us": None}
    found["signal" if status < 0 else "exit_code"] = abs(status)
    found["follows"] = status in (-15, 143) or _follows(what)
    return found


def _said(rank: int, tail: bytes) -> str:
    """What a rank that aborted has said of a lost peer, as NCCL's watchdog does; nothing if it has not."""
    for line in re.findall(rb"[^\n]*\brank ?%d\][^\n]*" % rank, tail, re.IGNORECASE):
        text = " ".join(line.decode("utf-8", "replace").split())
        if _follows(text):
            return text.rpartition("] ")[2][:MOST_WHAT]
    return ""


def _seen(times: Dict[int, str]) -> Dict[int, int]:
    """When the launcher saw each rank end. It says so in the time of its zone; the last of them was just
    now, which tells the zone."""
    import calendar

    found: Dict[int, int] = {}
    for rank, text in times.items():
        try:
            found[rank] = calendar.timegm(time.strptime(text, "%Y-%m-%d_%H:%M:%S"))
        except ValueError:
            continue
    if not found:
        return found
    shift = round((time.time() - max(found.values())) / ZONE) * ZONE
    return {rank: (seconds + shift) * 1_000_000 for rank, seconds in found.items()}


def _left(attempt: Attempt) -> List[Any]:
    """Local rank, what it says, and when, of every error file. Read as a hint: the work wrote them."""
    found: List[Any] = []
    for folder, _, listed in os.walk(attempt.at(work.RANKS)):
        leaf = os.path.basename(folder)
        if "error.json" not in listed or not leaf.isdigit() or len(found) >= MOST_FILES:
            continue
        path = os.path.join(folder, "error.json")
        try:
            data = files.read(path, 1 << 20) or b""
            at_us = os.stat(path).st_mtime_ns // 1000
            told = wire.header(data)
        except (OSError, ValueError):
            continue
        found.append((int(leaf), _what(told), at_us))
    return found


def _what(told: Any) -> str:
    message = told.get("message") if isinstance(told, dict) else None
    if isinstance(message, dict):
        message = message.get("message")
    text = message if isinstance(message, str) else ""
    return " ".join(text.split())[:MOST_WHAT]


def sentence(one: Json, where: str = "") -> str:
    """`rank 3 on h2 failed first: ValueError: boom`"""
    return "rank %d%s failed first: %s" % (one["rank"], " on " + where if where else "", one["what"] or "?")
