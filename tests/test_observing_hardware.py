"""Proves that GPUs are read as their drivers tell them, and that what is not told is unseen."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from boards import (
    BOARDS,
    DATA,
    bus,
    element,
    header,
    library,
    lost,
    printed,
    process,
    serving,
    told,
    tool,
    topology,
    uuid,
)

from compute_router.supervisor import machine
from compute_router.supervisor.observing import apart, gpus, nvml, skus, smi, wiring


def here(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)


# The tool


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("sku", sorted(BOARDS))
def test_the_tool_tells_each_board(
    sku: str, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, tool(tmp_path, printed(element(sku, 0, old=old)), topology(1)))
    found = gpus.look(full=True)
    [gpu] = found["gpus"]
    _, pci, memory, watts, _, _ = BOARDS[sku]
    assert (found["source"], found["driver"], found["cuda"]) == ("nvidia-smi", "535.129.03", "12.2")
    assert (gpu["sku"], gpu["uuid"], gpu["bus"]) == (sku, uuid(0), bus(0))
    assert (gpu["pci"], gpu["memory_bytes"]) == (f"10de:{pci.lower()}", memory << 20)
    assert (gpu["power_limit_w"], gpu["power_w"], gpu["sm_mhz"], gpu["temp_c"]) == (watts, 71, 345, 31)
    assert (gpu["throttle"], gpu["processes"]) == ([], [])
    rtx = sku.startswith("RTX")
    assert gpu["ecc"] == ("unsupported" if rtx else "on")
    assert ("ecc_uncorrected" in gpu["why"]) == rtx, "a count that is N/A is not zero"
    assert "retired_pending" in gpu["why"]
    assert ("remap_pending" in gpu["why"]) == old, "N/A is not `No`"
    assert gpus.sick(gpu) is None
    assert wiring.text(found["matrix"]) == "1"


def test_the_tool_tells_wiring_and_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [element("H200-SXM", i, processes=process(4242) + process(7, "G")) for i in range(8)]
    here(monkeypatch, tool(tmp_path, printed(*rows), topology(8)))
    found = gpus.look(full=True)
    assert wiring.text(found["matrix"]) == "8:NV18"
    assert {tuple(gpu["processes"]) for gpu in found["gpus"]} == {(4242,)}, "graphics do not count"
    some = gpus.look([uuid(2), uuid(5)], full=True)
    assert [gpu["index"] for gpu in some["gpus"]] == [2, 5]
    assert some["matrix"] == [["X", "NV18"], ["NV18", "X"]]


def test_a_lost_gpu_is_named_by_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(*(element("H200-SXM", i) for i in range(7))) + lost(7)
    here(monkeypatch, tool(tmp_path, text, topology(7), code=15))
    found = gpus.look(full=True)
    assert len(found["gpus"]) == 8
    said, mend = gpus.sick(found["gpus"][7]) or ("", "")
    assert bus(7) in said
    assert "GPU is lost" in said
    assert "another place" in mend
    assert not any(gpus.sick(gpu) for gpu in found["gpus"][:7])
    gone = element("H200-SXM", 0, name="GPU is lost", watts="[GPU is lost]")
    here(monkeypatch, tool(tmp_path, printed(gone)))
    [gpu] = gpus.look()["gpus"]
    assert gpus.sick(gpu)
    assert "power_limit_w" in gpu["why"]


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ({"text": "rubbish\n"}, "cannot read"),
        ({"text": "<nvidia_smi_log><gpu></nvidia_smi_log>"}, "cannot read"),
        ({"text": printed()}, "lists no GPU"),
        ({"text": printed(element("L4-PCIE", 0, uuid="$(reboot)"))}, "cannot read"),
        (
            {"text": "NVIDIA-SMI has failed because it couldn't communicate", "code": 9},
            "fails: NVIDIA-SMI has",
        ),
        ({"text": "", "hang": True}, "hangs"),
    ],
)
def test_a_tool_that_fails_lies_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: dict[str, Any], match: str
) -> None:
    monkeypatch.setattr(smi, "DEADLINE", 0.7)
    here(monkeypatch, tool(tmp_path, **what))
    with pytest.raises(gpus.NoAnswer, match=match) as said:
        gpus.look()
    assert said.value.mend


def test_a_tool_that_never_stops_printing_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints is not kept in memory, and what it has left behind does not stay."""
    env = tool(tmp_path, "")
    mark = tmp_path / "pid"
    (tmp_path / "tools" / "nvidia-smi").write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {mark}\nexec yes\n")
    here(monkeypatch, env)
    with pytest.raises(gpus.NoAnswer, match="prints more than 8 MiB"):
        gpus.look()
    until = time.monotonic() + 20
    while (left := machine.process(int(mark.read_text()))) is not None and left.state not in ("Z", "X"):
        assert time.monotonic() < until, "what the tool had started goes on"
        time.sleep(0.01)


def test_no_tool_and_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, {"PATH": str(tmp_path), "ROUTE_NVML": "none"})
    with pytest.raises(gpus.NoAnswer, match="no nvidia-smi"):
        gpus.look()


@pytest.mark.parametrize(
    "said", ["N/A", "[N/A]", "[Not Supported]", "ERR!", "[Unknown Error]", "", "700", "x W"]
)
def test_numbers_are_read_or_unseen(said: str) -> None:
    record: dict[str, Any] = smi.read(printed(element("L4-PCIE", 0, watts=said)))["gpus"][0]
    assert record.get("power_limit_w") == (700 if said == "700" else None)
    assert ("power_limit_w" in record["why"]) == (said != "700")


# The library


@pytest.mark.parametrize("sku", sorted(BOARDS))
def test_the_library_tells_each_board(sku: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, serving(tmp_path, told([sku, sku])))
    found = gpus.look(full=True)
    first, second = found["gpus"]
    _, pci, memory, watts, cc, links = BOARDS[sku]
    assert (found["source"], found["driver"], found["cuda"]) == ("nvml", "550.54.15", "12.4")
    assert (first["sku"], first["uuid"], second["bus"]) == (sku, uuid(0), bus(1))
    assert (first["pci"], first["memory_bytes"]) == (f"10de:{pci.lower()}", memory << 20)
    assert (first["cc"], first["power_limit_w"], first["persistence"]) == (cc, watts, "on")
    assert (first["sm_mhz"], first["temp_c"], first["power_w"], first["util_pct"]) == (1755, 41, 412, 97)
    assert first["throttle"] == ["sw_power_cap"]
    assert wiring.text(found["matrix"]) == (f"2:NV{links}" if links else "2:SYS")
    assert first.get("nvlinks", 0) == links
    if sku.startswith("RTX"):
        assert first["ecc"] == first["mig"] == "unsupported"
        assert "Not Supported" in first["why"]["ecc_uncorrected"]
    assert gpus.sick(first) is None


def test_an_older_library_lacks_some_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, serving(tmp_path, told(["A100-SXM-80GB"], _0__pids="11 12 13"), "-DOLD"))
    [gpu] = gpus.look(full=True)["gpus"]
    assert "no nvmlDeviceGetRemappedRows" in gpu["why"]["remap_pending"]
    assert gpu["throttle"] == ["sw_power_cap"], "by its name before 2023"
    assert gpu["processes"] == [11, 12, 13], "by the layout before 2021"
    assert gpu["sku"] == "A100-SXM-80GB"


def test_what_draws_does_not_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags in ((), ("-DOLD",)):
        here(monkeypatch, serving(tmp_path, told(["RTX-4090"], _0__screens="8 9", _0__used=5 << 30), *flags))
        [gpu] = gpus.look()["gpus"]
        assert (gpu["processes"], gpu["drawing"]) == ([], 2)
        assert not gpus.foreign(gpu)


def test_more_processes_than_there_was_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = list(range(100, 150))
    here(monkeypatch, serving(tmp_path, told(["L4-PCIE"], _0__pids=" ".join(map(str, pids)))))
    assert gpus.look()["gpus"][0]["processes"] == pids


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"_0__handle": "!15"}, "GPU 0 is lost: NVML says: GPU is lost"),
        ({"_0__memory": "!15"}, "is lost"),
        ({"_0__ecc_uncorrected": 2}, "2 uncorrectable memory error"),
        ({"_0__rows": "1 0 1 0"}, "replaced only by a reset"),
        ({"_0__rows": "1 2 0 1"}, "could not replace"),
        ({"_0__retired_pending": 1}, "retired only by a reset"),
        ({"_0__handle": "!16"}, "requires restart"),
        ({"_0__uuid": "!999"}, ""),
        ({"_0__rows": "5 0 0 0"}, ""),
    ],
)
def test_what_makes_a_gpu_sick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: dict[str, Any], said: str
) -> None:
    here(monkeypatch, serving(tmp_path, told(["H100-SXM-80GB"], **over)))
    wrong = gpus.sick(gpus.look(full=True)["gpus"][0])
    assert (wrong is not None) == bool(said)
    assert wrong is None or (said in wrong[0] and wrong[1])


def children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize(
    "how", ["hang nvmlInit_v2", "hang nvmlDeviceGetTotalEccErrors", "crash nvmlDeviceGetName"]
)
def test_a_library_that_hangs_or_crashes_is_left_for_the_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(gpus, "SECONDS", 0.5)
    here(monkeypatch, tool(tmp_path, printed(element("L4-PCIE", 0))))
    here(monkeypatch, serving(tmp_path, told(["L4-PCIE"]) + how + "\n"))
    before = children()
    found = gpus.look()
    assert found["source"] == "nvidia-smi"
    assert ("no answer" if how.startswith("hang") else "signal 6") in found["why"]["nvml"]
    assert children() == before, "nothing of it is left behind"
    here(monkeypatch, {"PATH": str(tmp_path)})
    with pytest.raises(gpus.NoAnswer, match="no answer" if how.startswith("hang") else "no nvidia-smi"):
        gpus.look()


def test_a_driver_that_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, {**serving(tmp_path, "init !9\n"), "PATH": str(tmp_path)})
    with pytest.raises(apart.Failed, match="Driver Not Loaded"):
        apart.do(lambda: {"x": nvml.Library() and 1}, 5.0)
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")
    monkeypatch.setenv("ROUTE_NVML", str(tmp_path / "libnvidia-ml.so.1"))
    with pytest.raises(nvml.Unseen, match="libnvidia-ml"):
        nvml.Library()


def test_parts_of_a_gpu_are_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: dict[str, Any] = {"_0__mig": 1, "_0__parts": 7, "_0__ecc_uncorrected": 1}
    for i in (0, 3):
        parts |= {
            f"_0__{i}__uuid": f"MIG-0000000{i}-1",
            f"_0__{i}__name": "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        }
        parts |= {f"_0__{i}__memory": 9 << 30, f"_0__{i}__pids": "-"}
    here(monkeypatch, serving(tmp_path, told(["A100-SXM-80GB"], **parts)))
    whole, first, second = gpus.look(full=True)["gpus"]
    assert whole["sku"] == "A100-SXM-80GB-MIG", "as a whole it is nothing to compute on"
    assert skus.same("A100", whole["sku"]) == "variant"
    assert first["sku"] == second["sku"] == "A100-SXM-80GB-MIG-1g.10gb"
    assert (first["uuid"], second["uuid"]) == ("MIG-00000000-1", "MIG-00000003-1")
    assert skus.same("A100-MIG-1g.10gb", first["sku"]) == "exact"
    assert gpus.sick(first), "the health of a part is that of the whole"


def test_what_is_not_told_of_a_part_is_not_that_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"_0__mig": 1, "_0__parts": 1, "_0__pids": "77", "_0__0__uuid": "!999", "_0__0__name": "!3"}
    parts |= {"_0__0__memory": "!3", "_0__0__pids": "!3"}
    here(monkeypatch, serving(tmp_path, told(["A100-SXM-80GB"], **parts)))
    whole, part = gpus.look(full=True)["gpus"]
    assert (whole["uuid"], whole["processes"]) == (uuid(0), [77])
    assert not {"uuid", "memory_bytes", "processes"} & set(part)
    assert {"uuid", "memory_bytes", "processes"} <= set(part["why"])
    assert part["whole"] == uuid(0)


def test_parts_in_the_tools_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As drivers of 535 to 595 print them: the UUID of a part stands in the short list alone, and processes
    with the numbers of the part that they are in."""

    def part(index: int, instance: int) -> str:
        return (
            f"<mig_device><index>{index}</index><gpu_instance_id>{instance}</gpu_instance_id>"
            "<compute_instance_id>0</compute_instance_id>"
            "<fb_memory_usage><total>9728 MiB</total><used>12 MiB</used></fb_memory_usage></mig_device>"
        )

    user = process(4242).replace(
        "<pid>",
        "<gpu_instance_id>5</gpu_instance_id><compute_instance_id>0</compute_instance_id><pid>",
    )
    extra = f"<mig_devices>{part(0, 1)}{part(1, 5)}</mig_devices>"
    text = printed(element("A100-SXM-80GB", 0, mig="Enabled", extra=extra, processes=user))
    env = tool(tmp_path, text)
    listed = (
        f"GPU 0: NVIDIA A100-SXM4-80GB (UUID: {uuid(0)})\n"
        "  MIG 1g.10gb     Device  0: (UUID: MIG-00000000-1)\n"
        "  MIG 1g.10gb     Device  1: (UUID: MIG-00000005-1)\n"
    )
    (tmp_path / "tools" / "list").write_text(listed)
    program = tmp_path / "tools" / "nvidia-smi"
    program.write_text(program.read_text().replace("esac", f"-L) cat {tmp_path}/tools/list;;\nesac"))
    here(monkeypatch, env)
    whole, first, second = gpus.look()["gpus"]
    assert (whole["sku"], first["sku"]) == ("A100-SXM-80GB-MIG", "A100-SXM-80GB-MIG-1g.10gb")
    assert (first["uuid"], first["memory_bytes"]) == ("MIG-00000000-1", 9728 << 20)
    assert (second["uuid"], second["memory_used_bytes"]) == ("MIG-00000005-1", 12 << 20)
    assert (whole["processes"], first["processes"], second["processes"]) == ([4242], [], [4242])


def test_what_the_driver_has_and_does_not_answer() -> None:
    listed = {bus(0), bus(1), bus(2)}
    assert gpus.missing([{"bus": bus(0)}, {"bus": bus(2)}], listed) == [bus(1)]
    assert gpus.missing([{"bus": bus(0)}, {"bus": "0000:01:00.0"}], listed) == [], "not the same machine"
    assert gpus.missing([{"bus": bus(0)}], set()) == []


def test_links_without_a_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs of four links each, as on boards with bridges; the order of the GPUs does not matter."""
    for pairs in (("1111", "0000", "3333", "2222"), ("2222", "3333", "0000", "1111")):
        ends: dict[str, Any] = {f"_{i}__to": to for i, to in enumerate(pairs)}
        ends |= {f"_{i}__nvlinks": 4 for i in range(4)} | {f"_{i}__nvlink_version": 3 for i in range(4)}
        here(monkeypatch, serving(tmp_path, told(["H100-NVL"] * 4, **ends)))
        assert wiring.text(gpus.look(full=True)["matrix"]) == "4:(NV4,SYS,SYS)"
    here(monkeypatch, serving(tmp_path, told(["L4-PCIE"] * 2, pair__0__1=None)))
    assert wiring.text(gpus.look(full=True)["matrix"]) is None, "an untold link makes no text"


def test_layouts_and_calls_are_those_of_the_real_header(tmp_path: Path) -> None:
    found = header()
    if found is None:
        pytest.skip("no nvml.h is installed (pip install nvidia-nvml-dev-cu12 brings it)")
    library("-DREAL_HEADER", f"-I{found.parent}")
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", found.read_text(errors="replace"), flags=re.S)
    kinds = {
        "unsigned int": "uint",
        "int": "int",
        "unsigned long long": "ulong",
        "nvmlDevice_t": "device",
        "nvmlPciInfo_t": "pci",
        "nvmlMemory_t": "memory",
        "nvmlUtilization_t": "utilization",
        "nvmlProcessInfo_v2_t": "processes",
        "nvmlProcessInfo_v1_t": "processes1",
        "nvmlEventSet_t": "set",
        "nvmlEventData_t": "event",
        "nvmlProcessInfo_t": "processes",
    }
    for name, expected in nvml.SIGNATURES.items():
        shown = re.search(rf"DECLDIR\s+{name}\s*\(([^)]*)\)", text)
        if shown is None and name == "nvmlDeviceGetCurrentClocksEventReasons":
            continue  # newer than this header
        assert shown, name
        said = []
        for parameter in shown.group(1).replace("void", "").split(","):
            words = re.match(r"\s*(?:const )?(.*?)\s*(\*?)\s*\w+\s*$", parameter)
            if words and words.group(1) == "char":
                said.append("text")
            elif words and not (said[-1:] == ["text"] and "length" in parameter):
                kind = kinds.get(words.group(1), "uint")  # the rest are enumerations
                said.append(kind + ("" if kind.startswith("processes") else words.group(2)))
        assert tuple(said) == expected, name
    structures = {
        "nvmlPciInfo_t": "pci",
        "nvmlMemory_t": "memory",
        "nvmlUtilization_t": "utilization",
        "nvmlProcessInfo_v1_t": "processes1",
        "nvmlProcessInfo_v2_t": "processes",
        "nvmlEventData_t": "event",
    }
    values = [
        "NVML_ERROR_NOT_SUPPORTED",
        "NVML_ERROR_GPU_IS_LOST",
        "NVML_ERROR_RESET_REQUIRED",
        "NVML_CLOCK_SM",
    ]
    values += ["NVML_ERROR_INSUFFICIENT_SIZE", "NVML_ERROR_TIMEOUT", "nvmlEventTypeXidCriticalError"]
    values += ["NVML_MEMORY_ERROR_TYPE_UNCORRECTED", "NVML_VOLATILE_ECC", "NVML_TOPOLOGY_NODE"]
    lines = [f'printf("%zu\\n", sizeof({name}));' for name in structures]
    lines += [f'printf("%lld\\n", (long long){name});' for name in values]
    (tmp_path / "sizes.c").write_text(
        "#include <stdio.h>\n#include <nvml.h>\nint main(void) {" + "".join(lines) + "return 0;}"
    )
    command = ["gcc", f"-I{found.parent}", "-o", str(tmp_path / "sizes"), str(tmp_path / "sizes.c")]
    subprocess.run(command, check=True)
    out = [int(n) for n in subprocess.run([tmp_path / "sizes"], stdout=-1, check=True).stdout.split()]
    import ctypes

    types = nvml.layouts()
    assert out[: len(structures)] == [ctypes.sizeof(types[name]) for name in structures.values()]
    assert out[len(structures) :] == [
        *(nvml.NOT_SUPPORTED, nvml.LOST, nvml.RESET, nvml.CLOCK_SM, nvml.INSUFFICIENT_SIZE),
        *(nvml.TIMEOUT, nvml.XID, 1, 0, 40),
    ]


def test_reasons_are_words() -> None:
    assert nvml.reasons(0x1) == [] == nvml.reasons(0), "an idle GPU is not throttled"
    assert nvml.reasons(0x4 | 0x20 | 0x1) == ["sw_power_cap", "sw_thermal_slowdown"]
    assert nvml.reasons(0x1000 | 0x8) == ["hw_slowdown", "0x1000"]
    assert DATA.joinpath("README.md").exists()


# Names


@pytest.mark.parametrize(
    ("asked", "got", "word"),
    [
        ("H200", "NVIDIA H200", "exact"),
        ("H100", "H100-SXM-80GB", "exact"),
        ("H100", "H100-PCIE", "variant"),
        ("H100-PCIE", "NVIDIA H100 PCIe", "exact"),
        ("A100-80GB", "A100-SXM-80GB", "exact"),
        ("A100-80GB", "A100-PCIE-80GB", "variant"),
        ("A100-80GB", "A100-SXM-40GB", "variant"),
        ("A100", "A100-SXM-40GB", "exact"),
        ("RTX-4090", "NVIDIA GeForce RTX 4090", "exact"),
        ("RTX-4090", "NVIDIA GeForce RTX 4090 D", "variant"),
        ("RTX-4090", "NVIDIA GeForce RTX 3090", ""),
        ("H200", "H100-SXM-80GB", ""),
        ("H200", "H200-NVL", "variant"),
        ("", "H200", ""),
    ],
)
def test_names_that_are_the_same(asked: str, got: str, word: str) -> None:
    assert skus.same(asked, got) == word


def test_every_board_can_be_asked_for_by_the_name_it_is_offered_under() -> None:
    for sku, (name, pci, *_) in BOARDS.items():
        found, _, _ = skus.known(name, f"10de:{pci.lower()}")
        assert found == sku == skus.known(name)[0], "the name alone is enough for these"
        assert skus.same(skus.short(found), found) == "exact"
        for other in BOARDS:
            if skus.parse(other)[:3] != skus.parse(found)[:3] and skus.short(other) != skus.short(found):
                assert skus.same(skus.short(found), other) != "exact", (found, other)


@pytest.mark.parametrize(
    ("sku", "count", "others", "word"),
    [
        ("H200-SXM", 8, 0, "exact"),
        ("H200-SXM", 7, 0, "count_mismatch"),
        ("H200-NVL", 8, None, "variant"),
        ("B200-SXM", 8, None, "upgraded"),
        ("A100-SXM-80GB", 8, None, "downgraded"),
        ("H100-SXM-80GB", 8, None, "declared"),
        ("7xH200-SXM+1xH100-SXM", 8, None, "variant"),
        ("cpu", 0, None, "cpu_fallback"),
        ("H200-SXM", 8, 1, "shared"),
        (None, 8, None, "unobserved"),
    ],
)
def test_every_word_of_the_enumeration(sku: str | None, count: int, others: int | None, word: str) -> None:
    asked = {"family": "gpu", "sku": "H200", "count": 8}
    assert skus.judge(asked, [{"sku": "H100", "count": 8}], sku, count, others) == word


def test_memory_in_use_tells_of_somebody_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    for inside in (True, False):
        monkeypatch.setattr(gpus, "inside", lambda inside=inside: inside)
        nothing = {"processes": [], "memory_used_bytes": 4 << 20}
        assert gpus.foreign(nothing) == (None if inside else 0), "an empty list in a container says nothing"
        assert gpus.foreign({"processes": [], "memory_used_bytes": 40 << 30}) == 1
        screen = {"processes": [], "drawing": 3, "memory_used_bytes": 5 << 30}
        assert gpus.foreign(screen) == (None if inside else 0), "a desktop is nobody's work"
        assert gpus.foreign({"processes": [5, 6], "memory_used_bytes": 0}, ours={5}) == 1
        assert gpus.foreign({"memory_used_bytes": 0}) is None
