"""Proves that a run is seen, ended and collected by a client that has only its id or key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from conftest import ROUTE, Route
from pair import Pair, ended, submission, work
from relay import Relay
from ssh_machines import entry_of, pin_all, write_machines
from sshd import Sshd

from compute_router.adopting import MOST, records_of
from compute_router.backend import State
from compute_router.receipt import verify
from compute_router.router import Router

WORK = """\
# /// script
# [tool.route]
# kind = "bench"
# purpose = "benchmark"
# framework = "none"
# outputs = ["results/"]
# secrets = ["CANARY"]
# ///
import os, pathlib, sys, time
print("begun", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
pathlib.Path("results").mkdir()
pathlib.Path("results/weights").write_bytes(b"w" * 100_000)
pathlib.Path("scratch").write_bytes(b"s" * 100_000)
pathlib.Path(os.environ["ROUTE_OUTPUTS"], "note").write_text("done")
print("over", flush=True)
"""
Client = Callable[..., "CompletedProcess[str]"]


class Two:
    """Two clients, each with a home and a folder of its own, that know the same place."""

    def __init__(self, route: Route, top: Path) -> None:
        self.top, self._route = top, route
        self.machine, self.stop = top / "machine", top / "stop"
        for name in "ab":
            (top / name).mkdir()
        (top / "a" / "work.py").write_text(WORK)
        config = top / "config" / "route"
        config.mkdir(parents=True)
        (config / "config.toml").write_text(f'[backends.local]\nroot = "{self.machine}"\n')

    def home(self, name: str) -> Path:
        return self.top / f"home-{name}"

    def _call(self, name: str, *args: str, **more: Any) -> CompletedProcess[str]:
        env = {"ROUTE_HOME": str(self.home(name)), "XDG_CONFIG_HOME": str(self.top / "config")}
        secret = {"CANARY": "tweet-tweet-4711" if name == "a" else None}
        return self._route(*args, cwd=self.top / name, env={**env, **secret}, **more)

    def a(self, *args: str) -> CompletedProcess[str]:
        return self._call("a", *args)

    def b(self, *args: str) -> CompletedProcess[str]:
        return self._call("b", *args)

    def start(self, *more: str) -> str:
        done = self.a("run", "-d", *more, "work.py", "--", str(self.stop))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def receipt(self, name: str, run_id: str) -> dict[str, Any]:
        path = self.home(name) / "runs" / run_id / "receipt.json"
        assert verify(path) == []
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found


@pytest.fixture
def two(route: Route, tmp_path: Path) -> Two:
    return Two(route, tmp_path)


def data(done: CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])["data"]


def answered(call: Callable[[], CompletedProcess[str]]) -> CompletedProcess[str]:
    """What `call` gives once the machine answers in time, which a crowded one may not at once."""
    until = time.monotonic() + 60
    while (done := call()).returncode == 75 and time.monotonic() < until:
        time.sleep(0.5)
    return done


def test_a_second_client_sees_a_run_by_its_id_and_collects_it(two: Two) -> None:
    run_id = two.start()
    seen = data(two.b("status", "--json", run_id))
    assert (seen["state"], seen["name"], seen["backend"]) == ("running", "work", "local")
    [row] = data(two.b("ps", "--json"))["runs"]
    assert (row["run_id"], row["state"], row["backend"]) == (run_id, "running", "local")
    assert row["created_us"] == data(two.a("ps", "--json"))["runs"][0]["created_us"]
    assert "begun" in two.b("logs", run_id).stdout
    two.stop.touch()
    assert two.b("wait", run_id).returncode == 0
    assert two.a("wait", run_id).returncode == 0, "the first client is none the worse for it"
    ours, theirs = two.receipt("a", run_id), two.receipt("b", run_id)
    assert theirs["measured"] == ours["measured"]
    assert theirs["measured_sha256"] == ours["measured_sha256"]
    assert theirs["comparability"] == ours["comparability"]
    assert ours["context"]["client"]["adopted"]["v"] is False
    assert theirs["context"]["client"]["adopted"]["v"] is True
    twice = [str(two.home(name) / "runs" / run_id / "receipt.json") for name in "ab"]
    compared = two.a("compare", *twice)
    assert compared.returncode == 65
    assert "in both arms" in compared.stdout, "two receipts of one run are one run"
    pooled = two.a("compare", *twice, "vs", twice[0], "--json")
    assert "tells of the same run" in pooled.stdout, "and in one arm it counts once"
    for name in "ab":
        outputs = two.home(name) / "runs" / run_id / "outputs"
        assert (outputs / "results" / "weights").read_bytes() == b"w" * 100_000
        assert (outputs / "note").read_text() == "done"


def test_a_key_alone_is_enough_and_starts_nothing(two: Two) -> None:
    run_id = two.start("--key", "nightly 7")
    assert data(two.b("status", "--json", "nightly 7"))["run_id"] == run_id
    assert data(two.b("status", "--json", "nightly 7"))["run_id"] == run_id, "known by now, by its key"
    assert data(two.a("status", "--json", "nightly 7"))["run_id"] == run_id
    assert two.b("cancel", run_id).returncode == 0
    assert two.b("wait", run_id).returncode == 143
    assert two.a("wait", run_id).returncode == 143
    assert len(list((two.machine / "runs" / run_id / "attempts").iterdir())) == 1


def test_what_is_left_for_others_holds_no_secret(two: Two) -> None:
    run_id = two.start()
    kept = (two.machine / "runs" / run_id / "client.jsonl").read_text()
    assert [next(iter(json.loads(line))) for line in kept.splitlines()] == [
        "run",
        "workload",
        "intent",
        "decision",
        "offers",
        "handle",
    ]
    assert "CANARY" in kept
    assert "tweet" not in kept
    two.stop.touch()
    two.a("wait", run_id)


def test_outputs_stay_for_the_second_client_and_nothing_else_does(two: Two) -> None:
    run_id = two.start()
    two.stop.touch()
    assert two.a("wait", run_id).returncode == 0
    work = two.machine / "runs" / run_id / "work"
    assert sorted(str(p.relative_to(work)) for p in work.rglob("*")) == ["results", "results/weights"]
    assert two.b("collect", run_id).returncode == 0
    assert (two.home("b") / "runs" / run_id / "outputs" / "results" / "weights").is_file()
    [until] = os.listdir(two.machine / "retained")
    assert int(until.partition(".")[0]) > time.time_ns() // 1000 + 86_000_000_000


def test_outputs_that_are_gone_are_said_to_be_with_who_has_them(two: Two) -> None:
    run_id = two.start()
    two.stop.touch()
    assert two.a("wait", run_id).returncode == 0
    # Their time is over: the next client to be done with a run removes them.
    [until] = os.listdir(two.machine / "retained")
    (two.machine / "retained" / until).rename(two.machine / "retained" / f"1.{run_id}")
    two.stop.unlink()
    other = two.start()
    two.stop.touch()
    assert two.a("wait", other).returncode == 0
    assert not (two.machine / "runs" / run_id / "work").exists()
    assert data(two.b("status", "--json", run_id))["state"] == "succeeded"
    collected = two.b("collect", run_id)
    assert collected.returncode == 0, collected.stderr
    assert "2 outputs (100,004 bytes) are not here: another client collected them (" in collected.stderr
    receipt = two.receipt("b", run_id)
    assert receipt["measured"] == two.receipt("a", run_id)["measured"]
    [caveat] = [c for c in receipt["context"]["caveats"]["v"] if "not here" in c]
    assert "and they were removed" in caveat
    assert "over" in two.b("logs", run_id).stdout, "its records are there for good"


def test_runs_of_others_are_listed_when_asked_for(two: Two) -> None:
    run_id = two.start()
    assert data(two.b("ps", "--json"))["runs"] == []
    [row] = data(two.b("ps", "--there", "--json"))["there"]
    assert (row["run_id"], row["name"], row["backend"], row["state"]) == (run_id, "work", "local", "running")
    shown = two.b("ps", "--there").stdout
    assert run_id in shown
    assert "this machine" in shown
    assert data(two.a("ps", "--there", "--json"))["there"] == [], "it is this store's own"
    two.b("cancel", run_id)
    assert data(two.b("ps", "--there", "--json"))["there"] == [], "it was adopted"


def test_a_run_that_is_nowhere_is_said_not_to_be(two: Two) -> None:
    two.start("--key", "k")
    for ref in ("01arz3ndektsv4rrffq69g5fav", "no such key", "latest"):
        done = two.b("status", ref)
        assert done.returncode == 64, done.stderr
    two.b("cancel", "k")


def test_where_a_place_cannot_be_asked_it_cannot_be_told(two: Two) -> None:
    run_id = two.start()
    config = two.top / "config" / "route" / "config.toml"
    good = config.read_text()
    config.write_text('[backends.local]\nroot = "/proc/nowhere"\n')
    done = two.b("status", run_id)
    assert done.returncode == 75
    assert (
        f"there is no run '{run_id}' here; whether there is one elsewhere cannot be told: local: "
        in done.stderr
    )
    assert not (two.home("b") / "runs" / run_id).exists()
    config.write_text(good)
    assert two.b("cancel", run_id).returncode == 0
    assert two.b("wait", run_id).returncode == 143


def test_records_that_are_none_are_one_line(two: Two) -> None:
    run_id = two.start()
    kept = two.machine / "runs" / run_id / "client.jsonl"
    good = kept.read_text()
    none = '{"run": {}}\n{"workload": {"name": 3}}\n{"intent": {}}'
    for left in ("", "{}", "[]\nnull\n", '{"run": 7}', none, "\0\xff"):
        kept.write_text(left)
        done = two.b("status", run_id)
        assert done.returncode == 65, left + done.stderr
        assert f"run {run_id} " in done.stderr
        assert "Traceback" not in done.stderr
        assert list(two.home("b").glob("runs/*")) == []
    kept.write_text(good)
    two.b("cancel", run_id)
    assert two.a("wait", run_id).returncode == 143


def test_a_decision_that_cannot_be_read_is_left_out(two: Two) -> None:
    run_id = two.start()
    kept = two.machine / "runs" / run_id / "client.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    changed = [{**line, "offers": {"offers": [7]}} if "offers" in line else line for line in lines]
    kept.write_text("".join(json.dumps(line) + "\n" for line in changed))
    two.stop.touch()
    assert two.b("wait", run_id).returncode == 0
    context = two.receipt("b", run_id)["context"]
    assert context["decision"]["policy"] == {"v": None, "why": "unobserved"}
    assert two.a("wait", run_id).returncode == 0


def test_what_never_started_is_started_only_where_its_files_are(two: Two) -> None:
    run_id = two.start("--key", "k")
    two.a("cancel", run_id)
    two.a("wait", run_id)
    # As if the first client had died between its commit and its start.
    shutil.rmtree(two.machine / "runs" / run_id / "attempts")
    (two.machine / "runs" / run_id / "attempts").mkdir()
    (two.machine / "runs" / run_id / "collected.json").unlink()
    (two.top / "a").rename(two.top / "away")
    (two.top / "a").mkdir()
    assert data(two.b("status", "--json", run_id))["state"] == "committed"
    done = two.b("wait", run_id)
    assert done.returncode == 65
    assert "never executed, and its files are not here" in done.stderr
    assert list((two.machine / "runs" / run_id / "attempts").iterdir()) == []


def test_many_offers_do_not_keep_the_rest_from_being_left(two: Two) -> None:
    run_id = two.start()
    run = Router(two.home("a"), plugins=False).store.open(run_id)
    offers = run.read_json("offers")
    assert offers is not None
    [taken] = [offer for offer in offers["offers"] if offer["type"] == "offer"]
    padding = [{**taken, "id": f"other-{n}", "note": "x" * 1000} for n in range(2000)]
    run.write("offers", {**offers, "offers": [*padding, taken]})
    lines = records_of(run)
    assert len(lines) <= MOST
    left = {name: record for line in lines.splitlines() for name, record in json.loads(line).items()}
    assert left["offers"]["offers"] == [taken]
    assert left["workload"]["name"] == "work"
    two.stop.touch()
    assert two.a("wait", run_id).returncode == 0


def test_a_run_on_several_machines_is_found_whole(home: Path, folder: Path, tmp_path: Path) -> None:
    first = Pair(home)
    handle = first.submit(submission(first, work(folder, "print(1)"), records=b'{"run": {"name": "it"}}\n'))
    for name in ("second", "third"):
        (tmp_path / name / "machine").mkdir(parents=True)
    second = Pair(tmp_path / "second", *reversed(first.given))
    kept = second.kept(handle.run_id)
    assert kept is not None
    assert kept.handle == handle, "with its machines in their order"
    assert ended(second, kept.handle).state is State.SUCCEEDED
    assert {run.run_id for run in second.there()} == {handle.run_id}
    lone = Pair(tmp_path / "third", first.given[0])
    alone = lone.kept(handle.run_id)
    assert alone is not None
    assert alone.handle.data["machines"] == ["h1"], "who knows one of them alone sees that one"


@pytest.fixture
def relay(two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """Both clients know the machine h1 behind a real sshd, and a relay between them and it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(two.top / "config"))
    server = Sshd(tmp_path / "sshd").start()
    with Relay(server.port) as between:
        entry = entry_of(server, two.machine, address=f"{server.user}@127.0.0.1:{between.port}")
        pin_all("h1", entry)
        write_machines(two.top / "config" / "route" / "config.toml", {"h1": entry})
        yield between
    server.kill()


def test_over_ssh_after_the_first_client_was_killed(two: Two, relay: Relay) -> None:
    """As it is told: run --detach, the laptop is closed, and another one goes on."""
    run_id = two.start("--backend", "ssh")
    env = {**os.environ, "ROUTE_HOME": str(two.home("a"))}
    laptop = subprocess.Popen([*ROUTE, "resume", run_id], env=env, stdout=subprocess.PIPE)
    assert laptop.stdout is not None
    assert laptop.stdout.readline() == b"begun\n"
    laptop.kill()
    laptop.communicate()
    relay.refuse()
    away = two.b("status", run_id)
    assert away.returncode == 75
    assert "h1 could not be asked" in away.stderr
    assert two.b("ps", "--there").returncode == 0
    assert "h1 could not be asked" in two.b("ps", "--there").stderr
    relay.heal()
    seen = data(answered(lambda: two.b("status", "--json", run_id)))
    assert (seen["state"], seen["backend"], seen["offer_id"]) == ("running", "ssh", "h1")
    assert two.b("shell", run_id, "--", "sh", "-c", "basename $PWD").stdout == "work\n"
    two.stop.touch()
    assert two.b("logs", "-f", run_id).stdout == "begun\nover\n"
    assert two.b("collect", run_id).returncode == 0
    assert two.a("collect", run_id).returncode == 0
    ours, theirs = two.receipt("a", run_id), two.receipt("b", run_id)
    assert theirs["measured_sha256"] == ours["measured_sha256"]
    assert theirs["context"]["client"]["adopted"]["v"] is True
    for name in "ab":
        weights = two.home(name) / "runs" / run_id / "outputs" / "results" / "weights"
        assert weights.read_bytes() == b"w" * 100_000
    assert len(list((two.machine / "runs" / run_id / "attempts").iterdir())) == 1
