"""Proves that `route record` runs a command as it is, passes on signals and exit code, tells the truth."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from boards import element, printed, tool, topology, uuid
from conftest import ROUTE, Route
from recording import PLAIN, Env, fact, receipt_of, recorder, run_of, script, until

from compute_router.backend import Surface
from compute_router.recording.launchers import find

TRAPS = """#!/bin/sh
trap 'echo saving; sleep 0.1; exit {code}' TERM
echo ready; touch up
while :; do sleep 0.05; done
"""


def test_a_plain_command_runs_where_it_stands_and_leaves_a_good_receipt(
    route: Route, folder: Path, home: Path
) -> None:
    script(folder, "t.py", "import os, sys\nprint(os.getcwd(), sys.argv[1:], os.environ['MINE'])\n")
    before = sorted(p.name for p in folder.iterdir())
    got = route("record", "--name", "llm", "--", sys.executable, "t.py", "--lr", "1", env={"MINE": "yes"})
    assert (got.returncode, got.stdout) == (0, f"{folder} ['--lr', '1'] yes\n"), got.stderr
    assert sorted(p.name for p in folder.iterdir()) == before
    receipt = receipt_of(home)
    assert fact(receipt, "outcome.state")["v"] == "succeeded"
    assert (
        fact(receipt, "workload.entry_sha256")["v"]
        == hashlib.sha256((folder / "t.py").read_bytes()).hexdigest()
    )
    assert (run_of(home) / "log").read_text() == got.stdout
    assert route("receipt", "verify", "latest").returncode == 0
    assert route("logs", "llm").stdout == got.stdout
    assert "llm" in route("ps").stdout
    assert "succeeded" in route("status", "llm").stdout


@pytest.mark.parametrize(
    ("words", "code", "state"),
    [
        (["sh", "-c", "exit 7"], 7, "failed"),
        (["sh", "-c", "kill -9 $$"], 137, "failed"),
        (["no-such-program-here"], 127, "failed"),
        (["./plain.txt"], 126, "failed"),
        (["true"], 0, "succeeded"),
    ],
)
def test_the_exit_code_is_that_of_the_bare_command(
    route: Route, folder: Path, home: Path, words: list[str], code: int, state: str
) -> None:
    (folder / "plain.txt").write_text("no program\n")
    got = route("record", "--", *words)
    assert got.returncode == code, got.stderr
    assert fact(receipt_of(home), "outcome.state")["v"] == state
    assert route("receipt", "verify", "latest").returncode == 0


def test_a_script_without_a_first_line_is_run_as_a_shell_does(route: Route, folder: Path) -> None:
    script(folder, "old", "echo from sh $1\n")
    assert route("record", "--", "./old", "x").stdout == "from sh x\n"


@pytest.mark.parametrize("code", [0, 3])
def test_sigterm_reaches_work_that_traps_it(folder: Path, home: Path, route: Route, code: int) -> None:
    script(folder, "work", TRAPS.format(code=code))
    process = recorder(folder, "--", "./work")
    until((folder / "up").exists, "the work")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"ready\nsaving\n"), err
    receipt = receipt_of(home)
    # It was cut short: whatever it exits with, it is no sample.
    assert fact(receipt, "outcome.state")["v"] == "cancelled"
    assert fact(receipt, "outcome.exit_code")["v"] == code
    assert "signal 15" in fact(receipt, "outcome.detail")["v"]
    assert receipt["evidence_class"] == "invalid"
    assert route("receipt", "verify", "latest").returncode == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_that_ends_the_work_is_passed_on(folder: Path, home: Path, name: str) -> None:
    number = signal.Signals[name]
    process = recorder(folder, "--", "sh", "-c", "touch up; exec sleep 100")
    until((folder / "up").exists, "the work")
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert fact(receipt_of(home), "outcome.state")["v"] == "cancelled"
    assert fact(receipt_of(home), "outcome.signal")["v"] == number


def test_work_that_ignores_a_signal_is_judged_by_its_own_end(folder: Path, home: Path) -> None:
    process = recorder(
        folder, "--", "sh", "-c", "trap '' TERM; touch up; while [ ! -e go ]; do sleep 0.05; done"
    )
    until((folder / "up").exists, "the work")
    process.send_signal(signal.SIGTERM)
    (signals,) = [(p / "attempts/1/signals.jsonl") for p in (home / "machine" / "runs").iterdir()]
    until(signals.exists, "the note")
    (folder / "go").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert fact(receipt_of(home), "outcome.state")["v"] == "succeeded"


def test_a_usr_signal_is_passed_on_and_is_no_end(folder: Path, home: Path) -> None:
    process = recorder(
        folder,
        "--",
        "bash",
        "-c",
        "trap 'echo checkpoint; exit 0' USR1; touch up; while :; do sleep 0.05; done",
    )
    until((folder / "up").exists, "the work")
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"checkpoint\n"), err
    assert fact(receipt_of(home), "outcome.state")["v"] == "succeeded"


def test_a_killed_recorder_costs_neither_work_nor_outcome(folder: Path, home: Path, route: Route) -> None:
    process = recorder(
        folder, "--", "sh", "-c", "touch up; while [ ! -e go ]; do sleep 0.05; done; echo end; exit 5"
    )
    until((folder / "up").exists, "the work")
    process.kill()
    process.wait()
    run = run_of(home)
    assert not (run / "receipt.json").exists()
    assert "running" in route("status", run.name).stdout
    (folder / "go").touch()
    assert route("wait", run.name).returncode == 5
    assert route("collect", run.name).returncode == 0
    assert fact(receipt_of(home), "outcome.exit_code")["v"] == 5
    assert (run / "log").read_text() == "end\n"
    assert route("receipt", "verify", run.name).returncode == 0


def test_cancel_from_elsewhere_ends_it(folder: Path, home: Path, route: Route) -> None:
    process = recorder(folder, "--", "sh", "-c", "touch up; exec sleep 100")
    until((folder / "up").exists, "the work")
    assert route("cancel", "latest").returncode == 0
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert fact(receipt_of(home), "outcome.state")["v"] == "cancelled"


def test_a_recorder_that_died_before_the_start_is_never_started_again(
    folder: Path, home: Path, route: Route
) -> None:
    """The folder is that of a recorder killed between its intent and its start; `resume` ends it."""
    assert route("record", "--", "touch", "made").returncode == 0
    run = run_of(home)
    for name in ("handle", "status", "receipt"):
        (run / f"{name}.json").unlink()
    (folder / "made").unlink()
    for path in sorted((home / "machine" / "runs" / run.name).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (home / "machine" / "runs" / run.name).rmdir()
    assert route("resume", run.name).returncode == 75
    assert not (folder / "made").exists()
    assert fact(receipt_of(home), "outcome.reason_code")["v"] == "never_executed"
    assert route("receipt", "verify", run.name).returncode == 0


# Streams


def test_stdin_is_passed_on(folder: Path, home: Path) -> None:
    data = os.urandom(1 << 20)
    done = subprocess.run(
        [*ROUTE, "record", "-q", "--", "cat"], cwd=folder, input=data, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout == data) == (0, True), done.stderr


def test_without_stdin_the_command_reads_nothing(folder: Path) -> None:
    words = [*ROUTE, "record", "-q", "--no-stdin", "--", "cat"]
    done = subprocess.run(words, cwd=folder, input=b"unread", capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr


def test_a_large_output_arrives_whole_and_is_kept(route: Route, folder: Path, home: Path) -> None:
    done = subprocess.run(
        [*ROUTE, "record", "-q", "--", "sh", "-c", "head -c 20000000 /dev/zero"],
        cwd=folder,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, len(done.stdout)) == (0, 20_000_000), done.stderr
    assert (run_of(home) / "log").stat().st_size == 20_000_000


def test_a_reader_that_stops_ends_the_command_as_a_pipe_would(folder: Path, home: Path) -> None:
    process = recorder(folder, "-q", "--", "yes")
    assert process.stdout is not None
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert fact(receipt_of(home), "outcome.signal")["v"] == signal.SIGPIPE


def test_json_is_a_stream_with_the_receipt_at_its_end(route: Route, home: Path) -> None:
    got = route("record", "--json", "--", "sh", "-c", "echo one; exit 4")
    lines = [json.loads(line) for line in got.stdout.splitlines()]
    assert got.returncode == 4
    assert {"event": "log", "text": "one\n"}.items() <= next(
        x for x in lines if x.get("event") == "log"
    ).items()
    assert (lines[-1]["ok"], lines[-1]["data"]) == (False, receipt_of(home))


def test_what_runs_in_the_background_is_left_alone(route: Route, folder: Path, home: Path) -> None:
    got = route("record", "--", "sh", "-c", "(sleep 1; touch later) >/dev/null 2>&1 & echo begun")
    assert (got.returncode, got.stdout) == (0, "begun\n"), got.stderr
    until((folder / "later").exists, "what was left in the background")
    assert receipt_of(home)["measured"]["processes"]["strays"]["v"] >= 1


# What is listed


def test_outputs_are_listed_where_they_lie(route: Route, folder: Path, home: Path) -> None:
    got = route(
        "record",
        "--output",
        "results",
        "--output",
        "gone",
        "--",
        "sh",
        "-c",
        "mkdir results; echo 1 > results/a",
    )
    assert got.returncode == 0, got.stderr
    (listed,) = fact(receipt_of(home), "artifacts")["v"]
    assert (listed["path"], listed["sha256"]) == ("in_place/results/a", hashlib.sha256(b"1\n").hexdigest())
    assert (folder / "results" / "a").read_text() == "1\n"
    assert not list((run_of(home)).rglob("a"))
    assert route("receipt", "verify", "latest").returncode == 0


def test_outputs_are_kept_when_asked_for(route: Route, folder: Path, home: Path) -> None:
    words = ("--output", "a", "--keep-outputs", "--", "sh", "-c", 'echo 1 > a; echo 2 > "$ROUTE_OUTPUTS/b"')
    assert route("record", *words).returncode == 0
    kept = {p.name: p.read_text() for p in (run_of(home) / "outputs").rglob("*") if p.is_file()}
    assert kept == {"a": "1\n", "b": "2\n"}
    assert (folder / "a").read_text() == "1\n"


def test_the_work_may_report(route: Route, folder: Path, home: Path) -> None:
    script(
        folder,
        "t.py",
        "from route_report import step\nfor n in range(6): step(n, tokens=100, step_us=1000, loss=2.5)\n",
    )
    assert route("record", "--purpose", "benchmark", "--", sys.executable, "t.py").returncode == 0
    receipt = receipt_of(home)
    assert fact(receipt, "steady.n_steps")["v"] == 5
    assert fact(receipt, "metrics.values")["src"] == "workload"
    assert fact(receipt, "distributed.world")["v"] == 1


def test_git_facts_are_those_of_the_folder(route: Route, folder: Path, home: Path) -> None:
    def git(*words: str) -> str:
        ident = ("-c", "user.name=n", "-c", "user.email=e@example.com")
        return subprocess.run(
            ["git", *ident, *words], cwd=folder, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (folder / "a").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert route("record", "--", "true").returncode == 0
    clean = receipt_of(home)
    assert fact(clean, "code.commit")["v"] == git("rev-parse", "HEAD").strip()
    assert fact(clean, "code.dirty")["v"] is False
    (folder / "a").write_text("2")
    assert route("record", "--name", "second", "--", "true").returncode == 0
    # Whatever the command changes afterwards, the facts are those of its start.
    dirty = json.loads(route("receipt", "show", "second", "--json").stdout)["data"]
    dirty = dirty.get("receipt", dirty)
    assert fact(dirty, "code.dirty")["v"] is True
    assert len(fact(dirty, "code.diff_sha256")["v"]) == 64


# Launchers: their environment variables alone, for none of them can be had here.


@pytest.mark.parametrize(
    ("environ", "launcher", "surface", "ids"),
    [
        (
            {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": "1"},
            "slurm", "cluster", {"SLURM_JOB_ID": "77", "SLURM_PROCID": "1"},
        ),
        ({"SKYPILOT_TASK_ID": "s-1"}, "skypilot", None, {"SKYPILOT_TASK_ID": "s-1"}),
        ({"KUBERNETES_SERVICE_HOST": "::1", "HOSTNAME": "pod"}, "kubernetes", "cluster", {"HOSTNAME": "pod"}),
        ({"SKYPILOT_TASK_ID": "sky-1", "SLURM_JOB_ID": "7"}, "skypilot", None, {"around": "slurm"}),
        ({"LSB_JOBID": "5"}, "lsf", "cluster", {"LSB_JOBID": "5"}),
        ({"PBS_JOBID": "6.head"}, "pbs", "cluster", {"PBS_JOBID": "6.head"}),
    ],
)  # fmt: skip
def test_the_launcher_is_told_by_its_variables(
    route: Route, home: Path, environ: Env, launcher: str, surface: str | None, ids: dict[str, str]
) -> None:
    assert route("record", "--", "true", env={**dict.fromkeys(PLAIN), **environ}).returncode == 0
    receipt = receipt_of(home)
    assert fact(receipt, "started_by.mode")["v"] == "recorded"
    assert fact(receipt, "started_by.launcher") == {
        "v": launcher,
        "src": "observed",
        "at": receipt["created_us"],
    }
    told = fact(receipt, "started_by.ids")["v"]
    # The tests may themselves run in a container.
    told["around"] = told.get("around", "").partition(",")[0]
    assert ids.items() <= told.items()
    assert fact(receipt, "surface")["v"] == surface
    if surface is None:
        assert fact(receipt, "surface")["why"].startswith("unobserved")
    if "SLURM_JOB_NUM_NODES" in environ:
        assert fact(receipt, "distributed.nodes")["v"] == 2
    assert fact(receipt, "decision.policy")["v"] == "none"
    assert fact(receipt, "decision.sentence")["v"].startswith("nobody decided")
    assert route("receipt", "verify", "latest").returncode == 0


def test_a_declared_surface_is_the_users_word(route: Route, home: Path) -> None:
    env: Env = {**dict.fromkeys(PLAIN), "SKYPILOT_TASK_ID": "sky-1"}
    assert route("record", "--surface", "reserved", "--", "true", env=env).returncode == 0
    told = fact(receipt_of(home), "surface")
    assert (told["v"], told["src"]) == ("reserved", "requested")


def test_a_recorded_run_is_never_equal_to_a_routed_one(route: Route, folder: Path, home: Path) -> None:
    assert route("run", "--", "true").returncode == 0
    routed = receipt_of(home)
    args = ("record", "--surface", "local", "--set", "framework=any", "--", "true")
    assert route(*args).returncode == 0
    (other,) = [p for p in (home / "runs").iterdir() if p.name != routed["run_id"]]
    recorded = json.loads((other / "receipt.json").read_bytes())
    key = {r["run_id"]: r["comparability"] for r in (routed, recorded)}
    assert key[routed["run_id"]]["key"] != key[recorded["run_id"]]["key"]
    assert routed["comparability"]["fields"]["started_by.mode"] == "routed"
    assert recorded["comparability"]["fields"]["started_by.mode"] == "recorded"
    assert recorded["comparability"]["fields"]["surface"] == routed["comparability"]["fields"]["surface"]


def test_an_accelerator_that_is_not_there_is_told_and_costs_nothing(route: Route, home: Path) -> None:
    got = route("record", "--accelerator", "H200:8", "--", "echo", "ran", env={"PATH": "/usr/bin:/bin"})
    assert (got.returncode, got.stdout) == (0, "ran\n"), got.stderr
    receipt = receipt_of(home)
    assert fact(receipt, "hw.requested.class")["v"] == "H200"
    assert fact(receipt, "hw.match")["v"] != "exact"
    assert "RECORDED" in {reason["code"] for reason in receipt["evidence_reasons"]}
    assert route("receipt", "verify", "latest").returncode == 0


def test_the_devices_are_those_that_the_launcher_left_visible(
    route: Route, folder: Path, home: Path, tmp_path: Path
) -> None:
    """With a stand-in for nvidia-smi that knows two GPUs: none is leased, and no variable is changed."""
    boards = printed(*(element("H200-SXM", number) for number in range(2)))
    env: Env = {**tool(tmp_path, boards, topology(2)), "CUDA_VISIBLE_DEVICES": "1"}
    got = route("record", "--accelerator", "H200:1", "--", "printenv", "CUDA_VISIBLE_DEVICES", env=env)
    assert (got.returncode, got.stdout) == (0, "1\n"), got.stderr
    assert fact(receipt_of(home), "hw.observed.uuid")["v"] == [uuid(1)]
    assert route("receipt", "verify", "latest").returncode == 0


def test_recorded_inside_a_run_leaves_both_receipts(route: Route, folder: Path, home: Path) -> None:
    inner = " ".join([*map(_quoted, ROUTE), "record", "--name", "inner", "--", "echo", "deep"])
    got = route("record", "--name", "outer", "--", "sh", "-c", inner)
    assert got.returncode == 0, got.stderr
    assert "deep" in got.stdout
    receipts = [json.loads((p / "receipt.json").read_bytes()) for p in (home / "runs").iterdir()]
    by_name = {fact(r, "workload.name")["v"]: r for r in receipts}
    assert set(by_name) == {"inner", "outer"}
    inner_ids = fact(by_name["inner"], "started_by.ids")["v"]
    assert fact(by_name["inner"], "started_by.launcher")["v"] == "route"
    assert inner_ids["ROUTE_RUN_ID"] == by_name["outer"]["run_id"]


def test_the_end_of_a_run_ends_what_was_recorded_inside(folder: Path, home: Path, route: Route) -> None:
    # A run does not see its store, so what it records goes where it says itself.
    words = ["env", f"ROUTE_HOME={home}", *ROUTE, "record", "--name", "inner", "--", "./deaf"]
    inner = " ".join(map(_quoted, words))
    script(folder, "deaf", "#!/bin/sh\ntrap '' TERM\necho $$ > \"$UP\"\nwhile :; do sleep 0.05; done\n")
    up = folder.parent / "up"
    words = [*ROUTE, "run", "--detach", "--set", "timeout=1h", "--", "sh", "-c", f"exec {inner}"]
    env = {**os.environ, "UP": str(up)}
    outer = subprocess.run(
        words, cwd=folder, env=env, check=True, capture_output=True, text=True
    ).stdout.strip()
    until(lambda: up.exists() and up.read_text().endswith("\n"), "the work")
    pid = int(up.read_text())
    assert route("cancel", outer).returncode == 0
    assert route("wait", outer).returncode == 143
    until(lambda: not Path(f"/proc/{pid}").exists(), "the work inside to end")
    assert route("wait", "inner").returncode == 128 + signal.SIGKILL
    assert route("receipt", "verify", "inner").returncode == 0


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


@pytest.mark.parametrize(
    ("environ", "name", "surface"),
    [
        ({"TERM": "xterm"}, "shell", Surface.LOCAL),
        ({"TERM": "xterm", "TMUX": "/tmp/t"}, "tmux", Surface.LOCAL),
        ({"TERM": "xterm", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, "ssh", None),
        ({"TERM": "xterm", "TMUX": "/tmp/t", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, "tmux", None),
        ({"SLURM_JOB_ID": "7", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, "slurm", Surface.CLUSTER),
    ],
)
def test_a_login_by_ssh_does_not_say_where_it_leads(environ: Env, name: str, surface: Surface | None) -> None:
    found = find({k: v for k, v in environ.items() if v is not None}, container=False)
    assert (found.name, found.surface) == (name, surface)
    assert bool(found.why) is (surface is None)


def test_a_file_without_end_is_read_no_further_than_its_size() -> None:
    """/proc/self/pagemap says that it is a regular file of no bytes, and holds some hundred gigabytes."""
    code = (
        "from pathlib import Path; from compute_router.recording.command import code_of;"
        "print(code_of(['/proc/self/pagemap'], Path('/')))"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert "sha256=None" in got.stdout, got.stderr
    assert "cannot be read" in got.stdout


def test_what_differs_and_cannot_be_read_has_no_digest(folder: Path) -> None:
    """It is not the digest of a tree in which that file is gone."""
    from compute_router.recording.code import git_facts

    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    (folder / "open").write_text("1")
    git, note = git_facts(folder, deadline=30)
    assert git is not None
    assert (len(git.diff_sha256 or ""), note) == (64, "")
    os.symlink("/proc/self/pagemap", folder / "link")
    (folder / os.fsdecode(b"\xff")).write_text("2")
    git, note = git_facts(folder, deadline=30)
    assert git is not None
    assert (git.diff_sha256, git.dirty) == (None, True)
    assert "is no text" in note
