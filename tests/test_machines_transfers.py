"""What is sent arrives as it was, is not sent twice, and is never seen half, however often the way breaks.

Real supervisors in real processes; connections are cut, left hanging or killed. ROUTE_BREAKS sets how
often one upload is cut (default 100).
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from peers import Cut, CutStream, LyingMachine, On, ended, submission, workload
from supervisor_driver import Fault, Link, Place, shell, spec

from compute_router.backend import State
from compute_router.errors import Broken
from compute_router.machines.contract import Stream
from compute_router.machines.local import LocalMachine
from compute_router.machines.session import Session
from compute_router.progress import Step, watched
from compute_router.records import canonical
from compute_router.supervisor import packs

BREAKS = int(os.environ.get("ROUTE_BREAKS", "100"))
SUM = (
    "import hashlib, os\nfound = hashlib.sha256()\n"
    "for folder, below, names in os.walk('.'):\n"
    "    below.sort()\n"
    "    for name in sorted(names):\n"
    "        path = os.path.join(folder, name)\n"
    "        found.update(path.encode() + open(path, 'rb').read())\n"
    "print(found.hexdigest())\n"
)


@pytest.fixture(autouse=True)
def _leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))


class Breaking(LocalMachine):
    """This machine behind a connection that breaks at a random moment, `breaks` times."""

    def __init__(
        self, root: Path, seed: random.Random, breaks: int, most: int, *, down: bool = False
    ) -> None:
        super().__init__(root)
        self.seed, self.left, self.most, self.down = seed, breaks, most, down
        self.seen = Cut()

    def open(self, argv: Sequence[str], *, deadline: float) -> Stream:  # type: ignore[override]
        cut = CutStream(super().open(argv, deadline=deadline), self.seen, True)
        if self.left > 0:
            self.left -= 1
            after = self.seed.randrange(100_000, self.most)
            if self.down:
                cut.down = after
            else:
                cut.up = after
        return cut


def tree_of(folder: Path, seed: random.Random, sizes: Sequence[int]) -> int:
    for number, size in enumerate(sizes):
        path = folder / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seed.randbytes(size))
    return sum(sizes)


def sum_of(folder: Path) -> str:
    found = hashlib.sha256()
    for at, below, names in os.walk(folder):
        below.sort()
        for name in sorted(names):
            path = os.path.join(at, name)
            found.update(("./" + os.path.relpath(path, folder)).encode() + Path(path).read_bytes())
    return found.hexdigest()


def test_an_upload_that_is_cut_a_hundred_times(home: Path, folder: Path, seed: random.Random) -> None:
    total = tree_of(folder, seed, [24_000_000, *[2_000_000] * 14, *[20_000] * 400])
    Session(LocalMachine(home / "machine")).close()  # brings the supervisor itself
    machine = Breaking(home / "machine", seed, BREAKS, 2 * total // (BREAKS + 25) - 100_000)
    backend = On(home, machine)
    handle = backend.submit(submission(backend, workload(folder, SUM)))
    assert machine.left == 0, f"{machine.left} cuts were never reached"
    again = (machine.seen.sent - total) / total
    print(f"{BREAKS} cuts, {total} bytes, {again:.1%} more were sent, requests and answers included")
    assert again < 0.05
    log = b"".join(backend.logs(handle, follow=True)).decode().strip()
    assert log == sum_of(folder)
    left = [path.name[:12] for path in (home / "machine" / "stage").iterdir()]
    assert not left, "nothing half is left"


def test_an_upload_that_arrives_is_never_told_as_one_that_broke_off(
    home: Path, folder: Path, seed: random.Random
) -> None:
    total = tree_of(folder, seed, [3_000_000, 20_000, 500])
    backend = On(home, LocalMachine(home / "machine"))
    seen: list[Step] = []
    with watched(seen.append):
        backend.submit(submission(backend, workload(folder, "pass")))
    last = seen[-1]
    assert (last.what, last.over) == ("send", True)
    assert last.done == last.total > total


def test_a_download_that_is_cut_a_hundred_times(home: Path, folder: Path, seed: random.Random) -> None:
    total = 44_000_000
    source = (
        "import os, random\nrandom.seed(5)\nto = os.environ['ROUTE_OUTPUTS']\n"
        "for n, size in enumerate([20_000_000] + [2_000_000] * 10 + [20_000] * 200):\n"
        "    open(to + f'/f{n}', 'wb').write(random.randbytes(size))\n"
    )
    plain = On(home, LocalMachine(home / "machine"))
    handle = plain.submit(submission(plain, workload(folder, source)))
    assert ended(plain, handle).state is State.SUCCEEDED
    machine = Breaking(home / "machine", seed, BREAKS, 2 * total // (BREAKS + 25) - 100_000, down=True)
    machine.name = plain.given[0].name
    On(home, machine).fetch(handle, home / "into")
    assert machine.left == 0
    again = (machine.seen.received - total) / total
    print(f"{BREAKS} cuts, {again:.1%} more came")
    assert again < 0.05
    made = random.Random(5)
    for number, size in enumerate([20_000_000] + [2_000_000] * 10 + [20_000] * 200):
        assert (home / "into" / "outputs" / f"f{number}").read_bytes() == made.randbytes(size)


# Connections whose end is not known yet


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def prepare(link: Link, made: dict[str, object], data: bytes) -> object:
    digest = hashlib.sha256(canonical(made)).hexdigest()
    blob = [hashlib.sha256(data).hexdigest(), len(data)]
    return link.ask("prepare", run_id=made["run_id"], spec_sha256=digest, blobs=[blob])["want"]


def test_what_a_hanging_connection_was_sent_is_not_sent_again(place: Place, seed: random.Random) -> None:
    data = seed.randbytes(3_000_000)
    digest = hashlib.sha256(data).hexdigest()
    made = shell("sha256sum big | cut -c 1-64", tree=spec(["x"], files={"big": data})["tree"])
    hanging = place.link()
    assert prepare(hanging, made, data) == [[digest, 0]]
    hanging.send("blob", data[:900_000], sha256=digest, offset=0, last=False)
    hanging.ask("probe", keys=[])  # it has been taken; and now nothing comes, and no end either
    link = place.link()
    assert prepare(link, made, data) == [[digest, 900_000]]
    link.blob(digest, data, 900_000)
    assert link.ask("commit", canonical(made), run_id=made["run_id"])["already"] is False
    # The one that hung wakes up and goes on: it spoils nothing.
    hanging.blob(digest, data, 900_000)
    assert hanging.ask("commit", canonical(made), run_id=made["run_id"])["already"] is True
    link.start(str(made["run_id"]))
    assert link.follow(str(made["run_id"]))[1].decode().strip() == digest
    place.close()


def many(link: Link, files: dict[str, bytes]) -> tuple[dict[str, object], list[str]]:
    made = shell("cat * | sha256sum | cut -c 1-64", tree=spec(["x"], files=files)["tree"])
    blobs = [[hashlib.sha256(data).hexdigest(), len(data)] for data in files.values()]
    want = link.ask(
        "prepare",
        run_id=made["run_id"],
        spec_sha256=hashlib.sha256(canonical(made)).hexdigest(),
        blobs=blobs,
    )["want"]
    return made, [digest for digest, _ in want]


def test_small_files_of_a_server_that_was_killed_are_not_sent_again(
    place: Place, seed: random.Random
) -> None:
    files = {f"f{n:03}": seed.randbytes(3000) for n in range(200)}
    by_digest = {hashlib.sha256(data).hexdigest(): data for data in files.values()}
    first = place.link()
    _, wanted = many(first, files)
    assert len(wanted) == 200
    for digest in wanted[:150]:
        first.blob(digest, by_digest[digest])
    first.ask("probe", keys=[])
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    (part,) = (place.root / "stage").glob("*.pack")
    with open(part, "r+b") as file:  # and the last record was not all on disk
        file.truncate(part.stat().st_size - 100)
    second = place.link()
    made, wanted = many(second, files)
    assert len(wanted) == 51
    for digest in wanted:
        second.blob(digest, by_digest[digest])
    assert second.ask("commit", canonical(made), run_id=made["run_id"])["already"] is False
    second.start(str(made["run_id"]))
    log = second.follow(str(made["run_id"]))[1].decode().strip()
    assert log == hashlib.sha256(b"".join(files.values())).hexdigest()
    assert not [*(place.root / "stage").iterdir()]
    _, wanted = many(place.link(), files)
    assert wanted == []
    place.close()


def test_a_damaged_small_file_never_gets_its_name(place: Place, seed: random.Random) -> None:
    files = {f"f{n:03}": seed.randbytes(3000) for n in range(64)}
    by_digest = {hashlib.sha256(data).hexdigest(): data for data in files.values()}
    link = place.link()
    made, wanted = many(link, files)
    for digest in wanted:
        link.blob(digest, bytes([by_digest[digest][0] ^ 1]) + by_digest[digest][1:])
    with pytest.raises(Fault, match="BLOBS_MISSING"):
        link.ask("commit", canonical(made), run_id=made["run_id"])
    link.close()
    assert not [*place.root.glob("packs/*")]
    place.close()


def test_a_pack_that_is_not_whole_is_as_none(tmp_path: Path, seed: random.Random) -> None:
    (tmp_path / "stage").mkdir()
    made = packs.Packs(str(tmp_path), "0" * 32)
    blobs = {
        hashlib.sha256(data).hexdigest(): data for data in (seed.randbytes(n) for n in range(0, 4000, 97))
    }
    for digest, data in blobs.items():
        made.add(digest, data)
    made.close()
    (path,) = (tmp_path / "packs").iterdir()
    whole = path.read_bytes()
    reader = packs.Packs(str(tmp_path), "1" * 32)
    assert all(reader.read(digest) == data for digest, data in blobs.items())
    for _ in range(200):
        path.write_bytes(whole[: seed.randrange(len(whole))])
        again = packs.Packs(str(tmp_path), "2" * 32)
        assert again.known() == {}
        again.close()


def test_collected_packs_go_when_no_run_needs_them(place: Place, seed: random.Random) -> None:
    files = {f"f{n:03}": seed.randbytes(300) for n in range(40)}
    link = place.link()
    run_id = place.submit(link, shell("true", tree=spec(["x"], files=files)["tree"]), files=files)
    link.start(run_id)
    link.follow(run_id)
    assert [*place.root.glob("packs/*.pack")]
    later = time.time_ns() // 1000 + 10**9
    assert link.ask("gc", before_us=later, dry_run=False)["blobs"] == 0, "its run is still there"
    link.ask("manifest", run_id=run_id)
    link.ask("collected", run_id=run_id, receipt_id=None)
    assert link.ask("gc", before_us=later, dry_run=False)["blobs"] == 40
    assert not [*place.root.glob("packs/*.pack")]
    place.close()


# Slow and stalled


def test_a_slow_reader_is_not_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "patience", 1.0)
    # Takes all of it in over three times the patience, and never stops for as long as that.
    slow = "for _ in range(32):\n    time.sleep(0.1)\n    os.read(0, 1 << 18)\nhear()\n"
    session = Session(LyingMachine(tmp_path, slow))
    session.write(b"x" * (4 << 20))
    session.close()


def test_a_machine_that_says_it_is_at_work_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "patience", 1.0)
    beats = "hear()\nfor _ in range(12):\n    time.sleep(0.2)\n    say({'re': 'commit', 'beat': True})\n"
    session = Session(LyingMachine(tmp_path, beats + "say({'re': 'commit', 'ok': True})\ntime.sleep(60)\n"))
    assert session.ask("commit").head["ok"] is True
    with pytest.raises(Broken, match="silent"):
        session.ask("commit")


def test_a_write_that_waits_for_a_machine_at_work_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "patience", 1.0)
    beats = "for _ in range(12):\n    time.sleep(0.2)\n    say({'re': 'blob', 'beat': True})\n"
    session = Session(
        LyingMachine(tmp_path, beats + "os.read(0, 1 << 30)\nwhile os.read(0, 1 << 20): pass\n")
    )
    session.write(b"x" * (4 << 20))
    session.close()


def test_two_clients_send_the_same_at_once(home: Path, folder: Path, seed: random.Random) -> None:
    tree_of(folder, seed, [3_000_000, *[20_000] * 100])
    backends = [On(home, LocalMachine(home / "machine")) for _ in range(4)]
    work = workload(folder, SUM)
    submitted = [submission(backend, work) for backend in backends]
    handles: list[object] = [None] * 4

    def go(number: int) -> None:
        handles[number] = backends[number].submit(submitted[number])

    threads = [threading.Thread(target=go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for backend, handle in zip(backends, handles, strict=True):
        log = b"".join(backend.logs(handle, follow=True))  # type: ignore[arg-type]
        assert log.decode().strip() == sum_of(folder)
