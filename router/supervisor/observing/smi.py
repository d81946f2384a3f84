"""The second source of GPU facts: nvidia-smi, where its library cannot be loaded. Records as in `boards`."""

from __future__ import annotations

import os
import re

from . import apart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional

    Json = Dict[str, Any]

DEADLINE = 8.0
MOST = 8 << 20
TOOL = "nvidia-smi"
HANGS = "look at `dmesg` for Xid errors"
MiB = 1 << 20
_UUID = re.compile(r"(GPU|MIG|MIG-GPU)-[0-9a-fA-F/-]{1,100}\Z")
_BUS = re.compile(r"([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})\.")
_LOST = re.compile(
    r"device handle for GPU\s?(?:\d{1,3}: )?([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d)[^\n]*"
)
SILENT = frozenset(
    """|N/A|[N/A]|NOT SUPPORTED|[NOT SUPPORTED]|UNKNOWN ERROR|[UNKNOWN ERROR]|ERR!|GPU IS LOST|[GPU IS LOST]
|REQUESTED FUNCTIONALITY HAS BEEN DEPRECATED""".replace("\n", "").split("|")
)
"""What stands in place of a value that there is not."""
SWITCHED = {"enabled": "on", "disabled": "off"}
OWN = ("uuid", "name", "memory_bytes", "memory_used_bytes", "processes", "drawing")
"""What a part of a GPU has of its own, whatever the whole has."""


class Broken(Exception):
    """The tool is missing, hangs, fails or prints what cannot be read; `mend` says what to do."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.mend = mend


def say(*arguments: str, seconds: float = DEADLINE) -> str:
    """What the tool prints on both outputs. Raises `Broken` within `seconds`."""
    env = dict(os.environ, LC_ALL="C")
    try:
        code, printed = apart.output([TOOL, *arguments], seconds, most=MOST, env=env, errors=True)
    except FileNotFoundError:
        raise Broken("there is no nvidia-smi here", "install the driver, or ask for `cpu`")
    except apart.Failed as e:
        if "no answer" not in str(e):
            raise Broken("nvidia-smi cannot be read: %s" % e, "mend the driver")
        raise Broken("nvidia-smi hangs for %d seconds" % seconds, HANGS)
    except OSError as e:
        raise Broken("nvidia-smi cannot be run: %s" % e.strerror, "mend the driver")
    text = printed.decode("utf-8", "replace")
    if code and "<nvidia_smi_log>" not in text:
        raise Broken("nvidia-smi fails: %s" % text.strip()[:200], "mend the driver, then run nvidia-smi")
    return text


def look(uuids: Optional[List[str]] = None, full: bool = False, seconds: float = DEADLINE) -> Json:
    """Every GPU, or those of `uuids`, and with `full` their wiring. Raises `Broken`."""
    found = read(say("-q", "-x", seconds=seconds))
    if any("whole" in gpu and "uuid" not in gpu for gpu in found["gpus"]):
        # Most drivers leave the names of parts out of it, and tell them in the short list.
        try:
            name_parts(found["gpus"], say("-L", seconds=seconds))
        except Broken:
            pass
    everything = found["gpus"]
    if uuids is not None:
        found["gpus"] = [gpu for gpu in everything if gpu.get("uuid") in uuids]
    if full:
        try:
            found["matrix"] = matrix(
                say("topo", "-m", seconds=seconds), [g["index"] for g in found["gpus"] if not g.get("lost")]
            )
        except Broken as e:
            found["matrix"], found["why"]["matrix"] = [], str(e)
    return found


def read(text: str) -> Json:
    """The records in what `nvidia-smi -q -x` printed. Raises `Broken` if that cannot be read."""
    import xml.etree.ElementTree as tree

    begin, end = text.find("<nvidia_smi_log>"), text.rfind("</nvidia_smi_log>")
    # Without its head there is no document type: nothing outside of the text can be named in it.
    try:
        root = tree.fromstring(text[begin : end + 17] if 0 <= begin < end else "")
    except tree.ParseError:
        raise Broken("nvidia-smi prints what we cannot read: %.80r" % text.strip(), "mend the driver")
    found: Json = {"source": "nvidia-smi", "gpus": [], "why": {}}
    for name, tag in (("driver", "driver_version"), ("cuda", "cuda_version")):
        _keep(found, name, _text(root, tag))
    for number, node in enumerate(root.findall("gpu")):
        found["gpus"] += list(_gpu(node, number))
    # A GPU that fell off its bus is no element: it is named in a line around them.
    for lost in _LOST.finditer(text[:begin] + text[end + 17 :]):
        record: Json = {"index": None, "uuid": None, "name": None, "why": {}}
        record.update(bus=_bus(lost.group(1)), lost="nvidia-smi says: %s" % lost.group(0).strip()[:120])
        found["gpus"].append(record)
    if not found["gpus"]:
        raise Broken("nvidia-smi lists no GPU", "mend the driver, or ask for `cpu`")
    return found


def _text(node: Any, *path: str) -> Optional[str]:
    """The first of the tags that says something; None where all are silent, as words say it here."""
    for tag in path:
        said = (node.findtext(tag) or "").strip()
        if said.upper() not in SILENT:
            return said
    return None


def _number(said: Optional[str]) -> Optional[int]:
    """The whole number before a unit: `81559 MiB`, `16x`, `700.00 W`."""
    found = re.match(r"(\d{1,18})(\.\d+)?\s*([A-Za-z%/]*)\Z", said or "")
    return int(found.group(1)) if found else None


def _keep(record: Json, name: str, value: Any, said: Optional[str] = None) -> None:
    if value is None:
        record["why"][name] = "nvidia-smi does not tell it" + (" (%.40s)" % said if said else "")
    else:
        record[name] = value


def _bus(said: str) -> Optional[str]:
    found = _BUS.match(said)
    return ("%s:%s:%s.0" % (found.group(1)[-4:], found.group(2), found.group(3))).lower() if found else None


def _gpu(node: Any, number: int) -> Iterator[Json]:
    record: Json = {"index": number, "why": {}}
    uuid = _text(node, "uuid")
    if uuid is not None and not _UUID.match(uuid):
        raise Broken("nvidia-smi prints what we cannot read: %.80r" % uuid, "mend the driver")
    lost = next((e.text for e in node.iter() if e.text and "GPU is lost" in e.text), None)
    if lost:
        record["lost"] = "nvidia-smi says: %s" % lost.strip()[:120]
    _keep(record, "uuid", uuid)
    _keep(record, "name", _text(node, "product_name"))
    _keep(record, "bus", _bus(_text(node, "pci/pci_bus_id") or node.get("id") or ""))
    device = _text(node, "pci/pci_device_id") or ""
    _keep(record, "pci", "%s:%s" % (device[4:], device[:4]) if len(device) == 8 else None)
    if "pci" in record:
        record["pci"] = record["pci"].lower()
    memory = _number(_text(node, "fb_memory_usage/total"))
    _keep(record, "memory_bytes", None if memory is None else memory * MiB)
    used = _number(_text(node, "fb_memory_usage/used"))
    _keep(record, "memory_used_bytes", None if used is None else used * MiB)
    mig = _text(node, "mig_mode/current_mig")
    record["mig"] = SWITCHED.get((mig or "").lower(), "unsupported")
    ecc = _text(node, "ecc_mode/current_ecc")
    record["ecc"] = SWITCHED.get((ecc or "").lower(), "unsupported")
    _health(record, node)
    _detail(record, node)
    users = node.findall("processes/process_info")
    pids = [_number(_text(p, "pid")) for p in users if _computes(p)]
    record["drawing"] = len(users) - len(pids)
    # `N/A` in place of the list is a driver that does not tell.
    listed = node.find("processes")
    silent = listed is None or (not len(listed) and (listed.text or "").strip().upper() in SILENT - {""})
    _keep(record, "processes", None if silent else sorted(pid for pid in pids if pid is not None))
    yield record
    for part in node.findall("mig_devices/mig_device"):
        entry = {name: value for name, value in record.items() if name not in OWN}
        entry.update(whole=uuid, part=_number(_text(part, "index")), why=dict(record["why"]))
        # The tool does not name its size; without the word it would pass for the whole.
        entry["name"] = "%s MIG" % record.get("name")
        _keep(entry, "uuid", _text(part, "uuid"))
        for name, tag in (("memory_bytes", "total"), ("memory_used_bytes", "used")):
            memory = _number(_text(part, "fb_memory_usage/" + tag))
            _keep(entry, name, None if memory is None else memory * MiB)
        theirs = _of_part(part, users)
        _keep(entry, "processes", None if silent or theirs is None else theirs)
        yield entry


def _of_part(part: Any, users: List[Any]) -> Optional[List[int]]:
    """The pids that compute on a part of a GPU; None where not every process is told with its part."""
    tags = ("gpu_instance_id", "compute_instance_id")
    mine = [_number(_text(part, tag)) for tag in tags]
    found = []
    for process in users:
        at = [_number(_text(process, tag)) for tag in tags]
        if None in at or None in mine:
            return None
        pid = _number(_text(process, "pid"))
        if at == mine and _computes(process) and pid is not None:
            found.append(pid)
    return sorted(found)


def name_parts(gpus: List[Json], listed: str) -> None:
    """Give the parts of GPUs the name and UUID that `nvidia-smi -L` printed for them."""
    whole: Optional[str] = None
    told: Dict[Any, Any] = {}
    for line in listed.splitlines():
        head = re.match(r"GPU \d+: .*\(UUID: (GPU-[0-9a-fA-F-]{1,100})\)", line)
        part = re.match(r"\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (\S+)\)", line)
        if head:
            whole = head.group(1)
        elif part and _UUID.match(part.group(3)):
            told[whole, int(part.group(2))] = part.group(1), part.group(3)
    for gpu in gpus:
        found = told.get((gpu.get("whole"), gpu.get("part"))) if "whole" in gpu else None
        if found and "uuid" not in gpu:
            gpu["name"], gpu["uuid"] = "%s %s" % (gpu["name"], found[0]), found[1]
            gpu["why"].pop("uuid", None)


def _computes(process: Any) -> bool:
    return "C" in (_text(process, "type") or "C")


def _health(record: Json, node: Any) -> None:
    counts = [
        _number(_text(node, "ecc_errors/volatile/" + tag))
        for tag in (
            *("sram_uncorrectable", "sram_uncorrectable_parity", "sram_uncorrectable_secded"),
            *("dram_uncorrectable", "double_bit/total"),
        )
    ]
    known = [count for count in counts if count is not None]
    _keep(record, "ecc_uncorrected", sum(known) if known else None)
    rows = [_number(_text(node, "remapped_rows/remapped_row_" + name)) for name in ("corr", "unc")]
    if None not in rows:
        record["remapped_rows"] = sum(row for row in rows if row is not None)
    for name, tag in (
        ("remap_pending", "remapped_rows/remapped_row_pending"),
        ("remap_failure", "remapped_rows/remapped_row_failure"),
        ("retired_pending", "retired_pages/pending_retirement"),
    ):
        said = _text(node, tag) or (
            _text(node, "retired_pages/pending_blacklist") if "retired" in tag else None
        )
        _keep(record, name, {"yes": 1, "no": 0}.get((said or "").lower()), said)


def _detail(record: Json, node: Any) -> None:
    _keep(record, "cc", _text(node, "compute_cap"))
    _keep(record, "persistence", SWITCHED.get((_text(node, "persistence_mode") or "").lower()))
    link = "pci/pci_gpu_link_info/"
    power = ("gpu_power_readings/", "power_readings/")
    limits = [
        above + tag
        for tag in ("enforced_power_limit", "current_power_limit", "power_limit")
        for above in power
    ]
    draws = [above + tag for tag in ("instant_power_draw", "power_draw") for above in power]
    for name, places in (
        ("pcie_gen", [link + "pcie_gen/current_link_gen"]),
        ("pcie_gen_max", [link + "pcie_gen/max_link_gen"]),
        ("pcie_width", [link + "link_widths/current_link_width"]),
        ("pcie_width_max", [link + "link_widths/max_link_width"]),
        ("power_limit_w", limits),
        ("power_w", draws),
        ("sm_mhz", ["clocks/sm_clock"]),
        ("sm_mhz_max", ["max_clocks/sm_clock"]),
        ("temp_c", ["temperature/gpu_temp"]),
        ("util_pct", ["utilization/gpu_util"]),
    ):
        said = _text(node, *places)
        _keep(record, name, _number(said), said)
    states: Dict[str, bool] = {}
    for above in ("clocks_event_reasons", "clocks_throttle_reasons"):
        group = node.find(above)
        for child in group if group is not None else ():
            state = (child.text or "").strip().lower()
            if state in ("active", "not active"):
                word = re.sub(r"^clocks_(event|throttle)_reason_", "", child.tag)
                states[re.sub(r"^clocks_", "", word)] = state == "active"
    told = sorted(word for word, on in states.items() if on and word != "gpu_idle")
    _keep(record, "throttle", told if states else None)


def matrix(text: str, indexes: List[int]) -> List[List[str]]:
    """The link words between the GPUs of these indexes in what `nvidia-smi topo -m` printed."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    rows: Dict[int, List[str]] = {}
    for line in plain.splitlines():
        found = re.match(r"\s*GPU(\d+)\s+((?:X|NV\d+|PIX|PXB|PHB|NODE|SYS|SOC)\b.*)", line)
        if found:
            rows[int(found.group(1))] = found.group(2).split()
    # One GPU has the whole row of words before its processors: columns are as many as rows.
    try:
        return [[rows[i][j] if i != j else "X" for j in indexes] for i in indexes]
    except (KeyError, IndexError):
        raise Broken("nvidia-smi topo prints what we cannot read: %.80r" % plain, "mend the driver")
