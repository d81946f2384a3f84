"""A client killed at any moment of a start on two machines, then the same key: one execution on each.

Each point is a client process of its own that is sent SIGKILL after a seeded random time, then this
process with the same key. ROUTE_KILLS sets how many points there are (a tenth of it).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from pair import Own, Pair, ended, submission, swept, work

from compute_router.backend import State
from compute_router.records import key_run_id

KILLS = max(1, int(os.environ.get("ROUTE_KILLS", "60")) // 10)
WORK = """
import os, sys, time
with open(sys.argv[1] + os.environ["ROUTE_NODE_RANK"], "a") as file:
    file.write("x")
time.sleep(0.3)
"""
CLIENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from compute_router.machines import grouped
from compute_router.records import key_run_id
from pair import Own, Pair, submission, work
home, folder, witness, key = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5]
pair = Pair(home, Own(home / "h1", name="h1"), Own(home / "h2", name="h2"))
workload = work(folder, (folder / "work.py").read_text(), witness)
submitted = submission(pair, workload, key=key, run_id=key_run_id(key))
print("ready", flush=True)
sys.stdin.readline()
pair.submit(submitted)
print("submitted", flush=True)
"""


def test_a_killed_client_leaves_one_execution_on_each_machine(
    tmp_path: Path, home: Path, folder: Path, seed: random.Random
) -> None:
    pair = Pair(home, Own(home / "h1", name="h1"), Own(home / "h2", name="h2"))
    ended(pair, pair.submit(submission(pair, work(folder, WORK, str(tmp_path / "first")))))
    began = time.monotonic()
    ended(pair, pair.submit(submission(pair, work(folder, WORK, str(tmp_path / "second")))))
    whole = time.monotonic() - began  # so that the points lie in it, however loaded the machine is
    told = {"nothing": 0, "part": 0, "all": 0}
    for number in range(KILLS):
        witness, key = tmp_path / f"w{number}-", f"point {number}"
        arguments = [str(Path(__file__).parent), str(home), str(folder), str(witness), key]
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.stdin.write(b"\n")
        client.stdin.flush()
        time.sleep(seed.random() * whole)
        client.kill()
        client.wait()
        client.stdin.close()
        client.stdout.close()
        there = [Path(f"{witness}{rank}").exists() for rank in (0, 1)]
        told["all" if all(there) else "part" if any(there) else "nothing"] += 1
        fresh = Pair(home, *pair.given)
        handle = fresh.find(key)
        if handle is None:
            again = submission(fresh, work(folder, WORK, str(witness)), key=key, run_id=key_run_id(key))
            handle = fresh.submit(again)
        status = ended(fresh, handle)
        assert status.state is State.SUCCEEDED, (number, status)
        assert [Path(f"{witness}{rank}").read_text() for rank in (0, 1)] == ["x", "x"], number
    print(f"{KILLS} points over {whole:.2f} s: {told}")
    swept(machine.root for machine in pair.given)
