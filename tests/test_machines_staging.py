"""Shards go from this computer into a volume there: once, whole, known by bytes; the receipt tells."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from peers import Cut, CutMachine, On, ended, submission, workload

from compute_router.backend import NoOffer, Offer, State
from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.errors import InputError
from compute_router.hashes import SETTLED
from compute_router.machines.local import LocalMachine
from compute_router.machines.staging import shards_of
from compute_router.supervisor import shards
from compute_router.supervisor.wire import Fault
from compute_router.workload import Role, Stage

LIST = (
    "import hashlib, os\nbase = os.environ['ROUTE_VOLUME_DATA']\n"
    "for folder, below, names in sorted(os.walk(base)):\n"
    "    for name in sorted(names):\n"
    "        path = os.path.join(folder, name)\n"
    "        shown = os.path.relpath(path, base)\n"
    "        if shown.startswith('.route'): continue\n"
    "        print(shown, hashlib.sha256(open(path, 'rb').read()).hexdigest()[:12])\n"
)


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))
    monkeypatch.setenv("ROUTE_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(exist_ok=True)


@pytest.fixture
def data(tmp_path: Path, seed: random.Random) -> Path:
    made = tmp_path / "datasets"
    (made / "more").mkdir(parents=True)
    for number in range(3):
        (made / f"000{number}").write_bytes(seed.randbytes(400_000))
    (made / "0010").write_bytes(b"not asked for")
    (made / "more" / "a.bin").write_bytes(b"a")
    return made


def staged(folder: Path, *sources: Any, source: str = LIST, name: str = "test") -> Any:
    stage = tuple(Stage(source=str(path), to=Role.DATA) for path in sources)
    return workload(folder, source, volumes={Role.DATA: "/data"}, stage=stage, name=name)


def on(tmp_path: Path, cut: Cut) -> On:
    return On(tmp_path / "home", CutMachine(tmp_path / "machine", cut))


def ran(backend: LocalBackend, work: Any, into: Path) -> tuple[list[str], list[str]]:
    """What the work saw, and the events of its volume in what was measured."""
    handle = backend.submit(submission(backend, work))
    status = ended(backend, handle)
    log = b"".join(backend.logs(handle)).decode()
    assert status.state is State.SUCCEEDED, log
    backend.fetch(handle, into)
    [volume] = json.loads((into / "measured.json").read_text())["volumes"]
    return log.splitlines(), [event["v"] for event in volume["event"]]


def short(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_they_are_sent_once_and_told(tmp_path: Path, folder: Path, data: Path) -> None:
    first, second, third = Cut(), Cut(), Cut()
    work = staged(folder, data / "000*", data / "more")
    expected = [f"000{n} {short(data / f'000{n}')}" for n in range(3)]
    log, events = ran(on(tmp_path, first), work, tmp_path / "o1")
    assert log == [*expected, f"more/a.bin {short(data / 'more' / 'a.bin')}"]
    assert events == ["created", "staged"]
    assert first.sent > 1_200_000
    log, events = ran(on(tmp_path, second), work, tmp_path / "o2")
    assert log[:3] == expected
    assert events == ["reused"]
    assert second.sent < 100_000
    (data / "0001").write_bytes(b"another")
    log, events = ran(on(tmp_path, third), work, tmp_path / "o3")
    assert log[1] == f"0001 {short(data / '0001')}"
    assert events[:2] == ["reused", "refreshed"]
    assert third.sent < 100_000


def test_another_workload_gets_its_own_without_their_being_sent(
    tmp_path: Path, folder: Path, data: Path
) -> None:
    ran(on(tmp_path, Cut()), staged(folder, data / "000*"), tmp_path / "o1")
    cut = Cut()
    spoils = LIST + "open(os.path.join(base, '0000'), 'r+b').write(b'spoilt')\n"
    log, events = ran(
        on(tmp_path, cut), staged(folder, data / "000*", source=spoils, name="o"), tmp_path / "o2"
    )
    assert cut.sent < 100_000
    assert len(log) == 3
    assert events[:2] == ["created", "staged"]
    kept = tmp_path / "machine" / "volumes" / "data" / "test" / "0000"
    assert short(kept) == short(data / "0000"), "what one work wrote, another one read"


def test_one_that_was_written_into_is_sent_again(tmp_path: Path, folder: Path, data: Path) -> None:
    ran(on(tmp_path, Cut()), staged(folder, data / "000*"), tmp_path / "o1")
    spoilt = tmp_path / "machine" / "volumes" / "data" / "test" / "0000"
    with open(spoilt, "r+b") as file:
        file.write(b"spoilt")
    cut = Cut()
    log, events = ran(on(tmp_path, cut), staged(folder, data / "000*"), tmp_path / "o2")
    assert log[0] == f"0000 {short(data / '0000')}"
    assert "refreshed" in events
    assert 400_000 < cut.sent < 500_000


def test_no_disk_holds_a_shard_twice(tmp_path: Path, folder: Path, data: Path) -> None:
    ran(on(tmp_path, Cut()), staged(folder, data / "000*"), tmp_path / "o1")
    root = tmp_path / "machine"
    seen = {
        (root.stat().st_dev, path.stat().st_ino) for path in root.rglob("*") if path.stat().st_size == 400_000
    }
    assert len(seen) == 3
    assert not [*(root / "stage").iterdir()]


def test_an_upload_of_shards_goes_on_where_it_stopped(tmp_path: Path, folder: Path, data: Path) -> None:
    on(tmp_path, Cut()).submit(submission(on(tmp_path, Cut()), workload(folder, "print(1)")))
    cut = Cut(up=700_000, streams=1)
    log, _ = ran(on(tmp_path, cut), staged(folder, data / "000*"), tmp_path / "o1")
    assert len(log) == 3
    assert cut.opened == 2
    assert cut.sent < 1_300_000


def test_local_stages_too(tmp_path: Path, folder: Path, data: Path) -> None:
    local = LocalBackend(LocalSettings(), tmp_path / "home")
    log, events = ran(local, staged(folder, data / "000*"), tmp_path / "o1")
    assert len(log) == 3
    assert events == ["created", "staged"]


def test_what_cannot_be_staged_is_refused_with_a_mend(tmp_path: Path, folder: Path, data: Path) -> None:
    local = LocalBackend(LocalSettings(), tmp_path / "home")
    for source, why in ((data / "9*", "no file is at"), ("s3://corpus/x", "is no path")):
        [answer] = local.offers(staged(folder, source))
        assert isinstance(answer, NoOffer)
        assert answer.code == "stage"
        assert why in answer.reason
        assert answer.mend
    os.mkfifo(data / "0009")
    [answer] = local.offers(staged(folder, data / "000*"))
    assert isinstance(answer, NoOffer)
    assert "no regular file" in answer.reason
    (data / "0009").unlink()
    assert isinstance(local.offers(staged(folder, data / "000*"))[0], Offer)


def test_two_files_for_one_place_are_refused(tmp_path: Path, folder: Path, data: Path) -> None:
    local = LocalBackend(LocalSettings(), tmp_path / "home")
    other = tmp_path / "other"
    other.mkdir()
    (other / "0001").write_bytes(b"x")
    with pytest.raises(InputError, match="both go to 0001"):
        local.submit(submission(local, staged(folder, data / "000*", other / "0001")))


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, folder: Path, data: Path) -> None:
    local = LocalBackend(LocalSettings(), tmp_path / "home")
    for path in data.glob("000*"):
        os.utime(path, ns=(1, time.time_ns() - 10 * SETTLED))
    time.sleep(SETTLED / 1e9 + 0.1)
    work = staged(folder, data / "000*")
    first = shards_of(submission(local, work))
    # Other bytes of the same size, and the times as they were: only who reads it would see.
    path = data / "0000"
    known = json.dumps([one.sha256 for one in first])
    again = shards_of(submission(local, work))
    assert json.dumps([one.sha256 for one in again]) == known
    size = path.stat().st_size
    path.write_bytes(b"y" * size)
    assert shards_of(submission(local, work))[0].sha256 == hashlib.sha256(b"y" * size).hexdigest()


@pytest.mark.parametrize(
    "entry",
    [
        {"role": "data", "path": "../x"}, {"role": "data", "path": "/x"}, {"role": "home", "path": "x"},
        {"role": "data", "path": ".route/stage.lock"}, {"role": "data", "path": "."}, {"role": "data"},
        {"role": "data", "path": "x", "sha256": "no"}, {"role": "data", "path": "x", "bytes": -1}, [],
    ],
)  # fmt: skip
def test_a_place_outside_of_the_volume_is_refused(entry: Any) -> None:
    whole = {"sha256": "0" * 64, "bytes": 1, **entry} if isinstance(entry, dict) else entry
    with pytest.raises(Fault):
        shards.check([whole], {"data": "name"})


def test_a_link_that_leads_out_of_the_volume_is_not_followed(
    tmp_path: Path, folder: Path, data: Path
) -> None:
    volume = tmp_path / "machine" / "volumes" / "data" / "test"
    volume.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (volume / "more").symlink_to(tmp_path / "outside")
    backend = On(tmp_path / "home", LocalMachine(tmp_path / "machine"))
    with pytest.raises(Exception, match="leads out of its volume"):
        backend.submit(submission(backend, staged(folder, data / "more")))
    assert not [*(tmp_path / "outside").iterdir()]
