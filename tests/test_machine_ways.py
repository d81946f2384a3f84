"""Proves that the way to a machine is given up on in time where nothing comes back, and that what the user's
own ssh knows is read whatever else stands in its files."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ssh_machines import entry_of, pin_all
from sshd import Sshd, keygen

from compute_router.errors import Unavailable
from compute_router.machines import MachineEntry, dialing
from compute_router.machines.dialing import dial
from compute_router.machines.hops import Hop
from compute_router.machines.pins import told


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
