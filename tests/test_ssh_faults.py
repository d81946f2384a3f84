"""Whatever breaks between a client and a machine behind SSH: nothing is lost, nothing runs twice, and what
is said of a run is true, or says since when it cannot be known.

Over real OpenSSH servers. Links fall silent by real packet filters where root allows namespaces, else by a
relay. ROUTE_PARTITION sets for how many seconds a network is cut (8 here; minutes by hand).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from netns import Network
from peers import On, ended, submission, workload
from relay import Relay
from ssh_machines import Made, entry_of, leases, on, pin_all, server, slow
from sshd import Sshd

from compute_router.backend import State, Status
from compute_router.errors import RouteError, Unavailable
from compute_router.machines import MachineEntry
from compute_router.records import key_run_id

__all__ = ["leases", "on", "server"]

PARTITION = float(os.environ.get("ROUTE_PARTITION", "8"))
KILLS = int(os.environ.get("ROUTE_KILLS", "60"))
NOTICED = 20.0
"""Seconds within which a dead link must be noticed: waited for, not asserted of a duration."""


def watch(client: On, handle: Any, until: Callable[[list[Any]], bool], within: float = 60.0) -> list[Any]:
    """What `attached` tells until it has told what is waited for, or the end."""
    told: list[Any] = []
    failed: list[BaseException] = []

    def listen() -> None:
        try:
            for item in client.attached(handle):
                told.append((time.monotonic(), item))
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    end = time.monotonic() + within
    while thread.is_alive() and not until([item for _, item in told]):
        assert time.monotonic() < end, told[-5:]
        time.sleep(0.05)
    assert not failed, failed
    return told


def states(told: list[Any]) -> list[State]:
    return [item.state for item in told if isinstance(item, Status)]


# The server


def test_a_server_that_is_killed_and_comes_back_costs_no_run(
    tmp_path: Path, folder: Path, server: Sshd, on: Made
) -> None:
    entry = entry_of(server, tmp_path / "root")
    pin_all("h1", entry)
    client = on(entry)
    handle = client.submit(submission(client, slow(folder, tmp_path / "w", 6)))
    seen: list[Any] = []

    def told(items: list[Any]) -> bool:
        seen[:] = items
        return State.UNKNOWN in states(items)

    threading.Timer(1.0, server.kill).start()
    watch(client, handle, told)
    unknown = next(s for s in seen if isinstance(s, Status) and s.state is State.UNKNOWN)
    assert unknown.last is State.RUNNING
    assert unknown.since_us is not None
    server.start()
    status = ended(on(entry), handle)
    assert (status.state, status.exit_code) == (State.FAILED, 7)
    assert (tmp_path / "w").read_text() == "x"
    log = b"".join(on(entry).logs(handle, follow=True))
    assert log == b"begun\ndone\n"


# The network


def cut_off(
    tmp_path: Path, leases: str
) -> Iterator[tuple[MachineEntry, Callable[..., None], Callable[[], None]]]:
    """An entry, what makes its network lose packets, and what heals it."""
    if os.getuid() == 0:
        network = Network(1)
        made = Sshd(
            tmp_path / "sshd", bind=network.addresses[0], netns=network.names[0], extra=leases
        ).start()
        try:
            entry = entry_of(made, tmp_path / "root")
            yield entry, lambda **way: network.drop(0, **way), lambda: network.heal(0)
        finally:
            made.kill()
            network.close()
        return
    made = Sshd(tmp_path / "sshd", extra=leases).start()
    with Relay(made.port) as relay:
        entry = entry_of(made, tmp_path / "root", address=f"{made.user}@127.0.0.1:{relay.port}")
        names = {"into": "up", "out": "down"}
        yield entry, lambda **way: relay.drop(**{names[k]: v for k, v in way.items()}), relay.heal
        relay.heal()
    made.kill()


@pytest.fixture
def network(
    tmp_path: Path, leases: str
) -> Iterator[tuple[MachineEntry, Callable[..., None], Callable[[], None]]]:
    yield from cut_off(tmp_path, leases)


def test_a_cut_network_is_noticed_and_the_truth_is_back_once_it_heals(
    tmp_path: Path, folder: Path, network: Any, on: Made
) -> None:
    entry, drop, heal = network
    pin_all("h1", entry)
    client = on(entry)
    handle = client.submit(submission(client, slow(folder, tmp_path / "w", 200 + PARTITION)))
    began = time.monotonic()
    cut: list[float] = []

    def fall_silent() -> None:
        cut.append(time.monotonic())
        drop()

    threading.Timer(1.0, fall_silent).start()
    told: list[Any] = []

    def collect() -> None:
        for item in client.attached(handle):
            told.append((time.monotonic(), item))

    threading.Thread(target=collect, daemon=True).start()

    def wait(seen: Callable[[], bool], within: float) -> float:
        end = time.monotonic() + within
        while not seen():
            assert time.monotonic() < end, told[-3:]
            time.sleep(0.02)
        return time.monotonic()

    noticed = wait(lambda: State.UNKNOWN in states([i for _, i in told]), NOTICED + 10)
    # Another client, which has never seen it, is told so too, and starts nothing.
    fresh = on(entry)
    assert fresh.status(handle).state is State.UNKNOWN
    with pytest.raises(Unavailable):
        fresh.find(handle.key)
    time.sleep(max(0.0, PARTITION - (time.monotonic() - noticed)))
    count = len(told)
    heal()
    healed = time.monotonic()
    back = wait(lambda: State.RUNNING in states([i for _, i in told[count:]]), 15.0)
    print(f"noticed after {noticed - cut[0]:.1f} s, true again after {back - healed:.1f} s")
    client.cancel(handle)
    assert ended(client, handle).state is State.CANCELLED
    assert State.LOST not in states([i for _, i in told])
    assert (tmp_path / "w").read_text() == "x"
    assert began < healed


@pytest.mark.parametrize("way", [{"into": False}, {"out": False}], ids=["replies lost", "requests lost"])
def test_a_submit_whose_answers_are_lost_is_found_again_and_never_doubled(
    tmp_path: Path, folder: Path, network: Any, on: Made, way: dict[str, bool]
) -> None:
    entry, drop, heal = network
    pin_all("h1", entry)
    first = on(entry)
    submitted = submission(first, slow(folder, tmp_path / "w", 1), key="one", run_id=key_run_id("one"))
    first._running.sessions(first.given[0]).ask("list")  # the connection stands
    drop(**way)
    told: list[BaseException] = []

    def submit() -> None:
        try:
            first.submit(submitted)
        except RouteError as e:
            told.append(e)

    thread = threading.Thread(target=submit, daemon=True)
    thread.start()
    thread.join(5)
    assert thread.is_alive(), "an answer that never comes is no answer"
    heal()
    thread.join(60)
    assert not thread.is_alive()
    again = on(entry)
    handle = again.submit(submitted)
    status = ended(again, handle)
    assert (status.state, status.exit_code, status.attempt) == (State.FAILED, 7, 1)
    assert (tmp_path / "w").read_text() == "x"


def test_a_cut_in_the_middle_of_an_upload_and_of_a_collect_costs_no_byte(
    tmp_path: Path, folder: Path, network: Any, on: Made
) -> None:
    entry, drop, heal = network
    pin_all("h1", entry)
    data = os.urandom(24 << 20)
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").write_bytes(data)
    source = (
        "import os, shutil\nshutil.copy('weights.bin', os.path.join(os.environ['ROUTE_OUTPUTS'], 'w.bin'))\n"
    )
    client = on(entry)
    submitted = submission(client, workload(folder, source), key="up", run_id=key_run_id("up"))

    cut: list[int] = []

    def cut_at(folder: Path, least: int) -> None:
        """Lose the network once that many bytes have arrived below `folder`, for a while."""
        end, there = time.monotonic() + 30, 0
        while time.monotonic() < end and there < least:
            there = _bytes(folder)
            time.sleep(0.002)
        drop()
        cut.append(there)
        time.sleep(2)
        heal()

    cutting = threading.Thread(target=cut_at, args=(tmp_path / "root", 4 << 20))
    cutting.start()
    try:
        handle = client.submit(submitted)
    except RouteError:
        handle = on(entry).submit(submitted)
    cutting.join()
    assert ended(on(entry), handle).state is State.SUCCEEDED
    into = tmp_path / "back"
    cutting = threading.Thread(target=cut_at, args=(into, 4 << 20))
    cutting.start()
    fetcher = on(entry)
    try:
        fetcher.fetch(handle, into)
    except Unavailable:
        on(entry).fetch(handle, into)
    cutting.join()
    found = (into / "outputs" / "w.bin").read_bytes()
    assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()
    assert all(4 << 20 <= there < len(data) for there in cut), f"it was to be cut in the middle: {cut}"


def _bytes(folder: Path) -> int:
    """What the files below a folder hold now; they come and go meanwhile."""
    found = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            found += path.stat().st_size if path.is_file() else 0
    return found


def test_a_far_machine_needs_no_more_than_its_distance(
    tmp_path: Path, folder: Path, server: Sshd, on: Made
) -> None:
    with Relay(server.port, delay=0.010) as relay:
        entry = entry_of(server, tmp_path / "root", address=f"{server.user}@127.0.0.1:{relay.port}")
        pin_all("h1", entry)
        client = on(entry)
        handle = client.submit(submission(client, slow(folder, tmp_path / "w", 0)))
        assert ended(client, handle).exit_code == 7
        paths = client.fetch(handle, tmp_path / "back")
        assert (tmp_path / "back" / "log") in paths
        assert client.noticed(handle)["rtt_us"] >= 20_000
