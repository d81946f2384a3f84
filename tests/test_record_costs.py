"""Proves that recording a command never costs the work: full disks, broken settings, wrong words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ROUTE, Route
from recording import Env, fact, receipt_of, recorder, run_of, script, until

# What it must not cost


def test_a_store_that_cannot_be_written_does_not_cost_the_work(route: Route, folder: Path) -> None:
    (folder / "file").touch()
    env: Env = {"ROUTE_HOME": str(folder / "file" / "home")}
    got = route("record", "--", "sh", "-c", "echo ran; exit 9", env=env)
    assert (got.returncode, got.stdout) == (9, "ran\n")
    assert "not recorded" in got.stderr
    strict = route("record", "--strict", "--", "echo", "ran", env=env)
    assert (strict.returncode, strict.stdout) == (73, "")


def test_without_a_home_the_command_still_runs(route: Route) -> None:
    env: Env = {"ROUTE_HOME": None, "HOME": None, "XDG_DATA_HOME": None}
    got = route("record", "--", "echo", "ran", env=env)
    assert (got.returncode, got.stdout) == (0, "ran\n")
    assert "not recorded" in got.stderr


def test_settings_that_cannot_be_read_do_not_cost_the_work(route: Route, folder: Path) -> None:
    (folder / "route.toml").write_text("= broken")
    got = route("record", "--", "echo", "ran")
    assert (got.returncode, got.stdout) == (0, "ran\n")
    assert "not recorded" in got.stderr


def test_a_folder_that_cannot_be_written_is_no_hindrance(route: Route, folder: Path, home: Path) -> None:
    folder.chmod(0o555)
    try:
        got = route("record", "--", "pwd")
    finally:
        folder.chmod(0o755)
    assert (got.returncode, got.stdout) == (0, f"{folder}\n"), got.stderr
    assert fact(receipt_of(home), "outcome.state")["v"] == "succeeded"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["echo", "hi"], "no `--` in front"),
        ([], "command is missing"),
        (["--kind", "trian", "--", "true"], "trian"),
        (["--accelerator", "H200:", "--", "true"], "accelerator"),
        (["--set", "timeout=4h", "--", "true"], "record starts it as it is"),
        (["--keep-outputs", "--", "true"], "--output"),
        (["--output", "../up", "--", "true"], "output"),
    ],
)
def test_wrong_words_are_told_and_start_nothing(
    route: Route, home: Path, words: list[str], told: str
) -> None:
    got = route("record", *words)
    assert got.returncode == 64
    assert told in got.stderr
    assert not (home / "runs").exists() or not list((home / "runs").iterdir())


def test_there_is_no_way_to_route_to_it(route: Route) -> None:
    got = route("run", "--backend", "recorded", "--", "true")
    assert got.returncode == 64
    assert "recorded" not in route("backends").stdout


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the supervisor may write if the store's disk is too small."""
    monkeypatch.setenv("ROUTE_RECORD_ROOT", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def mounted(folder: Path, size: str) -> None:
    """A small file system; skips the test where it may not be mounted."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no mount of our own here: {done.stderr.strip()[:100]}")


def test_a_store_on_a_small_disk_keeps_the_log_elsewhere(
    route: Route, tmp_path: Path, elsewhere: Path
) -> None:
    small = tmp_path / "small"
    mounted(small, "8m")
    env: Env = {"ROUTE_HOME": str(small / "home")}
    try:
        got = route("record", "--", "echo", "ran", env=env)
        assert (got.returncode, got.stdout) == (0, "ran\n"), got.stderr
        assert len(list((elsewhere / "runs").iterdir())) == 1
        assert route("receipt", "verify", "latest", env=env).returncode == 0
        assert route("logs", "latest", env=env).stdout == "ran\n"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_store_that_fills_up_meanwhile_costs_neither_output_nor_exit_code(
    route: Route, folder: Path, tmp_path: Path, elsewhere: Path
) -> None:
    small = tmp_path / "small"
    mounted(small, "8m")
    home = small / "home"
    env: Env = {"ROUTE_HOME": str(home)}
    fill = f"head -c 20000000 /dev/zero > {small}/fill 2>/dev/null; echo ran; exit 6"
    try:
        got = route("record", "--", "sh", "-c", fill, env=env)
        assert (got.returncode, got.stdout) == (6, "ran\n"), got.stderr
        assert "route collect" in got.stderr
        (small / "fill").unlink()
        assert route("collect", "latest", env=env).returncode == 0
        assert fact(receipt_of(home), "outcome.exit_code")["v"] == 6
        assert route("receipt", "verify", "latest", env=env).returncode == 0
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize("kilobytes", [24, 40, 60, 90, 130, 200])
def test_wherever_the_disk_of_the_store_is_full_the_work_runs_once(
    route: Route, folder: Path, tmp_path: Path, elsewhere: Path, kilobytes: int
) -> None:
    small = tmp_path / "small"
    mounted(small, f"{kilobytes}k")
    try:
        got = route(
            "record", "--", "sh", "-c", "echo x >> count; exit 6", env={"ROUTE_HOME": str(small / "home")}
        )
        assert got.returncode == 6, got.stderr
        assert (folder / "count").read_text() == "x\n"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_cache_that_cannot_be_written_costs_nothing_else_that_is_seen(route: Route, home: Path) -> None:
    got = route("record", "--", "true", env={"JAX_COMPILATION_CACHE_DIR": "/dev/null/x"})
    assert got.returncode == 0, got.stderr
    (seen,) = (home / "machine" / "runs").glob("*/attempts/1/before.json")
    caches = json.loads(seen.read_bytes())["caches"]
    assert caches["kinds"] == {"jax_pcc": {"state": "unwritable"}}
    assert "traced" in caches


# Again and again: whoever observes the command makes files there until it notices.
REMOVE = 'until rm -rf "$ROUTE_HOME" 2>/dev/null; do :; done'
REMOVES = {
    "at once": (f"{REMOVE}; echo x >> count; exit 7", 7),
    "later": (f"sleep 0.5; {REMOVE}; echo ran; kill -9 $$", 128 + signal.SIGKILL),
}


@pytest.mark.parametrize("when", list(REMOVES))
def test_a_command_that_removes_its_own_records_keeps_its_end(route: Route, folder: Path, when: str) -> None:
    """Neither output nor exit code hang on folders that the command itself can remove, nor is it taken for
    one that never ran and run again."""
    words, code = REMOVES[when]
    got = route("record", "--", "sh", "-c", words)
    assert got.returncode == code, got.stderr
    assert "there is no receipt: the records of run" in got.stderr
    assert "set ROUTE_HOME" in got.stderr
    if when == "later":
        assert got.stdout == "ran\n"
    else:
        assert (folder / "count").read_text() == "x\n"


def test_a_signal_reaches_a_command_that_removed_its_own_records(folder: Path, home: Path) -> None:
    words = f"trap 'echo caught; exit 9' TERM; {REMOVE}; touch up; while :; do sleep 0.05; done"
    process = recorder(folder, "--", "sh", "-c", words)
    until((folder / "up").exists, "the work")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (9, b"caught\n"), err


def test_words_that_no_record_can_hold_are_run_all_the_same(folder: Path) -> None:
    words = [os.fsencode(word) for word in [*ROUTE, "record", "--", "echo"]]
    done = subprocess.run([*words, b"\xff\xfe"], cwd=folder, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"\xff\xfe\n"), done.stderr
    assert b"not recorded" in done.stderr


def test_a_run_that_is_not_recorded_ends_as_a_pipe_does(folder: Path) -> None:
    (folder / "file").touch()
    env = {**os.environ, "ROUTE_HOME": str(folder / "file" / "home")}
    process = recorder(folder, "--", "yes", env=env)
    assert process.stdout is not None
    process.stdout.read(4)
    process.stdout.close()
    assert process.wait(60) == -signal.SIGPIPE


def test_what_nohup_ignores_stays_ignored(folder: Path, home: Path) -> None:
    """SIGHUP is ignored from the beginning, as `nohup` has it."""
    words = "touch up; while [ ! -e go ]; do sleep 0.05; done"
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = recorder(folder, "--", "sh", "-c", words)
    finally:
        signal.signal(signal.SIGHUP, old)
    until((folder / "up").exists, "the work")
    process.send_signal(signal.SIGHUP)
    (folder / "go").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert fact(receipt_of(home), "outcome.state")["v"] == "succeeded"


def test_a_stop_stops_the_work_and_a_continuation_wakes_it(folder: Path, home: Path) -> None:
    """SIGTSTP, as Ctrl-Z sends it: nothing is counted while it is stopped."""
    process = recorder(
        folder, "--", "sh", "-c", "touch up; while [ ! -e go ]; do echo x >> n; sleep 0.02; done"
    )
    until((folder / "up").exists, "the work")
    (record,) = [p / "attempts" / "1" / "exec.json" for p in (home / "machine" / "runs").iterdir()]
    stat = Path("/proc") / str(json.loads(record.read_bytes())["pid"]) / "stat"
    process.send_signal(signal.SIGTSTP)
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the work to stop")
    process.send_signal(signal.SIGCONT)
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] != "T", "the work to go on")
    (folder / "go").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_a_launcher_of_several_nodes_is_no_hindrance_to_a_kind_without_them(route: Route, home: Path) -> None:
    env: Env = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4"}
    got = route("record", "--kind", "bench", "--accelerator", "cpu", "--", "echo", "ran", env=env)
    assert (got.returncode, got.stdout) == (0, "ran\n"), got.stderr
    assert run_of(home).is_dir()


def test_a_program_of_ones_own_is_found_by_its_relative_name(route: Route, folder: Path, home: Path) -> None:
    (folder / "bin").mkdir()
    script(folder / "bin", "tool", "#!/bin/sh\necho from $0\n")
    assert route("record", "--", "bin/tool").stdout == "from bin/tool\n"
    assert len(fact(receipt_of(home), "workload.entry_sha256")["v"]) == 64


@pytest.mark.parametrize("files", [10, 70, 100, 110, 116, 120, 124, 130, 160])
def test_wherever_the_records_of_the_supervisor_end_the_work_runs_once(
    route: Route, folder: Path, tmp_path: Path, elsewhere: Path, files: int
) -> None:
    """A file system with room for so many files, so that each record in turn is the first to fail."""
    mounted(elsewhere, f"80m,nr_inodes={files}")
    try:
        got = route("record", "--", "sh", "-c", "echo x >> count; exit 6")
        assert got.returncode == 6, got.stderr
        assert (folder / "count").read_text() == "x\n"
    finally:
        subprocess.run(["umount", "-l", str(elsewhere)], check=True)
