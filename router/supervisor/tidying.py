"""Removes what no run here needs any more and nothing under way uses: `gc`, for whichever client asks."""

from __future__ import annotations

import os
import shutil
import time

from . import collecting, environments, files, machine, names, packs, retaining, shards, using
from .runs import Run
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

    Json = Dict[str, Any]
    Thing = Tuple[str, int, int, Callable[[], bool]]
    """Its kind, how many it is, the bytes it would free, and what removes it: False if it is used."""

IDLE_US = 3_600_000_000
"""Microseconds for which what was made here is left after its last use, however old things may be: a start
that is under way holds locks, and one between two connections none."""
PATIENCE = 600.0
"""Seconds for which one who tidies waits for another."""


def gc(root: str, head: Json) -> Json:
    """Remove runs that were collected and ended before `before_us`, and all else that is older and that no
    remaining run needs; of environments, caches and supervisors what was not used for `idle_us` besides.

    Without `runs` those stay, but for their checkpoints. With `dry_run` nothing is removed and the
    answer says what would be.
    """
    before, idle = (
        names.whole(head.get("before_us", 0), "before_us"),
        names.whole(head.get("idle_us", IDLE_US), "idle_us"),
    )
    dry, runs = head.get("dry_run") is not False, head.get("runs") is not False
    latest = min(before, machine.now_us() - idle)
    if dry:
        told = [(kind, count, size) for kind, count, size, _ in things(root, before, latest, runs)]
    else:
        told = _removed(root, before, latest, runs)
    kinds: Dict[str, List[int]] = {}
    for kind, count, size in told:
        known = kinds.setdefault(kind, [0, 0])
        known[0], known[1] = known[0] + count, known[1] + size
    return {
        "removed": [kind[4:] for kind, _, _ in told if kind.startswith("run ")],
        "blobs": kinds.get("blob", [0])[0],
        "bytes": sum(size for _, _, size in told),
        "dry_run": dry,
        "kinds": [[kind, *both] for kind, both in kinds.items() if not kind.startswith("run ")],
    }


def _removed(root: str, before: int, latest: int, runs: bool) -> List[Tuple[str, int, int]]:
    path = using.lock_of(root, "gc")
    until, fd = time.monotonic() + PATIENCE, -1
    while fd < 0:
        # One at a time: what two remove at once would be told by both.
        fd = files.lock(path, patience=max(0.0, until - time.monotonic()))
        if fd < 0:
            raise Fault("BUSY", "somebody else is tidying up here", "try again")
        if not files.still(path, fd):
            os.close(fd)
            fd = -1
    try:
        # What is on its way in is not told from what nobody needs, so nothing of it may be on its way.
        alone = using.alone(using.lock_of(root, "bring"))
        try:
            # All of it first: what is removed changes the share of what has its files in common with it.
            found = list(things(root, before, latest, runs, blobs=alone >= 0))
            return [(kind, count, size) for kind, count, size, remove in found if remove()]
        finally:
            if alone >= 0:
                os.close(alone)
    finally:
        os.close(fd)


def things(root: str, before: int, latest: int, runs: bool, blobs: bool = True) -> Iterator[Thing]:
    """Everything that may go, one by one."""
    for until, run_id in retaining.waiting(root):
        if until <= machine.now_us():
            run = Run(root, names.run_id(run_id))
            yield "kept output", 1, _outputs(run), _emptied(run)
    over = [run for run in (Run(root, name) for name in collecting.listed(root)) if removable(run, before)]
    for run in over:
        if runs:
            yield "run " + run.id, 1, retaining.size_of(run.path), _hidden(root, run.path)
            continue
        path = os.path.join(run.path, "checkpoints")
        if size := retaining.size_of(path):
            yield "checkpoint folder", 1, size, _hidden(root, path)
    yield from _environments(root, latest)
    yield from _cache(root, latest)
    yield from _supervisors(root, latest)
    for folder, kind in (("spares", "spare tree"), ("stage", "unfinished commit")):
        yield from _folders(root, folder, kind, before)
    if blobs:
        yield from _unused(root, before, {run.id for run in over})


def removable(run: Run, before_us: int) -> bool:
    if not files.hint_json(os.path.join(run.path, "collected.json")):
        return False
    ended = _ended(run)
    return ended is not None and ended < before_us


def _ended(run: Run) -> Optional[int]:
    """When the run ended; None while it may not be over."""
    attempt = run.newest()
    try:
        record = attempt.json("exit.json") if attempt is not None else None
    except Fault:
        return None
    if attempt is None or record is None or type(record.get("ended_us")) is not int:
        return None
    return None if files.held(attempt.at("sup.lock")) else int(record["ended_us"])


def _going_on(root: str) -> Iterator[Run]:
    """The runs that may not be over."""
    for name in collecting.listed(root):
        run = Run(root, name)
        if _ended(run) is None:
            yield run


def _outputs(run: Run) -> int:
    folders = [run.work]
    for number in files.numbered(run.attempts):
        folders += [os.path.join(run.attempts, str(number), name) for name in ("outputs", "ranks")]
    return sum(map(retaining.size_of, folders))


def _emptied(run: Run) -> Callable[[], bool]:
    def remove() -> bool:
        retaining.empty(run)
        return True

    return remove


def _hidden(
    root: str, path: str, lock: Optional[str] = None, needed: Callable[[], bool] = lambda: False
) -> Callable[[], bool]:
    """Removes a folder: out of sight by one rename first, so that it is never seen half removed. With
    `lock`, only if nobody uses that, and it is not `needed` once that is sure."""

    def remove() -> bool:
        fd = -1 if lock is None else using.alone(lock)
        try:
            if (lock is not None and fd < 0) or needed():
                return False
            name = ".gone.%s.%d" % (os.path.basename(path)[:64], machine.mono_us())
            gone = os.path.join(root, "stage", name)
            try:
                os.rename(path, gone)
                files.sync_folder(os.path.dirname(path))
            except OSError:
                return False  # somebody took it, or it is the root of a disk
            shutil.rmtree(gone, ignore_errors=True)
            return True
        finally:
            if fd >= 0:
                os.close(fd)

    return remove


def _us(path: str) -> int:
    """When it was used last; far ahead if it is not there."""
    try:
        return os.lstat(path).st_mtime_ns // 1000
    except OSError:
        return 1 << 62


def _list(*path: str) -> List[str]:
    try:
        return sorted(os.listdir(os.path.join(*path)))
    except OSError:
        return []


def _is_digest(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


# Environments, and what they were made with


def _environments(root: str, latest: int) -> Iterator[Thing]:
    specs = list(_specs(root))
    for name in _list(root, "envs"):
        path = os.path.join(root, "envs", name)
        lock = os.path.join(path, using.LOCK)
        lock = lock if os.path.exists(lock) else path
        used = _us(lock)
        if not _is_digest(name) or used >= latest or _named(name, specs):
            continue
        yield "environment", 1, retaining.size_of(path), _hidden(root, path, lock, _needs(root, name))


def _specs(root: str) -> Iterator[bytes]:
    """The specifications of the runs that may not be over."""
    for run in _going_on(root):
        yield files.read(os.path.join(run.path, "spec.json")) or b""


def _named(environment: str, specs: Iterable[bytes]) -> bool:
    return any(environment.encode() in spec for spec in specs)


def _needs(root: str, environment: str) -> Callable[[], bool]:
    # Whoever was told of it may have committed a run since, and gone.
    return lambda: _named(environment, _specs(root))


def _cache(root: str, latest: int) -> Iterator[Thing]:
    """What uv keeps of packages, and the uvs that were sent here."""
    path = os.path.join(root, "cache", "uv")
    if os.path.isdir(path):
        lock = using.lock_of(root, "uv")
        # Each environment that was made from it used it.
        made = [_us(os.path.join(root, "envs", name)) for name in _list(root, "envs")]
        if max([_us(lock), _us(path), *made]) < latest:
            yield "cache of uv", 1, retaining.size_of(path), _hidden(root, path, lock)
    for name in _list(root, "bin"):
        path = os.path.join(root, "bin", name)
        if name.startswith("uv-") and _us(os.path.join(path, "uv")) < latest:
            yield "uv", 1, retaining.size_of(path), _hidden(root, path, os.path.join(path, "uv"))


def _supervisors(root: str, latest: int) -> Iterator[Thing]:
    """Those of other versions that nobody came with for long. A session, and who watches over a run, holds
    the lock of its own; one from before there were such locks is known by what it did not write down."""
    needed: Set[object] = {os.path.basename(using.own())}
    for run in _going_on(root):
        attempt = run.newest()
        started = files.hint_json(attempt.at("started.json")) if attempt is not None else {}
        if started:
            needed.add((started.get("waiter") or {}).get("supervisor"))
    if None in needed:
        return
    for name in _list(root, "bin"):
        path = os.path.join(root, "bin", name)
        if _is_digest(name) and name not in needed and _us(path) < latest:
            yield "supervisor", 1, retaining.size_of(path), _hidden(root, path, path)


# Files


def _folders(root: str, above: str, kind: str, latest: int) -> Iterator[Thing]:
    """Spare trees; and of the stage what a commit, or one who tidied, left that was killed."""
    stale = min(latest, machine.now_us() - int(environments.STALE * 1e6))
    for name in _list(root, above):
        path = os.path.join(root, above, name)
        if os.path.isdir(path) and _us(path) < (stale if above == "stage" else latest):
            yield kind, 1, retaining.size_of(path), _hidden(root, path)


def _unused(root: str, latest: int, without: Set[str]) -> Iterator[Thing]:
    """Blobs, packs, shards and parts that no remaining run names."""
    needed: Set[str] = set()
    for name in collecting.listed(root):
        if name in without:
            continue
        try:
            spec = Run(root, name).spec()
        except (Fault, OSError):
            return  # what it needs cannot be told, so nothing may go
        needed.update(entry["sha256"] for entry in spec.get("tree", []) if "sha256" in entry)
    for top in ("blobs", "stage"):
        for folder, folders, found in os.walk(os.path.join(root, top)):
            if top == "stage":
                folders[:] = []
            for name in found:
                path = os.path.join(folder, name)
                if name.endswith(".lock"):
                    continue  # next to nothing, and whoever opens it now means this one
                try:
                    status = os.lstat(path)
                    if name in needed or status.st_mtime_ns // 1000 >= latest or files.held(path):
                        continue
                except OSError:
                    continue
                yield "blob", 1, status.st_blocks * 512, _unlinked(path)
    for name in _list(root, "packs"):
        path = os.path.join(root, "packs", name)
        if _us(path) < latest:
            blobs = [digest for digest, _, _ in packs.index(path)]
            # One goes as a whole, once no run needs any of it.
            if needed.isdisjoint(blobs):
                yield "blob", len(blobs), os.lstat(path).st_blocks * 512, _unlinked(path)
    for path, size in shards.unused(root, latest):
        yield "blob", 1, size, _unlinked(path)


def _unlinked(path: str) -> Callable[[], bool]:
    def remove() -> bool:
        try:
            os.unlink(path)
        except OSError:
            return False
        return True

    return remove
