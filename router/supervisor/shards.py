"""Staged shards: large files of a volume, known by content, so that none is sent or kept twice."""

from __future__ import annotations

import errno
import os

from . import files, names, work
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    Json = Dict[str, Any]

# `shards/<sha256>.<time of change>` is another name of the file in the volume. A work that writes into
# that file changes its time, and so it no longer is what its digest says.


def path(root: str, digest: str, fd: int) -> str:
    """The name of a shard that has arrived under `fd`."""
    return os.path.join(root, "shards", "%s.%d" % (digest, os.fstat(fd).st_mtime_ns))


def find(root: str, digest: str, size: int) -> Optional[str]:
    """Where a shard lies, untouched since it came; None if it has to be sent. One that was written into is
    forgotten."""
    folder = os.path.join(root, "shards")
    try:
        listed = [name for name in os.listdir(folder) if name.startswith(digest + ".")]
    except OSError:
        return None
    for name in listed:
        where = os.path.join(folder, name)
        try:
            found = os.lstat(where)
            if found.st_size == size and str(found.st_mtime_ns) == name.partition(".")[2]:
                return where
            os.unlink(where)
        except OSError:
            continue
    return None


def place(root: str, spec: Json) -> List[Json]:
    """Put the shards of a specification into their volumes; what became of each volume that has some.

    Under a lock of the volume, each by a rename, so that no file there is ever half. Raises `Fault`
    BLOBS_MISSING for a shard that did not come.
    """
    told = []
    by_role: Dict[str, List[Json]] = {}
    for entry in spec.get("stage", []):
        by_role.setdefault(entry["role"], []).append(entry)
    missing = [e["sha256"] for e in spec.get("stage", []) if find(root, e["sha256"], e["bytes"]) is None]
    if missing:
        raise Fault(
            "BLOBS_MISSING", "%d shards are not here" % len(missing), "send them", missing=missing[:1000]
        )
    for role, entries in sorted(by_role.items()):
        folder = work.volume(root, role, spec["volumes"][role])
        counts = {"staged": 0, "reused": 0, "refreshed": 0}
        held = os.path.isdir(folder) and any(name != "lost+found" for name in os.listdir(folder))
        os.makedirs(os.path.join(folder, ".route"), 0o700, exist_ok=True)
        fd = files.lock(os.path.join(folder, ".route", "stage.lock"), patience=600.0)
        if fd < 0:
            raise Fault("NO_SPACE", "volume %s is being staged by somebody else" % role, "try again")
        try:
            for entry in entries:
                counts[_place(root, folder, entry)] += 1
        finally:
            os.close(fd)
        events = [] if held else ["created"]
        events += [event for event in ("reused", "refreshed", "staged") if counts[event]]
        told.append(
            {
                "role": role,
                "name": spec["volumes"][role],
                "events": events,
                "files": len(entries),
                "bytes": sum(entry["bytes"] for entry in entries),
                **counts,
            }
        )
    return told


def _place(root: str, folder: str, entry: Json) -> str:
    source = find(root, entry["sha256"], entry["bytes"])
    if source is None:
        raise Fault("BLOBS_MISSING", "a shard is not here", "send it", missing=[entry["sha256"]])
    known = os.lstat(source)
    target = os.path.join(folder, *names.parts(entry["path"]))
    there = _stat(target)
    if there is not None and (there.st_size, there.st_mtime_ns) == (known.st_size, known.st_mtime_ns):
        return "reused"
    above = os.path.dirname(target)
    os.makedirs(above, 0o755, exist_ok=True)
    base = os.path.realpath(folder)
    if os.path.commonpath([base, os.path.realpath(above)]) != base:
        raise Fault("PREFLIGHT", "%.200s leads out of its volume by a link" % above, "move the link away")
    beside = os.path.join(above, ".%s.%d.part" % (os.path.basename(target)[:200], os.getpid()))
    _remove(beside)
    try:
        _bring(source, beside, known)
        os.rename(beside, target)
    finally:
        _remove(beside)
    files.sync_folder(above)
    return "staged" if there is None else "refreshed"


def _bring(source: str, beside: str, known: os.stat_result) -> None:
    """The first volume that needs a shard shares its file; any other gets a copy of its own."""
    if known.st_nlink == 1:
        try:
            os.link(source, beside)
            # Two volumes may have found it unshared at once: then each gets a copy.
            if os.lstat(beside).st_nlink == 2:
                return
            os.unlink(beside)
        except OSError as e:
            if e.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        sink = os.open(beside, files.NEW, 0o600)
        try:
            files.copy(fd, sink)
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (known.st_size, known.st_mtime_ns):
                raise Fault("BLOBS_MISSING", "a shard was written into", "send it again")
            os.fsync(sink)
            os.utime(beside, ns=(known.st_mtime_ns, known.st_mtime_ns))
        finally:
            os.close(sink)
    finally:
        os.close(fd)


def _stat(target: str) -> Optional[os.stat_result]:
    try:
        return os.lstat(target)
    except OSError:
        return None


def _remove(target: str) -> None:
    if os.path.lexists(target):
        os.unlink(target)


def unused(root: str, before_us: int) -> List[Tuple[str, int]]:
    """Shards that no volume holds any more, and their bytes."""
    folder = os.path.join(root, "shards")
    found = []
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        status = _stat(os.path.join(folder, name))
        if status is not None and status.st_nlink == 1 and status.st_ctime_ns // 1000 < before_us:
            found.append((os.path.join(folder, name), status.st_blocks * 512))
    return found


def check(stage: Any, volumes: Any) -> None:
    """The shards of a specification. Raises `Fault` BAD_SPEC."""
    seen = set()
    for entry in stage:
        if not isinstance(entry, dict):
            raise Fault("BAD_SPEC", "an entry of `stage` cannot be %.60r" % (entry,))
        parts = names.parts(entry.get("path"), "a path of `stage`")
        where = (entry.get("role"), "/".join(parts))
        if entry.get("role") not in volumes or not parts or parts[0] == ".route" or where in seen:
            raise Fault("BAD_SPEC", "`stage` puts %.80r nowhere, or twice" % (entry.get("path"),))
        seen.add(where)
        names.digest(entry.get("sha256"))
        names.whole(entry.get("bytes"), "bytes of %.80r" % where[1])
