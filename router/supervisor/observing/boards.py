"""What NVML says of each GPU: one record of plain values, and of what it does not tell, why."""

from __future__ import annotations

from . import nvml, smi, wiring
from .nvml import Unseen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional

    from .nvml import Library

    Json = Dict[str, Any]

SWITCHED = {0: "off", 1: "on"}
NONE = "unsupported"


def look(uuids: Optional[List[str]] = None, full: bool = False) -> Json:
    """Every GPU, or those of `uuids`; `full` adds what matters for a receipt, and the wiring.

    Raises `Unseen` if the library cannot be used at all.
    """
    lib = nvml.Library()
    found: Json = {"source": "nvml", "gpus": [], "why": {}}
    _take(found, "driver", lambda: lib.get("nvmlSystemGetDriverVersion"))
    _take(found, "cuda", lambda: cuda(lib.get("nvmlSystemGetCudaDriverVersion_v2")))
    seen = []
    for index in range(lib.get("nvmlDeviceGetCount_v2")):
        record: Json = {"index": index, "why": {}}
        try:
            handle = lib.get("nvmlDeviceGetHandleByIndex_v2", index)
        except Unseen as e:
            found["gpus"].append(dict(record, uuid=None, name=None, lost=str(e)))
            continue
        identify(lib, handle, record)
        for device, entry in [(handle, record), *parts(lib, handle, record)]:
            if uuids is None or entry.get("uuid") in uuids:
                if full:
                    detail(lib, handle, entry)
                found["gpus"].append(entry)
                seen.append((device, entry))
    if full:
        well = [(device, entry) for device, entry in seen if "lost" not in entry]
        found["matrix"] = wiring.matrix(lib, [d for d, _ in well], [e for _, e in well])
    return found


def cuda(version: int) -> str:
    """12040 is 12.4."""
    return "%d.%d" % (version // 1000, version % 1000 // 10)


def _take(record: Json, name: str, ask: Callable[[], Any], absent: Optional[str] = None) -> None:
    """Keep what `ask` returns; where it tells nothing, why. `absent` is the value for a device that has
    no such thing: that is a fact of it, unlike a question nobody answered."""
    try:
        value = ask()
    except Unseen as e:
        if absent is not None and e.code == nvml.NOT_SUPPORTED:
            record[name] = absent
            return
        if e.code in (nvml.LOST, nvml.RESET):
            record["lost"] = str(e)
        record["why"][name] = str(e)
        return
    if isinstance(value, dict):
        record.update(value)
    else:
        record[name] = value


def identify(lib: Library, handle: Any, record: Json) -> None:
    """Who it is, whether it is well, and who uses it."""
    _take(record, "uuid", lambda: lib.get("nvmlDeviceGetUUID", handle))
    _take(record, "name", lambda: lib.get("nvmlDeviceGetName", handle))
    _take(record, "pci", lambda: _pci(lib.get("nvmlDeviceGetPciInfo_v3", handle)))
    _take(record, "memory_bytes", lambda: _memory(lib.get("nvmlDeviceGetMemoryInfo", handle)))
    _take(record, "mig", lambda: SWITCHED.get(lib.get("nvmlDeviceGetMigMode", handle)[0]), NONE)
    # 1, 0: uncorrected, since the driver was loaded.
    _take(record, "ecc_uncorrected", lambda: lib.get("nvmlDeviceGetTotalEccErrors", handle, 1, 0))
    _take(record, "remap_pending", lambda: _rows(lib.get("nvmlDeviceGetRemappedRows", handle)))
    _take(record, "retired_pending", lambda: lib.get("nvmlDeviceGetRetiredPagesPendingStatus", handle))
    _take(record, "processes", lambda: lib.processes(handle))
    _take(record, "drawing", lambda: len(lib.processes(handle, "Graphics")))


def _pci(pci: Any) -> Json:
    return {
        "bus": "%04x:%02x:%02x.0" % (pci.domain, pci.bus, pci.device),
        "pci": "%04x:%04x" % (pci.id & 0xFFFF, pci.id >> 16),
    }


def _memory(memory: Any) -> Json:
    return {"memory_bytes": memory.total, "memory_used_bytes": memory.used}


def _rows(rows: Any) -> Json:
    return {"remapped_rows": rows[0] + rows[1], "remap_pending": rows[2], "remap_failure": rows[3]}


def parts(lib: Library, handle: Any, record: Json) -> List[Any]:
    """The MIG instances of a GPU; each is a device of its own, with the health of the whole."""
    if record.get("mig") != "on":
        return []
    found = []
    try:
        most = lib.get("nvmlDeviceGetMaxMigDeviceCount", handle)
    except Unseen:
        return []
    for number in range(most):
        try:
            part = lib.get("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
        except Unseen:
            continue
        # What is not told of the part is not that of the whole.
        entry = {name: value for name, value in record.items() if name not in smi.OWN}
        entry.update(part=number, whole=record.get("uuid"), why=dict(record["why"]))
        _take(entry, "uuid", lambda part=part: lib.get("nvmlDeviceGetUUID", part))  # type: ignore[misc]
        _take(entry, "name", lambda part=part: lib.get("nvmlDeviceGetName", part))  # type: ignore[misc]
        _take(entry, "memory_bytes", lambda part=part: _memory(lib.get("nvmlDeviceGetMemoryInfo", part)))  # type: ignore[misc]
        _take(entry, "processes", lambda part=part: lib.processes(part))  # type: ignore[misc]
        found.append((part, entry))
    return found


def detail(lib: Library, handle: Any, record: Json) -> None:
    """What a receipt wants to know besides."""

    def ask(name: str, call: str, *given: Any, of: Callable[[Any], Any] = lambda v: v) -> None:
        _take(record, name, lambda: of(lib.get("nvmlDeviceGet" + call, handle, *given)))

    ask("cc", "CudaComputeCapability", of=lambda v: "%d.%d" % v)
    ask("power_limit_w", "EnforcedPowerLimit", of=lambda v: v // 1000)
    ask("persistence", "PersistenceMode", of=SWITCHED.get)
    _take(record, "ecc", lambda: SWITCHED.get(lib.get("nvmlDeviceGetEccMode", handle)[0]), NONE)
    ask("pcie_gen", "CurrPcieLinkGeneration")
    ask("pcie_width", "CurrPcieLinkWidth")
    ask("pcie_gen_max", "MaxPcieLinkGeneration")
    ask("pcie_width_max", "MaxPcieLinkWidth")
    ask("sm_mhz_max", "MaxClockInfo", nvml.CLOCK_SM)
    links = wiring.links(lib, handle)
    if links is None:
        record["why"]["nvlinks"] = "this device tells of no NVLink"
    else:
        record["nvlinks"] = len(links)
        if links:
            ask("nvlink_version", "NvLinkVersion", links[0])
    gauges(lib, handle, record)


def gauges(lib: Library, handle: Any, record: Json) -> None:
    """What changes from moment to moment."""

    def ask(name: str, call: str, *given: Any, of: Callable[[Any], Any] = lambda v: v) -> None:
        _take(record, name, lambda: of(lib.get("nvmlDeviceGet" + call, handle, *given)))

    ask("sm_mhz", "ClockInfo", nvml.CLOCK_SM)
    ask("temp_c", "Temperature", 0)
    ask("power_w", "PowerUsage", of=lambda v: v // 1000)
    ask("util_pct", "UtilizationRates", of=lambda v: v.gpu)
    ask("throttle", "CurrentClocksEventReasons", of=nvml.reasons)
    if record["why"].pop("throttle", None):  # its name before 2023
        ask("throttle", "CurrentClocksThrottleReasons", of=nvml.reasons)


def watched(lib: Library, device: Any, record: Json) -> None:
    """What a sample holds besides: memory in use, errors, and whoever computes there."""
    _take(record, "memory_used_bytes", lambda: lib.get("nvmlDeviceGetMemoryInfo", device).used)
    _take(record, "ecc_uncorrected", lambda: lib.get("nvmlDeviceGetTotalEccErrors", device, 1, 0))
    _take(record, "processes", lambda: lib.processes(device))
