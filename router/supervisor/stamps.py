"""What a compile-cache volume holds, by its stamps: one rule for offers, for probes and for receipts.

A stamp is `.route/<cache key>.json` in the volume, written after a run whose caches were hit or were
seeded. A folder that is not empty proves nothing by itself.
"""

from __future__ import annotations

import os

from . import files, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional

    Json = Dict[str, Any]

FOLDER = ".route"
MOST = 1000
SEEDED = ("hit", "miss", "partial")
"""Verdicts after which a cache holds what the next run wants: it was taken from it, or written to it."""


def path_of(volume: str, key: str) -> str:
    return os.path.join(volume, FOLDER, key + ".json")


def good(stamp: Json) -> bool:
    """Whether a stamp tells of a cache that was hit or seeded, by the last verdict in it."""
    verdicts = stamp.get("verdicts")
    # Written after a success only: without a verdict it was a completed seeding.
    return isinstance(verdicts, list) and (not verdicts or verdicts[-1] in SEEDED)


def state(volume: str, key: Optional[str], parts: Optional[Json] = None) -> str:
    """The state of a compile-cache volume for `key`, a word of the receipt's `cache_state`.

    `parts` is what the key was made of: it tells another world size from another image.
    """
    try:
        names = sorted(n for n in os.listdir(os.path.join(volume, FOLDER)) if n.endswith(".json"))
    except FileNotFoundError:
        return "empty"
    except OSError:
        return "unwritable"
    if not os.access(volume, os.W_OK):
        return "unwritable"
    if not key:
        return "unobserved"
    if not any_file(volume):
        return "empty"
    if key + ".json" in names:
        return "warm_same_key" if good(read(volume, key)) else "partial"
    if not names:
        return "partial"
    return _other([read(volume, name[: -len(".json")]) for name in names[:MOST]], parts or {})


def _other(stamps: List[Json], parts: Json) -> str:
    """How the nearest of the stamps of other keys differs from what is asked for."""
    differ = []
    for stamp in stamps:
        was = stamp.get("parts")
        if isinstance(was, dict) and was and parts:
            differ.append({name for name in parts if was.get(name) != parts[name]})
    if any(names <= {"world", "accelerator"} and _same_sku(stamps, parts) for names in differ if names):
        return "warm_other_world"
    # The same image and world, and other shapes: some of it may be of use, and no word claims more.
    return "partial" if any(names == {"shapes"} for names in differ) else "warm_other_image"


def _same_sku(stamps: List[Json], parts: Json) -> bool:
    """Whether some stamp is of the same kind of accelerator, however many of them."""
    wanted = (parts.get("accelerator") or [])[:2]
    return any(((stamp.get("parts") or {}).get("accelerator") or [])[:2] == wanted for stamp in stamps)


def of_kind(volume: str, key: Optional[str], parts: Optional[Json], kind: str, folder: str) -> str:
    """The state of the cache of one kind, in its `folder` of the volume."""
    found = state(volume, key, parts)
    if found in ("empty", "unwritable", "unobserved"):
        return found
    if not any_file(folder):
        return "empty"
    if found == "warm_same_key":
        told = read(volume, key or "").get("caches")
        # A stamp that names no caches is one of a seeding that was not looked into.
        if isinstance(told, dict) and told and told.get(kind) not in SEEDED:
            return "partial"
    return found


def read(volume: str, key: str) -> Json:
    return files.hint_json(path_of(volume, key))


def write(volume: str, key: str, stamp: Json) -> None:
    if os.path.isdir(os.path.join(volume, FOLDER)):
        files.write(path_of(volume, key), wire.dumps(stamp))


def drop(volume: str, key: str) -> None:
    """Take the stamp away: what stands there could not be used."""
    try:
        os.unlink(path_of(volume, key))
    except OSError:
        pass


def walk(folder: str) -> Iterator[os.DirEntry[str]]:
    """Every file below `folder`, without what is ours; what cannot be read is left out."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != FOLDER:
                        yield from walk(entry.path)
                else:
                    yield entry
    except OSError:
        return


def any_file(folder: str) -> bool:
    return next(walk(folder), None) is not None
