"""Gives back what a run left: manifest, files by offset, marks, and the freeing of disk."""

from __future__ import annotations

import os
import stat
import time

from . import closing, files, machine, masking, names, packs, retaining, shards, spares, starting, truth, wire
from . import manifest as listing
from .runs import Run
from .wire import Fault, Gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Set, Tuple

    from .runs import Attempt
    from .wire import Wire

    Json = Dict[str, Any]


def finished(run: Run) -> Attempt:
    """The newest attempt, if it is final. Raises `Fault` NOT_FINAL."""
    attempt = run.newest()
    found = truth.of(attempt) if attempt is not None else None
    if attempt is None or found is None or not truth.final(found):
        state = found["state"] if found else "committed"
        raise Fault("NOT_FINAL", "run %s is %s" % (run.id, state), "wait for its end")
    return attempt


def settled(run: Run, stream: Wire, head: Json, body: bytes = b"") -> Attempt:
    """The newest attempt with all its records, made here if its waiter could not.

    A waiter that is still hashing what the run left is waited for as long as the client listens.
    Raises `Fault` SECRETS where waiter and watcher died with the values of the secrets: they are
    to be given again, or `unmasked` said, which leaves here what may hold them.
    """
    attempt = finished(run)
    secrets = starting.given(body)
    if not attempt.has("done.json"):
        # A watcher that has outlived its waiter knows the secrets, and does this with them.
        while masking.read(attempt) is not None and files.held(attempt.at("watch.lock")):
            if not stream.listening():
                raise Gone("while it waited")
            time.sleep(0.02)
        # The waiter holds this while it writes them; it is free at once if there is no waiter.
        fd = -1
        while fd < 0:
            fd = files.lock(attempt.at("sup.lock"), patience=1.0)
            if fd < 0 and not stream.listening():
                raise Gone("while it waited")
        try:
            if not attempt.has("done.json"):
                spec = run.spec()
                wanted = [name for name in spec.get("secrets", []) if name not in secrets]
                if masking.read(attempt) is not None and wanted and head.get("unmasked") is not True:
                    raise Fault(
                        "SECRETS",
                        "whoever looked for secret %s in what run %s left is gone" % (wanted[0], run.id),
                        "give its value again",
                        names=wanted,
                    )
                closing.settle(attempt, spec, {}, secrets)
        finally:
            os.close(fd)
    return attempt


def manifest(run: Run, stream: Wire, head: Json, body: bytes) -> Json:
    attempt = settled(run, stream, head, body)
    listed, done = attempt.json("manifest.json") or {}, attempt.json("done.json") or {}
    own = {
        "path": "measured.json",
        "bytes": done["measured_bytes"],
        "sha256": done["measured_sha256"],
        "role": "measured",
    }
    told = {
        "attempt": attempt.number,
        "files": [*listed["files"], own],
        "skipped": listed["skipped"],
        "truncated": listed["truncated"],
    }
    if mark := retaining.mark(run):
        told["files"], told["gone"] = retaining.parted(run, attempt, told["files"])
        told["collected"] = {name: mark.get(name) for name in ("at_us", "by", "receipt_id")}
    return told


def fetch(run: Run, stream: Wire, head: Json) -> None:
    """Send files of the manifest from the offsets asked for. One that cannot be read says so alone."""
    attempt = settled(run, stream, head)
    asked = head.get("files")
    if not isinstance(asked, list) or not all(isinstance(f, list) and len(f) == 2 for f in asked):
        raise Fault("BAD_REQUEST", "`files` holds pairs of path and offset", "see docs/protocol.md")
    for path, offset in asked:
        try:
            where = names.whole(offset, "offset")
            base, parts = listing.place(attempt, path)
            fd = listing.open_below(base, parts, listing.FILE)
        except (OSError, Fault) as e:
            _failed(stream, path, e)
            continue
        try:
            _send(stream, path, fd, where)
        except (OSError, Fault) as e:
            _failed(stream, path, e)
        finally:
            os.close(fd)
    stream.send({"re": "fetch", "end": True})


def _send(stream: Wire, path: str, fd: int, offset: int) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise Fault("NO_FILE", "%.80r is no regular file" % path)
    data = os.pread(fd, wire.CHUNK, offset)
    while True:
        after = os.pread(fd, wire.CHUNK, offset + len(data)) if data else b""
        stream.send({"re": "fetch", "path": path, "offset": offset, "last": not after}, data)
        if not after:
            return
        offset, data = offset + len(data), after


def _failed(stream: Wire, path: Any, e: Any) -> None:
    fault = (
        e if isinstance(e, Fault) else Fault("NO_FILE", "%.80r: %s" % (path, e.strerror), "ask `manifest`")
    )
    stream.send({"re": "fetch", "path": path, "error": fault.told()})


def collected(run: Run, head: Json) -> Json:
    """Mark the run as collected: from here on it may be freed."""
    retaining.collected(run, finished(run), head)
    return {}


def cleanup(run: Run, stream: Wire, head: Json) -> Json:
    """Free the work tree and the outputs of a final run, what its manifest lists `keep_us` after it was
    collected; its records stay and go on answering, and its checkpoints, which no manifest lists, stay
    until `gc`."""
    attempt = settled(run, stream, {"unmasked": True})
    keep_us = names.whole(head.get("keep_us", 0), "keep_us")
    return {"attempt": attempt.number, **retaining.cleanup(run, attempt, keep_us)}


def everything(root: str, head: Json) -> Json:
    """Every run that is committed here, newest first; one that cannot be read says so. With `about` also
    what the client that submitted it called it."""
    found = []
    for name in sorted(listed(root), reverse=True):
        run = Run(root, name)
        try:
            status = truth.status(run)
        except (Fault, OSError) as e:
            found.append(
                {"run_id": name, "attempt": 0, "state": "unknown", "collected": None, "why": str(e)[:200]}
            )
            continue
        if status is not None:
            mark = files.hint_json(os.path.join(run.path, "collected.json"))
            found.append(
                {
                    "run_id": name,
                    "attempt": status["attempt"],
                    "state": status["state"],
                    "ended_us": status["ended_us"],
                    "collected": mark.get("receipt_id") or (bool(mark) or None),
                }
            )
    if head.get("about") is True:
        from . import keeping

        for entry in found:
            entry["about"] = keeping.about(Run(root, str(entry["run_id"])))
    return {"runs": found}


def listed(root: str) -> List[str]:
    try:
        found = os.listdir(os.path.join(root, "runs"))
    except OSError:
        return []
    return [name for name in found if len(name) == 26 and name.isalnum()]


def gc(root: str, head: Json) -> Json:
    """Remove runs that were collected and ended before `before_us`, then blobs that no run names.

    With `dry_run` nothing is removed and the answer says what would be.
    """
    before, dry = names.whole(head.get("before_us", 0), "before_us"), head.get("dry_run") is not False
    removed: List[str] = []
    freed = 0 if dry else retaining.sweep(root)
    for name in listed(root):
        run = Run(root, name)
        if not removable(run, before):
            continue
        freed += retaining.size_of(run.path)
        removed.append(name)
        if not dry:
            # Out of sight by one rename first, so that no run is ever seen half removed.
            hidden = os.path.join(root, "stage", ".gone.%s.%d" % (name, machine.mono_us()))
            os.rename(run.path, hidden)
            files.sync_folder(os.path.join(root, "runs"))
            retaining.remove(hidden)
    if not dry:
        spares.clear(root, "%d.%d" % (os.getpid(), machine.mono_us()))
    count, size = unused(root, before, dry, set(removed))
    return {"removed": removed, "blobs": count, "bytes": freed + size, "dry_run": dry}


def removable(run: Run, before_us: int) -> bool:
    if not files.hint_json(os.path.join(run.path, "collected.json")):
        return False
    attempt = run.newest()
    try:
        record = attempt.json("exit.json") if attempt is not None else None
    except Fault:
        return False
    if attempt is None or record is None or type(record.get("ended_us")) is not int:
        return False
    return record["ended_us"] < before_us and not files.held(attempt.at("sup.lock"))


def unused(root: str, before_us: int, dry: bool, without: Set[str]) -> Tuple[int, int]:
    """Blobs older than `before_us` that no remaining run names; and parts and stages as old."""
    needed: Set[str] = set()
    for name in listed(root):
        if name in without:
            continue
        try:
            spec = Run(root, name).spec()
        except (Fault, OSError):
            return 0, 0  # what it needs cannot be told, so nothing may go
        needed.update(entry["sha256"] for entry in spec.get("tree", []) if "sha256" in entry)
    count = size = 0
    for top in ("blobs", "stage"):
        for folder, folders, found in os.walk(os.path.join(root, top)):
            if top == "stage":
                folders[:] = []
            for name in found:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                if name in needed or status.st_mtime_ns // 1000 >= before_us or files.held(path):
                    continue
                count, size = count + 1, size + status.st_blocks * 512
                if not dry:
                    os.unlink(path)
    for path, blobs, bytes_ in _packs(root, before_us):
        if needed.isdisjoint(blobs):
            count, size = count + len(blobs), size + bytes_
            if not dry:
                os.unlink(path)
    for path, bytes_ in shards.unused(root, before_us):
        count, size = count + 1, size + bytes_
        if not dry:
            os.unlink(path)
    return count, size


def _packs(root: str, before_us: int) -> List[Tuple[str, List[str], int]]:
    """The packs older than `before_us`: path, digests, bytes. One goes as a whole, once no run needs any
    of it."""
    folder, found = os.path.join(root, "packs"), []
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name)
        status = os.lstat(path)
        if status.st_mtime_ns // 1000 < before_us:
            found.append((path, [digest for digest, _, _ in packs.index(path)], status.st_blocks * 512))
    return found
