"""Boards as drivers tell of them, and stand-ins for the driver's tool and library that serve them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"

# name, PCI device, MiB, W, compute capability, NVLinks
BOARDS: dict[str, tuple[str, str, int, int, str, int]] = {
    "H100-SXM-80GB": ("NVIDIA H100 80GB HBM3", "2330", 81559, 700, "9.0", 18),
    "H100-PCIE": ("NVIDIA H100 PCIe", "2331", 81559, 350, "9.0", 0),
    "H100-NVL": ("NVIDIA H100 NVL", "2321", 95830, 400, "9.0", 0),
    "H200-SXM": ("NVIDIA H200", "2335", 143771, 700, "9.0", 18),
    "A100-SXM-80GB": ("NVIDIA A100-SXM4-80GB", "20B2", 81920, 400, "8.0", 12),
    "A100-PCIE-40GB": ("NVIDIA A100-PCIE-40GB", "20F1", 40960, 250, "8.0", 0),
    "A100-PCIE-80GB": ("NVIDIA A100 80GB PCIe", "20B5", 81920, 300, "8.0", 0),
    "L4-PCIE": ("NVIDIA L4", "27B8", 23034, 72, "8.9", 0),
    "B200-SXM": ("NVIDIA B200", "2901", 183359, 1000, "10.0", 18),
    "RTX-4090": ("NVIDIA GeForce RTX 4090", "2684", 24564, 450, "8.9", 0),
}
MiB = 1 << 20


def uuid(number: int) -> str:
    return f"GPU-{number:08x}-1111-2222-3333-444444444444"


def bus(number: int) -> str:
    return f"0000:{0x19 + number:02x}:00.0"


# What `nvidia-smi -q -x` prints


def element(sku: str, number: int, **over: Any) -> str:
    """One `<gpu>` of driver 535; `over` replaces what stands in an element, `old=True` is driver 470's."""
    name, pci, memory, watts, _, _ = BOARDS[sku]
    v: dict[str, Any] = {
        "name": name,
        "uuid": uuid(number),
        "mig": "Disabled" if sku[:4] in ("A100", "H100", "H200", "B200") else "N/A",
        "ecc": "Enabled" if not sku.startswith("RTX") else "N/A",
        "ecc_uncorrected": "0" if not sku.startswith("RTX") else "N/A",
        "sram": "0" if not sku.startswith("RTX") else "N/A",
        "pending": "No",
        "failure": "No",
        "used": "0 MiB",
        "watts": f"{watts}.00 W",
        "processes": "",
        "idle": "Active",
        "cap": "Not Active",
        "extra": "",
        **over,
    }
    reason = "throttle" if over.get("old") else "event"
    power = "power_readings" if over.get("old") else "gpu_power_readings"
    limit = "enforced_power_limit" if over.get("old") else "current_power_limit"
    rows = (
        "<remapped_rows>N/A</remapped_rows>"
        if over.get("old")
        else f"""<remapped_rows><remapped_row_corr>0</remapped_row_corr><remapped_row_unc>0</remapped_row_unc>
      <remapped_row_pending>{v["pending"]}</remapped_row_pending>
      <remapped_row_failure>{v["failure"]}</remapped_row_failure></remapped_rows>"""
    )
    volatile = (
        f"<double_bit><device_memory>0</device_memory><total>{v['ecc_uncorrected']}</total></double_bit>"
        if over.get("old")
        else f"<sram_uncorrectable>{v['sram']}</sram_uncorrectable><dram_uncorrectable>{v['ecc_uncorrected']}"
        "</dram_uncorrectable>"
    )
    return f"""
  <gpu id="0000{bus(number).upper()}">
    <product_name>{v["name"]}</product_name>
    <product_brand>NVIDIA</product_brand>
    <persistence_mode>Enabled</persistence_mode>
    <mig_mode><current_mig>{v["mig"]}</current_mig><pending_mig>{v["mig"]}</pending_mig></mig_mode>
    <mig_devices>None</mig_devices>
    <uuid>{v["uuid"]}</uuid>
    <minor_number>{number}</minor_number>
    <pci>
      <pci_device_id>{pci}10DE</pci_device_id>
      <pci_bus_id>0000{bus(number).upper()}</pci_bus_id>
      <pci_gpu_link_info>
        <pcie_gen><max_link_gen>5</max_link_gen><current_link_gen>5</current_link_gen></pcie_gen>
        <link_widths><max_link_width>16x</max_link_width><current_link_width>16x</current_link_width>
        </link_widths>
      </pci_gpu_link_info>
    </pci>
    <clocks_{reason}_reasons>
      <clocks_{reason}_reason_gpu_idle>{v["idle"]}</clocks_{reason}_reason_gpu_idle>
      <clocks_{reason}_reason_sw_power_cap>{v["cap"]}</clocks_{reason}_reason_sw_power_cap>
    </clocks_{reason}_reasons>
    <fb_memory_usage><total>{memory} MiB</total><used>{v["used"]}</used></fb_memory_usage>
    <utilization><gpu_util>0 %</gpu_util><memory_util>0 %</memory_util></utilization>
    <ecc_mode><current_ecc>{v["ecc"]}</current_ecc><pending_ecc>{v["ecc"]}</pending_ecc></ecc_mode>
    <ecc_errors><volatile>{volatile}</volatile></ecc_errors>
    <retired_pages><pending_retirement>N/A</pending_retirement></retired_pages>
    {rows}
    <temperature><gpu_temp>31 C</gpu_temp></temperature>
    <{power}><power_draw>71.52 W</power_draw><{limit}>{v["watts"]}</{limit}></{power}>
    <clocks><sm_clock>345 MHz</sm_clock></clocks>
    <max_clocks><sm_clock>1980 MHz</sm_clock></max_clocks>
    <processes>{v["processes"]}</processes>{v["extra"]}
  </gpu>"""


def process(pid: int, kind: str = "C") -> str:
    return (
        f"<process_info><pid>{pid}</pid><type>{kind}</type><process_name>python</process_name>"
        "<used_memory>518 MiB</used_memory></process_info>"
    )


def printed(*elements: str, driver: str = "535.129.03") -> str:
    return (
        '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>\n'
        f"  <driver_version>{driver}</driver_version>\n  <cuda_version>12.2</cuda_version>\n"
        f"  <attached_gpus>{len(elements)}</attached_gpus>{''.join(elements)}\n</nvidia_smi_log>\n"
    )


def lost(number: int) -> str:
    """What the tool says of a GPU that has fallen off its bus, before or after the rest."""
    return (
        f"Unable to determine the device handle for GPU 0000{bus(number)}: GPU is lost."
        "  Reboot the system to recover this GPU\n"
    )


def topology(count: int, word: str = "NV18") -> str:
    """What `nvidia-smi topo -m` prints: columns parted by tabs, underlined heads on some drivers."""
    head = "\t\x1b[4m" + "\t".join(f"GPU{i}" for i in range(count)) + "\tCPU Affinity\tNUMA Affinity\x1b[0m\n"
    rows = [
        f"GPU{i}\t"
        + "\t".join(" X " if i == j else word for j in range(count))
        + f"\t0-51\t{i * 2 // count}\n"
        for i in range(count)
    ]
    return head + "".join(rows) + "\nLegend:\n\n  X    = Self\n  NV#  = a bonded set of # NVLinks\n"


def tool(folder: Path, text: str, topo: str = "", *, code: int = 0, hang: bool = False) -> dict[str, str]:
    """A stand-in for nvidia-smi that prints this; the variables that put it in place of the driver's."""
    where = folder / "tools"
    where.mkdir(exist_ok=True)
    (where / "text").write_text(text)
    (where / "topo").write_text(topo)
    (where / "nvidia-smi").write_text(
        f'#!/bin/sh\n{"exec sleep 60" if hang else ""}\ncase "$*" in\n*topo*) cat {where}/topo;;\n'
        f'"-q -x") cat {where}/text;;\nesac\nexit {code}\n'
    )
    (where / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{where}:{os.environ['PATH']}", "ROUTE_NVML": "none"}


# What the library tells


def told(skus: Sequence[str], **over: Any) -> str:
    """The file of the stand-in library for these boards; `over` sets lines (`__` is a point)."""
    lines: dict[str, Any] = {"driver": "550.54.15", "cuda": 12040, "count": len(skus)}
    for i, sku in enumerate(skus):
        name, pci, memory, watts, cc, links = BOARDS[sku]
        board = {
            "uuid": uuid(i),
            "name": name,
            "bus": bus(i),
            "pci": f"0x{pci}10DE",
            "cc": cc,
            "minor": i,
            "memory": memory * MiB,
            "used": 4 * MiB,
            "power_limit_mw": watts * 1000,
            "persistence": 1,
            "pcie_gen": 5,
            "pcie_width": 16,
            "pcie_gen_max": 5,
            "pcie_width_max": 16,
            "pids": "-",
            "sm_mhz": 1755,
            "sm_mhz_max": 1980,
            "temp_c": 41,
            "power_mw": 412_345,
            "util": 97,
            "throttle": "0x4",
        }
        if links:
            board.update(nvlinks=links, nvlink_version=4, to="s" * links)
        if not sku.startswith("RTX"):
            board.update(ecc=1, ecc_uncorrected=0, rows="0 0 0 0")
        if sku[:4] in ("A100", "H100", "H200", "B200"):
            board["mig"] = 0
        lines.update({f"{i}.{key}": value for key, value in board.items()})
        lines.update({f"pair.{i}.{j}": 50 for j in range(i + 1, len(skus))})
    lines.update({key.replace("__", ".").lstrip("_"): value for key, value in over.items()})
    return "".join(f"{key} {value}\n" for key, value in lines.items() if value is not None)


def header() -> Path | None:
    """The real nvml.h, where a CUDA toolkit or NVIDIA's package of it is installed."""
    places = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include", Path("/usr/include")]
    for packages in sys.path:
        places += sorted(Path(packages).glob("nvidia/*/include"))
    return next((place / "nvml.h" for place in places if (place / "nvml.h").exists()), None)


_BUILT = tempfile.TemporaryDirectory(prefix="route-standin-")


@functools.cache
def library(*flags: str) -> Path:
    """The stand-in library, compiled once. Skips the test where there is no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc to compile the stand-in library with")
    made = Path(tempfile.mkdtemp(dir=_BUILT.name)) / "libnvidia-ml.so.1"
    source = DATA / "nvml_standin.c"
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", *flags, "-o", str(made), str(source)], check=True
    )
    return made


def serving(folder: Path, text: str, *flags: str) -> dict[str, str]:
    """The variables that put a stand-in library that tells this in place of the driver's."""
    (folder / "told").write_text(text)
    return {"ROUTE_NVML": str(library(*flags)), "ROUTE_STANDIN_NVML": str(folder / "told")}
