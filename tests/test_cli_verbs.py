"""Proves what the verbs that act on runs do: waves, reruns, logs, waiting, removing, starting out."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROUTE, Route


def data(out: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(out.stdout.splitlines()[-1])["data"]


def test_init_writes_a_workload_that_runs_and_overwrites_nothing(route: Route, folder: Path) -> None:
    assert route("init").returncode == 0
    script = (folder / "workload.py").read_text()
    out = route("run", "workload.py")
    assert out.returncode == 0, out.stderr
    assert "step 4" in out.stdout
    [found] = data(route("receipt", "list", "--json"))
    assert Path(found["path"]).with_name("outputs").joinpath("results", "summary.txt").exists()
    (folder / "workload.py").write_text("mine")
    again = route("init")
    assert again.returncode == 65
    assert "--force" in again.stderr
    assert (folder / "workload.py").read_text() == "mine"
    assert route("init", "--force").returncode == 0
    assert (folder / "workload.py").read_text() == script
    assert route("init", "--name", "../x.py").returncode == 64


def test_the_starter_runs_without_route_too(route: Route, folder: Path) -> None:
    import sys

    route("init")
    out = subprocess.run([sys.executable, "-I", "workload.py"], cwd=folder, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "step 4" in out.stdout


def test_a_wave_of_cases(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text("import sys; print('case', sys.argv[1:]); sys.exit(int(sys.argv[1]))")
    cases = [{"name": f"c{n}", "args": [str(n)]} for n in (0, 3, 4)]
    (folder / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    call = ["run", "work.py", "--cases", "cases.jsonl", "--key", "wave", "--json"]
    out = route(*call)
    assert out.returncode == 3, out.stderr
    ends = data(out)
    assert [(e["name"], e["exit_code"]) for e in ends] == [("c0", 0), ("c3", 3), ("c4", 4)]
    assert [e["run_id"] for e in data(route(*call))] == [e["run_id"] for e in ends]
    assert len(list((home / "runs").glob("*/receipt.json"))) == 3
    detached = route("run", "work.py", "--cases", "cases.jsonl", "--detach")
    assert detached.returncode == 0, detached.stderr
    ids = detached.stdout.split()
    assert len(ids) == 3
    waited = route("wait", *ids)
    assert waited.returncode == 3
    assert [line.split()[0] for line in waited.stdout.splitlines()] == ids
    dry = route("run", "work.py", "--cases", "cases.jsonl", "--dry-run", "--json")
    assert len(data(dry)) == 3
    assert len(list((home / "runs").glob("*/receipt.json"))) == 6


def test_rerun_of_a_run_and_of_a_receipt_file(route: Route, folder: Path, tmp_path: Path, home: Path) -> None:
    (folder / "work.py").write_text("import sys; print('ran', *sys.argv[1:])")
    assert route("run", "work.py", "--", "a", "b").returncode == 0
    [run] = (home / "runs").iterdir()
    kept = tmp_path / "kept.json"
    kept.write_bytes((run / "receipt.json").read_bytes())
    again = route("rerun", str(kept), cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, "ran a b\n"), again.stderr
    assert "changed" not in again.stderr
    (folder / "work.py").write_text("print('ran anew')")
    changed = route("rerun", run.name)
    assert (changed.returncode, changed.stdout) == (0, "ran anew\n")
    assert f"have changed since run {run.name}" in changed.stderr
    kept.write_text('{"run": 1}')
    assert route("rerun", str(kept)).returncode == 64


def test_logs_of_a_live_and_of_a_collected_run(route: Route, folder: Path) -> None:
    go = folder / "go"
    (folder / "work.py").write_text(
        "import os, time\n"
        "print('one\\ntwo\\nthree', flush=True)\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.02)\n"
        "print('four')\n"
    )
    run_id = route("run", "--detach", "work.py").stdout.strip()
    end = time.monotonic() + 20
    while route("logs", run_id).stdout != "one\ntwo\nthree\n":
        assert time.monotonic() < end
    assert route("logs", run_id, "--tail", "2").stdout == "two\nthree\n"
    assert route("logs", run_id, "--tail", "0").stdout == ""
    follower = subprocess.Popen(
        [*ROUTE, "logs", "-f", "-n", "1", run_id], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert follower.stdout is not None
    assert follower.stdout.readline() == "three\n"
    go.touch()
    assert follower.stdout.read() == "four\n"
    assert follower.wait(20) == 0
    assert route("wait", run_id).returncode == 0
    assert route("logs").stdout == "one\ntwo\nthree\nfour\n"
    assert route("logs", "--tail", "1").stdout == "four\n"
    assert route("logs", "work").stdout.endswith("four\n")


def test_many_lines_and_one_endless_line(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text("print('x' * 300000, end='')\nfor n in range(5000): print(n)\n")
    assert route("run", "work.py").returncode == 0
    assert route("logs", "-n", "3").stdout == "4997\n4998\n4999\n"
    assert len(route("logs").stdout) == 300000 + len("".join(f"{n}\n" for n in range(5000)))


def test_wait_for_several_passes_the_first_bad_code_in_order(route: Route, folder: Path) -> None:
    ids = [
        route("run", "--detach", "--", "sh", "-c", code).stdout.strip()
        for code in ("exit 0", "exit 5", "exit 6")
    ]
    out = route("wait", *ids)
    assert out.returncode == 5, out.stderr
    assert route("wait", *reversed(ids)).returncode == 6
    document = json.loads(route("wait", *ids, "--json").stdout.splitlines()[-1])
    assert [entry["exit_code"] for entry in document["data"]] == [0, 5, 6]
    assert document["error"]["code"] == "RUN_FAILED"


def test_ps_filters(route: Route, folder: Path) -> None:
    for name, code in (("good", 0), ("bad", 3)):
        (folder / f"{name}.py").write_text(f"raise SystemExit({code})")
        assert route("run", f"{name}.py").returncode == code

    def names(*args: str) -> list[str]:
        return [row["name"] for row in data(route("ps", "--json", *args))["runs"]]

    assert names() == ["bad", "good"]
    assert names("--state", "failed") == ["bad"]
    assert names("--state", "failed", "--state", "succeeded") == ["bad", "good"]
    assert names("--name", "good") == ["good"]
    assert names("--backend", "local") == ["bad", "good"]
    assert names("--backend", "elsewhere") == names("--live") == names("--kind", "bench") == []
    assert names("-n", "1") == ["bad"]
    assert len(route("ps", "-q").stdout.split()) == 2
    typo = route("ps", "--state", "faild")
    assert typo.returncode == 64
    assert "failed" in typo.stderr
    assert "failed (3)" in route("ps").stdout


def test_ps_looks_at_live_runs_afresh(route: Route, folder: Path) -> None:
    run_id = route("run", "--detach", "--", "sh", "-c", "exit 4").stdout.strip()
    end = time.monotonic() + 20
    while (row := data(route("ps", "--json"))["runs"][0])["state"] != "failed":
        assert time.monotonic() < end, row
    assert (row["run_id"], row["exit_code"], row["collected"]) == (run_id, 4, False)


def test_gc_shows_first_and_keeps_receipts(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text("import os; open(os.environ['ROUTE_OUTPUTS'] + '/a', 'w').write('x')")
    assert route("run", "work.py").returncode == 0
    [run] = (home / "runs").iterdir()
    assert data(route("gc", "--json")) == []
    other = run / "nodes" / "1-h2"  # as of a run on several machines
    (other / "outputs").mkdir(parents=True)
    for name in ("outputs/b", "log", "measured.json"):
        (other / name).write_text("x")
    shown = route("gc", "--older-than", "0", "--outputs")
    assert run.name in shown.stdout
    assert (run / "outputs" / "a").exists()
    removed = route("gc", "--older-than", "0", "--outputs", "--delete")
    assert removed.returncode == 0, removed.stderr
    assert not (run / "outputs").exists()
    assert [path.name for path in other.iterdir()] == ["measured.json"]
    assert route("receipt", "verify", run.name).returncode == 0
    assert run.name in route("gc", "--run", run.name).stdout
    assert run.exists()
    assert route("gc", "--run", run.name, "--delete").returncode == 0
    assert not run.exists()
    assert data(route("ps", "--json"))["runs"] == []


def test_gc_frees_at_the_places_what_no_run_needs_and_names_those_that_cannot_be_asked(
    route: Route, folder: Path, home: Path, tmp_path: Path
) -> None:
    (folder / "work.py").write_text("pass\n")
    assert route("run", "work.py").returncode == 0
    collected = data(route("ps", "--json"))["runs"][0]["run_id"]
    (folder / "work.py").write_text("import sys; sys.exit(0)\n")
    kept = route("run", "--detach", "work.py").stdout.strip()
    end = time.monotonic() + 60
    while data(route("ps", "--json"))["runs"][0]["state"] != "succeeded":
        assert time.monotonic() < end
    there = home / "machine"
    config = tmp_path / "config.toml"
    config.write_text('[machines.gone]\naddress = "me@127.0.0.1:1"\n')
    out = route("gc", "--older-than", "0", "--json", env={"ROUTE_CONFIG": str(config)})
    [found] = [entry for entry in data(out) if entry["run_id"] is None]
    assert (found["runs"], found["removed"]) == ([collected], False)
    assert found["bytes"] > 0
    assert "ssh/gone could not be asked" in out.stderr
    assert (there / "runs" / collected).is_dir()
    assert route("gc", "--older-than", "0", "--delete").returncode == 0
    assert [path.name for path in (there / "runs").iterdir()] == [kept], "nobody has collected that one"
    assert route("status", collected).returncode == 0
    assert route("wait", kept).returncode == 0
    assert route("gc", "--older-than", "0", "--delete").returncode == 0
    assert not [path for path in (there / "blobs").rglob("*") if path.is_file()]
    assert route("receipt", "verify", collected, kept).returncode == 0


def test_gc_finds_folders_that_nothing_can_be_done_with(route: Route, home: Path) -> None:
    assert route("run", "--", "true").returncode == 0
    [run] = (home / "runs").iterdir()
    (run / "workload.json").unlink()
    assert data(route("gc", "--json")) == []
    os.utime(run, (1, 1))
    [found] = data(route("gc", "--json"))
    assert (found["run_id"], found["removed"]) == (run.name, False)
    assert run.exists()
    assert route("gc", "--delete").returncode == 0
    assert not run.exists()


def test_gc_refuses_a_run_that_may_be_going_on(route: Route, folder: Path) -> None:
    run_id = route("run", "--detach", "--", "sleep", "60.75").stdout.strip()
    refused = route("gc", "--delete", "--run", run_id)
    assert refused.returncode == 65
    assert f"route cancel {run_id}" in refused.stderr
    assert route("cancel", run_id).returncode == 0
    assert route("wait", run_id).returncode == 143


def test_secrets_from_an_env_file(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text(
        "# /// script\n# [tool.route]\n# secrets = ['TOKEN']\n# ///\n"
        "import os; print(len(os.environ['TOKEN']))\n"
    )
    (folder.parent / "env").write_text("export TOKEN='s3cret-value'\n")
    out = route("run", "--env-file", "../env", "work.py")
    assert (out.returncode, out.stdout) == (0, "12\n"), out.stderr
    for path in home.rglob("*"):
        if path.is_file():
            assert b"s3cret-value" not in path.read_bytes(), path


def test_the_summary_names_what_was_given(route: Route, folder: Path, home: Path) -> None:
    out = route("run", "--", "true")
    [run] = (home / "runs").iterdir()
    labels = [line.split()[0] for line in out.stderr.splitlines()]
    assert labels[0] == "run"
    assert labels[1] == "decided"
    for label in ("succeeded", "hardware", "storage", "cache", "receipt"):
        assert label in labels, out.stderr
    assert out.stderr.splitlines()[-1].endswith(str(run / "receipt.json"))
    assert run.name in out.stderr.splitlines()[0]


def test_detach_prints_the_id_alone(route: Route, home: Path) -> None:
    out = route("run", "--detach", "--", "true")
    [run] = (home / "runs").iterdir()
    assert out.stdout == f"{run.name}\n"
    assert route("wait", run.name).returncode == 0


def test_receipt_show_and_verify_of_a_changed_file(
    route: Route, folder: Path, tmp_path: Path, home: Path
) -> None:
    assert route("run", "--", "true").returncode == 0
    [run] = (home / "runs").iterdir()
    shown = route("receipt", "show")
    assert shown.returncode == 0
    assert "succeeded" in shown.stdout
    assert data(route("receipt", "show", str(run / "receipt.json"), "--json"))["run_id"] == run.name
    changed = tmp_path / "changed.json"
    changed.write_bytes((run / "receipt.json").read_bytes().replace(b'"train"', b'"bench"', 1))
    out = route("receipt", "verify", str(run / "receipt.json"), str(changed), "--json")
    assert out.returncode == 65
    assert [entry["ok"] for entry in data(out)] == [True, False]
    changed.write_text("{")
    assert route("receipt", "show", str(changed)).returncode == 64


@pytest.mark.parametrize("value", ["0", "90s", "30m", "1.5h", "2d", "forever"])
def test_lengths_of_time_are_read(route: Route, value: str) -> None:
    from compute_router.cli.options import Waiting

    got = Waiting().convert(value, None, None)
    expected = {"0": 0, "90s": 90, "30m": 1800, "1.5h": 5400, "2d": 172800, "forever": -1e-6}[value]
    assert got == round(expected * 1_000_000)


def test_words_for_figures() -> None:
    from compute_router.cli.words import age, duration, one_line, size, visible

    assert [duration(us) for us in (0, 420_000, 59_940_000, 60_000_000, 250_000_000, 7_500_000_000)] == [
        "0.0 s",
        "0.4 s",
        "59.9 s",
        "1 min",
        "4 min 10 s",
        "2 h 05 min",
    ]
    assert duration(4 * 86400 * 1_000_000 + 3600_000_000) == "4 d 1 h"
    assert [size(n) for n in (0, 812, 1000, 34_400, 1_250_000_000)] == [
        "0 B",
        "812 B",
        "1.0 kB",
        "34 kB",
        "1.2 GB",
    ]
    assert age(0, now_us=200_000_000) == "3 min ago"
    assert visible("a\x1b[31m\x9b\x7f\r\u202e\tb\n") == "a^[[31m\\x9b^?^M\\u202e\tb\n"
    assert one_line("a\n  b\x1b") == "a b^["
    assert visible(os.fsdecode(b"\xff")) == "\\udcff"


def test_the_end_of_a_run_tells_where_its_outputs_are_and_ps_where_it_was(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text(
        "import os, pathlib\n(pathlib.Path(os.environ['ROUTE_OUTPUTS']) / 'x').write_text('hi')\n"
    )
    out = route("run", "work.py")
    [line] = [line for line in out.stderr.splitlines() if line.startswith("outputs ")]
    assert "1 file, 2 B, in " in line
    assert Path(line.rpartition(" in ")[2]).joinpath("x").read_text() == "hi"
    header, row = route("ps").stdout.splitlines()
    assert "PLACE" in header
    assert "local/machine" in row
    assert data(route("ps", "--json"))["runs"][0]["offer_id"] == "machine"
    assert "1 file, 2 B" in route("collect", "latest").stderr
    assert "outputs" not in route("run", "--", "true").stderr


def test_cancel_says_nothing_of_a_run_that_is_over(route: Route) -> None:
    assert route("run", "--", "true").returncode == 0
    out = route("cancel", "latest")
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")


def test_a_signal_is_told_once(route: Route) -> None:
    out = route("run", "--", "sh", "-c", "kill -9 $$")
    assert out.returncode == 137
    assert out.stderr.count("by signal 9") == 1, out.stderr


def test_the_last_refusal_is_left_to_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    from compute_router.cli.attached import Stages
    from compute_router.cli.call import Cli
    from compute_router.cli.output import Output

    stages = Stages(Cli(Output()))
    for place in ("a", "b"):
        stages({"event": "staging", "run_id": "1", "backend": "x", "offer": place})
        stages({"event": "refused", "run_id": "1", "backend": "x", "offer": place, "what": f"no {place}"})
    assert [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()] == [
        "staging to x/a",
        "refused by x/a: no a",
        "staging to x/b",
    ]


def test_a_wait_that_ended_without_a_place_is_no_failure_of_the_work(route: Route) -> None:
    whole = ("--set", "backend.local.exclusive=true")
    holder = route("run", "--detach", *whole, "--", "sleep", "60.5").stdout.strip()
    out = route("run", "--wait", "1s", *whole, "--", "true")
    assert out.returncode == 69, out.stderr
    assert f"never executed; run {holder} has the whole machine" in out.stderr
    assert route("cancel", holder).returncode == 0


def test_a_refusal_does_not_tell_what_was_asked_for_with_backend(route: Route, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[machines.gone]\naddress = "me@127.0.0.1:1"\n')
    out = route("run", "--backend", "ssh", "--", "true", env={"ROUTE_CONFIG": str(config)})
    assert out.returncode == 65
    assert "gone is unreachable" in out.stderr
    assert "the run is pinned" not in out.stderr
    assert "leave out --backend" not in out.stderr
