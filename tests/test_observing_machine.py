"""Proves that processors, TPUs and the list of the driver are read, and an unreadable /sys is unseen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from boards import bus

from compute_router.supervisor.observing import container, gpus, processor, tpus


def recorded(root: Path, files: Mapping[str, str]) -> str:
    for path, text in files.items():
        at = root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)
    return str(root)


CPU = "/sys/devices/system/cpu"
TWO_SOCKETS = {
    "/proc/cpuinfo": "model name\t: AMD EPYC 9654 96-Core Processor\nflags\t\t: fpu sse avx2\n",
    "/proc/meminfo": "MemTotal:       2000 kB\nMemFree:        100 kB\nMemAvailable:   1500 kB\n",
    f"{CPU}/online": "0-7\n",
    **{f"{CPU}/cpu{i}/topology/package_cpus_list": "0-3\n" if i < 4 else "4-7\n" for i in range(8)},
    **{f"{CPU}/cpufreq/policy{i}/scaling_governor": "performance\n" for i in range(8)},
    f"{CPU}/cpufreq/boost": "1\n",
    "/sys/devices/system/node/online": "0-1\n",
}


def test_a_machine_with_two_sockets(tmp_path: Path) -> None:
    found = processor.look(recorded(tmp_path, TWO_SOCKETS))
    assert found["model"] == "AMD EPYC 9654 96-Core Processor"
    assert (found["sockets"], found["numa_nodes"], found["governor"], found["boost"]) == (
        2,
        2,
        "performance",
        "on",
    )
    assert (found["virtual"], found["memory_bytes"], found["memory_free_bytes"]) == (
        "no",
        2_048_000,
        1_536_000,
    )
    assert "memory_limit_bytes" not in found, "no limit is none"
    assert found["cpu_milli"] == found["count"] * 1000
    mixed = recorded(
        tmp_path,
        {
            f"{CPU}/cpufreq/policy3/scaling_governor": "powersave\n",
            f"{CPU}/cpufreq/boost": "junk",
            f"{CPU}/intel_pstate/no_turbo": "1\n",
            "/proc/cpuinfo": "model name : x\nflags : fpu hypervisor\n",
        },
    )
    found = processor.look(mixed)
    assert (found["governor"], found["boost"], found["virtual"]) == ("performance+powersave", "off", "yes")


@pytest.mark.parametrize(
    ("files", "milli", "limit"),
    [
        (
            {"/sys/fs/cgroup/cpu.max": "150000 100000\n", "/sys/fs/cgroup/memory.max": "1073741824\n"},
            1500,
            1 << 30,
        ),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n", "/sys/fs/cgroup/memory.max": "max\n"}, 4000, None),
        ({"/sys/fs/cgroup/cpu.max": "junk\n"}, 4000, None),
        ({"/sys/fs/cgroup/cpu.max": "50000 0\n"}, 4000, None),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
            },
            2500,
            512 << 20,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            4000,
            None,
        ),
    ],
)
def test_what_a_group_may_use(tmp_path: Path, files: dict[str, str], milli: int, limit: int | None) -> None:
    root = recorded(tmp_path, files)
    assert processor.allowed(4, root) == milli
    assert processor.memory_limit(root) == limit


def test_a_machine_that_shows_nothing(tmp_path: Path) -> None:
    """No /sys and no /proc: what is left out is unseen, nothing is made up, nothing raises."""
    found = processor.look(str(tmp_path))
    assert set(found) <= {"model", "count", "cpu_milli", "load_milli"}, "what the kernel tells without files"
    assert tpus.look(str(tmp_path)) == {"generation": None, "chips": 0, "files": 0, "lock": None}
    assert gpus.attached(str(tmp_path)) == set()
    recorded(tmp_path, {f"{CPU}/online": "rubbish", "/proc/meminfo": "x\n\n:\n", "/proc/cpuinfo": "\0\n:"})
    assert "sockets" not in processor.look(str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root may mount")
def test_the_whole_look_without_sys() -> None:
    """A real mount over /sys, as some containers have it."""
    program = (
        "import json; from compute_router.supervisor.observing import gpus, processor, tpus\n"
        "print(json.dumps([sorted(processor.look()), tpus.look(), sorted(gpus.attached())]))"
    )
    command = f'mount -t tmpfs none /sys && exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "/bin/sh", "-c", command, program],
        capture_output=True,
        text=True,
    )
    if done.returncode and ("unshare" in done.stderr or "mount:" in done.stderr):
        pytest.skip(f"no namespaces of our own here: {done.stderr.strip()[:80]}")
    assert done.returncode == 0, done.stderr

    seen, chips, attached = json.loads(done.stdout)
    assert {"count", "cpu_milli", "memory_bytes", "memory_free_bytes"} <= set(seen)
    assert not {"sockets", "governor", "boost", "numa_nodes"} & set(seen)
    assert (chips["chips"], attached) == (0, [])


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root may")
def test_a_container_is_recognised() -> None:
    program = "from compute_router.supervisor.observing import gpus; print(gpus.inside())"
    inside = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program],
        capture_output=True,
        text=True,
    )
    if inside.returncode:
        pytest.skip(f"no namespaces of our own here: {inside.stderr.strip()[:80]}")
    assert inside.stdout.strip() == "True"


def gpu_on_bus(root: Path, at: str, driver: str = "nvidia", kind: str = "0x030200") -> None:
    folder = root / "sys/bus/pci/devices" / at
    recorded(
        root, {f"/sys/bus/pci/devices/{at}/vendor": "0x10de\n", f"/sys/bus/pci/devices/{at}/class": kind}
    )
    (folder / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")


def test_the_drivers_own_list(tmp_path: Path) -> None:
    """Where the driver lists its GPUs that is believed; /sys only outside of a container."""
    for number in range(8):
        gpu_on_bus(tmp_path, bus(number))
    gpu_on_bus(tmp_path, "0000:90:00.0", driver="vfio-pci")
    gpu_on_bus(tmp_path, "0000:91:00.0", kind="0x068000")  # an NVSwitch
    assert gpus.attached(str(tmp_path)) == set(), "no /proc/self here: it may be a container"
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/pid").symlink_to(container.INITIAL)
    assert gpus.attached(str(tmp_path)) == {bus(number) for number in range(8)}
    (tmp_path / "proc/driver/nvidia/gpus" / bus(2)).mkdir(parents=True)
    assert gpus.attached(str(tmp_path)) == {bus(2)}


@pytest.mark.parametrize(
    ("device", "under", "generation"),
    [
        ("0x005e", "", "v4"),
        ("0x0062", "", "v5p"),
        ("0x0063", "", "v5e"),
        ("0x006f", "", "v6e"),
        ("0x0027", "0x004e", "v2"),
        ("0x0027", "0x004f", "v3"),
        ("0x0027", "0x1111", "v2 or v3"),
        ("0x001f", "", None),
    ],
)
def test_tpu_chips(tmp_path: Path, device: str, under: str, generation: str | None) -> None:
    for number in range(4):
        at = f"/sys/bus/pci/devices/0000:00:0{number}.0"
        files = {f"{at}/vendor": "0x1ae0\n", f"{at}/device": device, f"{at}/subsystem_device": under}
        recorded(tmp_path, files)
        recorded(tmp_path, {f"/dev/vfio/{number}": ""})
    found = tpus.look(str(tmp_path))
    count = 4 if generation else 0
    assert found == {"generation": generation, "chips": count, "files": count, "lock": None}


def test_who_holds_a_tpu(tmp_path: Path) -> None:
    import fcntl

    root = recorded(tmp_path, {"/tmp/libtpu_lockfile": ""})
    assert tpus.look(root)["lock"] == "stale", "left from a process that died"
    with (tmp_path / "tmp/libtpu_lockfile").open() as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert tpus.look(root)["lock"] == "held"


IN_A_CONTAINER = """
import json, subprocess, sys
from pathlib import Path
from compute_router import Router
from compute_router.workload import Entry, Workload
from compute_router.supervisor.observing import container
home = Path(sys.argv[1])
found = []
for _ in range(2):
    made = subprocess.run(
        [sys.executable, "-c", "from compute_router.cli import main; main()",
         "record", "--json", "--", "true"],
        capture_output=True, text=True)
    document = json.loads(made.stdout.splitlines()[-1])
    found.append(document["data"]["context"]["startup"]["class"])
print(json.dumps([found, container.here(), container.warm(str(home / "machine"))]))
"""


def test_a_fresh_container_is_no_warm_machine(tmp_path: Path) -> None:
    """Two runs recorded in a space of processes of their own, which has just begun."""
    words = [
        "unshare",
        "-p",
        "-f",
        "--mount-proc",
        sys.executable,
        "-c",
        IN_A_CONTAINER,
        str(tmp_path / "home"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no space of processes of our own here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr
    (first, second), here, warm = json.loads(done.stdout)
    assert first["v"] is None
    assert "the first run in it" in first["why"]
    assert second["v"] == "warm_container"
    assert 0 < here["up_us"] < 120_000_000
    assert warm is True


def test_a_machine_that_hides_its_boot_is_not_said_to_be_up_since_long(tmp_path: Path) -> None:
    record = [
        sys.executable,
        "-c",
        "from compute_router.cli import main; main()",
        "record",
        "--json",
        "--",
        "true",
    ]
    script = 'mount --bind /dev/null /proc/sys/kernel/random/boot_id && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", script, "sh", *record]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode and ("unshare" in done.stderr or "mount:" in done.stderr):
        pytest.skip(f"no mounts of our own here: {done.stderr.strip()[:100]}")
    found = json.loads(done.stdout.splitlines()[-1])["data"]["context"]["startup"]["class"]
    assert found["v"] is None
    assert container.inside() or "one boot from another" in found["why"]


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        ({"key": "1-2", "up_us": 599_000_000, "again": False}, None),
        ({"key": "1-2", "up_us": 601_000_000, "again": False}, "warm_container"),
        ({"key": "1-2", "up_us": 5, "again": True}, "warm_container"),
        ({"key": "1-2", "up_us": None, "again": False}, None),
        ({"key": None, "up_us": None}, None),
    ],
)
def test_what_is_said_of_a_start_in_a_container(seen: dict[str, Any], word: str | None) -> None:
    found, why = container.judged(seen)
    assert found == word
    assert bool(why) is (word is None)
