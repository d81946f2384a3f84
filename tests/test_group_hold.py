"""A run on several machines starts everywhere or nowhere, and ends everywhere, with nobody looking on.

Two roots stand for two machines; supervisors, links and work are real processes. Shown: a held start
runs nothing and gives its leases back, whether it is released, cancelled or forgotten; one member that
fails or is gone ends the others and is named; one that ends well ends nobody.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import FINAL, Fault, Place, ended, shell, spec

from compute_router.records import new_run_id
from compute_router.supervisor import link as links
from compute_router.supervisor.runs import Attempt, Run

MEMBERS = ["h1", "h2", "h3"]


class Group:
    """The same run on several roots, each with its own place in the group."""

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.places: list[Place] = []
        for number in range(nodes):
            (folder / f"m{number}").mkdir(parents=True)
            self.places.append(Place(folder / f"m{number}"))
        self.links = [place.link() for place in self.places]
        self.run = new_run_id()

    def commit(self, *scripts: str, more: dict[str, Any] | None = None, **group: Any) -> None:
        for rank, script in enumerate(scripts):
            facts = {"nodes": len(scripts), "node_rank": rank, "members": MEMBERS[: len(scripts)]}
            facts |= {"address": "127.0.0.1", **group}
            made = shell(script, run_id=self.run, group=facts, **(more or {}))
            self.places[rank].submit(self.links[rank], made)

    def hold(self) -> None:
        for link in self.links:
            found = link.start(self.run)
            assert (found["state"], found["reason"]) == ("starting", "held")

    def go(self, rank: int, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        body = json.dumps(facts).encode() if facts else b""
        told = self.links[rank].ask("go", body, run_id=self.run, attempt=1)
        return {name: told[name] for name in ("link_port", "master_port", "token")}

    def extend(self, rank: int, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        body = json.dumps(facts).encode() if facts else b""
        told = self.links[rank].ask("extend", body, run_id=self.run, attempt=1)
        return {name: told[name] for name in ("link_port", "master_port", "token") if name in told}

    def all_go(self) -> None:
        facts = self.go(0)
        for rank in range(1, len(self.links)):
            self.go(rank, facts)

    def start(self, *scripts: str, **group: Any) -> None:
        self.commit(*scripts, **group)
        self.hold()
        self.all_go()

    def end(self, rank: int, seconds: float = 60.0) -> dict[str, Any]:
        return self.places[rank].until(self.links[rank], self.run, FINAL, seconds)

    def pids(self, rank: int, name: str) -> int:
        return int(
            json.loads((self.places[rank].attempt(self.run) / name).read_bytes().strip() or b"{}")["pid"]
        )

    def executed(self, rank: int) -> bool:
        return (self.places[rank].attempt(self.run) / "exec.json").exists()

    def log(self, rank: int) -> str:
        return (self.places[rank].attempt(self.run) / "log").read_text()

    def close(self) -> None:
        for place in self.places:
            place.close()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    made = Group(tmp_path)
    yield made
    made.close()


def joined(group: Group, ranks: list[int], seconds: float = 20.0) -> None:
    """Wait until node 0's link has heard of these members."""
    file, until = group.places[0].attempt(group.run) / "link.json", time.monotonic() + seconds
    while not file.exists() or json.loads(file.read_text())["joined"] != ranks:
        assert time.monotonic() < until
        time.sleep(0.05)


# Held, and let go


def test_a_held_start_has_its_lease_and_runs_nothing_until_it_is_let_go(group: Group) -> None:
    group.commit("echo one; exit 0", "echo two; exit 0", more={"leases": ["box"]})
    group.hold()
    found = group.links[0].status(group.run)
    assert found["group"] == {"nodes": 2, "node_rank": 0, "devices": []}
    assert not group.executed(0)
    assert not group.executed(1)
    other = shell("true", leases=["box"])
    group.places[0].submit(group.links[0], other)
    with pytest.raises(Fault, match=f"run {group.run} holds the lease box"):
        group.links[0].start(other["run_id"])
    # Asked again, by another client too, it is the same hold.
    with group.places[0].link() as second:
        assert second.start(group.run)["reason"] == "held"
    group.all_go()
    assert [group.end(rank)["state"] for rank in (0, 1)] == ["succeeded", "succeeded"]
    assert [group.log(rank) for rank in (0, 1)] == ["one\n", "two\n"]


def test_a_hold_that_nobody_lets_go_ends_with_nothing_run_and_its_lease_free(group: Group) -> None:
    group.commit("echo no", "echo no", more={"leases": ["box"]}, hold_us=3_000_000)
    group.hold()
    until = time.monotonic() + 20
    while (found := group.links[0].status(group.run))["state"] != "committed":
        assert time.monotonic() < until
        time.sleep(0.02)
    assert found["reason"] == "never_executed"
    assert "not every machine" in found["detail"]
    with pytest.raises(Fault, match="NOT_HELD"):
        group.go(0)
    assert not group.executed(0)
    other = shell("true", leases=["box"])
    group.places[0].submit(group.links[0], other)
    group.links[0].start(other["run_id"])
    assert group.places[0].until(group.links[0], other["run_id"], FINAL)["state"] == "succeeded"


def test_after_a_hold_that_is_over_the_same_start_is_held_anew_and_runs_once(group: Group) -> None:
    group.commit("echo 1", "echo 2", hold_us=3_000_000)
    group.hold()
    for rank in (0, 1):
        group.places[rank].until(group.links[rank], group.run, {"committed"})
    group.hold()
    group.all_go()
    assert [group.end(rank)["state"] for rank in (0, 1)] == ["succeeded", "succeeded"]
    assert group.log(0) == "1\n"


def test_a_released_start_leaves_its_lease_and_can_be_started_again(group: Group) -> None:
    group.commit("echo 1", "echo 2", more={"leases": ["box"]})
    group.hold()
    told = group.links[0].ask("release", run_id=group.run, attempt=1, why="h2 is busy")["status"]
    assert (told["state"], told["reason"]) == ("committed", "never_executed")
    assert told["detail"] == "never executed; h2 is busy"
    with pytest.raises(Fault, match="h2 is busy"):
        group.go(0)
    assert group.links[0].ask("release", run_id=group.run, attempt=1)["status"]["state"] == "committed"
    assert group.links[0].start(group.run)["reason"] == "held"
    group.all_go()
    assert [group.end(rank)["state"] for rank in (0, 1)] == ["succeeded", "succeeded"]


def test_the_next_attempt_starts_where_the_last_one_was_never_held(group: Group) -> None:
    """On one machine it was let go and executed, on the other it was given up before that."""
    group.commit("echo 1", "echo 2")
    group.links[0].start(group.run)
    facts = group.links[0].ask("go", run_id=group.run, attempt=1)
    assert facts["status"]["state"] in ("starting", "running", "succeeded")
    group.end(0)
    # Executed there: no second attempt. Never started here: another one may follow.
    with pytest.raises(Fault, match="was executed"):
        group.links[0].start(group.run, attempt=2)
    group.links[1].start(group.run)
    group.links[1].ask("release", run_id=group.run, attempt=1)
    assert group.links[1].start(group.run, attempt=2)["reason"] == "held"
    with pytest.raises(Fault, match="attempt 2 of run"):
        group.links[1].start(group.run, attempt=1)


def test_a_hold_lasts_anew_from_each_time_that_it_is_extended(group: Group) -> None:
    group.commit("echo 1", "echo 2", hold_us=5_000_000)
    group.hold()
    until = time.monotonic() + 6
    while time.monotonic() < until:
        for link in group.links:
            assert link.ask("extend", run_id=group.run, attempt=1)["status"]["reason"] == "held"
        time.sleep(0.2)
    group.all_go()
    assert [group.end(rank)["state"] for rank in (0, 1)] == ["succeeded", "succeeded"]


def test_a_member_that_nobody_lets_go_hears_of_it_from_node_0(group: Group) -> None:
    """The client is gone between the two, and no other one comes; strangers cannot say it."""
    group.commit("echo 1", "echo 2")
    group.hold()
    facts = group.extend(0)
    assert group.extend(1, facts) == {}
    time.sleep(0.7)
    assert not group.executed(1), "node 0 is held as well"
    group.go(0)
    assert [group.end(rank)["state"] for rank in (0, 1)] == ["succeeded", "succeeded"]
    assert [group.log(rank) for rank in (0, 1)] == ["1\n", "2\n"]


def test_a_member_is_not_let_go_by_one_without_the_token(group: Group) -> None:
    group.commit("echo 1", "echo 2", hold_us=10_000_000)
    group.hold()
    group.extend(1, {**group.extend(0), "token": "0" * 64})
    group.go(0)
    time.sleep(1.5)
    assert not group.executed(1)
    group.links[0].ask("cancel", run_id=group.run)
    group.links[1].ask("cancel", run_id=group.run)
    assert group.end(1)["state"] == "cancelled"


def test_an_extended_hold_of_which_node_0_gives_up_ends_as_well(group: Group) -> None:
    group.commit("echo 1", "echo 2", more={"leases": ["box"]}, hold_us=2_000_000)
    group.hold()
    group.extend(1, group.extend(0))
    assert group.places[0].until(group.links[0], group.run, {"committed"})["reason"] == "never_executed"
    with pytest.raises(Fault, match="NOT_HELD"):
        group.extend(0)
    group.links[1].ask("release", run_id=group.run, attempt=1)
    assert group.links[1].status(group.run)["state"] == "committed"
    assert not group.executed(1)


def test_a_cancel_while_one_half_was_let_go_ends_both_and_frees_what_was_held(group: Group) -> None:
    group.commit("sleep 100", "echo no", more={"leases": ["box"]})
    group.hold()
    group.go(0)
    for link in group.links:
        link.ask("cancel", run_id=group.run)
    assert [group.end(rank)["state"] for rank in (0, 1)] == ["cancelled", "cancelled"]
    assert not group.executed(1)
    for place, link in zip(group.places, group.links, strict=True):
        other = shell("true", leases=["box"])
        place.submit(link, other)
        place.until(link, other["run_id"], {"committed"})
        link.start(other["run_id"], wait_us=30_000_000)
        assert place.until(link, other["run_id"], FINAL)["state"] == "succeeded"


def test_what_was_let_go_cannot_be_released(group: Group) -> None:
    group.start("sleep 0.5; echo ran", "sleep 0.5")
    told = group.links[0].ask("release", run_id=group.run, attempt=1)["status"]
    assert told["state"] in ("starting", "running")
    assert group.end(0)["state"] == "succeeded"


def test_a_held_start_is_cancelled_as_one_that_never_ran(group: Group) -> None:
    group.commit("echo no", "echo no")
    group.hold()
    group.links[0].ask("cancel", run_id=group.run)
    found = group.end(0)
    assert (found["state"], found["started_us"]) == ("cancelled", None)
    assert not group.executed(0)


def test_the_others_are_let_go_only_with_what_node_0_gave(group: Group) -> None:
    group.commit("true", "true")
    group.hold()
    for body in (b"", b"{}", b"[]", b"x", b'{"link_port": 1, "master_port": 70000, "token": "x"}'):
        with pytest.raises(Fault, match="BAD_REQUEST"):
            group.links[1].ask("go", body, run_id=group.run, attempt=1)
    assert group.links[1].status(group.run)["reason"] == "held"


def test_no_token_stands_in_specification_log_or_argument(group: Group) -> None:
    group.commit("sleep 5", "sleep 5")
    group.hold()
    facts = group.go(0)
    group.go(1, facts)
    token, attempt = facts["token"], group.places[0].attempt(group.run)
    open_to_all = {"held.json", "go.json"}
    for path in (group.places[0].root / "runs" / group.run).rglob("*"):
        if path.is_file() and path.name not in open_to_all:
            assert token.encode() not in path.read_bytes(), path
    assert (attempt / "go.json").stat().st_mode & 0o077 == 0
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert token.encode() not in line.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
    for link in group.links:
        link.ask("cancel", run_id=group.run)
    assert group.end(0)["state"] == "cancelled"


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodes": 1},
        {"node_rank": 2},
        {"members": ["h1"]},
        {"members": [1, 2]},
        {"address": ""},
        {"hold_us": 0},
        {"interface": "a b"},
        {"more": 1},
    ],
)
def test_a_group_that_cannot_be_is_refused(group: Group, wrong: dict[str, Any]) -> None:
    good = {"nodes": 2, "node_rank": 0, "members": ["h1", "h2"], "address": "127.0.0.1"}
    made = shell("true", run_id=group.run, group={**good, **wrong})
    with pytest.raises(Fault, match="BAD_SPEC"):
        group.links[0].commit(made)


# What the work sees


def test_the_work_knows_its_node_and_where_they_meet(group: Group) -> None:
    script = "echo $ROUTE_NODE_RANK $ROUTE_NODES $MASTER_ADDR $MASTER_PORT $NCCL_SOCKET_IFNAME"
    group.commit(script, script, interface="eth7")
    group.hold()
    facts = group.go(0)
    group.go(1, facts)
    for rank in (0, 1):
        assert group.end(rank)["state"] == "succeeded"
        assert group.log(rank) == f"{rank} 2 127.0.0.1 {facts['master_port']} eth7\n"
    # The port was kept for the work and is free by the time it runs.
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", facts["master_port"]))


def test_variables_of_a_fabric_do_not_reach_ranks_of_one_machine(tmp_path: Path) -> None:
    place = Place(tmp_path)
    leaked = {"NCCL_NET": "IB", "NCCL_IB_HCA": "mlx5", "NCCL_DEBUG": "WARN", "NCCL_NET_GDR_LEVEL": "3"}
    with place.link(env=leaked) as link:
        script = "import os; print(sorted(n for n in os.environ if n.startswith('NCCL')))"
        made = spec(
            ["{python}", "w.py"], files={"w.py": script.encode()}, launcher={"name": "torchrun", "ranks": 2}
        )
        made["env"] = {"NCCL_IB_TIMEOUT": "22"}
        pytest.importorskip("torch")
        run_id = place.submit(link, made, files={"w.py": script.encode()})
        link.start(run_id)
        assert place.until(link, run_id, FINAL, 90)["state"] == "succeeded"
        link.ask("manifest", run_id=run_id)
        # What the workload itself asks for is its own affair.
        assert (
            "['NCCL_DEBUG', 'NCCL_IB_TIMEOUT', 'NCCL_NET_GDR_LEVEL']"
            in (place.attempt(run_id) / "log").read_text()
        )
        launch = place.read(run_id, "measured.json")["launch"]
        assert launch["scrubbed"]["v"] == ["NCCL_IB_HCA", "NCCL_NET"]
    place.close()


# Ended together


def test_one_that_fails_ends_the_others_and_is_named(tmp_path: Path) -> None:
    group = Group(tmp_path, 3)
    group.start("sleep 100", "sleep 1; exit 3", "sleep 100 & sleep 100")
    for rank in (0, 2):
        found = group.end(rank)
        assert (found["state"], found["reason"]) == ("failed", "group"), found
        assert found["detail"] == "ended because of node 1 (h2): exit: exit code 3"
    assert group.end(1)["exit_code"] == 3
    group.close()


def test_one_that_ends_well_ends_nobody_and_later_failures_are_still_told(tmp_path: Path) -> None:
    group = Group(tmp_path, 3)
    group.start("exit 0", "sleep 2; kill -9 $$", "sleep 100")
    assert group.end(0)["state"] == "succeeded"
    assert group.end(1)["signal"] == 9
    assert group.end(2)["detail"].startswith("ended because of node 1 (h2): signal")
    group.close()


def test_a_machine_that_is_gone_ends_the_others(group: Group) -> None:
    group.start("sleep 100", "sleep 100", lost_us=6_000_000)
    joined(group, [1])
    names = ("started.json", "watch.lock", "link.json", "exec.json")
    noted = [json.loads((group.places[1].attempt(group.run) / name).read_bytes()) for name in names]
    for facts in noted:
        os.kill((facts.get("waiter") or facts)["pid"], signal.SIGKILL)
    found = group.end(0)
    assert (found["reason"], found["state"]) == ("group", "failed")
    assert found["detail"] == "ended because of node 1 (h2): it was not heard of for 6 s"
    # It was booted anew meanwhile: that is what its own records say from the first look on.
    at = group.places[1].attempt(group.run) / "started.json"
    at.write_text(json.dumps({**json.loads(at.read_bytes()), "boot_id": "another"}))
    found = group.end(1)
    assert (found["state"], found["reason"]) == ("lost", "rebooted")


def test_node_0_that_is_gone_ends_the_others(group: Group) -> None:
    group.start("sleep 100", "sleep 100", lost_us=6_000_000)
    joined(group, [1])
    for name in ("started.json", "watch.lock", "link.json", "exec.json"):
        facts = json.loads((group.places[0].attempt(group.run) / name).read_bytes())
        os.kill((facts.get("waiter") or facts)["pid"], signal.SIGKILL)
    assert group.end(1)["detail"] == "ended because of node 0 (h1): it was not heard of for 6 s"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_link_that_dies_is_brought_back_and_costs_no_healthy_run(group: Group, rank: int) -> None:
    group.start("sleep 12", "sleep 12", lost_us=9_000_000)
    joined(group, [1])
    for _ in range(3):
        pid = group.pids(rank, "link.json")
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 10
        while group.pids(rank, "link.json") == pid:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert [group.end(each)["state"] for each in (0, 1)] == ["succeeded", "succeeded"]


def test_a_member_that_never_comes_is_named_and_ends_the_group(group: Group) -> None:
    group.commit("sleep 100", "sleep 100")
    group.hold()
    facts = group.go(0)
    made = links.Link(Attempt(Run(str(group.places[0].root), group.run), 1), _spec(group, 0), facts, None)
    made.judge(made.began + links.JOIN - 1)
    assert not made.verdict
    made.judge(made.began + links.JOIN + 1)
    assert (made.verdict["rank"], made.verdict["detail"]) == (1, "it never came to the others within 60 s")
    for each in group.links:
        each.ask("cancel", run_id=group.run)
    assert {group.end(rank)["state"] for rank in (0, 1)} == {"cancelled"}


def _spec(group: Group, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (group.places[rank].root / "runs" / group.run / "spec.json").read_bytes()
    )
    return found


def test_strangers_at_the_door_change_nothing(group: Group) -> None:
    group.commit("sleep 3", "sleep 3")
    group.hold()
    facts = group.go(0)
    strangers = []
    for data in (b"", b"\n", b"{}\n", b'{"nonce":"%s","rank":1,"mac":"x"}\n' % (b"0" * 32), b"x" * 100_000):
        made = socket.create_connection(("127.0.0.1", facts["link_port"]))
        made.sendall(data)
        strangers.append(made)
    group.go(1, facts)
    joined(group, [1])
    assert [group.end(each)["state"] for each in (0, 1)] == ["succeeded", "succeeded"]
    for made in strangers:
        made.close()


def test_a_member_with_another_token_is_no_member(group: Group) -> None:
    group.commit("sleep 100", "sleep 100", lost_us=4_000_000)
    group.hold()
    facts = group.go(0)
    group.go(1, {**facts, "token": "0" * 64})
    time.sleep(1.0)
    assert json.loads((group.places[0].attempt(group.run) / "link.json").read_text())["joined"] == []
    group.links[0].ask("cancel", run_id=group.run)
    group.links[1].ask("cancel", run_id=group.run)
    assert {group.end(rank)["state"] for rank in (0, 1)} == {"cancelled"}


def test_a_cancelled_member_ends_the_others(group: Group) -> None:
    group.start("sleep 100", "sleep 100")
    joined(group, [1])
    group.links[1].ask("cancel", run_id=group.run)
    assert group.end(1)["state"] == "cancelled"
    assert group.end(0)["detail"].startswith("ended because of node 1 (h2): cancel")


def test_no_process_of_the_group_is_left(group: Group) -> None:
    group.start("sleep 0.2", "sleep 0.2")
    joined(group, [1])
    pids = [group.pids(rank, "link.json") for rank in (0, 1)]
    assert [group.end(rank)["state"] for rank in (0, 1)] == ["succeeded", "succeeded"]
    assert all(ended(pid, 20) for pid in pids)


def test_a_run_on_one_machine_has_no_link(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with place.link() as link:
        run_id = place.submit(link, shell("sleep 0.3"))
        link.start(run_id)
        assert "group" not in place.until(link, run_id, FINAL)
        left = {path.name for path in place.attempt(run_id).iterdir()}
        assert not left & {"link.json", "held.json", "go.json"}
        with pytest.raises(Fault, match="NOT_HELD"):
            link.ask("go", run_id=place.submit(link, shell("true")), attempt=1)
    place.close()
