"""The hardware of a run: what it is and whether it is what was asked for, well, and ours alone."""

from __future__ import annotations

from .. import machine
from ..wire import Fault
from . import container, processor
from .facts import LATER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .facts import Look, Observed

    Json = Dict[str, Any]

cpus, cpu_model, memory_bytes = processor.cpus, processor.model, processor.memory_bytes

_DEVICE = """form_factor topology mig power_limit_w driver cuda_driver cc ecc clock_sm_mhz throttle_reasons
temp_c_max cotenants errors"""
GOOD = ("exact", "declared")
CONTAINER = "inside a container the processes of others are not shown"
COUNTED = ("ecc_uncorrected", "remapped_rows", "remap_pending", "remap_failure", "retired_pending")
"""Errors whose increase during a run is told."""


def before(look: Look) -> Json:
    """What is seen before user code. Raises `Fault` if the work must not start on this hardware:
    HW_MISMATCH, SICK_GPU, FOREIGN, or PREFLIGHT where no driver answers."""
    asked = look.spec.get("devices", {})
    family = asked.get("family", "cpu")
    found: Json = {"at_us": machine.now_us(), "mono_us": machine.mono_us(), "processor": processor.look()}
    if family == "gpu":
        # What another launcher has started is observed as it is, and never stopped.
        found["gpus"] = _gpus(look.devices, asked if not look.spec.get("in_place") else None)
    elif family == "tpu":
        found["tpus"] = _tpus(asked)
    return found


def _gpus(uuids: List[str], asked: Optional[Json]) -> Json:
    """What is told of these GPUs. Raises `Fault` if they are not what was `asked` for, well and free."""
    from . import gpus, skus

    try:
        found = gpus.look(uuids, full=True)
    except gpus.NoAnswer as e:
        raise Fault("PREFLIGHT", str(e), e.mend)
    here = {gpu.get("uuid"): gpu for gpu in found["gpus"] if gpu.get("uuid")}
    if asked is None:
        found["gpus"] = [here[uuid] for uuid in uuids if uuid in here]
        return found
    for uuid in uuids:
        if uuid not in here:
            raise Fault(
                "SICK_GPU",
                "the GPU %s was leased and does not answer any more" % uuid,
                "look at `dmesg` for Xid errors, or use another place",
            )
    found["gpus"] = [here[uuid] for uuid in uuids]
    for gpu in found["gpus"]:
        wrong = gpus.sick(gpu)
        if wrong:
            raise Fault("SICK_GPU", *wrong)
    said = None
    for gpu in found["gpus"]:
        gpu["others"] = gpus.foreign(gpu)
        if gpu["others"]:
            from .. import devices

            said = said or devices.foreign(uuids, found)
    if said:
        raise Fault("FOREIGN", said, "end that process, or ask for other devices")
    _demand(asked, skus.several([gpu["sku"] for gpu in found["gpus"]]), len(uuids))
    return found


def _tpus(asked: Json) -> Json:
    from . import tpus

    found = tpus.look()
    if found["lock"] == "held":
        raise Fault(
            "FOREIGN", "another process holds the TPU (%s)" % tpus.LOCK, "end it, or use another place"
        )
    _demand(asked, found["generation"] or "cpu", found["chips"])
    return found


def _demand(asked: Json, sku: str, count: int) -> None:
    from . import skus

    others = [{"sku": one, "count": asked.get("count")} for one in asked.get("substitutes") or ()]
    match = skus.judge(asked, others, sku, count)
    if match not in GOOD:
        raise Fault(
            "HW_MISMATCH",
            "asked for %s x %s, here is %d x %s: %s"
            % (asked.get("count"), asked.get("sku") or "any", count, sku, skus.MEANS.get(match, match)),
            "ask for what is here, or name a substitute",
        )


def block(o: Observed, look: Look) -> Json:
    """`requested`, `observed`, and beside them plain details: each GPU, the wiring, the processors."""
    seen: Json = look.before.get("hardware") or {}
    here: Json = seen.get("processor") or processor.look()
    observed = {
        "cpu_model": o.seen(here.get("model")),
        "cpus": o.seen(here.get("count")),
        "cpu_milli": o.seen(here.get("cpu_milli")),
        "governor": o.seen(here.get("governor"), "the kernel shows no governor of clocks here"),
        "mem_bytes": o.seen(here.get("memory_bytes")),
    }
    found: Json = {"requested": look.spec.get("devices", {}), "observed": observed, "processor": here}
    family = look.spec.get("devices", {}).get("family", "cpu")
    if family == "cpu":
        # A run without an accelerator has none to observe: that is a value, and equal to itself.
        observed.update({name: o.seen("not_applicable") for name in _DEVICE.split()})
        observed.update(sku=o.seen("cpu"), count=o.seen(0), uuid=o.seen([]))
    elif family == "tpu":
        from . import tpus

        told = seen.get("tpus") or tpus.look()
        observed.update({name: o.seen(None, LATER) for name in _DEVICE.split()})
        observed.update(sku=o.seen(told["generation"]), count=o.seen(told["chips"]), uuid=o.seen([]))
        found["tpus"] = told
    else:
        observed.update(_accelerators(o, look, seen))
        told = seen.get("gpus") or {}
        found["gpus"], found["wiring"] = told.get("gpus", []), told.get("matrix", [])
        found["source"] = told.get("source")
    return found


def _accelerators(o: Observed, look: Look, seen: Json) -> Json:
    from . import skus, wiring

    found: Json = seen.get("gpus") or {}
    rows: List[Json] = found.get("gpus") or []
    why = str(seen.get("error") or "the GPUs were not looked at")
    src, at = str(found.get("source") or "supervisor"), seen.get("at_us")

    def told(value: Any, reason: str = "") -> Json:
        return o.seen(value, reason or why, src, at)

    def alike(name: str) -> Json:
        """The value all of them have; where they differ, that is said in place of it."""
        values = [gpu.get(name) for gpu in rows]
        lacking = next((gpu["why"].get(name) for gpu in rows if gpu.get(name) is None), None)
        if not rows or None in values:
            return told(None, lacking or ("nothing tells it of these boards" if rows else why))
        counts = {value: values.count(value) for value in values}
        if len(counts) > 1:
            named = ", ".join("%d x %s" % (counts[value], value) for value in sorted(counts, key=str))
            return told(None, "the GPUs differ: %s" % named)
        return told(values[0])

    matrix: List[List[str]] = found.get("matrix") or []
    from . import sampling

    during = sampling.accelerators(look)
    wired = wiring.text(matrix) if len(matrix) == len(rows) else None
    return {
        "sku": told(skus.several([gpu["sku"] for gpu in rows]) if rows else None),
        "count": told(len(rows) if rows else None),
        "uuid": told([gpu["uuid"] for gpu in rows] if rows else look.devices or None),
        "mem_bytes": alike("memory_bytes"),
        "form_factor": alike("form"),
        "topology": told(wired, str(found.get("why", {}).get("matrix") or "not every link is told")),
        "driver": told(found.get("driver"), str(found.get("why", {}).get("driver") or "")),
        "cuda_driver": told(found.get("cuda"), str(found.get("why", {}).get("cuda") or "")),
        **{name: alike(name) for name in ("cc", "mig", "ecc", "power_limit_w")},
        **{name: o.seen(during.get(name), during["why"], during["source"]) for name in during["names"]},
        "cotenants": _cotenants(o, rows, during, src),
        "errors": _errors(o, look, found, during),
    }


def _cotenants(o: Observed, rows: List[Json], during: Json, src: str) -> Json:
    """The most processes of others on one of our GPUs at once, before or during."""
    counts = [gpu.get("others") for gpu in rows]
    most = during.get("cotenants")
    if most or any(counts):
        return o.seen(max([most or 0] + [count or 0 for count in counts]), src=src)
    # None of others before and during: both have to have been seen.
    if rows and None not in counts and most is not None and not container.inside():
        return o.seen(0, src=src)
    return o.seen(None, CONTAINER if container.inside() else "no sample tells who else used the GPUs")


def _errors(o: Observed, look: Look, found: Json, during: Json) -> Json:
    """What went wrong with the GPUs while the work ran, as sentences; an empty list if nothing did."""
    from . import gpus

    rows: List[Json] = found.get("gpus") or []
    if not rows:
        return o.seen(None, "the GPUs were not looked at before the start")
    if not look.executed:
        return o.seen(None, "the work was never executed")
    said: List[str] = list(during.get("xids", ()))
    try:
        now = gpus.look(look.devices, full=False)
    except gpus.NoAnswer as e:
        return o.seen([*said, "afterwards no GPU answers: %s" % e][:32], src=str(found.get("source")))
    later: Dict[Any, Json] = {gpu.get("uuid"): gpu for gpu in now["gpus"]}
    untold: List[str] = []
    for gpu in rows:
        after: Optional[Json] = later.get(gpu["uuid"])
        if after is None or after.get("lost"):
            reason = (after or {}).get("lost") or "it is not listed any more"
            said.append("%s is lost afterwards: %s" % (gpus.called(gpu), reason))
            continue
        for name in COUNTED:
            was, is_ = gpu.get(name), after.get(name)
            if was is not None and is_ is None:
                untold.append("%s told %s before the work, and not after it" % (gpus.called(gpu), name))
            if was is not None and is_ is not None and is_ > was:
                said.append("%s: %s went from %d to %d" % (gpus.called(gpu), name, was, is_))
    # What nobody could look at is not well.
    return o.seen(said[:32] if said or not untold else None, "; ".join(untold[:4]), str(now["source"]))
