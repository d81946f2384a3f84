"""Bytes read and written where a role lies: which counter there is, and whose bytes it counts."""

from __future__ import annotations

import os

from .. import files, machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    Json = Dict[str, Any]

SECTOR = 512
"""What the kernel counts in, whatever the disk has."""
MOST = 1 << 22


def counter(place: Json, proc: str = "/proc/self/mountstats", sys: str = "/sys") -> Optional[Json]:
    """What is counted for this place so far: `scope` (`device` or `mount`), `counter` (what is counted,
    by name), `read` and `written` in bytes. None where nothing counts."""
    if place["counters"]:
        return _device(place["counters"], sys)
    if place["fs"] in ("nfs", "nfs4"):
        return _nfs(place["mount"], proc)
    if place["fs"] == "lustre":
        return _lustre(place["device"], sys)
    return None


def _device(numbers: List[str], sys: str) -> Optional[Json]:
    read = written = 0
    for number in numbers:
        cells = machine.told("%s/dev/block/%s/stat" % (sys, number)).split()
        if len(cells) < 7:
            return None
        read, written = read + int(cells[2]) * SECTOR, written + int(cells[6]) * SECTOR
    return {"scope": "device", "counter": " ".join(numbers), "read": read, "written": written}


def _nfs(point: str, path: str) -> Optional[Json]:
    """The bytes that one NFS mount got from its server and sent there (fields 5 and 6 of `bytes:`)."""
    inside = False
    for row in (files.read(path, MOST) or b"").decode("utf-8", "surrogateescape").splitlines():
        words = row.split()
        if words[:1] == ["device"]:
            inside = len(words) > 4 and machine.unescape(words[4]) == point
        elif inside and words[:1] == ["bytes:"] and len(words) >= 7:
            read, written = int(words[5]), int(words[6])
            return {"scope": "mount", "counter": point, "read": read, "written": written}
    return None


def _lustre(source: str, sys: str) -> Optional[Json]:
    """The bytes of a Lustre client, from `llite`; newer ones show it to root alone."""
    name = source.rpartition(":/")[2].partition("/")[0]
    for above in ("/proc/fs/lustre/llite", sys + "/kernel/debug/lustre/llite"):
        try:
            found = [n for n in os.listdir(above) if n.startswith(name + "-")]
        except OSError:
            continue
        sums: Dict[bytes, int] = {}
        for entry in found[:1]:
            for row in machine.told("%s/%s/stats" % (above, entry)).splitlines():
                words = row.split()
                # name, samples, `samples`, unit, least, most, sum
                if words[:1] in ([b"read_bytes"], [b"write_bytes"]) and len(words) >= 7:
                    sums[words[0]] = int(words[6])
        if found and sums:
            read, written = sums.get(b"read_bytes", 0), sums.get(b"write_bytes", 0)
            return {"scope": "mount", "counter": name, "read": read, "written": written}
    return None


def between(first: Optional[Json], last: Optional[Json]) -> Tuple[Optional[Json], str]:
    """What passed between two looks at one counter, or why that cannot be told."""
    if first is None or last is None:
        return None, "nothing counts what is read and written there"
    if first["counter"] != last["counter"]:
        return None, "another counter stands there now"
    read, written = last["read"] - first["read"], last["written"] - first["written"]
    if read < 0 or written < 0:
        return None, "the counter was set back"
    return dict(last, read=read, written=written), ""


def of_group(io: Optional[Dict[str, List[int]]], place: Json) -> Optional[Json]:
    """What the run's own control group read from and wrote to the disks of this place. The work is put
    into its group a moment after its start: what it did before that is not in here."""
    rows = [io[number] for number in place["disks"] if number in io] if io else []
    if not rows:
        return None
    read, written = sum(r[0] for r in rows), sum(r[1] for r in rows)
    return {"scope": "cgroup", "counter": " ".join(place["disks"]), "read": read, "written": written}
