"""Proves that an unreachable run is shown so, with since when, and truthfully once it can be seen again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROUTE, Route
from relay import Relay
from ssh_machines import entry_of, pin_all, write_machines
from sshd import Sshd

WORK = """\
# /// script
# [tool.route]
# kind = "bench"
# framework = "none"
# ///
import pathlib, sys, time
stop, count = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
count.open("a").write("started\\n")
while not stop.exists():
    print("tick", flush=True)
    time.sleep(0.2)
print("over", flush=True)
"""


class Attached:
    """`route run --json` on the machine behind the relay, and its events as they come."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [*ROUTE, "run", "--json", "--backend", "ssh", "work.py", "--", *args],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, event: str, **fields: Any) -> dict[str, Any]:
        """Read on until such an event has come."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found: dict[str, Any] = json.loads(line)
            if found.get("event") != "log":
                self.events.append(found)
            if found.get("event") == event and all(found.get(n) == v for n, v in fields.items()):
                return found
        raise AssertionError(f"it ended without {event} {fields}: {self.events} {self.process.communicate()}")


@pytest.fixture
def relay(tmp_path: Path, folder: Path) -> Iterator[Relay]:
    """Between `route` and the sshd of the machine h1."""
    server = Sshd(tmp_path / "sshd").start()
    with Relay(server.port) as between:
        address = f"{server.user}@127.0.0.1:{between.port}"
        entry = entry_of(server, tmp_path / "machine", address=address)
        pin_all("h1", entry)
        write_machines(Path(os.environ["XDG_CONFIG_HOME"]) / "route" / "config.toml", {"h1": entry})
        (folder / "work.py").write_text(WORK)
        yield between
        between.heal()
    server.kill()


FAULTS = {
    "everything is lost": lambda relay: relay.drop(),
    "replies are lost": lambda relay: relay.drop(up=False),
    "it refuses": lambda relay: relay.refuse(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_is_unreachable_since_then_and_back_once_the_network_is(
    fault: str, relay: Relay, folder: Path, tmp_path: Path, route: Route
) -> None:
    stop, count = tmp_path / "stop", tmp_path / "count"
    attached = Attached(folder, str(stop), str(count))
    attached.until("state", state="running")
    attached.until("log")
    before = time.time_ns() // 1000
    FAULTS[fault](relay)
    seen = attached.until("state", state="unknown")
    noticed = time.time_ns() // 1000
    assert seen["last"] == "running"
    # The last that was heard may have come a beat before the network went.
    assert before - 6_000_000 < seen["since_us"] < noticed
    stop.touch()
    relay.heal()
    healed = time.monotonic()
    back = attached.until("back")
    print(f"{fault}: noticed after {(noticed - before) / 1e6:.1f} s, back {time.monotonic() - healed:.1f} s "
          f"after healing")  # fmt: skip
    assert back["after_us"] > 0
    attached.until("receipt")
    assert attached.process.wait(60) == 0
    assert count.read_text() == "started\n"
    states = [e["state"] for e in attached.events if e.get("event") == "state"]
    assert "lost" not in states
    assert states[-1] == "succeeded"


def test_every_verb_says_since_when_it_cannot_be_seen(
    relay: Relay, folder: Path, tmp_path: Path, route: Route
) -> None:
    stop, count = tmp_path / "stop", tmp_path / "count"
    started = route("run", "-d", "--backend", "ssh", "work.py", "--", str(stop), str(count))
    assert started.returncode == 0, started.stderr
    run_id = started.stdout.strip()
    assert json.loads(route("status", "--json", run_id).stdout)["data"]["state"] == "running"
    relay.refuse()
    for _ in range(2):
        told = route("status", run_id)
        assert told.returncode == 0
        assert "unreachable; last seen running" in told.stdout
        assert "not seen" in told.stdout
    [row] = json.loads(route("ps", "--json").stdout)["data"]["runs"]
    assert (row["state"], row["last"]) == ("unknown", "running")
    assert row["since_us"] > 0
    assert "unknown" in route("ps").stdout
    assert "(running)" in route("ps").stdout
    relay.heal()
    assert json.loads(route("status", "--json", run_id).stdout)["data"]["state"] == "running"
    stop.touch()
    assert route("wait", run_id).returncode == 0
    assert count.read_text() == "started\n"


def test_whoever_reads_along_is_told_too(relay: Relay, folder: Path, tmp_path: Path, route: Route) -> None:
    stop, count = tmp_path / "stop", tmp_path / "count"
    run_id = route("run", "-d", "--backend", "ssh", "work.py", "--", str(stop), str(count)).stdout.strip()
    reading = subprocess.Popen(
        [*ROUTE, "logs", "-f", run_id], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert reading.stdout is not None
    assert reading.stderr is not None
    assert reading.stdout.readline() == "tick\n"
    relay.refuse()
    assert reading.stderr.readline().startswith("unknown    unreachable since ")
    stop.touch()
    relay.heal()
    assert reading.stderr.readline().startswith("back       after ")
    out, err = reading.stdout.read(), reading.stderr.read()
    assert reading.wait(60) == 0
    assert err == ""
    assert route("wait", run_id).returncode == 0
    assert "tick\n" + out == route("logs", run_id).stdout, "nothing twice and nothing left out"
