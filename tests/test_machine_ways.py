"""Proves that the way to a machine is given up on in time where nothing comes back, and that what the user's
own ssh knows is read whatever else stands in its files."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import workload
from reserved import Fleet, offered
from ssh_machines import entry_of, pin_all
from sshd import Sshd, keygen

from compute_router.backends import ssh as backends_ssh
from compute_router.errors import Unavailable
from compute_router.machines import MachineEntry, dialing, openssh
from compute_router.machines.dialing import dial
from compute_router.machines.hops import Hop
from compute_router.machines.memory import Memory
from compute_router.machines.pins import told
from compute_router.machines.reaching import reach


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    made = Sshd(tmp_path / "sshd").start()
    yield made
    made.kill()


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port whose packets are dropped: that of a socket with no room for one more connection."""
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (one, two):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        yield full.getsockname()[1]


def test_where_nothing_comes_back_is_given_up_on_before_the_deadline(
    deaf: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialing, "DEAF", 0.5)
    with pytest.raises(Unavailable, match="nothing comes back from me@"):
        dial("h1", MachineEntry(address=f"me@127.0.0.1:{deaf}"), deadline=600.0)
    # One that was reached before may have lost its network for a moment.
    with pytest.raises(Unavailable, match="did not answer in time"):
        dial("h1", MachineEntry(address=f"me@127.0.0.1:{deaf}"), deadline=1.5, patient=True)


def test_one_that_is_slow_is_not_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "DEAF", 0.3)
    server = Sshd(tmp_path / "sshd").start()
    with socket.socket() as front:
        front.bind(("127.0.0.1", 0))
        front.listen(8)
        threading.Thread(target=_late, args=(front, server.port), daemon=True).start()
        try:
            entry = entry_of(server, tmp_path / "root")
            pin_all("h1", entry)
            slow = f"{server.user}@127.0.0.1:{front.getsockname()[1]}"
            made = dial("h1", MachineEntry(address=slow, identity=entry.identity), deadline=60.0)
            assert made is not None
            made.abandon()
        finally:
            server.kill()


def _late(front: socket.socket, port: int) -> None:
    """Passes bytes on, the first of them after a second."""
    one, _ = front.accept()
    time.sleep(1.0)
    other = socket.create_connection(("127.0.0.1", port))

    def carry(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            return

    threading.Thread(target=carry, args=(one, other), daemon=True).start()
    carry(other, one)


def test_a_resolver_that_is_silent_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def silent(*args: Any, **more: Any) -> Any:
        over.wait(300)
        raise socket.gaierror(socket.EAI_AGAIN, "again")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        with pytest.raises(Unavailable, match="not looked up in time"):
            dial("h1", MachineEntry(address="me@h1"), deadline=0.3)
    finally:
        over.set()


def test_what_ssh_knows_is_found_among_lines_that_are_not_ours_to_read(tmp_path: Path) -> None:
    type_, key = Path(f"{keygen(tmp_path / 'k')}.pub").read_text().split()[:2]
    other = Path(f"{keygen(tmp_path / 'o')}.pub").read_text().split()[1]
    noise = f"@cert-authority *.lab {type_} {other}\n# no\nnoise\nh9 {type_} no!\n|1|x|y {type_} {key}\n"

    def known(*lines: str) -> str:
        file = tmp_path / "known"
        file.write_text(noise + "".join(f"{line} {type_} {key}\n" for line in lines))
        hop = Hop(name="h1", address="h1.lab", port=22, user="me", known=(str(file),))
        return told("m", hop, True, type_, key).known

    assert known() == "new"
    assert known("h1.lab") == known("h0,H1.lab") == known("*.lab") == "known"
    assert known("!h1.lab,*.lab") == known("[h1.lab]:22") == known("h1xlab") == "new"
    file = tmp_path / "known"
    file.write_text(f"h1.lab {type_} {other}\n")
    hop = Hop(name="h1", address="h1.lab", port=22, user="me", known=(str(file),))
    assert told("m", hop, True, type_, key).known == "differs"
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert told("m", hop, True, type_, key).known == "differs", "its name is hashed"


def test_one_that_was_silent_and_is_slow_is_heard_again(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    assert not memory.is_hurried("h1"), "nothing is known of it"
    assert "unreachable since" in memory.silent("h1")
    assert memory.is_hurried("h1")
    file = tmp_path / "machines" / "h1.json"
    seen = json.loads(file.read_text())
    file.write_text(json.dumps({**seen, "waited_us": seen["waited_us"] - 301_000_000}))
    assert not memory.is_hurried("h1"), "it has all its time again"
    assert memory.is_hurried("h1"), "once in five minutes"
    assert json.loads(file.read_text())["silent_us"] == seen["silent_us"]
    memory.answered("h1")
    assert not memory.is_hurried("h1")


def test_a_slow_one_that_was_silent_is_offered(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Fleet(tmp_path / "fleet")
    try:
        made.add("h1", accelerator="cpu")
        home = tmp_path / "home"
        (home / "machines").mkdir(parents=True)
        (home / "machines" / "h1.json").write_text('{"silent_us": 1}')
        # No machine is as quick as this.
        monkeypatch.setattr(backends_ssh, "AGAIN", 0.001)
        assert "h1" in offered(made.backend(home), workload(folder))
    finally:
        made.close()


def test_a_shared_connection_that_hangs_is_let_go_of(
    tmp_path: Path, server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openssh, "CLOSING", 0.3)
    entry = entry_of(server, tmp_path / "root", transport="openssh")
    pin_all("h1", entry)
    machine = reach("h1", entry)
    assert machine.open(("echo", "there"), deadline=20).read(100) == b"there\n"
    shared = openssh._socket("h1", entry)
    told = subprocess.run(
        ["ssh", "-o", f"ControlPath={shared}", "-O", "check", "h1"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"pid=(\d+)", told.stderr + told.stdout)
    assert found, told
    os.kill(int(found[1]), signal.SIGSTOP)
    try:
        machine.close()
    finally:
        os.kill(int(found[1]), signal.SIGKILL)
        Path(shared).unlink(missing_ok=True)
