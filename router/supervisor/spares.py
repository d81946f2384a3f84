"""Spare work trees: a copy of what was committed last, made afterwards, that the next commit takes and mends.

To lay out a tree of thousands of small files is what a commit of an unchanged tree takes longest for. A
spare was never seen by any work. It is a hint: without one, or with a damaged one, the tree is laid out.
"""

from __future__ import annotations

import os
import shutil

from . import files, machine, names, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

    Json = Dict[str, Any]

LEAST_FILES = 100
"""Entries of a tree from which on a spare is worth its disk."""
MOST_BYTES = 128 << 20
KEPT = 2
"""Spares that are kept: those of the trees that were committed last."""
SAME = 2
"""A spare is taken for a tree of which at least one in so many entries need not be touched."""


def worth(entries: List[Json]) -> bool:
    return len(entries) >= LEAST_FILES and sum(e.get("bytes", 0) for e in entries) <= MOST_BYTES


def take(root: str, made: str, entries: List[Json], lay: Callable[[str, Json], None]) -> bool:
    """Put a spare under `made/work`, mended to hold exactly `entries`; False if there is none that serves.

    `lay(path, entry)` writes one file that is not there yet.
    """
    if not worth(entries) or any("/".join(names.parts(e["path"])) != e["path"] for e in entries):
        return False
    folder, own = os.path.join(root, "spares"), os.path.join(made, "spare")
    for name in _newest_first(folder):
        try:
            # Whoever renames it has it, alone.
            os.rename(os.path.join(folder, name), own)
        except OSError:
            continue
        try:
            if _mend(own, entries, lay):
                os.rename(os.path.join(own, "work"), os.path.join(made, "work"))
                return True
        except (OSError, KeyError, TypeError, ValueError, wire.Fault):
            pass  # laid out anew then; what is wrong with the disk will show
        finally:
            shutil.rmtree(own, ignore_errors=True)
    return False


def _newest_first(folder: str) -> List[str]:
    try:
        listed = [name for name in os.listdir(folder) if not name.startswith(".")]
        return sorted(listed, key=lambda name: os.lstat(os.path.join(folder, name)).st_mtime, reverse=True)
    except OSError:
        return []


def _mend(own: str, entries: List[Json], lay: Callable[[str, Json], None]) -> bool:
    note = files.read_json(os.path.join(own, "spare.json"))
    # It was never synced, so it is worth nothing after a boot.
    if note is None or note.get("boot_id") != machine.boot_id():
        return False
    work = os.path.join(own, "work")
    old = {entry["path"]: entry for entry in note["entries"]}
    new = {entry["path"]: entry for entry in entries}
    same = {path for path, entry in new.items() if "link" not in entry and old.get(path) == entry}
    if len(same) * SAME < len(new):
        return False
    for path in old:
        if path not in same:
            os.unlink(os.path.join(work, path))
    folders = _folders(new)
    for path in sorted(_folders(old) - folders, reverse=True):
        os.rmdir(os.path.join(work, path))
    for path in sorted(folders - _folders(old)):
        os.mkdir(os.path.join(work, path), 0o755)
    links = []
    for path, entry in new.items():
        if "link" in entry:
            links.append((path, entry["link"]))
        elif path not in same:
            lay(os.path.join(work, path), entry)
    # Last, so that nothing above was ever written through one of them.
    for path, target in links:
        os.symlink(target, os.path.join(work, path))
    return True


def _folders(entries: Dict[str, Json]) -> Any:
    found = set()
    for path in entries:
        at = path.rfind("/")
        while at > 0 and path[:at] not in found:
            found.add(path[:at])
            at = path.rfind("/", 0, at)
    return found


def make(root: str, nonce: str, entries: List[Json], lay_out: Callable[[str], None]) -> None:
    """Make a spare of a tree that was committed, unless there is one. Never raises for want of room."""
    folder, made = os.path.join(root, "spares"), os.path.join(root, "stage", nonce + ".spare")
    name = _name(entries)
    try:
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o700)  # not its parents: a root that was removed is not to come back
        if os.path.exists(os.path.join(folder, name)):
            return
        disk = os.statvfs(root)
        if disk.f_bavail * disk.f_frsize < 8 * MOST_BYTES:
            return
        try:
            os.mkdir(made, 0o700)
            lay_out(made)
            note = {"boot_id": machine.boot_id(), "entries": entries}
            files.write_hint(os.path.join(made, "spare.json"), wire.dumps(note))
            os.rename(made, os.path.join(folder, name))
        finally:
            shutil.rmtree(made, ignore_errors=True)
        for old in _newest_first(folder)[KEPT:]:
            _remove(root, old, nonce)
    except OSError:
        pass


def _remove(root: str, name: str, nonce: str) -> None:
    gone = os.path.join(root, "stage", "%s.%s.gone" % (name, nonce))
    os.rename(os.path.join(root, "spares", name), gone)
    shutil.rmtree(gone, ignore_errors=True)


def _name(entries: List[Json]) -> str:
    import hashlib

    return hashlib.sha256(wire.dumps(entries)).hexdigest()[:32]


def clear(root: str, nonce: str) -> int:
    """Remove all spares; how many there were."""
    found = _newest_first(os.path.join(root, "spares"))
    for name in found:
        try:
            _remove(root, name, nonce)
        except OSError:
            continue
    return len(found)
