"""Whatever breaks between client and machine, what is said is true, and what was begun goes on.

Real supervisors in real processes; the connection to them is cut where the test says. Shown: a cut
at any byte ends in an error that is true and in one execution, an upload goes on where it stopped,
a followed log has every byte once, files come back whole. ROUTE_CUTS sets how many cuts (0 = all).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from peers import Cut, CutMachine, On, ended, submission, workload

from compute_router.backend import State, Status
from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.errors import (
    SubmitUnknown,
    Unavailable,
)
from compute_router.machines.session import Session
from compute_router.workload import Entry

CUTS = int(os.environ.get("ROUTE_CUTS", "14"))
"""Points at which the stream is cut, in each direction; 0 = at every byte."""

WITNESS = "import os, sys\nopen(sys.argv[1], 'a').write('x')\nprint('ran')\nsys.exit(7)\n"


TRUE = (State.UNKNOWN, State.STARTING, State.RUNNING, State.FAILED)
"""What may truly be said of a run of WITNESS once it was started."""


@pytest.fixture(autouse=True)
def _leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))


@pytest.fixture
def local(home: Path) -> LocalBackend:
    return LocalBackend(LocalSettings(), home)


def on(home: Path, cut: Cut) -> On:
    return On(home, CutMachine(home / "machine", cut))


# Broken connections


def test_a_cut_at_any_byte_never_tells_a_lie(
    local: LocalBackend, home: Path, folder: Path, tmp_path: Path, seed: random.Random
) -> None:
    witnesses = tmp_path / "witnesses"
    witnesses.mkdir()

    def made(number: object) -> tuple[Path, Entry]:
        witness = witnesses / f"w{number:>08}"
        return witness, Entry(root=str(folder), script="work.py", args=(str(witness),))

    local.submit(submission(local, workload(folder)))  # brings the supervisor itself
    measure = Cut()
    whole = on(home, measure)
    whole.submit(submission(whole, workload(folder, WITNESS, entry=made("whole")[1])))
    up, down = measure.sent, measure.received
    points = [("up", k) for k in range(up + 1)] + [("down", k) for k in range(down + 1)]
    if CUTS:
        ends = [("up", 0), ("up", up), ("up", up - 1), ("down", 0), ("down", down), ("down", down - 1)]
        points = ends + seed.sample(points, CUTS * 2)
    told = {"done": 0, "unavailable": 0, "unknown": 0}
    for number, (way, k) in enumerate(points):
        witness, entry = made(number)
        work = workload(folder, WITNESS, entry=entry)
        broken = on(home, Cut(**{way: k}, opens=1))
        submitted = submission(broken, work)
        try:
            handle = broken.submit(submitted)
            told["done"] += 1
            assert local.find(submitted.key) == handle
            assert broken.status(handle).state in TRUE
        except Unavailable:
            told["unavailable"] += 1
            assert local.find(submitted.key) is None
            time.sleep(0.01)
            assert not witness.exists()
            with pytest.raises(Unavailable):
                broken.find(submitted.key)
        except SubmitUnknown:
            told["unknown"] += 1
        handle = local.submit(submitted)
        status = ended(local, handle)
        assert (status.state, status.exit_code) == (State.FAILED, 7), (way, k, status)
        assert witness.read_text() == "x", (way, k)
    print(told, f"{up} bytes up, {down} bytes down")
    assert all(told.values())


def test_a_cut_that_heals_is_not_noticed(
    home: Path, folder: Path, tmp_path: Path, seed: random.Random
) -> None:
    for number in range(8):
        witness = tmp_path / f"w{number}"
        entry = Entry(root=str(folder), script="work.py", args=(str(witness),))
        way = seed.choice(["up", "down"])
        backend = on(home, Cut(**{way: seed.randrange(300, 1500)}, streams=1))
        try:
            handle = backend.submit(submission(backend, workload(folder, WITNESS, entry=entry)))
        except Unavailable:
            continue  # cut inside the greeting: nothing could run, and the next offer may be tried
        assert ended(backend, handle).exit_code == 7
        assert witness.read_text() == "x"


def test_an_upload_goes_on_where_it_stopped(home: Path, folder: Path) -> None:
    size = 4 << 20
    data = os.urandom(size)
    (folder / "weights.bin").write_bytes(data)
    source = "import hashlib\nprint(hashlib.sha256(open('weights.bin','rb').read()).hexdigest())\n"
    Session(on(home, Cut()).given[0]).close()  # brings the supervisor itself
    cut = Cut(up=size // 2, streams=1)
    backend = on(home, cut)
    handle = backend.submit(submission(backend, workload(folder, source)))
    assert cut.opened == 2
    assert cut.sent < size * 1.1 + 200_000
    import hashlib

    log = b"".join(backend.logs(handle, follow=True)).decode().strip()
    assert log == hashlib.sha256(data).hexdigest()


def test_what_is_there_already_is_not_sent_again(home: Path, folder: Path) -> None:
    (folder / "weights.bin").write_bytes(os.urandom(1 << 20))
    first, second = Cut(), Cut()
    backend = on(home, first)
    backend.submit(submission(backend, workload(folder)))
    again = on(home, second)
    again.submit(submission(again, workload(folder)))
    assert first.sent > 1 << 20
    assert second.sent < 100_000


def test_a_followed_log_has_every_byte_once_over_many_breaks(
    local: LocalBackend, home: Path, folder: Path, seed: random.Random
) -> None:
    # First slowly, so that it is followed as it grows; then more than the pieces it travels in.
    source = (
        "import time\n"
        "for i in range(300):\n    print(f'line {i}', flush=True)\n    time.sleep(0.002)\n"
        "for i in range(300, 100_000): print(f'line {i}')\n"
    )
    handle = local.submit(submission(local, workload(folder, source)))
    expected = b"".join(b"line %d\n" % i for i in range(100_000))
    cut = Cut(down=seed.randrange(300_000, 400_000))
    items = list(on(home, cut).attached(handle))
    assert b"".join(i for i in items if isinstance(i, bytes)) == expected
    assert cut.opened > 2
    last = items[-1]
    assert isinstance(last, Status)
    assert last.state is State.SUCCEEDED
    early = Cut(down=seed.randrange(1000, 1500), streams=5)
    assert b"".join(on(home, early).logs(handle, follow=True)) == expected
    assert early.opened == 6


def test_an_unreachable_machine_is_unknown_and_not_failed(
    local: LocalBackend, home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = local.submit(submission(local, workload(folder, "import time; time.sleep(0.8)")))
    away = on(home, Cut(opens=0))
    status = away.status(handle)
    assert (status.state, status.last) == (State.UNKNOWN, None)
    with pytest.raises(Unavailable):
        away.find(handle.key)
    with pytest.raises(Unavailable):
        list(away.logs(handle))
    with pytest.raises(Unavailable):
        away.cancel(handle)
    with pytest.raises(Unavailable):
        away.fetch(handle, home / "x")
    stream = away.attached(handle)
    first = next(stream)
    assert isinstance(first, Status)
    assert first.state is State.UNKNOWN
    assert away.given[0].cut.opened > 2  # type: ignore[attr-defined]
    away.given[0].cut.opens = None  # type: ignore[attr-defined]
    rest = list(stream)
    assert isinstance(rest[-1], Status)
    assert rest[-1].state is State.SUCCEEDED


def test_fetch_goes_on_over_breaks(
    local: LocalBackend, home: Path, folder: Path, seed: random.Random
) -> None:
    source = (
        "import os, random\nrandom.seed(5)\nto = os.environ['ROUTE_OUTPUTS']\n"
        "for i in range(6): open(to + f'/f{i}', 'wb').write(random.randbytes(300_000))\n"
        "open(to + '/empty', 'wb')\n"
    )
    handle = local.submit(submission(local, workload(folder, source)))
    assert ended(local, handle).state is State.SUCCEEDED
    cut = Cut(down=seed.randrange(300_000, 500_000))
    into = home / "into"
    paths = on(home, cut).fetch(handle, into)
    assert len([path for path in paths if path.parent.name == "outputs"]) == 7
    assert cut.opened > 3
    again = random.Random(5)
    for i in range(6):
        assert (into / f"outputs/f{i}").read_bytes() == again.randbytes(300_000)
    assert (into / "outputs/empty").read_bytes() == b""
    assert not (into / ".parts").exists()
    with pytest.raises(Unavailable):
        on(home, Cut(down=2000, opens=4)).fetch(handle, home / "other")
    assert not any(path.stat().st_size for path in (home / "other" / "outputs").rglob("f*"))
