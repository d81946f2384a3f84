"""A run on a machine: started once, followed to its true end, brought back whole.

Real supervisors in real processes. Shown: the same key is one execution, what somebody else committed
is never started, secrets reach the work alone, and who finds the machine busy leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import msgspec
import pytest
from peers import Cut, CutMachine, On, ended, submission, workload

from compute_router.backend import Offer, State, Status
from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.errors import (
    Conflict,
    HandleLost,
    InputError,
    Unavailable,
)
from compute_router.machines.session import Session
from compute_router.records import key_run_id, new_run_id
from compute_router.workload import Entry, Role

WITNESS = "import os, sys\nopen(sys.argv[1], 'a').write('x')\nprint('ran')\nsys.exit(7)\n"


@pytest.fixture(autouse=True)
def _leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))


@pytest.fixture
def local(home: Path) -> LocalBackend:
    return LocalBackend(LocalSettings(), home)


def on(home: Path, cut: Cut) -> On:
    return On(home, CutMachine(home / "machine", cut))


# The straight way


def test_from_submit_to_cleanup(local: LocalBackend, folder: Path, tmp_path: Path) -> None:
    source = (
        "import os\nprint('one', flush=True)\nopen('results/r', 'w').write('R')\n"
        "open(os.environ['ROUTE_OUTPUTS'] + '/o', 'w').write('O')\nprint('two')\n"
    )
    (folder / "results").mkdir()
    (folder / "results" / "keep").write_text("")
    work = workload(folder, source, outputs=("results/",), env={"A": "b"})
    handle = local.submit(submission(local, work))
    items = list(local.attached(handle))
    assert b"".join(i for i in items if isinstance(i, bytes)) == b"one\ntwo\n"
    last = items[-1]
    assert isinstance(last, Status)
    assert (last.state, last.exit_code, last.attempt) == (State.SUCCEEDED, 0, 1)
    assert last.started_us is not None
    assert last.ended_us is not None
    assert last.ended_us >= last.started_us
    assert local.status(handle) == last
    assert b"".join(local.logs(handle, 4)) == b"two\n"
    assert list(local.logs(handle, 8, follow=True)) == []
    into = tmp_path / "into"
    got = {str(path.relative_to(into)): path.read_bytes() for path in local.fetch(handle, into)}
    assert got["outputs/o"] == b"O"
    assert got["outputs/results/r"] == b"R"
    assert got["log"] == b"one\ntwo\n"
    assert json.loads(got["measured.json"])["run_id"] == handle.run_id
    before = {path: path.stat().st_mtime_ns for path in into.rglob("*")}
    local.fetch(handle, into)
    assert {path: path.stat().st_mtime_ns for path in into.rglob("*")} == before
    local.cancel(handle)
    local.cleanup(handle)
    local.cleanup(handle)
    assert local.status(handle) == last
    assert not (local.root / "runs" / handle.run_id / "work" / "work.py").exists()


def test_exit_codes_and_signals_come_through(local: LocalBackend, folder: Path) -> None:
    for source, code, signal in (
        ("raise SystemExit(3)", 3, None),
        ("import os; os.kill(os.getpid(), 9)", None, 9),
    ):
        status = ended(local, local.submit(submission(local, workload(folder, source))))
        assert (status.state, status.exit_code, status.signal) == (State.FAILED, code, signal)


def test_a_plain_command_and_its_arguments(local: LocalBackend, folder: Path) -> None:
    odd = ["$(touch x)", "a b", "'", '"', "\n", "é", "--"]
    folder.joinpath("sub").mkdir()
    folder.joinpath("sub/file").write_text("")
    entry = Entry(root=str(folder), argv=("printf", "%s|", *odd), cwd="sub")
    handle = local.submit(submission(local, workload(folder, entry=entry)))
    assert b"".join(local.logs(handle, follow=True)).decode() == "".join(f"{a}|" for a in odd)
    pwd = Entry(root=str(folder), argv=("pwd",), cwd="sub")
    handle = local.submit(submission(local, workload(folder, entry=pwd)))
    assert b"".join(local.logs(handle, follow=True)).endswith(b"/work/sub\n")


def test_what_the_work_sees(local: LocalBackend, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "from the client")
    source = (
        "import os, json, route_report\nprint(json.dumps(dict(os.environ)))\n"
        "open(os.environ['TRITON_CACHE_DIR'] + '/x', 'w').write('compiled')\n"
        "route_report.cache('autotune', misses=1, verdict='miss')\n"
    )
    volumes = {Role.COMPILE_CACHE: "/cache", Role.DATA: "/data"}
    work = workload(folder, source, env={"MINE": "1"}, volumes=volumes, name="My work")
    submitted = submission(local, work)
    handle = local.submit(submitted)
    seen = json.loads(b"".join(local.logs(handle, follow=True)))
    assert seen["MINE"] == "1"
    assert seen["CANARY"] == "from the client"
    assert seen["ROUTE_RUN_ID"] == handle.run_id
    assert seen["ROUTE_ATTEMPT"] == "1"
    assert "ROUTE_HOME" not in seen
    assert seen["ROUTE_VOLUME_DATA"].startswith(str(local.root / "volumes/data/my-work-"))
    assert os.path.isdir(seen["TORCHINDUCTOR_CACHE_DIR"])
    assert ended(local, handle).state is State.SUCCEEDED
    offers = local.offers(work)
    assert isinstance(offers[0], Offer)
    states = {role.role: role.state.value for role in offers[0].roles}
    assert states[Role.COMPILE_CACHE] in ("partial", "warm_same_key"), "what has no stamp yet is partial"
    local.fetch(handle, folder / "x")  # waits until the stamp is written
    [offer] = local.offers(work)
    assert isinstance(offer, Offer)
    assert {r.role: r.state.value for r in offer.roles}[Role.COMPILE_CACHE] == "warm_same_key"


# Once


def test_the_same_key_is_one_execution(local: LocalBackend, home: Path, folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    work = workload(folder, WITNESS, entry=Entry(root=str(folder), script="work.py", args=(str(witness),)))
    key = "nightly run 7"
    run_id = key_run_id(key)
    assert local.find(key) is None
    first = submission(local, work, key=key, run_id=run_id)
    handles = [local.submit(first)]
    others = [LocalBackend(LocalSettings(), home) for _ in range(4)]
    threads = [threading.Thread(target=lambda b=b: handles.append(b.submit(first))) for b in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(handles) == 5
    assert all(handle == handles[0] for handle in handles)
    assert ended(local, handles[0]).exit_code == 7
    assert local.submit(first) == handles[0]
    assert others[0].find(key) == handles[0]
    assert witness.read_text() == "x"


def test_the_same_run_with_other_content_is_a_conflict(
    local: LocalBackend, folder: Path, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    entry = Entry(root=str(folder), script="work.py", args=(str(witness),))
    run_id = new_run_id()
    local.submit(submission(local, workload(folder, "pass", entry=entry), run_id=run_id))
    with pytest.raises(Conflict):
        local.submit(submission(local, workload(folder, WITNESS, entry=entry), run_id=run_id))
    assert not witness.exists()


def test_a_start_never_starts_what_somebody_else_committed(
    local: LocalBackend, home: Path, folder: Path, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    entry = Entry(root=str(folder), script="work.py", args=(str(witness),))
    run_id = new_run_id()
    mine = submission(local, workload(folder, WITNESS, entry=entry), run_id=run_id)
    elsewhere = Entry(root=str(tmp_path / "other"), script="work.py", args=(str(witness),))
    other = submission(local, workload(tmp_path / "other", "pass", entry=elsewhere), run_id=run_id)
    from compute_router.machines.shipping import ship
    from compute_router.machines.specification import specification

    spec = specification(mine, local.interpreter(mine.workload), ())
    with local._running.sessions(local._machine).use() as session:
        # Committed by a client that died before it asked for the start.
        for op in ship(session, mine, spec):
            session.reply(op)
    assert local.find(run_id) is None
    with pytest.raises(Conflict):
        local.submit(other)
    time.sleep(0.3)
    assert not witness.exists()
    assert local.find(run_id) is None
    assert ended(local, local.submit(mine)).exit_code == 7
    assert witness.read_text() == "x"


def test_a_changed_file_is_never_committed(local: LocalBackend, folder: Path) -> None:
    submitted = submission(local, workload(folder, "print(1)"))
    (folder / "work.py").write_text("print(2)")
    with pytest.raises(InputError, match=r"work\.py changed"):
        local.submit(submitted)
    assert local.find(submitted.key) is None


def test_cancel_ends_it_and_may_be_repeated(local: LocalBackend, folder: Path) -> None:
    handle = local.submit(submission(local, workload(folder, "import time\nprint('up')\ntime.sleep(60)\n")))
    for item in local.attached(handle):
        if isinstance(item, bytes):
            local.cancel(handle)
            local.cancel(handle)
    assert local.status(handle).state is State.CANCELLED
    local.cancel(handle)


def test_a_run_that_was_never_there_is_lost(local: LocalBackend, folder: Path) -> None:
    handle = local.submit(submission(local, workload(folder)))
    ghost = msgspec.structs.replace(handle, run_id=new_run_id())
    for ask in (
        lambda: local.status(ghost),
        lambda: list(local.logs(ghost)),
        lambda: list(local.attached(ghost)),
        lambda: local.fetch(ghost, folder / "x"),
        lambda: local.cancel(ghost),
    ):
        with pytest.raises(HandleLost):
            ask()
    local.cleanup(ghost)


# Secrets and leases


def test_secrets_reach_the_work_and_nothing_else(local: LocalBackend, home: Path, folder: Path) -> None:
    canary = "canary-3f9a71c2"
    source = (
        "import os, time, hashlib\n"
        "print(hashlib.sha256(os.environ['TOKEN'].encode()).hexdigest(), flush=True)\ntime.sleep(0.5)\n"
    )
    work = workload(folder, source, secrets=("TOKEN",))
    handle = local.submit(submission(local, work, secrets={"TOKEN": canary, "OTHER": "unasked"}))
    lines = (
        [
            path.read_bytes()
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if os.access(path, os.R_OK) and path.exists()
        ]
        if os.path.isdir("/proc/self")
        else []
    )
    assert not any(canary.encode() in line for line in lines)
    import hashlib

    log = b"".join(local.logs(handle, follow=True)).decode()
    assert log.strip() == hashlib.sha256(canary.encode()).hexdigest()
    local.fetch(handle, home / "into")
    for path in home.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path
    assert canary not in repr(submission(local, work, secrets={"TOKEN": canary}))


def test_a_busy_machine_is_unavailable_and_leaves_nothing_running(home: Path, folder: Path) -> None:
    exclusive = LocalBackend(LocalSettings(exclusive=True), home)
    holder = exclusive.submit(submission(exclusive, workload(folder, "import time; time.sleep(60)")))
    witness = folder.parent / "witness"
    entry = Entry(root=str(folder), script="work.py", args=(str(witness),))
    waiting = submission(exclusive, workload(folder, WITNESS, entry=entry))
    assert waiting.offer.busy
    assert waiting.offer.estimates.queue is None
    with pytest.raises(Unavailable) as caught:
        exclusive.submit(waiting)
    assert holder.run_id in caught.value.what
    assert "--wait" in caught.value.mend
    assert exclusive.find(waiting.key) is None
    exclusive.cancel(holder)
    assert ended(exclusive, holder).state is State.CANCELLED
    time.sleep(0.2)
    assert not witness.exists()
    assert ended(exclusive, exclusive.submit(waiting)).exit_code == 7
    assert witness.read_text() == "x"


def test_who_waits_is_waiting_and_starts_when_it_is_free(home: Path, folder: Path) -> None:
    exclusive = LocalBackend(LocalSettings(exclusive=True), home)
    holder = exclusive.submit(submission(exclusive, workload(folder, "import time; time.sleep(60)")))
    waits = exclusive.submit(submission(exclusive, workload(folder, "print(1)"), wait_us=None))
    assert exclusive.status(waits).state is State.WAITING
    exclusive.cancel(holder)
    assert ended(exclusive, waits).state is State.SUCCEEDED


def test_one_supervisor_serves_submit_and_follow(home: Path, folder: Path) -> None:
    cut = Cut()
    backend = on(home, cut)
    handle = backend.submit(submission(backend, workload(folder)))
    assert list(backend.attached(handle))
    backend.fetch(handle, home / "into")
    backend.cleanup(handle)
    assert cut.opened == 1


def test_sessions_end_with_their_backend(home: Path, folder: Path) -> None:
    backend = LocalBackend(LocalSettings(), home)
    backend.submit(submission(backend, workload(folder)))
    sessions = backend._running.sessions(backend._machine)
    with sessions.use() as session:
        stream = session._stream
    assert isinstance(session, Session)
    sessions.close()
    assert stream.exit_status(10) == 0
