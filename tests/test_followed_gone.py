"""Proves that nothing asks, starts or spins for ever where a run's records were removed under it, or where a
connection tells a state and breaks again and again."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import LyingMachine, On
from supervisor_driver import Fault, Place, holders, kill, shell

from compute_router.backend import Handle, State, Status
from compute_router.machines import running
from compute_router.records import new_run_id
from compute_router.supervisor import follow, machine, runs
from compute_router.supervisor import watcher as watching


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def until(seen: Any, patience: float = 20.0) -> None:
    end = time.monotonic() + patience
    while not seen():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def orphaned(place: Place) -> tuple[Any, str, int, int]:
    """A run whose waiter was killed, followed by nobody: link, run, its work, its new watcher."""
    link = place.link()
    run_id = place.submit(link, shell("sleep 60"))
    link.start(run_id)
    attempt, work = place.attempt(run_id), place.read(run_id, "exec.json")
    beat = attempt / "heartbeat.json"
    until(beat.exists)
    kill(holders(attempt, "sup.lock") + holders(attempt, "watch.lock"))
    beat.unlink()
    # Each look gives it a watcher if it has none; one that beats has read all that it reads of the records.
    until(lambda: link.status(run_id)["state"] == "orphaned" and beat.exists())
    [watcher] = holders(attempt, "watch.lock")
    return link, run_id, work["pid"], watcher


def remove(place: Place, run_id: str) -> None:
    """Remove a run's folder at once, though somebody writes to it just now."""
    gone = place.root.parent / "gone"
    place.attempt(run_id).parent.parent.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def test_a_watcher_ends_with_work_whose_records_are_gone(place: Place) -> None:
    _, run_id, work, watcher = orphaned(place)
    started = machine.process(watcher)
    assert started is not None
    remove(place, run_id)
    assert machine.alive(watcher, started.start), "as long as the work runs somebody holds its deadline"
    kill([work])
    until(lambda: not machine.alive(watcher, started.start))


def test_a_follow_of_a_run_that_was_removed_says_so(place: Place) -> None:
    link, run_id, work, _ = orphaned(place)
    told: list[BaseException] = []

    def listen() -> None:
        try:
            link.follow(run_id)
        except Fault as e:
            told.append(e)

    listening = threading.Thread(target=listen)
    listening.start()
    time.sleep(0.3)
    remove(place, run_id)
    kill([work])
    listening.join(30)
    [fault] = told
    assert isinstance(fault, Fault)
    assert fault.code == "NOT_COMMITTED"


def test_an_orphan_whose_watchers_die_is_not_given_one_after_another(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run_id, work, watcher = orphaned(place)
    kill([watcher])
    adopted: list[float] = []
    # A stand-in for a watcher that dies at once, as on a disk that is full.
    monkeypatch.setattr(watching, "adopt", lambda attempt, spec: adopted.append(time.monotonic()))
    run = runs.Run(str(place.root), run_id)
    sent: list[Any] = []

    class Wire:
        def send(self, head: Any, data: bytes = b"") -> None:
            sent.append(head)

    follower = follow.Follower(run, Wire(), 0)  # type: ignore[arg-type]
    for _ in range(40):
        follower.look()
        time.sleep(0.01)
    assert 1 <= len(adopted) <= 2
    assert [head["status"]["state"] for head in sent] == ["orphaned"]
    kill([work])


def test_a_connection_that_tells_and_breaks_is_asked_ever_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "hear(); say({'re': 'follow', 'status': {'state': 'running', 'attempt': 1}}); sys.exit(0)"
    on = On(tmp_path, LyingMachine(tmp_path / "m", program))
    run_id = new_run_id()
    data = {"machines": ["liar"], "roots": ["/x"]}
    handle = Handle(backend="local", version=1, run_id=run_id, key=run_id, attempt=1, data=data)
    pauses: list[float] = []

    class Clock:
        """A stand-in for the clock: it does not wait, and notes for how long it was asked to."""

        monotonic = staticmethod(time.monotonic)
        time_ns = staticmethod(time.time_ns)

        @staticmethod
        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 8:
                raise KeyboardInterrupt

    monkeypatch.setattr(running, "time", Clock)
    seen = []
    stream = on.attached(handle)
    try:
        for item in stream:
            assert isinstance(item, Status)
            seen.append(item.state)
    except KeyboardInterrupt:
        assert len(pauses) == 8
    assert set(seen) == {State.RUNNING, State.UNKNOWN}
    assert pauses[-1] >= 5.0, pauses
