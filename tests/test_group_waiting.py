"""A run on several machines that waits: who is in the way is seen by everybody, and who waits is its client.

Two real OpenSSH servers on loopback, one run at a time on each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Route
from pair import swept
from reserved import Fleet
from sshd import need_sshd

from compute_router.backend import State, Status
from compute_router.durable import held
from compute_router.records import new_run_id
from compute_router.starting import standing
from compute_router.store import Store
from compute_router.testing.fakes import work

HEAD = """# /// script
# [tool.route]
# kind = "train"
# purpose = "smoke"
# accelerator = "cpu"
# coupling = "COUPLING"
# nodes = NODES
# launcher = "python"
# framework = "none"
# ///
"""
ROUTE = [sys.executable, "-c", "from compute_router.cli import main; main()"]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    need_sshd()
    made = Fleet(tmp_path / "fleet")
    for name in ("h1", "h2"):
        made.add(name, group="rack", fabric="roce", interface="lo", exclusive=True)
    made.configure()
    yield made
    made.close()
    swept(entry.root for entry in made.entries.values())


def write(folder: Path, name: str, source: str, nodes: int) -> None:
    coupling = "multi-node" if nodes > 1 else "independent"
    (folder / name).write_text(HEAD.replace("COUPLING", coupling).replace("NODES", str(nodes)) + source)


def waiting(route: Route, run_id: str) -> dict[str, Any]:
    until = time.monotonic() + 120
    while True:
        found: dict[str, Any] = json.loads(route("status", run_id, "--json").stdout)["data"]
        if found["state"] == "waiting":
            return found
        assert time.monotonic() < until, found
        time.sleep(0.2)


def test_who_is_in_the_way_is_seen_and_a_client_that_is_gone_waits_no_more(
    fleet: Fleet, route: Route, folder: Path, home: Path
) -> None:
    write(folder, "alone.py", "import time; time.sleep(300)", 1)
    write(folder, "both.py", "import os; print('node', os.environ['ROUTE_NODE_RANK'])", 2)
    only = 'backend.ssh.only=["h2"]'
    blocker = route("run", "-d", "alone.py", "--backend", "ssh", "--set", only, timeout=120).stdout.strip()
    assert blocker
    words = ["run", "-d", "both.py", "--backend", "ssh", "--wait", "forever"]
    client = subprocess.Popen(
        [*ROUTE, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until, runs = time.monotonic() + 120, home / "runs"
    while not (found := [path.name for path in runs.glob("[0-9a-z]*") if path.name != blocker]):
        assert time.monotonic() < until
        time.sleep(0.1)
    [run_id] = found
    seen = waiting(route, run_id)
    assert [(n["name"], n["state"], n["position"]) for n in seen["nodes"]] == [
        ("h1", "committed", None),
        ("h2", "waiting", 1),
    ]
    assert f"h2: run {blocker} has the whole machine" in seen["detail"]
    assert "h2: waiting, place 1 in the queue" in route("status", run_id).stdout
    client.send_signal(signal.SIGKILL)
    _, said = client.communicate(timeout=30)
    assert "several machines are waited for by this client" in said
    gone = json.loads(route("status", run_id, "--json").stdout)["data"]
    assert (gone["state"], "is gone; route resume" in gone["detail"]) == ("staging", True)
    # Somebody goes on with it, and it starts once there is room.
    assert route("cancel", blocker, timeout=60).returncode == 0
    assert route("wait", blocker, timeout=120).returncode == 143
    done = route("resume", run_id, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "node 0" in done.stdout


def test_a_run_waits_only_as_long_as_a_client_holds_it(tmp_path: Path) -> None:
    run = Store(tmp_path).create(run_id := new_run_id(), work("cpu"), key=run_id)
    known = Status(state=State.WAITING, reason="busy", detail="h2: run x holds the lease box")
    with held(run.file("run")):
        child = os.fork()
        if child == 0:
            os._exit(0 if standing(run, known, 1) == known else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert standing(run, known, 1) == known
    assert standing(run, known, 1).state is State.STAGING
    assert standing(run, None, 2) == Status(state=State.STAGING, attempt=2)
