"""Proves how bytes on their way are shown: bars on a terminal, seldom lines off it, events with --json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from terminals import Terminal

from compute_router.cli import transfers
from compute_router.cli.output import Output
from compute_router.cli.transfers import Transfers
from compute_router.progress import transfer, watched

SLOW = """\
import sys, time
from compute_router.cli.output import Output
from compute_router.cli.transfers import Transfers
from compute_router.progress import transfer, watched
out = Output()
out.busy("sending the files")
with watched(Transfers(out)), transfer("send", "h1", 40_000_000, done=4_000_000) as add:
    for n in range(36):
        add(1_000_000)
        time.sleep(0.08)
        if n == 20:
            out.stage("waiting", "something else is said meanwhile")
out.calm()
print("after it")
"""


def move(out: Output, *, total: int = 1000, until: int = 1000) -> None:
    with watched(Transfers(out)), transfer("fetch", "h1", total) as add:
        for _ in range(until // 100):
            add(100)


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every step took its time."""
    for name in ("PATIENCE", "LINES", "EVENTS", "SUMMED_UP"):
        monkeypatch.setattr(transfers, name, 0.0)
    monkeypatch.setattr("compute_router.progress.EVERY", 0.0)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_bar_on_a_terminal_makes_room_for_what_is_said_and_leaves_a_line(
    columns: int, folder: Path
) -> None:
    terminal = Terminal(folder, program=[sys.executable, "-c", SLOW], columns=columns)
    assert terminal.exit() == 0
    assert "sending to h1" in terminal.seen
    assert "/40.0 MB" in terminal.seen
    assert "MB/s" in terminal.seen
    assert "something else is said meanwhile" in terminal.seen
    assert terminal.seen.rindex("sending to h1") > terminal.seen.index("something else"), "it comes back"
    last = terminal.seen.rindex("sent")
    assert "36 MB to h1 in" in terminal.seen[last:]
    assert "4.0 MB was there before" in terminal.seen[last:]
    assert "after it" in terminal.seen[last:]


def test_off_a_terminal_it_is_lines(slowly: None, capsys: pytest.CaptureFixture[str]) -> None:
    move(Output(), total=2000, until=2000)
    lines = capsys.readouterr().err.splitlines()
    assert "fetching   from h1: 100 B of 2.0 kB (5 %)" in lines
    assert lines[-1].startswith("fetched    2.0 kB from h1 in ")


def test_what_is_quick_is_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    move(Output())
    move(Output(as_json=True))
    assert capsys.readouterr() == ("", "")


def test_with_json_it_is_events(slowly: None, capsys: pytest.CaptureFixture[str]) -> None:
    move(Output(as_json=True))
    out = capsys.readouterr().out.splitlines()
    events = [json.loads(line) for line in out]
    assert {event["event"] for event in events} == {"progress"}
    assert (events[-1]["done"], events[-1]["total"], events[-1]["over"]) == (1000, 1000, True)
    assert events[0]["what"] == "fetch"
    assert events[0]["place"] == "h1"


def test_one_that_broke_off_says_so(slowly: None, capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(out: Output) -> None:
        with watched(Transfers(out)), transfer("send", "h1", 1000) as add:
            add(300)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        breaks(Output())
    assert "sent       300 B of 1.0 kB to h1; it broke off" in capsys.readouterr().err
