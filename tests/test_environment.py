"""The Python of the work is the one asked for, of the version asked for, or built by uv from a lock.

The wheels are made by the test and served from a folder, so nothing outside the machine is asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from peers import submission
from peers import workload as a_script

from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.environment import interpreter, known, pip_settings, satisfies, stack_of
from compute_router.errors import PreflightFailed
from compute_router.machines.contract import Interpreter
from compute_router.workload import Entry, Workload


def wheel(folder: Path, name: str, version: str) -> None:
    """A wheel of one module that knows its version."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)


def same(found: Interpreter) -> Interpreter:
    """An interpreter without what this one call had to do for it."""
    return msgspec.structs.replace(found, built=None, build_us=None)


def workload(**fields: Any) -> Workload:
    return Workload(name="w", entry=Entry(root="/r", script="a.py"), **fields)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is configured to use, and nothing else."""
    wheels = tmp_path / "wheels"
    wheel(wheels, "routedemo", "1.0")
    for name in (
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "UV_INDEX",
        "UV_DEFAULT_INDEX",
        "UV_EXTRA_INDEX_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pip.conf").write_text(f"[global]\nfind-links = {wheels}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    return wheels


@pytest.mark.parametrize(
    ("version", "specifier", "good"),
    [
        ("3.11.7", ">=3.11", True), ("3.11.7", ">=3.12", False), ("3.11.7", ">=3.11,<3.13", True),
        ("3.13.0", ">=3.11,<3.13", False), ("3.11.7", "~=3.11", True), ("3.12.0", "~=3.11", True),
        ("3.12.0", "~=3.11.2", False), ("3.11.7", "==3.11.*", True), ("3.12.1", "==3.11.*", False),
        ("3.11.7", "!=3.11.7", False), ("3.11.7", "!=3.12.*", True), ("3.11.0", "==3.11", True),
        ("3.9.1", "> 3.10", False), ("3.11.7", "", True), ("3.14.0rc1", ">=3.14", True),
    ],
)  # fmt: skip
def test_requires_python(version: str, specifier: str, good: bool) -> None:
    assert satisfies(version, specifier) is good


def test_requires_python_that_cannot_be_read() -> None:
    with pytest.raises(PreflightFailed, match="cannot be read"):
        satisfies("3.11.7", "three")


def test_the_clients_own_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it was called, it is the same in the specification, and the same key is no conflict."""
    folder, name = os.path.split(sys.executable)
    straight = interpreter(workload(), tmp_path).python
    monkeypatch.setattr(sys, "executable", f"{folder}/../{os.path.basename(folder)}/{name}")
    assert interpreter(workload(), tmp_path).python == straight


def test_none_listed_is_the_clients_own(tmp_path: Path) -> None:
    for fields in ({}, {"python": "current"}, {"python": "current", "dependencies": ("x",)}):
        found = interpreter(workload(**fields), tmp_path)
        assert os.path.samefile(found.python, sys.executable)
        assert os.path.basename(found.python) == os.path.basename(sys.executable)
        assert found.stack["python"] == f"3.{sys.version_info.minor}"
    with pytest.raises(PreflightFailed, match=r"the client's Python is .* needs Python >=9"):
        interpreter(workload(requires_python=">=9"), tmp_path)


def test_a_path_wins(tmp_path: Path) -> None:
    found = interpreter(workload(python=sys.executable, dependencies=("x",)), tmp_path)
    assert found.python == sys.executable
    with pytest.raises(PreflightFailed, match="there is no Python at"):
        interpreter(workload(python="/no/such/python"), tmp_path)
    with pytest.raises(PreflightFailed, match="needs Python <3"):
        interpreter(workload(python=sys.executable, requires_python="<3"), tmp_path)
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(PreflightFailed, match="does not start"):
        interpreter(workload(python=str(broken), requires_python=">=3"), tmp_path)


def test_versions_are_read_without_running_anything(tmp_path: Path) -> None:
    site = tmp_path / "lib/python3.12/site-packages"
    for name in ("torch-2.5.1+cu121.dist-info", "triton-3.1.0.dist-info", "numpy-2.0.dist-info"):
        (site / name).mkdir(parents=True)
    found = stack_of(str(tmp_path / "bin/python"))
    assert found == {"python": "3.12", "torch": "2.5.1+cu121", "triton": "3.1.0"}
    assert stack_of("/no/such/bin/python") == {}


def test_dependencies_are_built_once_per_lock(tmp_path: Path, index: Path) -> None:
    envs = tmp_path / "envs"
    work = workload(dependencies=("routedemo",))
    assert known(work, envs) is None
    found = interpreter(work, envs)
    code = "import routedemo; print(routedemo.version)"
    said = subprocess.run([found.python, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "1.0\n"
    assert len(found.stack["lock"]) == 64
    made = Path(found.python).parents[1].stat().st_mtime_ns
    assert (found.source, found.built, found.lock_sha256) == ("uv", True, found.stack["lock"])
    assert found.build_us
    lock = Path(found.python).parents[1] / "route-lock.txt"
    assert hashlib.sha256(lock.read_bytes()).hexdigest() == found.lock_sha256
    assert "routedemo==1.0" in lock.read_text()
    again = interpreter(work, envs)
    assert again.built is False
    assert same(again) == same(found) == known(work, envs)
    assert same(interpreter(workload(dependencies=("routedemo==1.0",)), envs)) == same(found)
    assert Path(found.python).parents[1].stat().st_mtime_ns == made
    wheel(index, "routedemo", "2.0")
    newer = interpreter(work, envs)
    assert newer.stack["lock"] != found.stack["lock"]
    assert sorted(p.name for p in envs.iterdir()) == sorted(
        ["asked", found.stack["lock"], newer.stack["lock"]]
    )


def test_the_work_runs_in_what_was_built(tmp_path: Path, home: Path, index: Path) -> None:
    backend = LocalBackend(LocalSettings(), home)
    source = "import routedemo, sys\nprint(routedemo.version, sys.prefix)\n"
    handle = backend.submit(
        submission(backend, a_script(tmp_path / "w", source, dependencies=("routedemo",)))
    )
    version, prefix = b"".join(backend.logs(handle, follow=True)).decode().split()
    assert version == "1.0"
    assert prefix.startswith(str(backend.root / "envs"))


def test_two_builders_do_not_harm_each_other(tmp_path: Path, index: Path) -> None:
    envs = tmp_path / "envs"
    found: list[Any] = []

    def build() -> None:
        found.append(interpreter(workload(dependencies=("routedemo",)), envs))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert same(found[0]) == same(found[1]) == same(found[2])
    assert [one.built for one in found].count(True) == 1
    assert sorted(p.name for p in envs.iterdir()) == sorted(["asked", found[0].stack["lock"]])


def test_what_cannot_be_resolved_is_one_line(tmp_path: Path, index: Path) -> None:
    with pytest.raises(PreflightFailed) as caught:
        interpreter(workload(dependencies=("routedemo>=7",)), tmp_path / "envs")
    assert "routedemo" in caught.value.what
    assert "\n" not in caught.value.what
    assert caught.value.mend
    with pytest.raises(PreflightFailed, match="cannot be resolved"):
        interpreter(workload(dependencies=("!!",)), tmp_path / "envs")
    assert not list((tmp_path / "envs").glob("*")) or known(workload(dependencies=("!!",)), tmp_path) is None


def test_pip_settings_are_handed_on(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://u:p@one/simple\nextra-index-url =\n  https://two/simple\n  file:///three\n"
        "[install]\nfind-links = /four\n  /five\n"
    )
    found = pip_settings()
    assert found["UV_DEFAULT_INDEX"] == "https://u:p@one/simple"
    assert found["UV_INDEX"] == "https://two/simple file:///three"
    assert found["UV_FIND_LINKS"] == "/four,/five"
    monkeypatch.setenv("PIP_INDEX_URL", "https://six/simple")
    assert pip_settings()["UV_DEFAULT_INDEX"] == "https://six/simple"
    (tmp_path / "pip.conf").write_text("rubbish")
    assert pip_settings()["UV_DEFAULT_INDEX"] == "https://six/simple"


def test_no_password_of_an_index_is_shown(tmp_path: Path, index: Path) -> None:
    bad = workload(dependencies=("routedemo",), package_index="https://user:canary7@127.0.0.1:9/simple")
    index.joinpath("routedemo-1.0-py3-none-any.whl").unlink()
    with pytest.raises(PreflightFailed) as caught:
        interpreter(bad, tmp_path / "envs")
    assert "canary7" not in str(caught.value)


def test_a_run_tells_of_its_environment_and_keeps_its_lock(tmp_path: Path, home: Path, index: Path) -> None:
    backend = LocalBackend(LocalSettings(), home)
    work = a_script(tmp_path / "w", "import routedemo\n", dependencies=("routedemo",))
    told = []
    for n in range(2):
        handle = backend.submit(submission(backend, work))
        b"".join(backend.logs(handle, follow=True))
        backend.fetch(handle, tmp_path / str(n))
        told.append(json.loads((tmp_path / str(n) / "measured.json").read_bytes())["env"])
    assert [env["source"]["v"] for env in told] == ["built", "reused"]
    lock = (tmp_path / "0" / "route-lock.txt").read_bytes()
    assert b"routedemo==1.0" in lock
    assert {env["lock_sha256"]["v"] for env in told} == {hashlib.sha256(lock).hexdigest()}
    assert told[0]["stack"]["v"] == told[1]["stack"]["v"]


def test_what_a_cut_off_builder_left_is_never_used(tmp_path: Path, index: Path) -> None:
    envs = tmp_path / "envs"
    work = workload(dependencies=("routedemo",))
    found = interpreter(work, envs)
    whole = Path(found.python).parents[1]
    left = whole.parent / f".{whole.name[:16]}.1.abcd"
    whole.rename(left)
    assert known(work, envs) is None
    again = interpreter(work, envs)
    assert again.built
    assert same(again) == same(found)
    os.utime(left, (1, 1))
    shutil.rmtree(whole)
    interpreter(work, envs)
    assert not left.exists(), "what is a day old is swept"
