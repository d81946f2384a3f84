"""Whatever breaks between a client and a machine behind SSH: nothing is lost, nothing runs twice, and what
is said of a run is true, or says since when it cannot be known.

Over real OpenSSH servers. Links fall silent by real packet filters where root allows namespaces, else by a
relay. ROUTE_PARTITION sets for how many seconds a network is cut (8 here; minutes by hand).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from netns import Network
from peers import On, ended, submission, workload
from relay import Relay
from ssh_machines import entry_of, pin_all
from sshd import Sshd

from compute_router.backend import State, Status
from compute_router.errors import RouteError, Unavailable
from compute_router.machines import MachineEntry
from compute_router.machines.reaching import reach
from compute_router.records import key_run_id
from compute_router.workload import Entry

PARTITION = float(os.environ.get("ROUTE_PARTITION", "8"))
KILLS = int(os.environ.get("ROUTE_KILLS", "60"))
NOTICED = 20.0
"""Seconds within which a dead link must be noticed: waited for, not asserted of a duration."""

SLOW = "import os, sys, time\nopen(sys.argv[1], 'a').write('x')\nprint('begun', flush=True)\n"
SLOW += "time.sleep(float(sys.argv[2]))\nprint('done', flush=True)\nsys.exit(7)\n"


@pytest.fixture
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))
    return f"SetEnv ROUTE_LEASE_DIR={tmp_path / 'leases'}"


@pytest.fixture
def server(tmp_path: Path, leases: str) -> Iterator[Sshd]:
    made = Sshd(tmp_path / "sshd", extra=leases).start()
    yield made
    made.kill()


Made = Callable[..., On]


@pytest.fixture
def on(tmp_path: Path, home: Path) -> Iterator[Made]:
    """A backend on the machine of an entry; each call is another client with nothing kept."""
    clients: list[On] = []

    def make(entry: MachineEntry) -> On:
        client = On(home, reach("h1", entry))
        clients.append(client)
        return client

    yield make
    for client in clients:
        for machine in client.given:
            machine.close()


def slow(folder: Path, witness: Path, seconds: float) -> Any:
    entry = Entry(root=str(folder), script="work.py", args=(str(witness), str(seconds)))
    return workload(folder, SLOW, entry=entry)


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

    def cut_at(folder: Path, least: int) -> None:
        """Lose the network once that many bytes have arrived below `folder`, for a while."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if sum(p.stat().st_size for p in _files(folder)) >= least:
                break
            time.sleep(0.002)
        drop()
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


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from (p for p in folder.rglob("*") if p.is_file())
    except OSError:
        return


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


# The client

CLIENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from compute_router.machines import MachineEntry
from compute_router.machines.reaching import reach
from compute_router.records import key_run_id
from compute_router.workload import Entry
from peers import On, submission, workload
home, folder, witness, key, address, identity, root = sys.argv[2:9]
entry = MachineEntry(address=address, identity=identity, root=root)
backend = On(Path(home), reach("h1", entry))
work = workload(Path(folder), Path(folder, "work.py").read_text(),
                entry=Entry(root=folder, script="work.py", args=(witness,)))
submitted = submission(backend, work, key=key, run_id=key_run_id(key))
print("ready", flush=True)
sys.stdin.readline()
backend.submit(submitted)
print("submitted", flush=True)
"""


def test_a_client_killed_at_any_moment_leaves_one_execution(
    tmp_path: Path, folder: Path, home: Path, server: Sshd, on: Made, seed: random.Random
) -> None:
    folder.mkdir(exist_ok=True)
    work = "import sys, time\nopen(sys.argv[1], 'a').write('x')\ntime.sleep(0.05)\nsys.exit(7)\n"
    (folder / "work.py").write_text(work)
    entry = entry_of(server, tmp_path / "root")
    pin_all("h1", entry)
    warm = on(entry)
    began = time.monotonic()
    fresh = submission(warm, workload(folder, work, entry=_witnessed(folder, tmp_path / "warm")))
    ended(warm, warm.submit(fresh))
    whole = time.monotonic() - began
    told = {"nothing": 0, "found": 0, "printed": 0}
    for number in range(max(1, KILLS // 4)):
        witness, key = tmp_path / f"w{number}", f"point {number}"
        words = [sys.executable, "-c", CLIENT, str(Path(__file__).parent), str(home), str(folder)]
        words += [str(witness), key, entry.address, str(entry.identity), entry.root]
        client = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        client.stdin.write("\n")
        client.stdin.flush()
        time.sleep(seed.uniform(0, whole))
        client.kill()
        printed = "submitted" in client.stdout.read()
        client.wait()
        again = on(entry)
        there = again.find(key)
        told["printed" if printed else "found" if there else "nothing"] += 1
        assert there is not None or not printed, "what was said to be submitted is there"
        work_again = workload(folder, work, entry=_witnessed(folder, witness))
        handle = again.submit(submission(again, work_again, key=key, run_id=key_run_id(key)))
        status = ended(again, handle)
        assert (status.state, status.exit_code, status.attempt) == (State.FAILED, 7, 1)
        assert witness.read_text() == "x"
    print(told)


def _witnessed(folder: Path, witness: Path) -> Entry:
    return Entry(root=str(folder), script="work.py", args=(str(witness),))


# The machine


def fill(path: Path) -> None:
    """Write to a file until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 65536)


@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a small disk")
def test_a_disk_that_is_full_says_so_and_goes_on_once_there_is_room(
    tmp_path: Path, folder: Path, server: Sshd, on: Made
) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)], check=True)
    try:
        entry = entry_of(server, root / "root")
        pin_all("h1", entry)
        client = on(entry)
        submitted = submission(client, slow(folder, tmp_path / "w", 0), key="k", run_id=key_run_id("k"))
        client._running.sessions(client.given[0]).ask("list")
        filler = root / "filler"
        fill(filler)
        with pytest.raises(RouteError) as raised:
            client.submit(submitted)
        assert "space" in str(raised.value).lower() or "full" in str(raised.value).lower()
        assert on(entry).find("k") is None
        filler.unlink()
        handle = on(entry).submit(submitted)
        assert ended(on(entry), handle).exit_code == 7
        assert (tmp_path / "w").read_text() == "x"
    finally:
        subprocess.run(["umount", "-l", str(root)], check=False)


def test_ten_gigabytes_of_log_stay_within_their_cap_there_and_flat_here(
    tmp_path: Path, folder: Path, server: Sshd, on: Made
) -> None:
    """As many as ROUTE_LOG_MB says (300 here)."""
    import psutil

    megabytes = int(os.environ.get("ROUTE_LOG_MB", "300"))
    source = (
        f"import os\nblock = (b'y' * 99 + b'\\n') * 10486\nfor _ in range({megabytes}): os.write(1, block)\n"
    )
    entry = entry_of(server, tmp_path / "root")
    pin_all("h1", entry)
    client = on(entry)
    me = psutil.Process()
    handle = client.submit(submission(client, workload(folder, source)))
    before, most, length = me.memory_info().rss, 0, 0
    for item in client.attached(handle):
        if isinstance(item, bytes):
            length += len(item)
            most = max(most, me.memory_info().rss - before)
    status = client.status(handle)
    assert status.state is State.SUCCEEDED
    attempt = next((tmp_path / "root" / "runs").glob("*/attempts/1"))
    used = (attempt / "log").stat().st_blocks * 512
    assert used < (256 << 20) * 1.1
    assert length <= megabytes * 1048600
    assert most < 64 << 20, f"{most >> 20} MiB more while {length >> 20} MiB streamed by"


def test_of_forty_clients_that_want_one_thing_one_has_it_at_a_time(
    tmp_path: Path, folder: Path, server: Sshd, on: Made
) -> None:
    """The thing is the lease `machine` here, as a GPU's is; each client has a connection of its own."""
    from compute_router.backends.local import LocalBackend, LocalSettings

    entry = entry_of(server, tmp_path / "root")
    pin_all("h1", entry)
    work = (
        "import os, sys, time\n"
        "fd = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)\n"
        "time.sleep(0.05)\nos.unlink(sys.argv[1])\n"
    )
    thing = Entry(root=str(folder), script="work.py", args=(str(tmp_path / "thing"),))
    told: list[Any] = []

    class Exclusive(On):
        def __init__(self, *given: Any) -> None:
            LocalBackend.__init__(self, LocalSettings(exclusive=True), tmp_path / "home")
            self.given = given

    warm = on(entry)
    made = workload(folder, work, entry=thing)
    template = submission(warm, made)
    ended(warm, warm.submit(template))

    def one(number: int) -> None:
        client = Exclusive(reach("h1", entry))
        key = f"client {number}"
        mine = submission(warm, made, key=key, run_id=key_run_id(key), wait_us=None)
        try:
            handle = client.submit(mine)
            told.append(ended(client, handle, within=120).state)
        except BaseException as e:
            told.append(e)
        finally:
            client.given[0].close()

    threads = [threading.Thread(target=one, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert told == [State.SUCCEEDED] * 40
