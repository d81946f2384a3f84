"""Dependencies are built on the machine from a lock made for it: once, whole or not at all, then offline.

The wheels are made by the test and lie in a folder of the client, which the machine is not told of.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import Cut, CutMachine
from ssh_machines import entry_of, pin_all
from sshd import Sshd
from test_environment import index as index
from test_environment import wheel, workload

from compute_router.errors import PreflightFailed, Unavailable
from compute_router.machines import environments
from compute_router.machines.contract import Interpreter, Machine
from compute_router.machines.environments import built_on
from compute_router.machines.local import LocalMachine
from compute_router.machines.reaching import reach
from compute_router.machines.session import Sessions
from compute_router.supervisor import environments as building
from compute_router.supervisor import wire


def sessions_of(tmp_path: Path) -> Sessions:
    return Sessions(LocalMachine(tmp_path / "there", name="h1"))


def says(found: Interpreter, code: str) -> str:
    return subprocess.run(
        [found.python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


WANTS = workload(dependencies=("routedemo",))


def test_it_is_built_there_once_and_used_again(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = sessions_of(tmp_path)
    first = built_on(sessions, WANTS, tmp_path / "home")
    assert first.python.startswith(str(tmp_path / "there" / "envs"))
    assert (first.source, first.built) == ("uv", True)
    assert first.build_us
    assert first.lock_sha256
    assert says(first, "import routedemo; print(routedemo.version)") == "1.0"
    lock = (Path(first.python).parents[1] / "route-lock.txt").read_text()
    assert "routedemo==1.0" in lock
    again = built_on(sessions_of(tmp_path), WANTS, tmp_path / "home")
    assert (again.python, again.lock_sha256, again.built) == (first.python, first.lock_sha256, False)
    assert not [path for path in (tmp_path / "there" / "envs").iterdir() if path.name.startswith(".")]
    wheel(index, "routedemo", "2.0")
    newer = built_on(sessions, WANTS, tmp_path / "home")
    assert newer.lock_sha256 != first.lock_sha256
    assert says(newer, "import routedemo; print(routedemo.version)") == "2.0"
    assert says(first, "import routedemo; print(routedemo.version)") == "1.0"


def test_the_same_packages_are_the_same_lock_here_and_there(tmp_path: Path, index: Path) -> None:
    from compute_router.environment import interpreter

    here = interpreter(WANTS, tmp_path / "envs")
    there = built_on(sessions_of(tmp_path), WANTS, tmp_path / "home")
    assert here.lock_sha256 == there.lock_sha256
    assert here.stack == there.stack


def test_what_is_nowhere_is_told_by_its_name(tmp_path: Path, index: Path) -> None:
    with pytest.raises(PreflightFailed, match="nosuchthing"):
        built_on(sessions_of(tmp_path), workload(dependencies=("nosuchthing",)), tmp_path / "home")


def test_a_python_that_is_not_there_is_told_with_a_mend(tmp_path: Path, index: Path) -> None:
    wants = workload(dependencies=("routedemo",), requires_python=">=3.99")
    with pytest.raises(
        PreflightFailed, match=r"h1 has Python 3\.\d+\.\d+, the workload needs >=3\.99"
    ) as caught:
        built_on(sessions_of(tmp_path), wants, tmp_path / "home")
    assert 'python = "/path' in caught.value.mend


def test_a_package_that_cannot_be_installed_there_leaves_nothing(tmp_path: Path, index: Path) -> None:
    path = index / "routedemo-1.0-py3-none-any.whl"
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            # It resolves, and then is of a sort that nobody can install.
            archive.writestr(name, data.replace(b"Wheel-Version: 1.0", b"Wheel-Version: 9.0"))
    with pytest.raises(PreflightFailed, match="the dependencies cannot be installed there"):
        built_on(sessions_of(tmp_path), WANTS, tmp_path / "home")
    assert [*(tmp_path / "there" / "envs").iterdir()] == []
    path.write_bytes(good)
    assert built_on(sessions_of(tmp_path), WANTS, tmp_path / "home").built is True


def test_a_password_of_an_index_stands_in_no_argument_and_no_message(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_INDEX", "https://someone:pass-7391@127.0.0.1:9/simple")
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for entry in os.listdir("/proc"):
                if entry.isdigit():
                    try:
                        seen.add(Path("/proc", entry, "cmdline").read_bytes())
                    except OSError:
                        continue
            time.sleep(0.003)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        built_on(sessions_of(tmp_path), WANTS, tmp_path / "home")
        wants = workload(dependencies=("routedemo", "nosuchthing"))
        monkeypatch.delenv("UV_OFFLINE")
        with pytest.raises(PreflightFailed) as caught:
            built_on(sessions_of(tmp_path), wants, tmp_path / "home")
    finally:
        over.set()
        looking.join()
    assert "pass-7391" not in str(caught.value)
    assert any(b"pip\0install" in line for line in seen), "nothing was seen"
    assert not any(b"pass-7391" in line for line in seen)
    for path in (tmp_path / "there").rglob("*"):
        if path.is_file():
            assert b"pass-7391" not in path.read_bytes(), path


@pytest.mark.parametrize("after", [2_000, 700_000, 20_000_000])
def test_a_cut_while_it_is_sent_ends_in_a_whole_one(tmp_path: Path, index: Path, after: int) -> None:
    Sessions(LocalMachine(tmp_path / "there")).ask("probe", keys=[])
    machine = CutMachine(tmp_path / "there", Cut(up=after, streams=1))
    found = built_on(Sessions(machine), WANTS, tmp_path / "home")
    assert says(found, "import routedemo; print(routedemo.version)") == "1.0"
    assert machine.cut.opened >= 2


def test_a_builder_that_is_killed_leaves_nothing_that_is_used(tmp_path: Path, index: Path) -> None:
    """SIGKILL of the server at moments of a build; whoever comes next has a whole environment."""
    for number in range(6):
        there = tmp_path / f"there{number}"
        sessions = Sessions(LocalMachine(there, name="h1"))
        with sessions.use() as session:
            pid = session._stream._process.pid  # type: ignore[attr-defined]
        told: list[object] = []

        def go(sessions: Sessions = sessions, told: list[object] = told) -> None:
            try:
                told.append(built_on(sessions, WANTS, tmp_path / "home"))
            except Exception as e:
                told.append(e)

        building = threading.Thread(target=go)
        building.start()
        end = time.monotonic() + 60
        while time.monotonic() < end and building.is_alive() and not [*there.glob("envs/.*")]:
            time.sleep(0.001)
        time.sleep(0.02 * number)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        building.join()
        found = built_on(Sessions(LocalMachine(there, name="h1")), WANTS, tmp_path / "home")
        assert says(found, "import routedemo; print(routedemo.version)") == "1.0", told
        for path in (there / "envs").iterdir():
            if not path.name.startswith("."):
                assert (path / "route-lock.txt").exists()


def test_several_at_once_build_one(tmp_path: Path, index: Path) -> None:
    found: list[Interpreter] = []
    sessions_of(tmp_path).ask("probe", keys=[])
    threads = [
        threading.Thread(
            target=lambda: found.append(built_on(sessions_of(tmp_path), WANTS, tmp_path / "home"))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.python for one in found}) == 1
    assert sorted(bool(one.built) for one in found) == [False, False, True]


# Over ssh


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    made = Sshd(tmp_path / "sshd").start()
    yield made
    made.kill()


def test_over_a_real_server(tmp_path: Path, index: Path, server: Sshd) -> None:
    entry = entry_of(server, tmp_path / "there")
    pin_all("h1", entry)
    machine: Machine = reach("h1", entry)
    try:
        sessions = Sessions(machine)
        first = built_on(sessions, WANTS, tmp_path / "home")
        assert first.built is True
        assert says(first, "import routedemo; print(routedemo.version)") == "1.0"
        assert built_on(sessions, WANTS, tmp_path / "home").built is False
        sessions.close()
    finally:
        machine.close()


def test_a_machine_that_is_away_is_unavailable(tmp_path: Path, index: Path) -> None:
    machine = CutMachine(tmp_path / "there", Cut(opens=0))
    with pytest.raises(Unavailable):
        built_on(Sessions(machine), WANTS, tmp_path / "home")


def test_what_means_something_here_alone_is_not_sent() -> None:
    given = {
        "UV_DEFAULT_INDEX": "https://i",
        "UV_INDEX_I_PASSWORD": "p",
        "SSL_CERT_FILE": "/c",
        "PATH": "/bin",
    }
    here = {
        "UV_CONSTRAINT": "c",
        "UV_SYSTEM_PYTHON": "1",
        "UV_PUBLISH_TOKEN": "t",
        "UV_WORKING_DIR": "/x",
    }
    sent = environments._sent({**given, **here}, "a==1\n", {})
    assert sent == {name: value for name, value in given.items() if name != "PATH"}


def test_nothing_that_uv_started_outlives_a_client_that_went(tmp_path: Path) -> None:
    (mine, theirs), (hears, tells) = os.pipe(), os.pipe()
    os.close(theirs)
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(wire.Gone):
        building._run(wire.Wire(mine, tells), ["sh", "-c", script], dict(os.environ), "it", "", ())
    pid = (tmp_path / "pid").read_text().strip()
    until = time.monotonic() + 30
    while "sleep" in _command(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert "sleep" not in _command(pid)
    for fd in (mine, hears, tells):
        os.close(fd)


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_the_supervisor_tells_what_it_is(tmp_path: Path) -> None:
    about = sessions_of(tmp_path).ask("environment").head
    assert about["system"] == os.uname().sysname
    assert about["arch"] == os.uname().machine
    assert json.dumps(about["pythons"])
    assert about["pythons"][0][1].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
