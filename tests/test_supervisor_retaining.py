"""Proves what stays of a collected run and for how long: outputs for others, records for good."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import Place, shell

from compute_router.supervisor import retaining

HOUR = 3_600_000_000
WORK = """\
mkdir -p out/deep
echo a > out/deep/a
echo b > out/b
echo s > scratch
ln -s out link
echo n > $ROUTE_OUTPUTS/n
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def over(place: Place, link: Any) -> str:
    run_id: str = place.submit(link, shell(WORK, outputs=["out/"]))
    link.start(run_id)
    link.follow(run_id)
    return run_id


def paths(manifest: Any, name: str = "files") -> list[str]:
    return sorted(f["path"] for f in manifest[name] if f["path"].startswith(("work/", "outputs/")))


LISTED = ["outputs/n", "work/out/b", "work/out/deep/a"]


def test_what_is_listed_stays_until_its_time_is_over(place: Place) -> None:
    link = place.link()
    run_id = over(place, link)
    before = link.ask("manifest", run_id=run_id)
    assert paths(before) == LISTED
    assert "gone" not in before
    link.ask("collected", run_id=run_id, receipt_id="f" * 64, by="first")
    told = link.ask("cleanup", run_id=run_id, keep_us=HOUR)
    assert told["until_us"] > time.time_ns() // 1000 + HOUR // 2
    work = place.root / "runs" / run_id / "work"
    left = sorted(str(p.relative_to(work)) for p in work.rglob("*"))
    assert left == ["out", "out/b", "out/deep", "out/deep/a"]
    after = link.ask("manifest", run_id=run_id)
    assert (paths(after), after["gone"]) == (LISTED, [])
    # Another client: the mark of the first stays, and with it the time.
    link.ask("collected", run_id=run_id, receipt_id=None, by="second")
    assert link.ask("cleanup", run_id=run_id, keep_us=HOUR)["until_us"] == told["until_us"]
    assert link.ask("manifest", run_id=run_id)["collected"]["by"] == "first"
    assert len(os.listdir(place.root / "retained")) == 1
    # With no time left it goes, and what is gone is told of by name.
    assert link.ask("cleanup", run_id=run_id)["until_us"] is None
    end = link.ask("manifest", run_id=run_id)
    assert (paths(end), paths(end, "gone")) == ([], LISTED)
    assert {"log", "measured.json"} <= {f["path"] for f in end["files"]}
    assert os.listdir(place.root / "retained") == []
    assert link.ask("status", run_ids=[run_id])["statuses"][run_id]["state"] == "succeeded"


def test_what_was_collected_makes_room_for_what_is_new(place: Place) -> None:
    link = place.link()
    runs = [over(place, link) for _ in range(3)]
    for run_id in runs[:2]:
        link.ask("collected", run_id=run_id, receipt_id=None, by="first")
        link.ask("cleanup", run_id=run_id, keep_us=HOUR)
    assert retaining.sweep(str(place.root)) == 0
    assert retaining.sweep(str(place.root), scarce=True) > 0
    gone = [paths(link.ask("manifest", run_id=run_id)) for run_id in runs]
    assert gone == [[], [], LISTED], "nobody has the third one yet"


def test_names_that_are_none_keep_nothing_from_going(place: Place) -> None:
    link = place.link()
    run_id = over(place, link)
    link.ask("collected", run_id=run_id, receipt_id=None)
    link.ask("cleanup", run_id=run_id, keep_us=HOUR)
    folder = place.root / "retained"
    for name in ("1", "x.y", f"x.{run_id}", "1.short", "١.x"):
        (folder / name).touch()
    (folder / f"1.{'z' * 26}").touch()
    (folder / f"2.{run_id}").touch()
    retaining.sweep(str(place.root))
    assert not (place.root / "runs" / run_id / "work").exists()


def test_what_nobody_has_collected_never_goes(place: Place) -> None:
    link = place.link()
    run_id = over(place, link)
    assert link.ask("gc", before_us=2**52, dry_run=False)["removed"] == []
    assert paths(link.ask("manifest", run_id=run_id)) == LISTED
