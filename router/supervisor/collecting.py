"""Gives back what a run left: manifest, files by offset, marks, and the freeing of disk."""

from __future__ import annotations

import os
import stat
import time

from . import closing, files, masking, names, retaining, starting, truth, wire
from . import manifest as listing
from .runs import Run
from .wire import Fault, Gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

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
