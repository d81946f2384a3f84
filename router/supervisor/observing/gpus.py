"""The GPUs of this machine from whichever source answers; which of them are sick, missing or in use."""

from __future__ import annotations

import os

from .. import machine
from . import apart, skus, smi
from .container import inside
from .facts import at_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    Json = Dict[str, Any]

SECONDS = 7.0
"""What NVML may take to tell everything; some seconds are normal where no driver is kept loaded."""
IDLE_BYTES = 2 << 30
"""Memory in use on a GPU that nobody uses is a few hundred MiB of the driver's; more is somebody's."""

SICK: Tuple[Tuple[str, str, str], ...] = (
    (
        "ecc_uncorrected",
        "has met {} uncorrectable memory error(s) since its driver was loaded",
        "reset it (nvidia-smi --gpu-reset -i {index}), or use another place",
    ),
    ("remap_failure", "could not replace a broken row of its memory", "have it exchanged; use another place"),
    (
        "remap_pending",
        "has a broken row of memory that is replaced only by a reset",
        "reset it (nvidia-smi --gpu-reset -i {index}), or use another place",
    ),
    (
        "retired_pending",
        "has a page of memory that is retired only by a reset",
        "reset it (nvidia-smi --gpu-reset -i {index}), or use another place",
    ),
)
"""A GPU is sick where one of these counts is not zero: what was seen, as a sentence, and the mend."""


class NoAnswer(Exception):
    """Neither source tells of any GPU; `mend` says what to do."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.mend = mend


def look(
    uuids: Optional[List[str]] = None, *, full: bool = False, root: str = "/", seconds: float = SECONDS
) -> Json:
    """`{"source", "driver", "cuda", "gpus": [...], "why"}` and, where all are asked for, `missing`: the
    buses of GPUs that the driver has and does not tell of. Raises `NoAnswer`: `seconds` is what the
    library may take, and the tool after it a second more where the library did not hang, else 2 s."""

    def by_library() -> Json:
        from . import boards

        return boards.look(uuids, full)

    try:
        found = apart.do(by_library, seconds)
    except apart.Failed as library:
        hung = "no answer" in str(library)
        try:
            # Where the library hangs the tool, which uses it, will too: it gets no second chance of length.
            found = smi.look(uuids, full, seconds=2.0 if hung else min(smi.DEADLINE, seconds + 1.0))
        except smi.Broken as e:
            if hung:
                raise NoAnswer("NVML gives %s, and %s" % (library, e), smi.HANGS)
            raise NoAnswer(str(e), e.mend)
        found["why"]["nvml"] = str(library)
    for gpu in found["gpus"]:
        sku, form, how = skus.known(gpu.get("name") or "", gpu.get("pci") or "", _cut(gpu))
        gpu["sku"], gpu["form"], gpu["form_by"] = sku, form or None, how or None
    if uuids is None:
        found["missing"] = missing([gpu for gpu in found["gpus"] if "lost" not in gpu], attached(root))
    return found


def missing(answering: List[Json], listed: set[str]) -> List[str]:
    """Buses of GPUs that the kernel's driver has `listed` and that do not answer.

    Where one answers that is not on that list the two do not tell of the same machine: no claim then.
    """
    here = {str(gpu["bus"]) for gpu in answering if gpu.get("bus")}
    return sorted(listed - here) if here <= listed else []


def _cut(gpu: Json) -> str:
    return "on" if gpu.get("mig") == "on" and "whole" not in gpu else ""


def attached(root: str = "/") -> set[str]:
    """Buses of the GPUs that the kernel's driver has, whether or not they still answer.

    A container sees the driver's list of its own GPUs, but the whole machine in /sys: so that is
    believed only outside of one.
    """
    listed = _names(at_root(root, "/proc/driver/nvidia/gpus"))
    if listed or inside(root):
        return {name.lower()[-12:] for name in listed}
    found = set()
    bus = at_root(root, "/sys/bus/pci/devices")
    for name in _names(bus):
        folder = os.path.join(bus, name)
        if is_board(folder):
            try:
                driver = os.path.basename(os.readlink(folder + "/driver"))
            except OSError:
                continue
            if driver == "nvidia":  # one that is passed on to a virtual machine is not ours to miss
                found.add(name.lower())
    return found


def is_board(folder: str) -> bool:
    """Whether the device of this folder in /sys is a GPU of NVIDIA's."""
    if machine.told(folder + "/vendor").strip() != b"0x10de":
        return False
    return machine.told(folder + "/class")[:6] in (b"0x0300", b"0x0302")


def _names(folder: str) -> List[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def called(gpu: Json) -> str:
    """A GPU by number and UUID, for a person who has to find it."""
    where = gpu.get("uuid") or gpu.get("bus")
    if gpu.get("index") is None:
        return "the GPU at %s" % where
    return "GPU %s%s" % (gpu["index"], " (%s)" % where if where else "")


def sick(gpu: Json) -> Optional[Tuple[str, str]]:
    """What is wrong with a GPU and how to mend it; None if nothing is known to be."""
    if gpu.get("lost"):
        return "%s is lost: %s" % (called(gpu), gpu["lost"]), "restart the machine, or use another place"
    for name, sentence, mend in SICK:
        count = gpu.get(name)
        if count:
            what = "%s %s" % (called(gpu), sentence.replace("{}", str(count)))
            return what, mend.replace("{index}", str(gpu.get("index")))
    return None


def foreign(gpu: Json, ours: Any = (), *, before: bool = True) -> Optional[int]:
    """How many processes that are not `ours` use this GPU; None where nobody can know.

    Inside a container an empty list says nothing; memory that somebody holds before the work has
    begun still does.
    """
    listed = gpu.get("processes")
    others = None if listed is None else len([pid for pid in listed if pid not in ours])
    used = gpu.get("memory_used_bytes")
    # What draws on a screen takes memory too, and is nobody's work.
    idle = before and "whole" not in gpu and not gpu.get("drawing")
    if not others and idle and used is not None and used > IDLE_BYTES:
        return 1
    if others is None or (others == 0 and inside()):
        return None
    return others
