"""Frees what a collected run holds: at once what nobody fetches, its outputs once others had their time."""

from __future__ import annotations

import os
import shutil
import stat

from . import files, machine, names, wire
from . import manifest as listing
from .runs import Attempt, Run
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Set, Tuple

    Json = Dict[str, Any]

FOLDER = "retained"
"""Below the root: one empty file `<until_us>.<run_id>` for each run whose outputs go at that time."""
MOST_US = 366 * 86_400 * 1_000_000


def cleanup(run: Run, attempt: Attempt, keep_us: int) -> Json:
    """Free a collected run, but for what its manifest lists if that is kept for `keep_us` longer."""
    sweep(run.root)
    until = mark(run).get("at_us", 0) + min(keep_us, MOST_US)
    if keep_us and until > machine.now_us():
        freed = thin(run, listed(attempt))
        os.makedirs(os.path.join(run.root, FOLDER), 0o700, exist_ok=True)
        if not any(run_id == run.id for _, run_id in waiting(run.root)):
            files.mark_once(os.path.join(run.root, FOLDER, "%d.%s" % (until, run.id)))
        return {"bytes": freed, "until_us": until}
    return {"bytes": empty(run), "until_us": None}


def mark(run: Run) -> Json:
    """Who collected the run first, and when; empty if nobody has."""
    return files.hint_json(os.path.join(run.path, "collected.json"))


def empty(run: Run) -> int:
    """Remove the work tree and the outputs; the bytes that this freed."""
    freed = remove(run.work)
    for number in files.numbered(run.attempts):
        for name in ("outputs", "ranks"):
            freed += remove(os.path.join(run.attempts, str(number), name))
    for until, run_id in waiting(run.root):
        if run_id == run.id:
            remove(os.path.join(run.root, FOLDER, "%d.%s" % (until, run_id)))
    return freed


def waiting(root: str) -> List[Tuple[int, str]]:
    """The runs whose outputs are kept for others, and until when; those that go first come first."""
    try:
        found = [name.partition(".") for name in os.listdir(os.path.join(root, FOLDER))]
    except OSError:
        return []
    return sorted((int(until), run_id) for until, _, run_id in found if until.isdigit() and len(run_id) == 26)


def sweep(root: str, scarce: bool = False) -> int:
    """Remove the outputs whose time is over, and where room is scarce also those whose time is not."""
    freed, now = 0, machine.now_us()
    for until, run_id in waiting(root):
        if scarce or until <= now:
            freed += empty(Run(root, names.run_id(run_id)))
    return freed


def listed(attempt: Attempt) -> Set[str]:
    """The paths below `work/` that the manifest lists."""
    found = files.hint_json(attempt.at("manifest.json")).get("files", [])
    return {f["path"][5:] for f in found if f["path"].startswith("work/")}


def thin(run: Run, keep: Set[str]) -> int:
    """Remove from the work tree all that is not in `keep`; the bytes that this freed."""
    if not keep:
        return remove(run.work)
    freed = size_of(run.work)
    for folder, folders, found in os.walk(run.work, topdown=False):
        inside = os.path.relpath(folder, run.work)
        for name in (*found, *folders):
            path = os.path.join(folder, name)
            if os.path.normpath(os.path.join(inside, name)) in keep:
                continue
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    os.rmdir(path)  # which fails, rightly, where something below is kept
                else:
                    os.unlink(path)
            except OSError:
                pass
    return max(0, freed - size_of(run.work))


def parted(run: Run, attempt: Attempt, found: List[Json]) -> Tuple[List[Json], List[Json]]:
    """The files of a manifest that can still be fetched, and those that are gone since it was made."""
    here: List[Json] = []
    gone: List[Json] = []
    for entry in found:
        (here if _is_there(attempt, entry["path"]) else gone).append(entry)
    return here, gone


def _is_there(attempt: Attempt, path: str) -> bool:
    if path.startswith("in_place/"):
        return True
    try:
        base, parts = listing.place(attempt, path)
        fd = listing.open_below(base, parts, listing.FILE)
    except (OSError, Fault):
        return False
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def collected(run: Run, attempt: Attempt, head: Json) -> None:
    """Mark the run as collected, and by whom; who was first stays in the mark."""
    receipt, by = head.get("receipt_id"), head.get("by")
    if receipt is not None:
        names.digest(receipt)
    if by is not None:
        by = names.text(by, "by")[:200]
    first = mark(run)
    if first.get("attempt") == attempt.number and (first.get("receipt_id") or receipt is None):
        return
    note = {"receipt_id": receipt, "attempt": attempt.number, "at_us": machine.now_us(), "by": by}
    files.write(os.path.join(run.path, "collected.json"), wire.dumps(note))


def remove(path: str) -> int:
    """Remove a tree, following no link; the bytes that this freed. What cannot be removed stays."""
    freed = size_of(path)
    if os.path.islink(path) or os.path.isfile(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # another client was faster
    else:
        shutil.rmtree(path, ignore_errors=True)
    return max(0, freed - size_of(path))


def size_of(path: str) -> int:
    total = 0
    for folder, _, found in os.walk(path):
        for name in found:
            try:
                status = os.lstat(os.path.join(folder, name))
                # Of a file that has other names too, its share.
                total += status.st_blocks * 512 // max(1, status.st_nlink)
            except OSError:
                pass
    return total
