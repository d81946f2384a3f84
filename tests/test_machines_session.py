"""Whatever stands at the other end, asking it ends in an answer or in one error that is true.

The other side is a real process that greets, keeps silent, talks rubbish or lies. Shown: before
anything could run the error is `Unavailable` or `Rejected`; afterwards nobody claims to know what
he cannot; nothing is ever written outside the folder given, whatever a manifest says.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from peers import LyingMachine, On, submission, workload

from compute_router import errors
from compute_router.backend import Handle, State, Status
from compute_router.errors import Broken, HandleLost, Rejected, RouteError, Unavailable
from compute_router.machines.local import LocalMachine
from compute_router.machines.session import Session, Sessions, refusal
from compute_router.records import new_run_id

RUN = new_run_id()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "patience", 1.0)
    monkeypatch.setattr(Session, "opening", 5.0)


def handle(name: str = "liar") -> Handle:
    data = {"machines": [name], "roots": ["/x"]}
    return Handle(backend="local", version=1, run_id=RUN, key=RUN, attempt=1, data=data)


def liar(tmp_path: Path, program: str, *, greets: bool = True) -> On:
    return On(tmp_path, LyingMachine(tmp_path / "m", program, greets=greets))


# Opening


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("sys.exit('cannot load libfoo')", "it ended with status 1: cannot load libfoo"),
        ("raw(b'Last login: today\\n')", "Last login: today"),
        ("os._exit(3)", "ended with status 3"),
        ("raw(b'\\n' + hello['nonce'].encode() + b' rubbish\\n')", "greeting cannot be read: 'rubbish'"),
        ("raw(b'\\n' + hello['nonce'].encode() + b' []\\n')", "greeting cannot be read"),
        ("raw(b'x' * 2000000)", "no answer within"),
    ],
)
def test_a_machine_that_does_not_greet_is_unavailable(tmp_path: Path, program: str, says: str) -> None:
    with pytest.raises(Unavailable) as caught:
        Session(LyingMachine(tmp_path, program, greets=False))
    assert says in caught.value.what
    assert caught.value.mend


def test_a_silent_machine_is_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "opening", 0.3)
    with pytest.raises(Unavailable, match="silent"):
        Session(LyingMachine(tmp_path, "time.sleep(60)", greets=False))


def test_a_program_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be started"):
        LocalMachine(tmp_path).open(["/no/such/program"], deadline=1)


@pytest.mark.parametrize(
    ("code", "op", "kind"),
    [
        ("BUSY", "start", errors.Unavailable), ("FOREIGN", "start", errors.Unavailable),
        ("CONFLICT", "commit", errors.Conflict), ("CONFLICT", "start", errors.Conflict),
        ("NO_SPACE", "commit", errors.PreflightFailed), ("PREFLIGHT", "start", errors.PreflightFailed),
        ("NETWORK_ROOT", "hello", errors.Rejected), ("OLD_PYTHON", "hello", errors.Rejected),
        ("ATTEMPT", "start", errors.Rejected), ("BAD_SPEC", "commit", errors.Rejected),
        ("NOT_COMMITTED", "start", errors.Unavailable), ("NOT_COMMITTED", "log", errors.HandleLost),
        ("WHATEVER", "start", errors.SubmitUnknown), ("WHATEVER", "status", errors.Unavailable),
    ],
)  # fmt: skip
def test_every_error_of_the_other_side_has_its_meaning(code: str, op: str, kind: type[RouteError]) -> None:
    told = {"code": code, "what": "because", "mend": "do this", "holder": {"run_id": RUN, "lease": "machine"}}
    error = refusal("box", op, told)
    assert type(error) is kind
    assert "\n" not in str(error)
    if code == "BUSY":
        assert RUN in error.what


@pytest.mark.parametrize(
    "told", [None, [], "x", {}, {"code": 1, "what": None}, {"what": "\n\n"}, {"what": {}}]
)
def test_an_error_that_cannot_be_read_is_still_one_line(told: Any) -> None:
    error = refusal("box", "status", told)
    assert isinstance(error, Unavailable)
    assert "\n" not in str(error)


# Asking


@pytest.mark.parametrize(
    "answer",
    [
        "say({'re': 'other', 'ok': True})", "raw(b'rubbish\\n')", "time.sleep(60)", "sys.exit(0)",
        "raw(b'{\"re\":\"status\",\"size\":10}\\nabc')", "raw(b'{\"re\":')",
        "say({'re': 'status', 'size': -1})",
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_broken(tmp_path: Path, answer: str) -> None:
    session = Session(LyingMachine(tmp_path, f"hear()\n{answer}\n"))
    with pytest.raises(Broken):
        session.ask("status", run_ids=[RUN])
    assert not session.usable
    with pytest.raises(Broken):
        session.ask("status", run_ids=[RUN])


def test_a_write_that_nobody_reads_ends_at_its_deadline(tmp_path: Path) -> None:
    session = Session(LyingMachine(tmp_path, "time.sleep(60)"))
    with pytest.raises(Broken):
        session.write(b"x" * (64 << 20))


def test_a_flood_is_held_up_and_not_kept(tmp_path: Path) -> None:
    session = Session(LyingMachine(tmp_path, "hear()\nwhile True: raw(b'y' * 65536)"))
    session.send("status")
    import time

    time.sleep(0.3)
    assert session._heard.qsize() <= 64
    session.close()


def test_closing_from_another_thread_wakes_whoever_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading
    import time

    monkeypatch.setattr(Session, "patience", 60.0)
    session = Session(LyingMachine(tmp_path, "time.sleep(60)"))
    threading.Timer(0.2, session.close).start()
    began = time.monotonic()
    with pytest.raises(Broken):
        session.ask("status")
    assert time.monotonic() - began < 30


def test_a_session_is_used_again_and_a_dead_one_replaced(tmp_path: Path) -> None:
    program = (
        "for n in range(2):\n    hear()\n    say({'re': 'status', 'ok': True, 'n': n, 'pid': os.getpid()})\n"
    )
    sessions = Sessions(LyingMachine(tmp_path, program))
    told = [sessions.ask("status").head for _ in range(5)]
    assert [t["n"] for t in told] == [0, 1, 0, 1, 0]
    assert len({t["pid"] for t in told}) == 3


def test_answers_left_unread_end_a_session(tmp_path: Path) -> None:
    sessions = Sessions(LyingMachine(tmp_path, "while True:\n  say({'re': hear()[0]['op'], 'ok': True})\n"))
    seen = []

    def leave_in_between() -> None:
        with sessions.use() as session:
            seen.append(session)
            session.send("status")
            raise Rejected("in between")

    with pytest.raises(Rejected):
        leave_in_between()
    with sessions.use() as second:
        assert second is not seen[0]


# Lies about runs


@pytest.mark.parametrize(
    "statuses",
    [
        "None", "[]", "{}", "{run: 'running'}", "{run: []}", "{run: {}}", "{run: {'state': 'done'}}",
        "{run: {'state': 'failed', 'exit_code': 'x'}}", "{run: {'state': 'succeeded', 'attempt': 1.5}}",
    ],
)  # fmt: skip
def test_a_lie_about_the_state_is_unknown_and_never_a_state(tmp_path: Path, statuses: str) -> None:
    program = (
        f"while True:\n  head, _ = hear()\n  run = head['run_ids'][-1]\n"
        f"  say({{'re': 'status', 'ok': True, 'statuses': {statuses}}})\n"
    )
    backend = liar(tmp_path, program)
    assert backend.status(handle()).state is State.UNKNOWN
    with pytest.raises(Unavailable):
        backend.find(RUN)


def test_what_was_seen_last_stays_known(tmp_path: Path) -> None:
    program = (
        "import pathlib\nflag = pathlib.Path(hello['root']).parent / 'down'\n"
        "if flag.exists(): sys.exit(1)\n"
        "head, _ = hear()\nflag.write_text('')\n"
        "told = {head['run_ids'][0]: {'state': 'running', 'attempt': 1}}\n"
        "say({'re': 'status', 'ok': True, 'statuses': told})\n"
    )
    backend = liar(tmp_path, program)
    first = backend.status(handle())
    assert first.state is State.RUNNING
    second = backend.status(handle())
    assert (second.state, second.last) == (State.UNKNOWN, State.RUNNING)
    assert isinstance(second.since_us, int)


def test_a_handle_of_another_form_or_machine_is_lost(tmp_path: Path) -> None:
    backend = liar(tmp_path, "")
    for bad in (handle("gone"), Handle(backend="local", version=9, run_id=RUN, key=RUN, attempt=1)):
        with pytest.raises(HandleLost):
            backend.status(bad)


def test_a_machine_that_wants_what_was_not_offered_gets_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("never")
    wants = hashlib.sha256(b"never").hexdigest()
    program = (
        "while True:\n  head, body = hear()\n"
        f"  open({str(tmp_path / 'got')!r}, 'ab').write(body)\n"
        f"  say({{'re': head['op'], 'ok': True, 'committed': None, 'want': [['{wants}', 0]]}})\n"
    )
    backend = liar(tmp_path, program)
    work = workload(tmp_path / "w")
    (tmp_path / "w" / "big").write_bytes(os.urandom(300_000))
    with pytest.raises(Unavailable):
        backend.submit(submission(backend, work))
    assert b"never" not in (tmp_path / "got").read_bytes()


# Lies about files


def manifest_of(tmp_path: Path, files: Any, *, sends: str = "pass") -> On:
    program = (
        f"files = json.loads({json.dumps(json.dumps(files))})\n"
        "while True:\n  head, _ = hear()\n"
        "  if head['op'] == 'manifest': say({'re': 'manifest', 'ok': True, 'files': files, 'skipped': []})\n"
        "  else:\n"
        f"    {sends}\n"
        "    say({'re': 'fetch', 'end': True})\n"
    )
    return liar(tmp_path, program)


def entry(path: Any, data: bytes = b"x", **more: Any) -> dict[str, Any]:
    return {
        "path": path,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "role": "output",
        **more,
    }


@pytest.mark.parametrize(
    "files",
    [
        [entry("../out")], [entry("/etc/route-canary")], [entry("outputs/../../out")], [entry("")],
        [entry(".")],
        [entry("a//b")], [entry("a/./b")], [entry("a\0b")], [entry("x" * 300)], [entry(".parts/x")],
        [entry("work/../../out")], [entry("work/")], [entry("\udcff")], [entry(3)], ["x"], "x", None,
        [entry("a", sha256="../../x")], [entry("a", bytes=-1)], [entry("a", bytes=1.5)],
        [entry("outputs/a"), entry("outputs/a/b")], [entry("a"), entry("a", b"y")],
    ],
)  # fmt: skip
def test_a_manifest_no_honest_machine_writes_is_refused_whole(tmp_path: Path, files: Any) -> None:
    into = tmp_path / "deep" / "into"
    good = [entry("outputs/good"), *files] if isinstance(files, list) else files
    with pytest.raises(Rejected):
        manifest_of(tmp_path, good).fetch(handle(), into)
    assert not into.exists()
    assert not (tmp_path / "out").exists()


def test_links_in_the_way_are_not_followed(tmp_path: Path) -> None:
    into, outside = tmp_path / "into", tmp_path / "outside"
    outside.mkdir()
    into.mkdir()
    sends = "[say({'re': 'fetch', 'path': p, 'offset': 0, 'last': True}, b'x') for p, _ in head['files']]"
    (into / "outputs").symlink_to(outside)
    with pytest.raises(errors.StoreError, match="cannot be written"):
        manifest_of(tmp_path, [entry("outputs/a")], sends=sends).fetch(handle(), into)
    assert list(outside.iterdir()) == []
    (into / "outputs").unlink()
    (into / "log").symlink_to(outside / "target")
    manifest_of(tmp_path, [entry("log")], sends=sends).fetch(handle(), into)
    assert not (into / "log").is_symlink()
    assert (into / "log").read_bytes() == b"x"
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "sends",
    [
        "say({'re': 'fetch', 'path': '../evil', 'offset': 0, 'last': True}, b'x')",
        "say({'re': 'fetch', 'path': 'log', 'offset': 5, 'last': True}, b'x')",
        "say({'re': 'fetch', 'path': 'log', 'offset': -1, 'last': True}, b'x')",
        "say({'re': 'fetch', 'path': 'log', 'offset': 0, 'last': True}, b'xx')",
        "say({'re': 'fetch', 'path': 'log', 'offset': 0, 'last': True}, b'y')",
        "say({'re': 'fetch', 'path': 'log', 'error': {'code': 'GONE'}})",
        "say({'re': 'fetch', 'ok': False, 'error': {'code': 'X'}})",
        "pass",
        "sys.exit(0)",
    ],
)
def test_bytes_that_are_not_the_files_never_get_its_name(
    tmp_path: Path, sends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute_router.machines.fetching.TRIES", 2)
    with pytest.raises(Unavailable):
        manifest_of(tmp_path, [entry("log")], sends=sends).fetch(handle(), tmp_path / "into")
    assert [p.name for p in (tmp_path / "into").iterdir() if p.name != ".parts"] == []
    assert not (tmp_path / "evil").exists()


def test_outputs_of_both_kinds_find_their_place(tmp_path: Path) -> None:
    names = [
        "log", "outputs/a", "work/results/b", "work/a", "outputs/results/c", "outputs/f", "work/f/g",
        "work/outputs/h",
    ]  # fmt: skip
    sends = (
        "[say({'re': 'fetch', 'path': p, 'offset': 0, 'last': True}, p.encode()) for p, _ in head['files']]"
    )
    backend = manifest_of(tmp_path, [entry(name, name.encode()) for name in names], sends=sends)
    into = tmp_path / "into"
    got = backend.fetch(handle(), into)
    assert {str(p.relative_to(into)): p.read_text() for p in got} == {
        "log": "log",
        "outputs/a": "outputs/a",
        "outputs/results/b": "work/results/b",
        "outputs/work/a": "work/a",
        "outputs/results/c": "outputs/results/c",
        "outputs/f": "outputs/f",
        "outputs/work/f/g": "work/f/g",
        "outputs/outputs/h": "work/outputs/h",
    }
    assert not (into / ".parts").exists()


def test_follow_cuts_what_was_sent_twice_and_needs_its_place(tmp_path: Path) -> None:
    program = (
        "head, _ = hear()\nat = head['offset']\nlog = b'0123456789'\n"
        "say({'re': 'follow', 'status': {'state': 'running', 'attempt': 1}})\n"
        "say({'re': 'follow', 'beat': True})\n"
        "if at == 0:\n"
        "  say({'re': 'follow', 'log': True, 'offset': 0}, log[:4])\n"
        "  say({'re': 'follow', 'log': True, 'offset': 2}, log[2:6])\n"
        "  sys.exit(0)\n"
        "say({'re': 'follow', 'log': True, 'offset': at}, log[at:])\n"
        "last = {'state': 'failed', 'attempt': 1, 'exit_code': 3}\n"
        "say({'re': 'follow', 'end': True, 'offset': 10, 'status': last})\n"
        "hear()\n"
    )
    items = list(liar(tmp_path, program).attached(handle()))
    assert b"".join(item for item in items if isinstance(item, bytes)) == b"0123456789"
    states = [item.state for item in items if isinstance(item, Status)]
    assert states[0] is State.RUNNING
    assert states[-1] is State.FAILED
    last = items[-1]
    assert isinstance(last, Status)
    assert last.exit_code == 3


def test_a_final_status_is_the_last_thing_told(tmp_path: Path) -> None:
    program = (
        "head, _ = hear()\nat = head['offset']\nlog = b'0123456789'\n"
        "last = {'state': 'succeeded', 'attempt': 1, 'exit_code': 0}\n"
        "say({'re': 'follow', 'status': last})\n"
        "say({'re': 'follow', 'log': True, 'offset': at}, log[at:at + 4])\n"
        "if at < 8: sys.exit(0)\n"
        "say({'re': 'follow', 'end': True, 'offset': 10, 'status': last})\nhear()\n"
    )
    items = list(liar(tmp_path, program).attached(handle()))
    assert [type(item) for item in items] == [bytes, bytes, bytes, Status]
    assert b"".join(item for item in items if isinstance(item, bytes)) == b"0123456789"


def test_files_that_did_not_arrive_are_sent_again(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    program = (
        f"tries = {str(tries)!r}\nopen(tries, 'a').write('x')\nok = len(open(tries).read()) == 3\n"
        "error = {'code': 'BLOBS_MISSING', 'what': 'arrived damaged'}\n"
        "while True:\n  op = hear()[0]['op']\n"
        "  if op == 'blob': continue\n"
        "  if op == 'start': say({'re': op, 'ok': ok, 'status': {'state': 'running', 'attempt': 1},\n"
        "      'error': {'code': 'NOT_COMMITTED'}})\n"
        "  else: say({'re': op, 'ok': ok or op == 'prepare', 'want': [], 'error': error})\n"
    )
    backend = liar(tmp_path, program)
    handle = backend.submit(submission(backend, workload(tmp_path / "w")))
    assert handle.attempt == 1
    assert tries.read_text() == "xxx"


def test_follow_of_a_run_nobody_knows_is_lost(tmp_path: Path) -> None:
    error = {"code": "NOT_COMMITTED", "what": "no"}
    program = f"hear()\nsay({{'re': 'follow', 'ok': False, 'error': {error}}})\nhear()\n"
    with pytest.raises(HandleLost):
        list(liar(tmp_path, program).attached(handle()))
