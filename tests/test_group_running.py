"""One run over several machines: everywhere or nowhere, one status, one log, all that was left brought back.

Two roots on this computer are the machines; supervisors, ranks and their torch are real.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import element, printed, tool, topology
from pair import TORCH, Own, Pair, attempt, ended, executed, submission, swept, work

from compute_router.backend import Handle, State, Status
from compute_router.errors import CredentialsError, InputError, Rejected, Unavailable
from compute_router.machines import holding
from compute_router.machines.contract import Machine, Stream
from compute_router.machines.local import LocalMachine
from compute_router.records import new_run_id


@pytest.fixture(autouse=True)
def _leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))


@pytest.fixture
def pair(home: Path) -> Iterator[Pair]:
    backend = Pair(home, Own(home / "h1", name="h1"), Own(home / "h2", name="h2"))
    yield backend
    swept(machine.root for machine in backend.given)


SAY = "import os; print(*(os.environ[n] for n in ('ROUTE_NODE_RANK', 'ROUTE_NODES', 'MASTER_ADDR')))\n"


# The straight way


def test_from_submit_to_cleanup_on_two_machines(pair: Pair, folder: Path, tmp_path: Path) -> None:
    source = SAY + "open(os.environ['ROUTE_OUTPUTS'] + '/o', 'w').write(os.environ['ROUTE_NODE_RANK'])"
    handle = pair.submit(submission(pair, work(folder, source)))
    assert handle.data["machines"] == ["h1", "h2"]
    items = list(pair.attached(handle))
    assert b"".join(item for item in items if isinstance(item, bytes)) == b"0 2 127.0.0.1\n"
    last = items[-1]
    assert isinstance(last, Status)
    assert (last.state, last.exit_code) == (State.SUCCEEDED, 0)
    into = tmp_path / "into"
    brought = {str(path.relative_to(into)) for path in pair.fetch(handle, into)}
    assert {"log", "measured.json", "outputs/o"} <= brought
    assert {"nodes/1-h2/log", "nodes/1-h2/measured.json", "nodes/1-h2/outputs/o"} <= brought
    assert (into / "nodes/1-h2/log").read_text() == "1 2 127.0.0.1\n"
    assert [(into / name).read_text() for name in ("outputs/o", "nodes/1-h2/outputs/o")] == ["0", "1"]
    pair.cleanup(handle)
    assert pair.status(handle).state is State.SUCCEEDED


def test_every_node_has_a_log_of_its_own(pair: Pair, folder: Path) -> None:
    handle = pair.submit(submission(pair, work(folder, SAY)))
    for rank in (0, 1):
        items = list(pair.attached(pair.node(handle, rank)))
        assert b"".join(item for item in items if isinstance(item, bytes)) == b"%d 2 127.0.0.1\n" % rank
        assert isinstance(items[-1], Status)
        assert items[-1].nodes is None
    with pytest.raises(InputError, match="no node 2"):
        pair.node(handle, 2)
    nodes = ended(pair, handle).nodes
    assert nodes is not None
    assert [(node.name, node.state) for node in nodes] == [("h1", "succeeded"), ("h2", "succeeded")]


def test_the_same_submission_again_is_the_same_run(pair: Pair, folder: Path) -> None:
    sent = submission(pair, work(folder, SAY + "import time; time.sleep(1)"))
    assert pair.submit(sent) == pair.submit(sent)
    found = pair.find(sent.key)
    assert found == pair.submit(sent)
    assert found is not None
    assert ended(pair, found).state is State.SUCCEEDED
    assert [(attempt(m, sent.id) / "log").read_text().count("\n") for m in pair.given] == [1, 1]


def test_a_cancel_reaches_every_machine(pair: Pair, folder: Path) -> None:
    handle = pair.submit(submission(pair, work(folder, "import time; time.sleep(100)")))
    pair.cancel(handle)
    assert ended(pair, handle).state is State.CANCELLED


def test_a_missing_secret_is_told_before_anything_is_sent(pair: Pair, folder: Path) -> None:
    with pytest.raises(CredentialsError, match="HF_TOKEN"):
        pair.submit(submission(pair, work(folder, SAY, secrets=("HF_TOKEN",))))
    assert not (Path(pair.given[0].root) / "runs").exists()


def test_every_node_has_the_secrets_and_no_log_of_any_shows_them(pair: Pair, folder: Path) -> None:
    source = "import os; v = os.environ['TOKEN']; print(len(v), v, os.environ['ROUTE_NODE_RANK'])"
    secret = "tweet-tweet-4711"
    workload = work(folder, source, secrets=("TOKEN",))
    handle = pair.submit(submission(pair, workload, secrets={"TOKEN": secret}))
    assert ended(pair, handle).state is State.SUCCEEDED
    for rank, machine in enumerate(pair.given):
        said = b"".join(pair.logs(pair.node(handle, rank))).decode()
        assert said.startswith("16 ")
        assert said.endswith(f" {rank}\n")
        assert secret not in said
        for path in Path(machine.root).rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_a_node_without_torchrun_that_fails_first_is_named_with_what_it_said(
    pair: Pair, folder: Path
) -> None:
    source = """
import os, time
if os.environ["ROUTE_NODE_RANK"] == "1":
    raise ValueError("boom")
time.sleep(100)
"""
    status = ended(pair, pair.submit(submission(pair, work(folder, source))))
    assert (status.state, status.reason, status.exit_code) == (State.FAILED, "exit", 1)
    assert status.detail == "rank 1 on h2 failed first: ValueError: boom"


# All or none


def test_one_machine_that_is_busy_starts_nothing_anywhere_and_all_leases_are_free(
    pair: Pair, folder: Path, tmp_path: Path
) -> None:
    pair.needed = ("box",)
    alone = Pair(tmp_path / "other", pair.given[1])
    alone.needed = ("box",)
    blocker = alone.submit(submission(alone, work(tmp_path / "b", "import time; time.sleep(100)", nodes=1)))
    sent = submission(pair, work(folder, SAY))
    with pytest.raises(Unavailable, match=f"h2: run {blocker.run_id} holds the lease box"):
        pair.submit(sent)
    assert executed(pair, sent.id) == [False, False]
    assert pair.find(sent.key) is None
    first = Pair(tmp_path / "third", pair.given[0])
    first.needed = ("box",)
    other = first.submit(submission(first, work(tmp_path / "c", "print(1)", nodes=1)))
    assert ended(first, other).state is State.SUCCEEDED
    alone.cancel(blocker)
    ended(alone, blocker)
    # And the same run starts once there is room.
    assert ended(pair, pair.submit(sent)).state is State.SUCCEEDED


def test_who_may_wait_starts_when_the_last_machine_is_free_and_takes_none_meanwhile(
    pair: Pair, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.needed = ("box",)
    alone = Pair(tmp_path / "other", pair.given[0])
    alone.needed = ("box",)
    blocker = alone.submit(submission(alone, work(tmp_path / "b", "import time; time.sleep(5)", nodes=1)))
    real, asked = holding.Starting._ask_start, list[str]()

    def ask(self: holding.Starting, part: holding.Part, handle: Handle) -> Status:
        asked.append(part.machine.name)
        return real(self, part, handle)

    monkeypatch.setattr(holding.Starting, "_ask_start", ask)
    told: list[Status] = []
    handle = pair.submit(submission(pair, work(folder, SAY), wait_us=None, waits=told.append))
    assert {status.state for status in told} == {State.WAITING}
    assert told[0].position == 1
    assert f"h1: run {blocker.run_id} holds the lease box" in told[0].detail
    assert [(n.name, n.state, n.position) for n in told[0].nodes or ()] == [
        ("h1", "waiting", 1),
        ("h2", "committed", None),
    ]
    # h2 was taken at first, when that could have been all, and once h1 was there: never in between.
    assert asked.count("h1") > 2
    assert asked.count("h2") == 2
    assert ended(alone, blocker).state is State.SUCCEEDED
    assert ended(pair, handle).state is State.SUCCEEDED


GROUPS = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from pair import Own, Pair, ended, submission, work

    home, name, folder = Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    machines = [Own(home / each, name=each) for each in sys.argv[5:]]
    pair = Pair(home / name, *machines)
    pair.needed = ("box",)
    workload = work(folder, "import time; time.sleep(0.5)", nodes=len(machines))
    for _ in range(2):
        sent = submission(pair, workload, wait_us=None)
        handle = pair.submit(sent)
        print(handle.data["machines"], ended(pair, handle).state.value, flush=True)
"""


def test_groups_that_want_the_same_machines_in_another_order_all_end(home: Path, tmp_path: Path) -> None:
    """Three clients, each with two machines of three, in a circle, waiting for ever, twice each."""
    script = textwrap.dedent(GROUPS)
    clients = []
    for number, names in enumerate((("h1", "h2"), ("h2", "h3"), ("h3", "h1"))):
        arguments = [
            str(Path(__file__).parent),
            str(home),
            f"c{number}",
            str(tmp_path / f"w{number}"),
            *names,
        ]
        clients.append(
            subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
        )
    try:
        said = [client.communicate(timeout=120)[0] for client in clients]
    finally:
        for client in clients:
            client.kill()
        swept(str(home / name) for name in ("h1", "h2", "h3"))
    assert [text.count("succeeded") for text in said] == [2, 2, 2]


class Equipped(Own):
    """A machine with boards of its own."""

    boards: dict[str, str] = {}

    def _given(self) -> tuple[dict[str, str], tuple[int, ...]]:
        environ, kept = super()._given()
        return {**environ, **self.boards}, kept


def test_one_machine_with_a_sick_gpu_is_named_and_starts_nothing_anywhere(
    home: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = [Equipped(home / name, name=name) for name in ("h1", "h2")]
    well = [element("H200-SXM", number) for number in (0, 1)]
    for machine, rows in zip(machines, (well, [well[0], element("H200-SXM", 1, failure="Yes")]), strict=True):
        (place := tmp_path / machine.name).mkdir()
        machine.boards = tool(place, printed(*rows), topology(2))
    for name, value in machines[0].boards.items():
        monkeypatch.setenv(name, value)  # for the offer, which is made without asking machines
    pair = Pair(home, *machines)
    sent = submission(pair, work(folder, SAY, accelerator="H200:2"))
    with pytest.raises(Unavailable, match=r"h2: .*GPU 1"):
        pair.submit(sent)
    assert executed(pair, sent.id) == [False, False]
    status = json.loads((attempt(machines[0], sent.id) / "unheld.json").read_text())
    assert "h2" in status["detail"]
    swept(machine.root for machine in machines)


class Gone(LocalMachine):
    """A machine that cannot be reached any more once `after` connections were made."""

    after = 0

    def open(self, argv: object, *, deadline: float) -> Stream:  # type: ignore[override]
        self.after -= 1
        if self.after < 0:
            raise Unavailable(f"{self.name} cannot be reached", mend="look at it")
        return super().open(argv, deadline=deadline)  # type: ignore[arg-type]


def test_one_machine_that_cannot_be_reached_starts_nothing_anywhere(home: Path, folder: Path) -> None:
    pair = Pair(home, Own(home / "h1", name="h1"), Gone(home / "h2", name="h2"))
    sent = submission(pair, work(folder, SAY))
    with pytest.raises(Unavailable, match="h2 cannot be reached"):
        pair.submit(sent)
    assert executed(pair, sent.id) == [False, False]


def test_one_machine_that_refuses_for_good_starts_nothing_anywhere(home: Path, folder: Path) -> None:
    (home / "h2").parent.mkdir(parents=True)
    (home / "h2").write_text("no folder")
    pair = Pair(home, Own(home / "h1", name="h1"), LocalMachine(home / "h2", name="h2"))
    sent = submission(pair, work(folder, SAY))
    with pytest.raises(Rejected, match="h2"):
        pair.submit(sent)
    assert not (attempt(pair.given[0], sent.id) / "exec.json").exists()


# What cannot be seen


def test_one_machine_that_cannot_be_seen_makes_the_run_unknown_and_is_named(home: Path, folder: Path) -> None:
    gone = Gone(home / "h2", name="h2")
    gone.after = 100
    pair = Pair(home, Own(home / "h1", name="h1"), gone)
    handle = pair.submit(submission(pair, work(folder, "import time; time.sleep(6)")))
    while (status := pair.status(handle)).state is not State.RUNNING:
        assert status.state is State.STARTING
    gone.after = 0
    second = Pair(home, *pair.given)
    status = second.status(handle)
    assert status.state is State.UNKNOWN
    assert "h2 cannot be seen" in status.detail
    gone.after = 100
    assert ended(second, handle).state is State.SUCCEEDED


# The client is killed


CLIENT = """
    import os, signal, sys, threading
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from pair import Own, Pair, submission, work
    from compute_router.machines import holding
    from compute_router.machines.grouped import Grouped

    home, folder, run_id, point = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5]
    count, lock = {}, threading.Lock()

    def reached(name):
        with lock:
            count[name] = count.get(name, 0) + 1
            if point == f"{name} {count[name]}":
                os.kill(os.getpid(), signal.SIGKILL)

    def killed(name, method):
        def call(*args, **more):
            reached("before " + name)
            found = method(*args, **more)
            reached("after " + name)
            return found
        return call

    holding.Starting._deliver = killed("commit", holding.Starting._deliver)
    holding.Starting._ask_start = killed("hold", holding.Starting._ask_start)
    Grouped.go = killed("go", Grouped.go)
    pair = Pair(home, Own(home / "h1", name="h1"), Own(home / "h2", name="h2"))
    pair.submit(submission(pair, work(folder, Path(folder / "work.py").read_text()), run_id=run_id))
    print("submitted")
"""
POINTS = [
    f"{when} {what} {n}" for what in ("commit", "hold", "go") for n in (1, 2) for when in ("before", "after")
]


@pytest.mark.parametrize("point", POINTS)
def test_a_client_killed_at_any_point_and_the_same_key_again_is_one_execution_on_each(
    pair: Pair, home: Path, folder: Path, point: str
) -> None:
    run_id = new_run_id()
    workload = work(folder, SAY + "import time; time.sleep(1.5)")
    arguments = [str(Path(__file__).parent), str(home), str(folder), run_id, point]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CLIENT), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    handle = pair.find(run_id)
    if handle is None:
        assert executed(pair, run_id) == [False, False]
        handle = pair.submit(submission(pair, workload, run_id=run_id))
    assert handle.data["machines"] == ["h1", "h2"]
    assert ended(pair, handle).state is State.SUCCEEDED
    assert [(attempt(m, run_id) / "log").read_text() for m in pair.given] == [
        "0 2 127.0.0.1\n",
        "1 2 127.0.0.1\n",
    ]


def test_a_client_that_is_gone_once_node_0_was_let_go_leaves_no_member_behind(
    pair: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 0 tells the others itself, so that no hold ends while another member starts."""
    monkeypatch.setattr(holding.Starting, "_go_one", lambda *_: None)
    handle = pair.submit(submission(pair, work(folder, SAY)))
    assert ended(pair, handle).state is State.SUCCEEDED
    assert executed(pair, handle.run_id) == [True, True]


def test_a_hold_that_ends_before_all_are_let_go_is_taken_anew_and_nothing_runs_alone(
    pair: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, given_up = holding.Starting._extend, list[holding.Part]()

    def late(self: holding.Starting, part: holding.Part, *facts: Any) -> dict[str, Any]:
        if part.machine.name == "h2" and not given_up:
            given_up.append(part)
            run = self.submission
            part.sessions.ask("release", run_id=run.id, attempt=run.attempt, why="its time was up")
        return real(self, part, *facts)

    monkeypatch.setattr(holding.Starting, "_extend", late)
    handle = pair.submit(submission(pair, work(folder, SAY)))
    assert ended(pair, handle).state is State.SUCCEEDED
    assert len(given_up) == 1
    assert [(attempt(m, handle.run_id) / "log").read_text().count("\n") for m in pair.given] == [1, 1]


def test_a_machine_that_takes_long_to_get_ready_costs_no_other_its_hold(
    pair: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holds of 5 s, and one machine that is only asked once those of the others would be over."""
    monkeypatch.setattr(holding, "HOLD_US", 5_000_000)
    monkeypatch.setattr(holding, "EXTEND", 0.5)
    real, holds = holding.Starting._ask_start, list[str]()

    def slow(self: holding.Starting, part: holding.Part, handle: Handle) -> Status:
        if part.machine.name == "h1":
            time.sleep(6)
        holds.append(part.machine.name)
        return real(self, part, handle)

    monkeypatch.setattr(holding.Starting, "_ask_start", slow)
    handle = pair.submit(submission(pair, work(folder, SAY)))
    assert ended(pair, handle).state is State.SUCCEEDED
    assert sorted(holds) == ["h1", "h2"]


# torch over two machines


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the driver's tool says that each machine has two H200; the ranks use gloo on the CPU."""
    pytest.importorskip("torch")
    rows = [element("H200-SXM", number) for number in (0, 1)]
    for name, value in tool(tmp_path, printed(*rows), topology(2)).items():
        monkeypatch.setenv(name, value)


def _torch(pair: Pair, folder: Path, *args: str) -> Handle:
    workload = work(folder, TORCH, *args, torch=True, accelerator="H200:2")
    return pair.submit(submission(pair, workload))


def _pid(machine: Machine, run_id: str, rank: int, seconds: float = 60) -> int:
    log, until = attempt(machine, run_id) / "log", time.monotonic() + seconds
    while True:
        for line in log.read_text().splitlines() if log.exists() else ():
            if line.startswith(f"rank {rank} of 4 is "):
                return int(line.split()[-1])
        assert time.monotonic() < until
        time.sleep(0.1)


def test_four_ranks_on_two_machines_meet_and_every_one_leaves_what_it_made(
    pair: Pair, folder: Path, tmp_path: Path, boards: None
) -> None:
    handle = _torch(pair, folder, "well", "5")
    status = ended(pair, handle)
    assert (status.state, status.detail) == (State.SUCCEEDED, "")
    pair.fetch(handle, tmp_path / "into")
    made = sorted(path.name for path in (tmp_path / "into").rglob("of-*"))
    assert made == ["of-0", "of-1", "of-2", "of-3"]
    blocks = [
        json.loads((tmp_path / "into" / at / "measured.json").read_text()) for at in (".", "nodes/1-h2")
    ]
    for rank, block in enumerate(blocks):
        assert (block["launch"]["nodes"], block["launch"]["node_rank"]) == (2, rank)
        assert len(block["distributed"]["first_step_us"]["v"]) == 2
        allow = block["env"]["allow"]["v"]
        assert allow["GLOO_SOCKET_IFNAME"] == allow["NCCL_SOCKET_IFNAME"] == "lo"
        assert allow["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "2000"
        assert allow["CUDA_VISIBLE_DEVICES"] == "2 visible"


def test_the_rank_that_raised_first_is_named_with_its_machine(pair: Pair, folder: Path, boards: None) -> None:
    status = ended(pair, _torch(pair, folder, "raise", "2000"))
    assert status.state is State.FAILED
    assert status.detail == "rank 3 on h2 failed first: ValueError: three has had enough"


def test_a_killed_rank_is_named_and_ends_the_group_with_no_client_there(
    pair: Pair, home: Path, folder: Path, boards: None
) -> None:
    handle = _torch(pair, folder, "well", "20000")
    _pid(pair.given[0], handle.run_id, 0)
    os.kill(_pid(pair.given[1], handle.run_id, 3), signal.SIGKILL)
    # Nobody asks anything until both have ended by themselves.
    until = time.monotonic() + 60
    while not all((attempt(machine, handle.run_id) / "exit.json").exists() for machine in pair.given):
        assert time.monotonic() < until
        time.sleep(0.1)
    status = ended(Pair(home, *pair.given), handle)
    assert status.state is State.FAILED
    assert status.detail == "rank 3 on h2 failed first: signal 9"
