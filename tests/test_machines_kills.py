"""A client killed at any moment of a submit, then the same key again: always exactly one execution.

Each point is a client process of its own that is sent SIGKILL after a seeded random time, then
another process that submits the same key. ROUTE_KILLS sets how many points there are.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peers import ended, submission, workload

from compute_router.backend import State
from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.errors import Unavailable
from compute_router.records import key_run_id
from compute_router.workload import Entry

KILLS = int(os.environ.get("ROUTE_KILLS", "60"))
PARTS = 4

WORK = "import os, sys, time\nopen(sys.argv[1], 'a').write('x')\ntime.sleep(0.05)\nsys.exit(7)\n"

CLIENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.records import key_run_id
from compute_router.workload import Entry
from peers import submission, workload
import compute_router.machines.running
home, folder, witness, key = Path(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
backend = LocalBackend(LocalSettings(), home)
entry = Entry(root=folder, script="work.py", args=(witness,))
work = workload(Path(folder), Path(folder, "work.py").read_text(), entry=entry)
submitted = submission(backend, work, key=key, run_id=key_run_id(key))
print("ready", flush=True)
sys.stdin.readline()
handle = backend.submit(submitted)
print("submitted", flush=True)
for item in backend.attached(handle):
    pass
"""


@pytest.mark.parametrize("part", range(PARTS))
def test_a_killed_client_leaves_one_execution(
    part: int, tmp_path: Path, home: Path, folder: Path, seed: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))
    local = LocalBackend(LocalSettings(), home)
    local.submit(submission(local, workload(folder, "pass")))
    began = time.monotonic()
    fresh = LocalBackend(LocalSettings(), home)
    ended(fresh, fresh.submit(submission(fresh, workload(folder, "pass"))))
    whole = time.monotonic() - began  # so that the points lie in it, however loaded the machine is
    (folder / "work.py").write_text(WORK)
    told = {"nothing": 0, "found": 0, "printed": 0}
    for number in range((KILLS + PARTS - 1) // PARTS):
        witness, key = tmp_path / f"w{number}", f"point {number}"
        client = subprocess.Popen(
            [
                sys.executable,
                "-c",
                CLIENT,
                str(Path(__file__).parent),
                str(home),
                str(folder),
                str(witness),
                key,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        after = seed.uniform(0, 1.5 * whole)
        client.stdin.write("go\n")
        client.stdin.flush()
        time.sleep(after)
        client.kill()
        printed = "submitted" in client.communicate()[0]
        told["printed"] += printed
        try:
            handle = local.find(key)
        except Unavailable:
            handle = None
        told["nothing" if handle is None else "found"] += 1
        assert handle is not None or not printed, (number, after)
        entry = Entry(root=str(folder), script="work.py", args=(str(witness),))
        again = submission(local, workload(folder, WORK, entry=entry), key=key, run_id=key_run_id(key))
        handle = local.submit(again)
        status = ended(local, handle)
        assert (status.state, status.exit_code) == (State.FAILED, 7), (number, after, status)
        assert witness.read_text() == "x", (number, after)
        assert local.submit(again) == handle
    time.sleep(0.1)
    assert all((tmp_path / f"w{n}").read_text() == "x" for n in range((KILLS + PARTS - 1) // PARTS))
    print(told)
