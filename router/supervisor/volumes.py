"""The volumes of a run: made, or refused with a mend before anything is started and any device is taken."""

from __future__ import annotations

import errno
import os
import stat

from . import files, work
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from .runs import Attempt

    Json = Dict[str, Any]

LEAST_FREE = {"compile-cache": 1 << 30}
"""Bytes that must be free where a role lies. A compile cache of one large model takes as much, and a
full one shows as a failure of the model."""
LEAST_FILES = {"compile-cache": 1000}
"""Files that may still be made there: a compile cache is many small ones."""
PROBE = 4096
FULL = (errno.ENOSPC, errno.EDQUOT)


def check(attempt: Attempt, spec: Json) -> None:
    """Whether every volume can be made and written, and has room. Raises `Fault` PREFLIGHT or NO_SPACE
    that names the role; leaves nothing behind."""
    for role, name in sorted(spec.get("volumes", {}).items()):
        path = work.volume(attempt.run.root, role, name)
        try:
            _check(role, path, spec.get("observe", {}).get("cache_free_bytes"))
        except OSError as e:
            raise refused(role, path, e)


def make(attempt: Attempt, spec: Json) -> List[Json]:
    """Make the volumes; what became of each: `reused` if something was in it already, else `created`.
    Of one that was staged for this run, what was seen then: it is full of that by now."""
    made, staged = [], _staged(attempt)
    for role, name in sorted(spec.get("volumes", {}).items()):
        path = work.volume(attempt.run.root, role, name)
        try:
            event = "reused" if _holds_something(path) else "created"
            if not _only_read(role, path):
                os.makedirs(os.path.join(path, ".route"), 0o700, exist_ok=True)
                for _, leaf in work.CACHES if role == "compile-cache" else ():
                    os.makedirs(os.path.join(path, leaf), 0o700, exist_ok=True)
        except OSError as e:
            raise refused(role, path, e)
        events = staged.get(role) or [event]
        made.append({"name": name, "role": role, "path": path, "event": events[0], "events": events})
    return made


def _staged(attempt: Attempt) -> Dict[str, List[str]]:
    """Of each volume that shards were put into, what became of it. Told by the first attempt."""
    if attempt.number != 1:
        return {}
    note = files.hint_json(os.path.join(attempt.run.path, "committed.json"))
    return {one["role"]: list(one["events"]) for one in note.get("placed") or []}


def _holds_something(path: str) -> bool:
    """Whether a run used it before, or somebody filled it: the folder alone may be a new mount."""
    try:
        with os.scandir(path) as entries:
            return any(entry.name != "lost+found" for entry in entries)
    except FileNotFoundError:
        return False


def _only_read(role: str, path: str) -> bool:
    """Data is there to be read: a folder of it that cannot be written serves."""
    return role == "data" and os.path.isdir(path) and not os.access(path, os.W_OK)


def _check(role: str, path: str, asked: Any) -> None:
    there = path
    while not os.path.lexists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        kind = "a link that leads nowhere" if os.path.islink(there) else "no folder"
        raise Fault("PREFLIGHT", "volume %s: %s is %s" % (role, there, kind), "move it away")
    if _only_read(role, there):
        return
    probe(there)
    disk = os.statvfs(there)
    free, least = disk.f_bavail * disk.f_frsize, LEAST_FREE.get(role, 0)
    if role == "compile-cache" and type(asked) is int:
        least = asked
    if free < least:
        what = "volume %s: %s MiB are free at %s, it needs %s"
        raise Fault("NO_SPACE", what % (role, _mib(free), there, _mib(least)), "make room there: route gc")
    room = disk.f_favail if disk.f_files else None
    if room is not None and room < LEAST_FILES.get(role, 0):
        what = "volume %s: room for %d more files is left at %s" % (role, room, there)
        raise Fault("NO_SPACE", what, "remove files there: the file system is out of inodes")


def _mib(size: int) -> str:
    return "{:,}".format(size >> 20)


def probe(folder: str) -> None:
    """Write a block into a file without a name, so that quotas and full disks speak up now."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        path = ""
    except (AttributeError, OSError) as e:
        if getattr(e, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
            raise
        # Not every file system knows such files.
        path = os.path.join(folder, ".route-probe.%d" % os.getpid())
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, b"\0" * PROBE) < PROBE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)
        if path:
            os.unlink(path)


def refused(role: str, path: str, e: OSError) -> Fault:
    """Why a volume cannot be used, and what to do."""
    what = "volume %s: %s: %s" % (role, path, e.strerror or type(e).__name__)
    if e.errno in FULL:
        full = "its quota is used up" if e.errno == errno.EDQUOT else "no space is left"
        return Fault("NO_SPACE", "volume %s: %s at %s" % (role, full, path), "make room there: route gc")
    if e.errno == errno.EROFS:
        return Fault("PREFLIGHT", what, "mount it writable, or use a root on another disk")
    if e.errno in (errno.EACCES, errno.EPERM):
        return Fault("PREFLIGHT", what, "chown or chmod it for %s" % _owner(path))
    return Fault("PREFLIGHT", what, "see that it is a folder that can be written")


def _owner(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return "user %d" % os.geteuid()
    mode = stat.S_IMODE(found.st_mode)
    return "user %d (it is user %d's, mode %o)" % (os.geteuid(), found.st_uid, mode)
