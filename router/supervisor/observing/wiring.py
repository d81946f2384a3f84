"""How GPUs are wired: a matrix of link words as nvidia-smi has them, and one text for equal wirings."""

from __future__ import annotations

from . import nvml
from .nvml import Unseen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .nvml import Library

    Json = Dict[str, Any]

MOST_LINKS = 36
"""NVML_NVLINK_MAX_LINKS of nvml.h 13; a driver that knows fewer refuses the higher ones."""
GPU, SWITCH = 0, 2
LEVELS = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""nvmlGpuTopologyLevel_t in the words of nvidia-smi: on one board or below one switch, several
switches, one host bridge, one NUMA node, across nodes."""


def links(lib: Library, handle: Any) -> Optional[List[int]]:
    """The numbers of the NVLinks that are up; None if the device tells of none."""
    found, told = [], False
    for link in range(MOST_LINKS):
        try:
            up = lib.get("nvmlDeviceGetNvLinkState", handle, link)
        except Unseen as e:
            if e.code in (nvml.NOT_SUPPORTED, nvml.MISSING, nvml.LOST, nvml.RESET) and not told:
                return None
            if e.code == 2:  # no such link: the last one was the last
                break
            continue
        told = True
        if up == 1:
            found.append(link)
    return found


def _far(lib: Library, handle: Any) -> Json:
    """How many links lead to a switch, and how many to each bus."""
    found: Json = {"switch": 0}
    for link in links(lib, handle) or []:
        try:
            if lib.get("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link) == SWITCH:
                found["switch"] += 1
                continue
        except Unseen:
            pass
        try:
            pci = lib.get("nvmlDeviceGetNvLinkRemotePciInfo_v2", handle, link)
        except Unseen:
            continue
        bus = "%04x:%02x:%02x.0" % (pci.domain, pci.bus, pci.device)
        found[bus] = found.get(bus, 0) + 1
    return found


def matrix(lib: Library, handles: List[Any], gpus: List[Json]) -> List[List[str]]:
    """The word for each pair; `X` for a GPU and itself, `?` where nobody tells."""
    far = [_far(lib, handle) for handle in handles]
    rows = [["X"] * len(gpus) for _ in gpus]
    for i in range(len(gpus)):
        for j in range(i + 1, len(gpus)):
            count = far[i].get(str(gpus[j].get("bus")), 0)
            # Through switches every GPU reaches every other by all its links.
            count = count or min(far[i]["switch"], far[j]["switch"])
            if count:
                word = "NV%d" % count
            else:
                try:
                    level = lib.get("nvmlDeviceGetTopologyCommonAncestor", handles[i], handles[j])
                    word = LEVELS.get(level, "?")
                except Unseen:
                    word = "?"
            rows[i][j] = rows[j][i] = word
    return rows


def text(rows: List[List[str]]) -> Optional[str]:
    """The wiring as a text that does not depend on the order of the GPUs: `1`, `8:NV18`,
    `4:(NODE,NV12,SYS)`; None if a pair is not told.

    Each GPU's links are sorted, and GPUs with the same ones counted. It leaves out which GPU is
    whose neighbour; the matrix beside it has that.
    """
    if not rows or any("?" in row for row in rows):
        return None
    if len(rows) == 1:
        return "1"
    words = {word for row in rows for word in row} - {"X"}
    if len(words) == 1:
        return "%d:%s" % (len(rows), words.pop())
    kinds = [",".join(sorted(word for word in row if word != "X")) for row in rows]
    return " ".join("%d:(%s)" % (kinds.count(kind), kind) for kind in sorted(set(kinds)))
