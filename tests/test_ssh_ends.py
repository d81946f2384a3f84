"""Whoever dies or fills up beside a run behind SSH: a killed client leaves one execution, a full disk is
named, a flood of log stays within its cap, and of forty that want one thing one has it at a time.

ROUTE_KILLS sets how many clients are killed (a quarter of it here), ROUTE_LOG_MB how much is logged.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from peers import On, ended, submission, workload
from ssh_machines import Made, entry_of, leases, on, pin_all, server, slow
from sshd import Sshd

from compute_router.backend import State
from compute_router.errors import RouteError, SubmitUnknown, Unavailable
from compute_router.machines.reaching import reach
from compute_router.records import key_run_id
from compute_router.workload import Entry

__all__ = ["leases", "on", "server"]

KILLS = int(os.environ.get("ROUTE_KILLS", "60"))

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
        until = time.monotonic() + 150
        try:
            while True:
                try:
                    handle = client.submit(mine)
                    break
                except (Unavailable, SubmitUnknown):
                    # Forty at two processors may well be too many at once: the same key, again.
                    if time.monotonic() > until:
                        raise
                    time.sleep(random.uniform(1, 6))
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
