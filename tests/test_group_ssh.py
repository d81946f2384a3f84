"""One run over two machines that are reached by SSH: offered together, started together, one receipt.

Two real OpenSSH servers on loopback, each with a root and leases of its own; four real torch ranks that
meet by gloo. A stand-in for the driver's tool says that each machine has two H200.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import element
from conftest import Route
from pair import TORCH, swept
from reserved import Fleet
from sshd import need_sshd

from compute_router.backend import State
from compute_router.receipt.verifying import verify

HEAD = """# /// script
# [tool.route]
# kind = "train"
# purpose = "smoke"
# accelerator = "H200:2"
# coupling = "multi-node"
# nodes = 2
# framework = "torch"
# python = "PYTHON"
# ///
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    pytest.importorskip("torch")
    need_sshd()
    made = Fleet(tmp_path / "fleet")
    for name in ("h1", "h2"):
        boards = [element("H200-SXM", number) for number in (0, 1)]
        made.add(name, *boards, group="rack", fabric="roce", interface="lo")
    made.configure()
    yield made
    made.close()
    swept(entry.root for entry in made.entries.values())


def write(folder: Path, mode: str, steps: int) -> Path:
    file = folder / "train.py"
    source = TORCH.replace("sys.argv[1], int(sys.argv[2])", f"{mode!r}, {steps}")
    file.write_text(HEAD.replace("PYTHON", sys.executable) + source)
    return file


def receipt(home: Path, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "runs" / run_id / "receipt.json").read_text())
    return found


def attempt(fleet: Fleet, name: str, run_id: str) -> Path:
    return Path(fleet.entries[name].root) / "runs" / run_id / "attempts" / "1"


def test_two_machines_and_four_ranks_end_in_one_receipt(
    fleet: Fleet, route: Route, folder: Path, home: Path
) -> None:
    write(folder, "well", 6)
    planned = route("plan", "train.py", "--backend", "ssh")
    assert "rack:h200:2:2-nodes" in planned.stdout + planned.stderr
    started = route("run", "train.py", "--backend", "ssh", "--detach", timeout=120)
    assert started.returncode == 0, started.stderr
    run_id = started.stdout.strip()
    done = route("wait", run_id, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "rank 0 of 4" in route("logs", run_id).stdout
    assert route("collect", run_id, timeout=120).returncode == 0
    found = receipt(home, run_id)
    assert verify(home / "runs" / run_id / "receipt.json") == []
    context = found["context"]
    nodes = context["nodes"]["v"]
    assert [(n["rank"], n["machine"]) for n in nodes] == [(0, "h1"), (1, "h2")]
    assert nodes[0]["measured"] is None
    assert nodes[0]["measured_sha256"] == found["measured_sha256"]
    assert nodes[1]["measured"]["launch"]["node_rank"] == 1
    assert context["distributed"]["world"]["v"] == 4
    assert context["distributed"]["nodes"]["v"] == 2
    assert len(context["distributed"]["first_step_us"]["v"]) == 4
    assert context["hw"]["observed"]["count"]["v"] == 2
    assert len(context["hw"]["observed"]["uuid"]["v"]) == 4
    assert context["hw"]["match"]["v"] == "exact"
    left = {path.name for path in (home / "runs" / run_id).rglob("of-*")}
    assert left == {"of-0", "of-1", "of-2", "of-3"}
    # Another client, which has only the machines and the id, gets the same of both.
    other = {"ROUTE_HOME": str(folder.parent / "other")}
    there = route("collect", run_id, timeout=120, env=other)
    assert there.returncode == 0, there.stderr
    again = receipt(folder.parent / "other", run_id)
    assert again["measured_sha256"] == found["measured_sha256"]
    assert [n["measured_sha256"] for n in again["context"]["nodes"]["v"]] == [
        n["measured_sha256"] for n in nodes
    ]
    # A block of another machine cannot be changed unseen.
    nodes[1]["measured"]["launch"]["ranks"] = 3
    (folder / "changed.json").write_text(json.dumps(found, sort_keys=True, separators=(",", ":")))
    assert any("nodes.1" in problem.path for problem in verify(folder / "changed.json"))


def test_a_killed_rank_is_named_in_terminal_status_and_receipt(
    fleet: Fleet, route: Route, folder: Path, home: Path
) -> None:
    write(folder, "well", 20_000)
    started = route("run", "train.py", "--backend", "ssh", "--detach", timeout=120)
    assert started.returncode == 0, started.stderr
    run_id = started.stdout.strip()
    log, pid, until = attempt(fleet, "h2", run_id) / "log", 0, time.monotonic() + 60
    while not pid:
        assert time.monotonic() < until
        lines = log.read_text().splitlines() if log.exists() else []
        pid = next((int(line.split()[-1]) for line in lines if line.startswith("rank 3 of 4 is ")), 0)
        time.sleep(0.1)
    _every_node_is_seen_by_itself(route, run_id)
    os.kill(pid, signal.SIGKILL)
    done = route("wait", run_id, timeout=120)
    said = "rank 3 on h2 failed first: signal 9"
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert said in route("status", run_id).stdout
    assert route("collect", run_id, timeout=120).returncode in (0, 1)
    found = receipt(home, run_id)
    assert found["context"]["outcome"]["detail"]["v"] == said
    assert found["context"]["outcome"]["state"]["v"] == State.FAILED.value
    assert verify(home / "runs" / run_id / "receipt.json") == []
    # What was seen last of each machine stays with the run, and so does each log.
    over = json.loads(route("status", run_id, "--json").stdout)["data"]["nodes"]
    assert [(n["name"], n["state"]) for n in over] == [("h1", "failed"), ("h2", "failed")]
    logs = [route("logs", run_id, "--node", str(rank)).stdout for rank in (0, 1)]
    assert ["rank 3 of 4" in log for log in logs] == [False, True]


def _every_node_is_seen_by_itself(route: Route, run_id: str) -> None:
    """While it runs: a line for each machine, and the log of each and a shell on each by its number."""
    told = json.loads(route("status", run_id, "--json").stdout)["data"]["nodes"]
    assert [(n["rank"], n["name"], n["state"], len(n["devices"])) for n in told] == [
        (0, "h1", "running", 2),
        (1, "h2", "running", 2),
    ]
    text = route("status", run_id).stdout
    assert "h1: running, 2 GPUs" in text
    assert "h2: running, 2 GPUs" in text
    assert "rank 3 of 4" in route("logs", run_id, "--node", "1").stdout
    for told_of in (route("logs", run_id), route("logs", run_id, "--node", "0")):
        assert "rank 0 of 4" in told_of.stdout
        assert "rank 3 of 4" not in told_of.stdout
    say = ("--", "sh", "-c", "echo on $ROUTE_NODE_RANK")
    assert route("shell", run_id, *say).stdout == "on 0\n"
    assert route("shell", run_id, "--node", "1", *say).stdout == "on 1\n"
    none = route("logs", run_id, "--node", "2")
    assert none.returncode == 64
    assert "has no node 2" in none.stderr
    assert "1 (h2)" in none.stderr


def test_auto_chooses_a_group_that_is_large_enough_and_one_that_is_not_says_so(
    fleet: Fleet, route: Route, folder: Path
) -> None:
    write(folder, "well", 6)
    chosen = route("plan", "train.py", "--json")
    assert json.loads(chosen.stdout)["data"]["decision"]["ranked"][0]["offer_id"] == "rack:h200:2:2-nodes"
    text = (folder / "train.py").read_text().replace("# nodes = 2", "# nodes = 3")
    (folder / "train.py").write_text(text)
    refused = route("run", "train.py", "--backend", "ssh")
    assert refused.returncode != 0
    said = refused.stdout + refused.stderr
    assert "3 machines of one group" in said
    assert "there are 2 (h1, h2)" in said
