"""By the command line: `auto` chooses reserved machines by what they have and by what is warm there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import element
from conftest import Route
from reserved import Fleet
from test_environment import index as index

GPU = """\
# /// script
# requires-python = ">=3.8"
# [tool.route]
# name = "warmth"
# accelerator = "H200:1"
# framework = "torch"
# shapes = "small"
# volumes = { compile-cache = "/cache" }
# ///
import os, pathlib
import route_report
folder = pathlib.Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
(folder / "graph").write_text("compiled")
route_report.cache("inductor", hits=0, misses=3, verdict="miss")
print("gpus", os.environ["CUDA_VISIBLE_DEVICES"])
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "fleet")
    yield made
    made.close()


@pytest.fixture
def two(fleet: Fleet, folder: Path) -> Fleet:
    """h1 and h2, alike, each with two GPUs."""
    for name in ("h1", "h2"):
        fleet.add(name, *(element("H200-SXM", n) for n in range(2)), price_per_hour="10")
    fleet.configure()
    (folder / "work.py").write_text(GPU)
    return fleet


def planned(route: Route, *args: str) -> dict[str, Any]:
    done = route("plan", "work.py", "--json", *args)
    return dict(json.loads(done.stdout)["data"])


def chosen(data: dict[str, Any]) -> tuple[str, str]:
    first = data["decision"]["ranked"][0]
    return first["backend"], first["offer_id"]


def caches(data: dict[str, Any]) -> dict[str, str]:
    """The state of the compile cache at each place that is offered."""
    return {
        offer["id"]: next(role["state"] for role in offer["roles"] if role["role"] == "compile-cache")
        for offer in data["offers"]
        if offer["offer"] and offer["backend"] == "ssh"
    }


def test_auto_takes_a_machine_that_has_the_gpus(two: Fleet, route: Route, home: Path) -> None:
    data = planned(route)
    assert chosen(data) == ("ssh", "h1:h200:1")
    [local] = [offer for offer in data["offers"] if offer["backend"] == "local"]
    assert not local["offer"]
    done = route("run", "work.py", "--policy", "auto")
    assert done.returncode == 0, done.stderr
    assert "gpus GPU-" in done.stdout
    [receipt] = [json.loads(path.read_text()) for path in (home / "runs").glob("*/receipt.json")]
    assert receipt["context"]["offer"]["id"]["v"] == "h1:h200:1"


@pytest.mark.slow
def test_warm_and_cold_are_told_by_keys(two: Fleet, route: Route, home: Path) -> None:
    only = 'backend.ssh.only=["h2"]'
    assert route("run", "work.py", "--set", only).returncode == 0
    assert list((two.folder / "h2" / "root" / "runs").iterdir())
    data = planned(route)
    assert caches(data) == {"h1:h200:1": "empty", "h2:h200:1": "warm_same_key"}
    assert chosen(planned(route, "--set", "warmth=warm")) == ("ssh", "h2:h200:1")
    assert chosen(planned(route, "--set", "warmth=cold")) == ("ssh", "h1:h200:1")
    # Files alone prove nothing, and neither does the cache of other shapes, another image or world.
    volume = two.folder / "h1" / "root" / "volumes" / "compile-cache" / "warmth"
    (volume / "inductor").mkdir(parents=True)
    (volume / "inductor" / "graph").write_text("compiled")
    assert caches(planned(route))["h1:h200:1"] == "empty"
    (volume / ".route").mkdir()
    assert caches(planned(route))["h1:h200:1"] == "partial"
    assert caches(planned(route, "--set", "shapes=large"))["h2:h200:1"] == "partial"
    assert caches(planned(route, "--set", "accelerator=H200:2"))["h2:h200:2"] == "warm_other_world"
    other = planned(route, "--set", f"python={json.dumps(str(_another(two.folder)))}")
    assert caches(other)["h2:h200:1"] == "warm_other_image"
    refused = planned(route, "--set", "warmth=cold", "--set", only)
    assert refused["decision"]["outcome"] == "refused"


@pytest.mark.slow
def test_an_environment_of_dependencies_is_known_by_its_lock(
    two: Fleet, route: Route, folder: Path, index: Path
) -> None:
    """Built on the machine by the first run; from then on its cache there is told by the lock."""
    (folder / "work.py").write_text(GPU.replace("# requires", '# dependencies = ["routedemo"]\n# requires'))
    first = planned(route)
    assert caches(first) == {"h1:h200:1": "empty", "h2:h200:1": "empty"}
    assert first["environment"]["source"] == "uv"
    done = route("run", "work.py", "--set", 'backend.ssh.only=["h2"]', timeout=120)
    assert done.returncode == 0, done.stderr
    assert caches(planned(route)) == {"h1:h200:1": "empty", "h2:h200:1": "warm_same_key"}
    assert chosen(planned(route, "--set", "warmth=warm")) == ("ssh", "h2:h200:1")


def _another(folder: Path) -> Path:
    """An interpreter beside which another torch is installed, by the name of a folder."""
    import sys

    made = folder / "env"
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "python3").symlink_to(sys.executable)
    minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (made / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    (made / "lib" / minor / "site-packages" / "torch-9.9.dist-info").mkdir(parents=True)
    return made / "bin" / "python3"


def test_what_is_listed_for_those_who_own_none(route: Route, folder: Path) -> None:
    """Nothing is wrong with machines that nobody has: they are named where places are listed, and no more."""
    (folder / "work.py").write_text("print('hello')\n")
    backends = json.loads(route("backends", "--json").stdout)["data"]
    [ssh] = [each for each in backends if each["name"] == "ssh"]
    assert (ssh["health"]["ok"], ssh["health"]["set_up"]) == (False, False)
    doctor = route("doctor")
    assert doctor.returncode == 0, doctor.stdout
    assert "route machine add NAME USER@ADDRESS" in doctor.stdout
    assert "checks failed" not in doctor.stdout
    run = route("run", "work.py")
    assert "ssh" not in run.stdout + run.stderr
    refused = route("run", "--set", "accelerator=H200:8", "--set", "coupling=single-node", "work.py")
    assert refused.returncode == 65
    assert "ssh" not in refused.stdout + refused.stderr
    pinned = route("run", "work.py", "--backend", "ssh")
    assert pinned.returncode == 65
    assert "route machine add NAME USER@ADDRESS" in pinned.stderr
