"""What a volume holds, by a cheap listing: whether a run changed it, within a bound on time and names."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import time

from .. import machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    Json = Dict[str, Any]

BUDGET_US = 20_000
"""What all listings of one moment may take together."""
MOST_NAMES = 20_000
STAMPS = ".route"
"""Ours, not the work's."""
COARSE = 5
"""CLOCK_REALTIME_COARSE of Linux: what a file system takes its times from."""


class Budget:
    """Time that several listings share."""

    def __init__(self, us: int = BUDGET_US) -> None:
        self.until = time.monotonic() + us / 1e6
        self.us = us

    def spent(self) -> bool:
        return time.monotonic() >= self.until


def now_ns() -> int:
    """The time that a file made now gets, so that one made later is never older."""
    return time.clock_gettime_ns(COARSE) if machine.LINUX else time.time_ns()


def listed(path: str, budget: Budget, before_ns: Optional[int] = None) -> Json:
    """`digest` over name, size and time of change of every file below `path`, or `why` there is none;
    `names` counts them. `same` is the digest of those alone that were last touched before `before_ns`:
    it is the digest of then exactly if nothing of then was changed, replaced or removed."""
    whole, older = hashlib.sha256(), hashlib.sha256()
    count = 0
    stack = [""]
    while stack:
        below = stack.pop()
        try:
            with os.scandir(os.path.join(path, below)) as entries:
                # One more than may be is enough to see that there are too many.
                found = sorted(itertools.islice(entries, MOST_NAMES + 3), key=lambda e: e.name)
        except OSError as e:
            return _none("a folder of it cannot be listed: %s" % (e.strerror or type(e).__name__), count)
        for entry in found:
            if not below and entry.name in (STAMPS, "lost+found"):
                continue
            count += 1
            if count > MOST_NAMES:
                return _none("it holds more than %d names" % MOST_NAMES, count)
            if not count % 64 and budget.spent():
                return _none("listing it takes more than %d ms" % (budget.us // 1000), count)
            name = os.path.join(below, entry.name)
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # removed this instant
            if stat.S_ISDIR(status.st_mode):
                stack.append(name)
                continue
            row = b"%s\0%d\0%d\n" % (os.fsencode(name), status.st_size, status.st_mtime_ns)
            whole.update(row)
            if before_ns is not None and status.st_ctime_ns < before_ns:
                older.update(row)
    made = {"digest": whole.hexdigest(), "why": "", "names": count, "same": None}
    return made if before_ns is None else dict(made, same=older.hexdigest())


def _none(why: str, count: int) -> Json:
    return {"digest": None, "why": why, "names": count, "same": None}


def before(path: str, budget: Budget) -> Json:
    """What is seen of a volume before user code."""
    at_ns = now_ns()
    status, disk = os.stat(path), os.statvfs(path)
    return {
        **{k: v for k, v in listed(path, budget).items() if k != "same"},
        "at_ns": at_ns,
        "folder": [status.st_dev, status.st_ino],
        "read_only": bool(disk.f_flag & os.ST_RDONLY),
    }


def after(path: str, first: Json, place: Json, budget: Budget) -> Json:
    """What became of it: `events`, `committed` or `why` that is not known, the listing.

    Committed means: whoever opens the folder next finds what the work wrote, and nothing has to be
    done for that. It does not mean that a loss of power is survived: nobody waited for the disk.
    """
    gone = {"events": ["deleted"], "committed": False, "why": "", "digest": None, "digest_why": "it is gone"}
    try:
        status, disk = os.stat(path), os.statvfs(path)
    except (FileNotFoundError, NotADirectoryError):
        return gone
    except OSError as e:
        # A disk that answers with an error now has not kept what was written to it.
        return dict(gone, events=["commit_failed"], digest_why=e.strerror or "it cannot be read")
    now = listed(path, budget, first["at_ns"]) if first["digest"] else _none(first["why"], 0)
    remote = place["class"] in ("network_fs", "bucket_fuse")
    events: List[str] = []
    # On a file system of another computer the times are that computer's.
    replaced = now["digest"] and first["digest"] not in (now["digest"], now["same"]) and not remote
    if replaced or [status.st_dev, status.st_ino] != first["folder"]:
        events.append("refreshed")
    committed: Optional[bool] = True
    why = ""
    if disk.f_flag & os.ST_RDONLY and not first["read_only"]:
        # The kernel does this to a file system that it can no longer write to.
        committed, events = False, [*events, "commit_failed"]
    elif remote:
        committed, why = None, "when %s hands on what is written is not to be seen" % place["fs"]
    return {
        "events": events,
        "committed": committed,
        "why": why,
        "digest": now["digest"],
        "digest_why": now["why"],
    }
