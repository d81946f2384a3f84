"""Proves `route compare` from the outside: what can be named, what is refused, what it exits with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from conftest import Route


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_runs_by_every_name(route: Route, folder: Path, home: Path, two: list[Path]) -> None:
    """A run, a file and a folder name the same receipts; the first is the base."""
    for refs in (
        ["latest~1", "latest"],
        [str(two[0]), str(two[1])],
        [str(two[0].parent), two[1].parent.name],
    ):
        done = route("compare", *refs, "--json")
        assert done.returncode == 65, done.stderr
        [contrast] = answer(done)["data"]["contrasts"]
        assert contrast["result"] == "refused"
        assert "workload.preset" in {d["field"] for d in contrast["differences"]}
        points = answer(done)["data"]["points"]
        assert [p["run_id"] for p in points] == [path.parent.name for path in two]


def test_what_varies_is_declared(route: Route, two: list[Path]) -> None:
    done = route("compare", "latest~1", "latest", "--vary", "arguments")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NO VERDICT" in done.stdout.splitlines()[0]
    assert "TOO_FEW_RUNS" in done.stdout


def test_a_folder_is_sorted_by_a_field(route: Route, home: Path, two: list[Path]) -> None:
    done = route(
        "compare", str(home / "runs"), "--by", "workload.args_redacted", "--vary", "arguments", "--json"
    )
    assert done.returncode == 0, done.stdout
    assert len(answer(done)["data"]["arms"]) == 2


def test_groups_stand_around_vs(route: Route, two: list[Path]) -> None:
    done = route("compare", str(two[0]), "vs", str(two[1]), "--vary", "arguments", "--json")
    assert [p["run_id"] for p in answer(done)["data"]["points"]] == [path.parent.name for path in two]
    for wrong in (["vs", "latest"], ["latest", "vs"], ["latest", "vs", "latest", "vs", "latest"]):
        assert route("compare", *wrong).returncode == 64


def test_the_same_run_twice_is_refused(route: Route, two: list[Path]) -> None:
    done = route("compare", "latest", "latest", "--json")
    assert done.returncode == 65
    assert "SAME_RUN" in done.stdout


def test_a_waiver_is_printed_and_recorded(route: Route, home: Path, two: list[Path]) -> None:
    because = "the figures are wanted, not a claim"
    done = route("compare", "latest~1", "latest", "--allow", "CONFOUNDED", "--because", because)
    assert done.stdout.splitlines()[0] == f"WAIVED CONFOUNDED: {because}"
    assert "waived R04 CONFOUNDED" in done.stdout
    [line] = (home / "waivers.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["waivers"] == [{"rule": "CONFOUNDED", "because": because}]
    assert record["receipts"] == sorted(json.loads(path.read_text())["receipt_id"] for path in two)
    # One that is not needed is told and not recorded.
    done = route("compare", "latest~1", "latest", "--vary", "arguments", "--allow", "R03", "--because", "x")
    assert "COLD_VS_WARM (it was not needed)" in done.stdout
    assert len((home / "waivers.jsonl").read_text().splitlines()) == 1


BAD = [
    (["--allow", "CONFOUNDED"], "0 reasons given"),
    (["--allow", "CONFOUNDED", "--because", " "], "reasons given"),
    (["--because", "x"], "without --allow"),
    (["--allow", "CONFUONDED", "--because", "x"], "did you mean CONFOUNDED?"),
    (["--allow", "SAME_RUN", "--because", "x"], "cannot be waived"),
    (["--metric", "speeed"], "did you mean speed?"),
    (["--vary", "argumens"], "did you mean 'arguments'?"),
    (["--margin", "2"], "between 0 and 1"),
    (["--allowed-signers", "nobody"], "there is no file nobody"),
]


def test_bad_input_is_one_line_with_a_mend(route: Route, two: list[Path]) -> None:
    for args, said in BAD:
        done = route("compare", "latest~1", "latest", *args)
        assert (done.returncode, done.stdout) == (64, "")
        assert said in done.stderr
        assert "mend:" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_changed_receipt_refuses_all(route: Route, two: list[Path]) -> None:
    data = two[0].read_bytes()
    two[0].write_bytes(data.replace(b'"attempt":1', b'"attempt":2', 1))
    done = route("compare", str(two[0]), str(two[1]))
    assert done.returncode == 65
    assert "HASH_MISMATCH" in done.stdout


def test_it_can_fail_for_want_of_a_verdict(route: Route, two: list[Path]) -> None:
    same = ["compare", "latest~1", "latest", "--vary", "arguments"]
    done = route(*same, "--fail-on", "inconclusive")
    assert (done.returncode, "no verdict on" in done.stderr) == (1, True)
    assert route(*same, "--fail-on", "slower").returncode == 0
    found = answer(route(*same, "--fail-on", "inconclusive", "--json"))
    assert (found["ok"], found["error"]["code"]) == (False, "VERDICT")


def test_markdown_and_signatures(route: Route, folder: Path, two: list[Path]) -> None:
    done = route("compare", "latest~1", "latest", "--markdown")
    assert done.returncode == 65
    assert done.stdout.startswith("### ⛔ ")
    assert "R04 `CONFOUNDED`" in done.stdout

    (folder / "signers").write_text("")
    done = route("compare", "latest~1", "latest", "--vary", "arguments", "--allowed-signers", "signers")
    assert done.returncode == 65
    assert "R16 SIGNATURE_REQUIRED" in done.stdout


def test_an_arm_is_held_against_itself(route: Route, home: Path, two: list[Path]) -> None:
    done = route("compare", str(home / "runs"), "--self")
    assert "too few runs to tell: 12 are needed" in done.stdout
    assert route("compare", "latest", "vs", "latest~1", "--self").returncode == 64
