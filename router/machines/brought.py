"""What a machine's manifest asks to be brought, and where it goes: nothing outside of one folder, ever."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from compute_router.errors import Rejected
from compute_router.records import Record

__all__ = ["PARTS", "Brought", "wanted"]

PARTS = ".parts"
"""Where half-brought files stand until they are whole, named by digest."""
MOST_FILES = 200_000
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Brought(Record, frozen=True, kw_only=True):
    """One file of a manifest: its path there, where it goes below `into`, its size in bytes, its digest."""

    path: str
    to: str
    bytes: int
    sha256: str


class _Named(msgspec.Struct):
    """An entry of a manifest, of which more may be told than is read here."""

    path: str
    bytes: int
    sha256: str


def wanted(manifest: Mapping[str, Any]) -> list[Brought]:
    """The files of a reply to `manifest`, with the measured block where it stands apart.

    What the work left below its own folder (`work/results/a`) goes to `outputs/results/a`, unless
    something of that name stands in its outputs: then to `outputs/work/results/a`. Raises
    `Rejected` for anything that is no plain path below a folder: then nothing at all is written.
    """
    listed = manifest.get("files")
    if not isinstance(listed, list) or len(listed) > MOST_FILES:
        raise Rejected("the machine's manifest is no list of files", mend="update compute-router")
    if "measured_sha256" in manifest:
        size, sha256 = manifest.get("measured_bytes"), manifest["measured_sha256"]
        listed = [*listed, {"path": "measured.json", "bytes": size, "sha256": sha256}]
    found: dict[str, _Named] = {}
    for item in listed:
        try:
            named = msgspec.convert(item, _Named)
        except msgspec.ValidationError as e:
            raise Rejected(f"the machine's manifest cannot be read: {e}", mend="update compute-router") from e
        path = named.path
        if named.bytes < 0 or not _DIGEST.fullmatch(named.sha256) or not _plain(path):
            raise _never(path)
        if found.setdefault(path, named).sha256 != named.sha256:
            raise _never(path)
    # Listed by digest and left where its user has it: see docs/recording.md.
    found = {path: named for path, named in found.items() if not path.startswith("in_place/")}
    files = {path for path in found if not path.startswith("work/")}
    above = {folder for path in files for folder in _folders(path)}
    placed: dict[str, Brought] = {}
    for path, named in found.items():
        to, rest = path, path.removeprefix("work/")
        if rest != path:
            to = f"outputs/{rest}"
            while to in files or to in above or any(folder in files for folder in _folders(to)):
                rest = f"work/{rest}"
                to = f"outputs/{rest}"
            if len(to) > 4000:
                raise _never(path)
        placed[to] = Brought(path=path, to=to, bytes=named.bytes, sha256=named.sha256)
    folders = {folder for to in placed for folder in _folders(to)}
    if both := folders & placed.keys():
        raise _never(min(both))
    return list(placed.values())


def _never(path: str) -> Rejected:
    return Rejected(
        f"the machine's manifest names {path[:200]!r}, which is never written",
        mend="do not trust that machine",
    )


def _plain(path: str) -> bool:
    parts = path.split("/")
    if "\0" in path or parts[0] == PARTS or any(part in ("", ".", "..") for part in parts):
        return False
    try:
        return len(path.encode()) <= 4000 and all(len(part.encode()) <= 255 for part in parts)
    except UnicodeEncodeError:
        return False


def _folders(path: str) -> Iterator[str]:
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)
