"""`probe` tells what offers rest on: an interpreter and what it holds, volumes by stamps, users of GPUs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from boards import element, printed, process, tool
from supervisor_driver import Fault, Link

from compute_router.supervisor import machine, stamps
from compute_router.supervisor.observing import timeline

MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def environment(folder: Path, *dists: str) -> Path:
    """An environment of this interpreter that holds these distributions, by the names of their folders."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python3"
    python.symlink_to(os.path.realpath(sys.executable))
    (folder / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    site = folder / "lib" / f"python{MINOR}" / "site-packages"
    for dist in dists:
        (site / f"{dist}.dist-info").mkdir(parents=True)
    return python


def test_only_what_is_asked_for_is_told(root: Path) -> None:
    link = Link(root)
    assert {"host", "devices", "tpus", "leases", "caches"} <= set(link.ask("probe"))
    assert set(link.ask("probe", look=["checkup"])["checkup"]) >= {"root", "leases", "login"}
    few = link.ask("probe", look=["leases"])
    assert few["leases"] == []
    assert not {"host", "devices", "tpus", "caches", "checkup", "python", "volumes"} & set(few)


def test_an_interpreter_and_its_versions_are_read_from_names(root: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", "torch-2.9.1+cu130", "triton-3.5.0", "other-1.0")
    link = Link(root)
    told = link.ask("probe", look=["leases"], python=str(python), dists=["torch", "triton", "jax"])["python"]
    assert told["path"] == str(python)
    assert told["version"] == "{}.{}.{}".format(*sys.version_info)
    assert told["stack"] == {"torch": "2.9.1+cu130", "triton": "3.5.0", "python": MINOR}


def test_a_script_in_front_of_an_interpreter_is_looked_behind(root: Path, tmp_path: Path) -> None:
    """As version managers put them on the PATH: what is installed lies beside the one behind."""
    python = environment(tmp_path / "env", "torch-2.9.1")
    shim = tmp_path / "shims" / "python3"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    shim.chmod(0o755)
    link = Link(root, env={"PATH": f"{shim.parent}:{os.environ['PATH']}"})
    told = link.ask("probe", look=["leases"], python="python3", dists=["torch"])["python"]
    assert told["stack"]["torch"] == "2.9.1"
    assert told["path"] == str(python)


@pytest.mark.parametrize("asked", ["/no/such/python", "no-such-python", "/etc", "/bin/sh", ""])
def test_what_is_no_python_is_told_with_a_reason(root: Path, asked: str) -> None:
    told = Link(root).ask("probe", look=["leases"], python=asked)["python"]
    assert set(told) == {"why"}
    assert told["why"]


def test_volumes_are_told_by_their_stamps_and_not_made(root: Path) -> None:
    key = "ab" * 32
    link = Link(root)
    asked: list[dict[str, Any]] = [
        {"role": "compile-cache", "name": "work", "key": key, "parts": {"shapes": "a"}},
        {"role": "data", "name": "work"},
    ]

    def told() -> list[dict[str, object]]:
        return list(link.ask("probe", look=["leases"], volumes=asked)["volumes"])

    first = told()
    assert [row["state"] for row in first] == ["empty", "empty"]
    assert all(type(row["free_bytes"]) is int for row in first)
    assert not (root / "volumes" / "compile-cache").exists()
    volume = root / "volumes" / "compile-cache" / "work"
    (volume / ".route").mkdir(parents=True)
    (volume / "x").write_text("")
    stamps.write(str(volume), key, {"verdicts": ["hit"], "parts": {"shapes": "a"}})
    assert told()[0]["state"] == "warm_same_key"
    asked[0]["key"] = "cd" * 32
    asked[0]["parts"] = {"shapes": "b"}
    assert told()[0]["state"] == "partial"


@pytest.mark.parametrize(
    "fields",
    [
        {"volumes": "x"}, {"volumes": [3]}, {"volumes": [{"role": "../../etc", "name": "x"}]},
        {"volumes": [{"role": "data", "name": ".."}]}, {"look": "host"}, {"python": "python3", "dists": 3},
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(root: Path, fields: dict[str, Any]) -> None:
    link = Link(root)
    with pytest.raises(Fault, match="BAD_REQUEST"):
        link.ask("probe", **fields)
    assert link.ask("probe", look=["leases"])["leases"] == []


def test_who_uses_a_gpu_is_told(root: Path, tmp_path: Path) -> None:
    env = tool(
        tmp_path,
        printed(
            element("H200-SXM", 0), element("H200-SXM", 1, used="9000 MiB", processes=process(4_000_000))
        ),
    )
    [free, used] = Link(root, env=env).ask("probe", look=["devices"])["devices"]["list"]
    assert free["used"] is None
    assert "4000000" in used["used"]


def test_a_root_that_was_used_before_a_boot_says_so(root: Path) -> None:
    root.mkdir()
    assert not timeline.rebooted(str(root)), "nothing was ever started here"
    (root / "boots").mkdir()
    (root / "boots" / "an-earlier-boot").write_text("{}")
    assert timeline.rebooted(str(root))
    assert Link(root).ask("probe", look=["host"])["host"]["rebooted"]
    (root / "boots" / machine.boot_id()).write_text("{}")
    assert not timeline.rebooted(str(root))
