"""Proves what `gc` removes on a machine: what nothing needs and nobody uses, never what a run or a start
under way does, whoever else tidies up at the same time."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import DIGEST, Link, Place, shell

from compute_router.supervisor import using

EVER = 2**52
HOUR = 3_600_000_000


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def old(path: Path, text: str = "x" * 5000) -> Path:
    """A file that was written in another year."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1e9, 1e9))
    return path


def environment(place: Place, letter: str) -> Path:
    """What stands for an environment, last used in another year."""
    made = place.root / "envs" / (letter * 64)
    old(made / "lib" / "a.py")
    old(made / using.LOCK)
    (made / "bin").mkdir()
    (made / "bin" / "python").symlink_to(sys.executable)
    os.utime(made, (1e9, 1e9))
    return made


def gone(link: Link, *, before_us: int = EVER, dry_run: bool = False, **more: Any) -> dict[str, int]:
    """How many of each kind went."""
    told = link.ask("gc", **{"before_us": before_us, "dry_run": dry_run, "runs": False, "idle_us": 0, **more})
    assert told["bytes"] == sum(size for _, _, size in told["kinds"])
    return {kind: count for kind, count, _ in told["kinds"]}


def over(place: Place, link: Link, made: dict[str, Any], collected: bool = False, **more: Any) -> str:
    run_id = place.submit(link, made, **more)
    link.start(run_id)
    link.follow(run_id)
    link.ask("manifest", run_id=run_id)
    if collected:
        link.ask("collected", run_id=run_id, receipt_id=None)
    return run_id


def test_what_is_old_and_of_no_run_goes_and_is_told_of_before(place: Place) -> None:
    link = place.link()
    root = place.root
    first = environment(place, "a")
    os.makedirs(root / "cache" / "uv")
    os.link(first / "lib" / "a.py", root / "cache" / "uv" / "a.py")
    os.utime(root / "cache" / "uv", (1e9, 1e9))
    old(root / "bin" / f"uv-{'b' * 64}" / "uv")
    old(root / "bin" / ("c" * 64) / "x.py")
    old(root / "spares" / "s" / "work" / "x")
    old(root / "stage" / "d.part")
    old(root / "stage" / "left" / "x")
    for path in (root / "bin" / ("c" * 64), root / "spares" / "s", root / "stage" / "left"):
        os.utime(path, (1e9, 1e9))
    new = environment(place, "e")
    for path in (new, new / using.LOCK):
        os.utime(path)
    (root / "volumes" / "data").mkdir()
    old(root / "volumes" / "data" / "mine")
    now = time.time_ns() // 1000
    told = [link.ask("gc", before_us=now - HOUR, dry_run=dry, runs=False) for dry in (True, False)]
    assert told[0]["kinds"] == told[1]["kinds"]
    assert {kind: count for kind, count, _ in told[0]["kinds"]} == {
        "environment": 1,
        "uv": 1,
        "supervisor": 1,
        "spare tree": 1,
        "unfinished commit": 1,
        "blob": 1,
    }, "what was made from the cache of uv of late keeps it"
    assert told[1]["bytes"] >= 4 * 5000
    assert not first.exists()
    assert new.exists()
    assert (root / "volumes" / "data" / "mine").exists()
    assert sorted(path.name for path in (root / "bin").iterdir()) == [DIGEST]
    assert [path.name for path in (root / "stage").iterdir()] == []
    assert gone(link, before_us=now - HOUR) == {}
    for path in (new / using.LOCK, new, root / ".uv.lock"):
        os.utime(path, (1e9, 1e9))
    assert gone(link, before_us=now - HOUR) == {"environment": 1, "cache of uv": 1}
    assert not (root / "cache" / "uv").exists()


def test_what_was_used_just_now_stays_however_old_things_may_be(place: Place) -> None:
    link = place.link()
    made = environment(place, "a")
    os.utime(made / using.LOCK)
    assert gone(link, idle_us=HOUR) == {}
    assert gone(link) == {"environment": 1}


def test_an_environment_that_a_start_was_told_of_stays(place: Place) -> None:
    starting, other = place.link(), place.link()
    made = environment(place, "a")
    found = starting.ask("environment", lock_sha256="a" * 64)
    assert found["python"] == str(made / "bin" / "python")
    assert gone(other) == {}
    starting.close()
    assert gone(other) == {"environment": 1}
    assert other.ask("environment", lock_sha256="a" * 64)["python"] is None


def test_an_environment_of_a_run_stays_until_it_is_over(place: Place, tmp_path: Path) -> None:
    made = environment(place, "a")
    link, other = place.link(), place.link()
    stop = tmp_path / "stop"
    script = f"while [ ! -e {stop} ]; do sleep 0.02; done"
    run_id = place.submit(link, shell(script, python=str(made / "bin" / "python")))
    assert gone(other) == {}, "committed"
    link.start(run_id)
    place.until(other, run_id, {"running"})
    link.close()
    assert gone(other) == {}, "running, and nobody looks on"
    # The waiter's own lock does it too, whatever is known of the run.
    spec = place.root / "runs" / run_id / "spec.json"
    text = spec.read_bytes()
    spec.write_bytes(text.replace(b"a" * 64, b"b" * 64))
    assert gone(other) == {}
    spec.write_bytes(text)
    stop.touch()
    other.follow(run_id)
    other.ask("manifest", run_id=run_id)
    end = time.monotonic() + 30
    while (count := gone(other)) == {} and time.monotonic() < end:
        time.sleep(0.05)
    assert count == {"environment": 1}


def test_what_is_on_its_way_in_stays(place: Place) -> None:
    data = b"y" * 3000
    files = {"a": data}
    sending, other = place.link(), place.link()
    over(place, sending, shell("true", tree=_tree(files)), files=files, collected=True)
    digest = hashlib.sha256(data).hexdigest()
    assert sending.ask("want", blobs=[[digest, len(data)]])["want"] == [], "it is here already"
    assert gone(other) == {}
    run_id = place.submit(sending, shell("cat a", tree=_tree(files)))
    sending.start(run_id)
    assert sending.follow(run_id)[1] == data
    assert gone(other) == {}, "a run that was not collected may be given its files again"
    other.ask("manifest", run_id=run_id)
    other.ask("collected", run_id=run_id, receipt_id=None)
    assert gone(other) == {"blob": 1}
    assert other.status(run_id)["state"] == "succeeded", "its records stay"


def _tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "mode": 0o644}
        for path, data in files.items()
    ]


def test_checkpoints_of_a_collected_run_go_and_its_records_stay(place: Place) -> None:
    link = place.link()
    run_id = over(place, link, shell("echo 12345 > $ROUTE_CHECKPOINTS/a"), collected=True)
    kept = place.root / "runs" / run_id / "checkpoints" / "a"
    assert kept.exists()
    assert gone(link, dry_run=True) == {"checkpoint folder": 1}
    assert gone(link) == {"checkpoint folder": 1}
    assert not kept.exists()
    assert link.status(run_id)["state"] == "succeeded"


def test_a_supervisor_that_watches_over_a_run_stays(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("sleep 60.5"))
    link.start(run_id)
    place.until(link, run_id, {"running"})
    started = place.read(run_id, "started.json")
    assert started["waiter"]["supervisor"] == DIGEST
    named, other, held = (place.root / "bin" / (letter * 64) for letter in "abc")
    for path in (named, other, held):
        old(path / "x.py")
        os.utime(path, (1e9, 1e9))
    record = place.attempt(run_id) / "started.json"
    text = record.read_text()
    # One of before such things were written down may be any of them.
    record.write_text(re.sub(r',?"supervisor":"[0-9a-f]{64}"', "", text))
    assert gone(link) == {}
    record.write_text(text.replace(DIGEST, "a" * 64))
    assert using.use(str(held))
    os.utime(held, (1e9, 1e9))
    assert gone(link, dry_run=True) == {"supervisor": 2}
    assert gone(link) == {"supervisor": 1}
    using.leave(str(held))
    assert (named.exists(), other.exists(), held.exists()) == (True, False, True)
    record.write_text(text)
    link.ask("cancel", run_id=run_id)
    link.follow(run_id)


def test_a_session_whose_own_was_tidied_away_says_so_and_the_next_brings_it(place: Place) -> None:
    place.link().close()
    shutil.rmtree(place.root / "bin" / DIGEST)
    link = place.link()
    assert link.wanted
    assert gone(link) == {}
    assert (place.root / "bin" / DIGEST).exists(), "it is in use"


def test_two_at_once_remove_and_tell_of_each_thing_once(place: Place) -> None:
    links = [place.link(), place.link()]
    for letter in "abcdef":
        environment(place, letter)
    for n in range(50):
        old(place.root / "blobs" / "00" / f"{n:064}")
    told: list[dict[str, int]] = []
    threads = [threading.Thread(target=lambda at=at: told.append(gone(at))) for at in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told, key=len) == [{}, {"environment": 6, "blob": 50}]
