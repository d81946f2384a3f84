"""Which rank failed first: out of what each left when it failed, and of what its launcher says at the end."""

from __future__ import annotations

import os
import re

from . import files, wire, work
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
    rb"\n\s+rank\s*:\s*(\d+) \(local_rank: (\d+)\)\s*\n\s+exitcode\s*:\s*(-?\d+) \(pid: \d+\)[^\n]*\n"
    rb"\s+error_file\s*:\s*([^\n]*)\n\s+traceback\s*:\s*([^\n]*)"
)


def first(attempt: Attempt, spec: Json, tail: bytes) -> Optional[Json]:
    """The rank that failed first, of those started here: `rank`, `local_rank`, `what`, `at_us` (this
    machine's clock, null if nobody saw when), `follows` (it only failed because another did), and
    `exit_code` or `signal` where the launcher told; None if nothing tells. `tail` is the log's end."""
    launcher = spec.get("launcher", {})
    if launcher.get("name") != "torchrun":
        return None
    base = ranks.first_rank(spec)
    found: Dict[int, Json] = {}
    for local, what, at_us in _left(attempt):
        rank = base + local
        if rank not in found or (at_us or 0) < (found[rank]["at_us"] or 0):
            found[rank] = {"rank": rank, "local_rank": local, "what": what, "at_us": at_us}
    for match in _ENTRY.finditer(tail):
        rank, local, code = (int(match.group(n)) for n in (1, 2, 3))
        one = found.setdefault(rank, {"rank": rank, "local_rank": local, "what": "", "at_us": None})
        one["signal" if code < 0 else "exit_code"] = abs(code)
        if not one["what"]:
            one["what"] = "signal %d" % -code if code < 0 else "exit code %d" % code
    for one in found.values():
        text = one["what"].lower()
        one["follows"] = one.get("signal") == 15 or any(word in text for word in FOLLOWS)
    # A rank that was killed has left no file: it went before those that lived to tell of its going.
    order = sorted(found.values(), key=lambda one: (one["follows"], one["at_us"] or 0, one["rank"]))
    return order[0] if order else None


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
