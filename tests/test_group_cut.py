"""One run over two machines with a real network between them, which is cut.

Two network namespaces with a real sshd each. Shown: four torch ranks meet over it; a cut that is mended
in time costs nothing; one that is not ends both sides by themselves, though no client sees either.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import element
from namespaces import Network
from pair import TORCH, swept, work
from reserved import Fleet
from sshd import need_sshd

from compute_router.backend import Handle, Offer, State, Status, Submission
from compute_router.backends.ssh import SSHBackend
from compute_router.records import new_run_id
from compute_router.snapshot import take
from compute_router.workload import Workload

NAMES = ("h1", "h2")


@pytest.fixture
def network() -> Iterator[Network]:
    need_sshd()
    made = Network(2)
    yield made
    made.close()


@pytest.fixture
def fleet(network: Network, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "fleet")
    for name, space, address in zip(NAMES, network.names, network.addresses, strict=True):
        boards = [element("H200-SXM", number) for number in (0, 1)]
        made.add(name, *boards, bind=address, netns=space, group="rack", fabric="roce", interface="eth0")
    yield made
    made.close()
    swept(entry.root for entry in made.entries.values())


def submit(backend: SSHBackend, workload: Workload) -> Handle:
    [offer] = backend.offers(workload)
    assert isinstance(offer, Offer), offer
    run_id = new_run_id()
    return backend.submit(
        Submission(
            id=run_id,
            key=run_id,
            attempt=1,
            workload=workload,
            offer=offer,
            snapshot=take(Path(workload.entry.root)),
        )
    )


def attempt(fleet: Fleet, name: str, handle: Handle) -> Path:
    return Path(fleet.entries[name].root) / "runs" / handle.run_id / "attempts" / "1"


def until(what: str, seconds: float, true: object) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.2)


def ended(backend: SSHBackend, handle: Handle, seconds: float = 90) -> Status:
    end = time.monotonic() + seconds
    while not (status := backend.status(handle)).state.final:
        assert time.monotonic() < end, status
        time.sleep(0.2)
    return status


def test_ranks_of_two_computers_meet_over_the_network_between_them(
    fleet: Fleet, network: Network, home: Path, folder: Path
) -> None:
    pytest.importorskip("torch")
    backend = fleet.backend(home)
    workload = work(folder, TORCH, "well", "5", torch=True, accelerator="H200:2", python=sys.executable)
    handle = submit(backend, workload)
    status = ended(backend, handle)
    assert status.state is State.SUCCEEDED, (status, (attempt(fleet, "h1", handle) / "log").read_text())
    go = (attempt(fleet, "h2", handle) / "exec.json").read_text()
    assert f"--master-addr={network.addresses[0]}" in go


def test_a_cut_that_is_mended_in_time_ends_nothing(
    fleet: Fleet, network: Network, home: Path, folder: Path
) -> None:
    backend = fleet.backend(home)
    handle = submit(backend, work(folder, "import time; time.sleep(32); print('whole')"))
    link = attempt(fleet, "h1", handle) / "link.json"
    until("h2 has joined", 20, lambda: link.exists() and '"joined":[1]' in link.read_text())
    network.cut(1)
    time.sleep(18)
    network.heal(1)
    assert ended(fleet.backend(home), handle).state is State.SUCCEEDED
    assert [(attempt(fleet, name, handle) / "log").read_text() for name in NAMES] == ["whole\n"] * 2


def test_a_cut_that_stays_ends_both_sides_and_is_told_once_it_is_mended(
    fleet: Fleet, network: Network, home: Path, folder: Path
) -> None:
    backend = fleet.backend(home)
    handle = submit(backend, work(folder, "import time; time.sleep(500)"))
    link = attempt(fleet, "h1", handle) / "link.json"
    until("h2 has joined", 20, lambda: link.exists() and '"joined":[1]' in link.read_text())
    network.cut(1)
    for name in NAMES:
        until(f"{name} has ended", 60, (attempt(fleet, name, handle) / "exit.json").exists)
    other = fleet.backend(home)
    status = other.status(handle)
    assert status.state is State.UNKNOWN
    assert "h2 cannot be seen" in status.detail
    network.heal(1)
    status = ended(other, handle)
    assert (status.state, status.reason) == (State.FAILED, "group")
    assert "it was not heard of for 45 s" in status.detail
