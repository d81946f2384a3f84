"""Leases by GPU UUID hold between clients and between users with their own roots, in the order of asking."""

from __future__ import annotations

import functools
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from boards import element, uuid
from peers import workload
from reserved import Fleet, ended, offered, submission

from compute_router.backend import Backend, Handle, State
from compute_router.backends.ssh import SSHBackend, SSHSettings
from compute_router.errors import SubmitUnknown, Unavailable
from compute_router.machines.contract import Machine
from compute_router.machines.entry import MachineEntry
from compute_router.machines.local import LocalMachine, LocalStream, open_command
from compute_router.workload import Accelerator, Launcher, Needs, Workload

HOLDS = "import os, time\nprint(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\ntime.sleep(600)\n"
TELLS = "import os\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\n"
NOBODY = 65534


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """In a folder that other users may enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="route-leases-"))
    folder.chmod(0o755)
    made = Fleet(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


def gpus(folder: Path, many: int, source: str = HOLDS) -> Workload:
    needs = Needs(accelerator=Accelerator.parse(f"H200:{many}"))
    return workload(folder, source, needs=needs, launcher=Launcher.PYTHON)


def holding(backend: Backend, work: Workload) -> tuple[Handle, set[str]]:
    """A run of `work`, and the GPUs it was given, once it runs."""
    handle = backend.submit(submission(backend, work))
    return handle, set(next(iter(backend.logs(handle, follow=True))).decode().strip().split(","))


def queued(backend: Backend, handle: Handle) -> int | None:
    """The place in the queue, once there is one."""
    return backend.status(handle).position


def until(happened: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 30
    while not (answer := happened()):
        assert time.monotonic() < end, f"not {what}"
        time.sleep(0.02)
    return answer


def test_two_clients_share_a_machine_by_uuid(fleet: Fleet, tmp_path: Path, folder: Path) -> None:
    fleet.add("h1", *(element("H200-SXM", n) for n in range(8)))
    one, other = fleet.backend(tmp_path / "one"), fleet.backend(tmp_path / "other")
    first, mine = holding(one, gpus(folder, 2))
    second, theirs = holding(other, gpus(folder, 6))
    assert (len(mine), len(theirs)) == (2, 6)
    assert mine | theirs == {uuid(n) for n in range(8)}
    [offer] = offered(one, gpus(folder, 1)).values()
    assert offer.busy
    with pytest.raises(Unavailable, match=f"{first.run_id}|{second.run_id}"):
        one.submit(submission(one, gpus(folder, 1)))
    one.cancel(first)
    status, log = ended(other, other.submit(submission(other, gpus(folder, 2, TELLS), wait_us=None)))
    assert status.state is State.SUCCEEDED
    assert set(log.strip().split(",")) == mine
    other.cancel(second)


def test_those_who_wait_are_told_their_place(fleet: Fleet, tmp_path: Path, folder: Path) -> None:
    fleet.add("h1", element("H200-SXM", 0))
    backend = fleet.backend(tmp_path / "one")
    first, _ = holding(backend, gpus(folder, 1))
    waiting = []
    for number in range(2):
        client = fleet.backend(tmp_path / f"client-{number}")
        handle = client.submit(submission(client, gpus(folder, 1, TELLS), wait_us=None))
        waiting.append((client, handle))
        until(functools.partial(queued, client, handle), "in the queue")
    places = [client.status(handle) for client, handle in waiting]
    assert [(s.state, s.position) for s in places] == [(State.WAITING, 1), (State.WAITING, 2)]
    assert first.run_id in places[0].detail
    backend.cancel(first)
    ends = [ended(client, handle)[0] for client, handle in waiting]
    assert [status.state for status in ends] == [State.SUCCEEDED, State.SUCCEEDED]
    assert ends[0].started_us is not None
    assert ends[1].started_us is not None
    assert ends[0].started_us < ends[1].started_us, "served in the order of asking"


@pytest.mark.slow
def test_of_many_clients_one_has_the_gpu(fleet: Fleet, tmp_path: Path, folder: Path) -> None:
    """Forty at once, eight connections of their own; nobody is told that he runs but one."""
    fleet.add("h1", element("H200-SXM", 0))
    clients = [fleet.backend(tmp_path / f"client-{n}") for n in range(8)]
    work = gpus(folder, 1)
    submissions = [(c, submission(c, work)) for c in clients]
    began, refused, failures = [], [], []

    def go(client: SSHBackend, made: Any) -> None:
        for _ in range(5):
            try:
                began.append((client, client.submit(made)))
            except (Unavailable, SubmitUnknown) as e:
                refused.append(e)
            except Exception as e:
                failures.append(e)

    threads = [threading.Thread(target=go, args=pair) for pair in submissions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({handle.run_id for _, handle in began}) == 1
    assert len(refused) + len(began) == 40
    client, handle = began[0]
    assert client.status(handle).state is State.RUNNING
    client.cancel(handle)


class As(LocalMachine):
    """This computer as another user reaches it: everything of his runs under his own id."""

    def __init__(self, root: Path, uid: int, environ: dict[str, str]) -> None:
        super().__init__(root, name="h1")
        self.uid, self.environ = uid, environ

    def open(self, argv: Sequence[str], *, deadline: float) -> LocalStream:
        become = [
            "setpriv",
            f"--reuid={self.uid}",
            f"--regid={self.uid}",
            "--clear-groups",
            "/usr/bin/python3",
        ]
        return open_command([*become, *argv[1:]], environ=self.environ)


class OfAnother(SSHBackend):
    """The backend as another user of the machine has it."""

    machine_of: Machine

    def reach(self, name: str, entry: MachineEntry) -> Machine:
        return self.machine_of


@pytest.mark.slow
def test_two_users_with_roots_of_their_own(fleet: Fleet, tmp_path: Path, folder: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can act as another user")
    if shutil.which("setpriv") is None or not os.path.exists("/usr/bin/python3"):
        pytest.skip("needs setpriv and a python3 that every user may run")
    entry = fleet.add("h1", *(element("H200-SXM", n) for n in range(4)))
    root = fleet.folder / "his-root"
    root.mkdir()
    os.chown(root, NOBODY, NOBODY)
    other = OfAnother(SSHSettings(machines={"h1": entry}), tmp_path / "other")
    other.machine_of = As(root, NOBODY, {**fleet.given["h1"], "HOME": str(root)})
    one = fleet.backend(tmp_path / "one")
    first, mine = holding(one, gpus(folder, 2))
    second, theirs = holding(other, gpus(folder, 2))
    assert not mine & theirs
    assert stat.S_IMODE(os.stat(fleet.folder / "h1" / "leases").st_mode) == 0o1777
    for backend in (one, other):
        [offer] = offered(backend, gpus(folder, 1)).values()
        assert offer.busy, "each sees what the other holds"
    waits = one.submit(submission(one, gpus(folder, 2, TELLS), wait_us=None))
    assert until(functools.partial(queued, one, waits), "in the queue") == 1
    assert one.status(waits).state is State.WAITING
    other.cancel(second)
    last, log = ended(one, waits)
    assert last.state is State.SUCCEEDED
    assert set(log.strip().split(",")) == theirs, "what the other user gave back"
    one.cancel(first)
