"""What several machines mean for one run: its state and its offers, by pure functions.

Shown for every row of the table of states, and for groups that are too small, busy, unlike or cold.
And which of several ranks failed first.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compute_router.backend import CacheState, NoOffer, Offer, Power, Quote, RoleState, State, Status
from compute_router.cli.nodes import lines
from compute_router.machines.entry import MachineEntry
from compute_router.machines.grouping import group_offers, meeting
from compute_router.machines.together import Member, together
from compute_router.records import plain
from compute_router.supervisor import failing
from compute_router.supervisor.runs import Attempt, Run
from compute_router.testing.fakes import offer, work
from compute_router.workload import Role

RUNNING, COMMITTED = Status(state=State.RUNNING), Status(state=State.COMMITTED)
WELL = Status(state=State.SUCCEEDED, exit_code=0, started_us=100, ended_us=200)
HELD = Status(state=State.STARTING, reason="held", detail="waits")
UNSEEN = Status(state=State.UNKNOWN, last=State.RUNNING, since_us=7, detail="no route to it")
FAILED = Status(state=State.FAILED, reason="exit", detail="exit code 3", exit_code=3, ended_us=500)
ENDED = Status(state=State.FAILED, reason="group", detail="ended because of h2", signal=15, ended_us=400)
LOST = Status(state=State.LOST, reason="rebooted", ended_us=900)
WAITING = Status(state=State.WAITING, reason="busy", detail="run x", position=2)
STARTING = Status(state=State.STARTING)
ORPHANED = Status(state=State.ORPHANED, reason="waiter_died")


def of(*statuses: Status, **more: Any) -> Status:
    return together([Member(name=f"h{n}", status=status, **more) for n, status in enumerate(statuses, 1)])


@pytest.mark.parametrize(
    ("statuses", "state", "reason", "detail"),
    [
        ((WELL, WELL), State.SUCCEEDED, "", ""),
        ((WELL, FAILED), State.FAILED, "exit", "h2: exit code 3"),
        ((ENDED, FAILED), State.FAILED, "exit", "h2: exit code 3"),
        ((ENDED, COMMITTED), State.FAILED, "group", "h1: ended because of h2"),
        ((WELL, COMMITTED), State.FAILED, "group", "h2 never started"),
        ((ENDED, LOST), State.LOST, "rebooted", "h2: rebooted"),
        ((RUNNING, UNSEEN), State.UNKNOWN, "", "h2 cannot be seen: no route to it"),
        ((FAILED, UNSEEN), State.UNKNOWN, "", "h2 cannot be seen: no route to it"),
        ((RUNNING, ORPHANED), State.ORPHANED, "waiter_died", "h2: "),
        ((RUNNING, FAILED), State.RUNNING, "", "h2 has failed, h1 will end"),
        ((WAITING, HELD), State.WAITING, "busy", "h1: run x"),
        ((COMMITTED, COMMITTED), State.COMMITTED, "", ""),
        ((HELD, HELD), State.STARTING, "held", "waits"),
        ((HELD, COMMITTED), State.STARTING, "", ""),
        ((RUNNING, HELD), State.STARTING, "", "h2 has not started yet"),
        ((WELL, STARTING), State.STARTING, "", "h2 has not started yet"),
        ((RUNNING, RUNNING), State.RUNNING, "", ""),
        ((WELL, RUNNING), State.RUNNING, "", ""),
    ],
)
def test_the_state_of_a_run_by_those_of_its_machines(
    statuses: tuple[Status, ...], state: State, reason: str, detail: str
) -> None:
    found = of(*statuses)
    assert (found.state, found.reason, found.detail) == (state, reason, detail)


def test_each_machine_is_told_of_beside_the_run() -> None:
    members = [
        Member(name="h1", status=RUNNING, devices=("GPU-a", "GPU-b")),
        Member(name="h2", status=UNSEEN),
    ]
    nodes = together(members).nodes
    assert nodes is not None
    assert [(n.rank, n.name, n.state, n.devices) for n in nodes] == [
        (0, "h1", "running", ("GPU-a", "GPU-b")),
        (1, "h2", "unknown", ()),
    ]
    assert (nodes[1].last, nodes[1].since_us, nodes[1].detail) == ("running", 7, "no route to it")
    assert lines(plain(together(members)))[0] == ("node 0", "h1: running, 2 GPUs")
    assert "no route to it" in lines(plain(together(members)))[1][1]
    assert lines(plain(RUNNING)) == []


def test_a_run_that_was_executed_anywhere_gets_no_other_attempt() -> None:
    never = Status(state=State.LOST, reason="never_executed", detail="the waiter was gone", ended_us=5)
    assert of(never, never).reason == "never_executed"
    assert of(msgspec.structs.replace(ENDED, started_us=1), never).reason == "group"


def test_what_became_of_an_earlier_attempt_says_nothing_of_the_next() -> None:
    never = Status(state=State.LOST, reason="never_executed", ended_us=5)
    second = msgspec.structs.replace(HELD, attempt=2)
    assert (of(second, never).state, of(second, never).attempt) == (State.STARTING, 2)
    assert of(never, msgspec.structs.replace(RUNNING, attempt=2)).detail == "h1 has not started yet"


def test_a_run_on_several_machines_is_over_only_when_each_is() -> None:
    live = (RUNNING, HELD, UNSEEN, WAITING, STARTING, ORPHANED)
    for one in live:
        for other in (*live, WELL, FAILED, ENDED, LOST, COMMITTED):
            assert not of(one, other).state.final
            assert not of(other, one).state.final


def test_the_first_rank_is_found_by_clocks_put_right() -> None:
    def member(name: str, rank: int, at_us: int, offset_us: int, **more: Any) -> Member:
        first = {"rank": rank, "what": f"on {rank}", "at_us": at_us, "follows": False, **more}
        return Member(name=name, status=FAILED, first=first, offset_us=offset_us)

    # By their own clocks h1 was first; h1's is 3 h behind.
    late = -3 * 3600 * 1_000_000
    h1, h2 = member("h1", 0, 10**12 + late, late), member("h2", 2, 10**12 - 5, 0)
    assert together([h1, h2]).detail == "rank 2 on h2 failed first: on 2"
    # Who only lost a peer was not first, whenever it said so.
    follows = member("h1", 0, 5, 0, follows=True)
    assert together([follows, h2]).detail == "rank 2 on h2 failed first: on 2"
    assert together([follows, Member(name="h2", status=ENDED)]).detail == "rank 0 on h1 failed first: on 0"


def test_a_rank_that_failed_before_its_node_was_ended_by_the_others_is_named() -> None:
    """Its torchrun was still waiting for the node's other ranks when a follower elsewhere was over."""
    cause = {"rank": 3, "what": "ValueError: boom", "at_us": 7, "follows": False}
    lost = {"rank": 0, "what": "Connection closed by peer", "at_us": 5, "follows": True}
    members = [Member(name="h1", status=FAILED, first=lost), Member(name="h2", status=ENDED, first=cause)]
    assert together(members).detail == "rank 3 on h2 failed first: ValueError: boom"
    # What it says only once it was asked to end is none.
    late = Member(name="h2", status=ENDED, first={**cause, "follows": True})
    assert together([members[0], late]).detail == "rank 0 on h1 failed first: Connection closed by peer"


def test_where_each_was_ended_because_of_the_other_no_rank_is_named() -> None:
    """Two sides of a cut: the ranks only got the signal by which their own machine ended them."""
    first = {"rank": 0, "what": "signal 15", "at_us": None, "follows": True}
    members = [Member(name=name, status=ENDED, first=first) for name in ("h1", "h2")]
    assert together(members).detail == "h1: ended because of h2"


def test_memory_as_the_cause_is_said_beside_the_rank() -> None:
    why = "the kernel killed 1 process(es) of the group for memory"
    status = msgspec.structs.replace(FAILED, reason="oom_host", detail=why)
    first = {"rank": 3, "what": "signal 9", "at_us": 7, "follows": False}
    found = together([Member(name="h1", status=ENDED), Member(name="h2", status=status, first=first)])
    assert (found.reason, found.detail) == ("oom_host", f"rank 3 on h2 failed first: signal 9; {why}")


def test_times_are_by_the_clock_of_node_0() -> None:
    found = together(
        [
            Member(name="h1", status=WELL, offset_us=1000),
            Member(name="h2", status=msgspec.structs.replace(WELL, started_us=50, ended_us=900), offset_us=0),
        ]
    )
    assert (found.started_us, found.ended_us) == (100 - 1000 + 1000, 900 + 1000)


# Offers


def entry(group: str | None = "rack", **more: Any) -> MachineEntry:
    return MachineEntry(address="ml@10.0.0.1", group=group, fabric="infiniband", **more)


def place(name: str, **more: Any) -> Offer:
    given: dict[str, Any] = {"fabric": True, "data": {"machines": [name], "stack": {"torch": "2.9"}}}
    return offer("reserved", "H200:8", backend="ssh", id=f"{name}:h200:8", **{**given, **more})


WANTED = work("H200:8", nodes=2, coupling="multi-node")


def together_offered(
    *offers: Offer | NoOffer, entries: dict[str, MachineEntry] | None = None
) -> list[Offer | NoOffer]:
    names = [f"h{number}" for number in range(1, len(offers) + 1)]
    known = entries or {name: entry() for name in names}
    return group_offers("ssh", WANTED, known, {n: [o] for n, o in zip(names, offers, strict=True)})


def test_machines_of_one_group_are_offered_together() -> None:
    quote = Quote(amount="31.60", source="h", date="2026-11-24")
    [found] = together_offered(place("h1", quote=quote), place("h2", quote=quote))
    assert isinstance(found, Offer)
    assert (found.id, found.hardware.nodes, found.hardware.count) == ("rack:h200:8:2-nodes", 2, 8)
    assert found.data["machines"] == ["h1", "h2"]
    assert found.fabric
    assert Power.MULTI_NODE in found.powers
    assert found.quote is not None
    assert found.quote.amount == "63.20"


def test_free_machines_come_before_busy_ones_and_warm_before_cold() -> None:
    warm = (RoleState(role=Role.COMPILE_CACHE, state=CacheState.WARM_SAME_KEY, storage="local_nvme"),)
    cold = (RoleState(role=Role.COMPILE_CACHE, state=CacheState.EMPTY, storage="local_nvme"),)
    [found] = together_offered(
        place("h1", busy=True, roles=warm),
        place("h2", roles=cold),
        place("h3", roles=warm),
        place("h4", roles=warm),
    )
    assert isinstance(found, Offer)
    assert found.data["machines"] == ["h3", "h4"]
    assert not found.busy
    assert found.roles == warm
    # Warm on one machine only is not warm: the other compiles, and all wait for it.
    [mixed] = together_offered(place("h1", roles=cold), place("h2", roles=warm))
    assert isinstance(mixed, Offer)
    assert mixed.roles == cold
    [busy] = together_offered(place("h1", busy=True), place("h2"))
    assert isinstance(busy, Offer)
    assert busy.busy
    assert busy.estimates.queue is None


@pytest.mark.parametrize(
    ("offers", "entries", "reason"),
    [
        ([place("h1")], None, "of group rack that are alike there are 1 (h1)"),
        (
            [place("h1"), place("h2")],
            {"h1": entry("a"), "h2": entry("b")},
            "of group a that are alike there are 1",
        ),
        ([place("h1"), place("h2")], {"h1": entry(None), "h2": entry(None)}, "no machine is in a group"),
        (
            [place("h1"), place("h2", data={"stack": {"torch": "2.8"}})],
            None,
            "there are 1 (h1), others have other versions installed",
        ),
    ],
)
def test_a_group_that_does_not_do_is_refused_with_the_reason(
    offers: list[Offer], entries: dict[str, MachineEntry] | None, reason: str
) -> None:
    [found] = together_offered(*offers, entries=entries)
    assert isinstance(found, NoOffer)
    assert found.code == "multi_node"
    assert reason in found.reason
    assert found.mend


def test_what_the_machines_themselves_refused_stands_beside_the_refusal() -> None:
    no = NoOffer(backend="ssh", code="sick_gpu", reason="h2: GPU 3 is lost", mend="reset it")
    found = together_offered(place("h1"), no)
    assert [answer.code for answer in found if isinstance(answer, NoOffer)] == ["multi_node", "sick_gpu"]


def test_where_the_others_reach_a_machine() -> None:
    assert meeting(entry(peer_address="192.168.7.1", interface="ib0")) == ("192.168.7.1", "ib0")
    assert meeting(entry()) == ("10.0.0.1", None)


# Which rank failed first

SUMMARY = b"""
Root Cause (first observed failure):
[0]:
  time      : 2026-11-24_22:52:58
  host      : localhost
  rank      : 3 (local_rank: 1)
  exitcode  : -9 (pid: 21958)  (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 21958
"""


def left(folder: Path, node: int, **said: str) -> tuple[Attempt, dict[str, Any]]:
    attempt = Attempt(Run(str(folder), "r" * 26), 1)
    for name, text in said.items():
        at = Path(attempt.at("ranks")) / "none_x" / "attempt_0" / name[1:]
        at.mkdir(parents=True)
        (at / "error.json").write_text(text)
    spec = {"launcher": {"name": "torchrun", "ranks": 2}, "group": {"nodes": 2, "node_rank": node}}
    return attempt, spec


def told(message: str) -> str:
    return json.dumps({"message": {"message": message, "extraInfo": {"timestamp": "1"}}})


def test_a_rank_that_lost_a_peer_was_not_first(tmp_path: Path) -> None:
    closed = told("RuntimeError: [gloo/pair.cc:553] Connection closed by peer [10.0.0.2]:7590")
    attempt, spec = left(tmp_path, 1, r0=closed, r1=told("ValueError: boom\nin two lines"))
    found = failing.first(attempt, spec, b"")
    assert found is not None
    assert (found["rank"], found["what"], found["follows"]) == (3, "ValueError: boom in two lines", False)
    assert failing.sentence(found, "h2") == "rank 3 on h2 failed first: ValueError: boom in two lines"


def test_a_killed_rank_is_known_from_what_the_launcher_says(tmp_path: Path) -> None:
    attempt, spec = left(
        tmp_path, 1, r0=told("NCCL error: remote process exited or there was a network error")
    )
    found = failing.first(attempt, spec, SUMMARY)
    assert found is not None
    assert (found["rank"], found["what"], found["signal"]) == (3, "signal 9", 9)


def test_where_all_only_follow_the_earliest_is_told_and_said_to_follow(tmp_path: Path) -> None:
    attempt, spec = left(tmp_path, 0, r0=told("Connection closed by peer"))
    found = failing.first(attempt, spec, b"")
    assert found is not None
    assert (found["rank"], found["follows"]) == (0, True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"message": 5}', '{"message": {"message": [1]}}', "\0"]
)
def test_error_files_of_any_kind_are_no_fault_of_ours(tmp_path: Path, text: str) -> None:
    attempt, spec = left(tmp_path, 0, r0=text)
    found = failing.first(attempt, spec, b"\n  rank      : x\n")
    assert found is None or found["what"] == ""


def summary(*ranks: tuple[int, int, float], ago: float = 1, zone: float = 0) -> bytes:
    """What torchrun prints of ranks (rank, code, seconds after the first), the last `ago` seconds ago, by
    the clock of a zone so many hours ahead."""
    now, last = time.time() + zone * 3600 - ago, max(after for _, _, after in ranks)
    text = ""
    for rank, code, after in ranks:
        at = time.strftime("%Y-%m-%d_%H:%M:%S", time.gmtime(now - last + after))
        text += f"""
[0]:
  time      : {at}
  host      : localhost
  rank      : {rank} (local_rank: {rank - 2})
  exitcode  : {code} (pid: 1)
  error_file: <N/A>
  traceback : none
"""
    return text.encode()


@pytest.mark.parametrize("zone", [0, 5.5, -8])
def test_a_rank_that_torchrun_killed_because_it_hung_was_not_first(tmp_path: Path, zone: float) -> None:
    attempt, spec = left(tmp_path, 1, r0=told("ValueError: boom"))
    raised = time.time() - 32
    [file] = tmp_path.rglob("error.json")
    os.utime(file, (raised, raised))
    found = failing.first(attempt, spec, summary((2, 1, 0), (3, -9, 31), zone=zone))
    assert found is not None
    assert (found["rank"], found["what"]) == (2, "ValueError: boom")
    # One that was killed before the others failed was.
    found = failing.first(attempt, spec, summary((3, -9, 0), (2, 1, 31), ago=3, zone=zone))
    assert found is not None
    assert (found["rank"], found["what"]) == (3, "signal 9")
    assert abs(found["at_us"] / 1e6 - (time.time() - 34)) < 5


def test_a_rank_that_aborts_because_a_peer_is_gone_only_follows(tmp_path: Path) -> None:
    attempt, spec = left(tmp_path, 1)
    said = (
        b"[rank3]:[E1124 22:52:58.123 ProcessGroupNCCL.cpp:632] [Rank 3] Watchdog caught collective "
        b"operation timeout: WorkNCCL(SeqNum=9)\nterminate called after throwing an instance\n"
    )
    found = failing.first(attempt, spec, said + summary((3, -6, 0)))
    assert found is not None
    assert (found["rank"], found["follows"]) == (3, True)
    assert found["what"].startswith("signal 6: Watchdog caught collective operation timeout")
    alone = failing.first(attempt, spec, summary((3, -6, 0)))
    assert alone is not None
    assert (alone["what"], alone["follows"]) == ("signal 6", False)


def test_without_torchrun_a_node_of_a_group_is_one_rank(tmp_path: Path) -> None:
    attempt, spec = left(tmp_path, 1)
    spec = {**spec, "launcher": {"name": "python"}}
    cases: dict[tuple[bytes, int], tuple[str, bool]] = {
        (b"Traceback\n  File x\nValueError: boom\n", 1): ("ValueError: boom", False),
        (b"RuntimeError: Connection closed by peer [10.0.0.2]:1\n\n", 1): (
            "RuntimeError: Connection closed by peer [10.0.0.2]:1",
            True,
        ),
        (b"step 7", -9): ("signal 9", False),
        (b"step 7", -15): ("signal 15", True),
        (b"", 3): ("exit code 3", False),
    }
    for (tail, status), (what, follows) in cases.items():
        found = failing.first(attempt, spec, tail, status)
        assert found is not None
        assert (found["rank"], found["what"], found["follows"]) == (1, what, follows)
    assert failing.first(attempt, {**spec, "group": None}, SUMMARY) is None
