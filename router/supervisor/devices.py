"""Which GPUs a run may have: those that are what was asked for, are well, and are used by nobody else."""

from __future__ import annotations

from . import leases
from .observing import gpus, skus
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    Json = Dict[str, Any]

PREFIX = "device."


def seen() -> Json:
    """Every GPU of this machine and its state. Raises `Fault` PREFLIGHT if nothing answers in time."""
    try:
        return gpus.look()
    except gpus.NoAnswer as e:
        raise Fault("PREFLIGHT", str(e), e.mend)


def listing() -> List[Json]:
    """Every GPU for an offer: `uuid`, `name`, `memory_bytes`, what to ask for as `sku`, all that is known
    of it as `full`, as `sick` what is wrong with it, and as `used` who computes on it now: a run of ours
    if its lease is held.

    One that does not even tell its UUID stands there too: a machine that lost one says so.
    """
    found = seen()
    rows = []
    for gpu in found["gpus"]:
        wrong = gpus.sick(gpu)
        rows.append(
            {
                **{name: gpu.get(name) for name in ("index", "uuid", "name", "memory_bytes")},
                "sku": skus.short(gpu["sku"]),
                "full": gpu["sku"],
                "sick": wrong[0] if wrong else None,
                "mend": wrong[1] if wrong else None,
                "used": foreign([gpu["uuid"]], found) if gpu.get("uuid") else None,
            }
        )
    known = {gpu.get("bus") for gpu in found["gpus"]}
    for bus in found.get("missing", ()):
        if bus not in known:
            rows.append(dict.fromkeys(("index", "uuid", "name", "memory_bytes", "sku", "full", "used")))
            rows[-1].update(sick="the GPU at %s does not answer" % bus, mend="restart the machine")
    return rows


def choices(asked: Json, found: Json) -> List[str]:
    """Lease names of the devices that would do, of those in `found` (see `seen`).

    Raises `Fault`: SICK_GPU if there would be enough but for sick or missing ones, else HW_MISMATCH.
    """
    count, sku = int(asked.get("count") or 0), str(asked.get("sku") or "")
    wanted = asked.get("uuids")
    here = [gpu for gpu in found["gpus"] if gpu.get("uuid")]
    if wanted:
        by = {gpu["uuid"]: gpu for gpu in here}
        for uuid in wanted:
            if uuid not in by:
                raise Fault("PREFLIGHT", "there is no device %s here" % uuid, "run nvidia-smi -L")
        fitting = [by[uuid] for uuid in wanted]
    else:
        names = [sku, *(asked.get("substitutes") or [])] if sku else [""]
        fitting = []
        for one in names:
            fitting = [gpu for gpu in here if not one or skus.same(one, gpu["sku"]) == "exact"]
            if len([gpu for gpu in fitting if not gpus.sick(gpu)]) >= max(1, count):
                break
    good = [gpu for gpu in fitting if not gpus.sick(gpu)]
    if len(good) < max(1, count):
        raise _too_few(asked, found, fitting, len(good))
    return [PREFIX + gpu["uuid"].replace("/", "_") for gpu in good]


def _too_few(asked: Json, found: Json, fitting: List[Json], good: int) -> Fault:
    count, sku = int(asked.get("count") or 0), str(asked.get("sku") or "")
    what = "asked for %d x %s, here are %d" % (count, sku or "any GPU", good)
    ill: List[Tuple[str, str]] = [wrong for gpu in found["gpus"] for wrong in [gpus.sick(gpu)] if wrong]
    for bus in found.get("missing", ()):
        if bus not in {gpu.get("bus") for gpu in found["gpus"]}:
            ill.append(("the GPU at %s does not answer" % bus, "restart the machine, or use another place"))
    if ill and (len(fitting) >= count or good + len(ill) >= count):
        return Fault("SICK_GPU", "%s: %s" % (what, "; ".join(said for said, _ in ill[:8])), ill[0][1])
    names = [gpu["sku"] for gpu in found["gpus"] if gpu.get("name")]
    match = skus.judge(dict(asked, family="gpu"), (), skus.several(names) if names else "cpu", len(names))
    got = ", ".join(sorted(set(names))) or "none"
    return Fault(
        "HW_MISMATCH",
        "%s (%s): %s" % (what, got, skus.MEANS.get(match, match)),
        "ask for what is here, or name a substitute",
    )


def uuid_of(name: str) -> str:
    return name[len(PREFIX) :]


def foreign(uuids: List[str], found: Json) -> Optional[str]:
    """Who else uses these devices, as a sentence; None if nobody is known to.

    We hold their leases, so that whatever computes on them now is none of ours.
    """
    for gpu in found["gpus"]:
        if gpu.get("uuid") in uuids and gpus.foreign(gpu):
            pids = gpu.get("processes") or ()
            if pids:
                who = "process %s, which is none of ours" % ", ".join(str(pid) for pid in pids[:8])
                return "%s is used by %s" % (gpus.called(gpu), who)
            used = int(gpu["memory_used_bytes"]) >> 20
            return "%s is used by somebody whom we cannot see: %d MiB are taken" % (gpus.called(gpu), used)
    return None


def take(asked: Json, mark: Json, found: Json) -> Tuple[List[str], List[int], Optional[Json]]:
    """Lease as many devices as were asked for, of those that nobody uses: names and descriptors, or who is
    in the way. Raises `Fault` as `choices` does."""
    count = int(asked.get("count") or 0)
    free = choices(asked, found)
    used = ""
    while len(free) >= count:
        got, fds, blocked = leases.take_some(free, count, mark)
        if blocked is not None:
            return [], [], blocked
        if not foreign([uuid_of(name) for name in got], found):
            return got, fds, None
        # Seen before they were ours: it may have been a run of ours that has ended since.
        found = seen()
        mine = {name: foreign([uuid_of(name)], found) for name in got}
        if not any(mine.values()):
            return got, fds, None
        leases.release(fds)
        used = next(said for said in mine.values() if said)
        free = [name for name in free if not mine.get(name)]
    return [], [], {"lease": "device", "run_id": None, "foreign": used}
