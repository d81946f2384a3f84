"""Proves that whatever is killed, every run of a study is started once and none is missing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROUTE, Route
from studying import driver_of, kill, study, until, witnessed

from compute_router.receipt import verify
from compute_router.studies import receipts

KILLS = max(4, int(os.environ.get("ROUTE_KILLS", "60")) // 10)


@pytest.mark.slow
def test_driver_and_client_are_killed_at_any_moment(
    folder: Path, home: Path, route: Route, seed: random.Random
) -> None:
    witness = study(folder, n=3, sleep=0.1)
    killed = 0
    for _ in range(KILLS):
        client = subprocess.Popen(
            [*ROUTE, "study", "run"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # From the first moment of the client to well inside a run of the work.
        time.sleep(seed.uniform(0.0, 2.5))
        if seed.random() < 0.3:
            kill(client.pid)
            time.sleep(seed.uniform(0.0, 0.5))
        if driver := _driver(home):
            kill(driver)
            killed += 1
        kill(client.pid)
        client.wait()
    out = route("study", "run", timeout=120)
    assert out.returncode == 0, out.stderr
    found = receipts(home, "s")
    print(f"{killed} drivers were killed")
    assert found.state == "over"
    assert witnessed(witness) == {f"{turn.arm} {turn.index}": 1 for turn in found.plan.turns}
    assert found.complete
    assert found.failed == ()
    assert found.extra == found.retried == ()
    for path in found.receipts:
        assert verify(path) == []
    assert len(list((home / "runs").iterdir())) == 6


def _driver(home: Path) -> int | None:
    from compute_router.studies.folder import studies

    return next((pid for folder in studies(home) if (pid := folder.driver)), None)


def test_a_run_in_flight_is_followed_by_the_next_driver(folder: Path, home: Path, route: Route) -> None:
    witness = study(folder, n=1, sleep=1.5)
    assert route("study", "run", "--detach").returncode == 0
    until(lambda: witnessed(witness))
    kill(driver_of(home))
    until(lambda: receipts(home, "s").state == "interrupted")
    in_flight = receipts(home, "s").seen[0].run_id
    shown = route("study", "status").stdout
    assert "interrupted; 0 of 2 runs counted" in shown
    out = route("study", "resume")
    assert out.returncode == 0, out.stderr
    found = receipts(home, "s")
    assert found.seen[0].run_id == in_flight
    assert set(witnessed(witness).values()) == {1}
    assert len(witnessed(witness)) == 2


def test_the_driver_does_not_hear_the_terminal(folder: Path, home: Path, route: Route) -> None:
    witness = study(folder, n=1, sleep=0.5)
    client = subprocess.Popen(
        [*ROUTE, "study", "run"], cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until(lambda: witnessed(witness))
    driver = driver_of(home)
    assert os.getsid(driver) == driver
    for number in (signal.SIGHUP, signal.SIGINT):
        os.kill(driver, number)
    os.killpg(client.pid, signal.SIGKILL)
    client.wait()
    until(lambda: receipts(home, "s").state == "over")
    assert receipts(home, "s").failed == ()
