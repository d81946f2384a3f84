"""Proves that every verb speaks `route.cli/1`: one document, its shape, nothing else on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Route

SCRIPT = """\
# /// script
# [tool.route]
# outputs = ["results/"]
# ///
import pathlib, sys
print("seen \\x1b[31mred", *sys.argv[1:])
pathlib.Path("results").mkdir()
pathlib.Path("results/a.txt").write_text("a")
"""
TIMED = """\
# /// script
# [tool.route]
# kind = "bench"
# purpose = "benchmark"
# framework = "none"
# [tool.route.metrics]
# primary = "speed"
# [tool.route.fields]
# dtype = "float64"
# deterministic = true
# ///
import route_report
for step in range(6):
    route_report.step(step, step_us=1000, speed=10.0)
"""


STREAMS = ("run", "rerun", "warm", "record", "resume", "wait", "logs", "shell")


def document(line: str, command: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line)
    assert list(found) == ["schema", "command", "ok", "data", "warnings", "error"]
    assert found["schema"] == "route.cli/1"
    assert found["command"] == command
    assert isinstance(found["warnings"], list)
    assert found["ok"] is (found["error"] is None)
    if found["error"] is not None:
        assert list(found["error"]) == ["code", "what", "mend", "file", "line"]
    assert "\x1b" not in line
    return found


@pytest.mark.parametrize(
    "args",
    [
        ["run", "work.py", "--json"],
        ["run", "--json", "--detach", "work.py"],
        ["run", "--json", "--dry-run", "work.py"],
        ["plan", "--json", "--values", "work.py"],
        ["rerun", "latest", "--json"],
        ["warm", "cached.py", "--json"],
        ["record", "--json", "--", "echo", "seen"],
        ["ps", "--json"],
        ["status", "--json"],
        ["logs", "--json"],
        ["wait", "latest", "--json"],
        ["cancel", "latest", "--json"],
        ["resume", "latest", "--json"],
        ["collect", "latest", "--json"],
        ["shell", "latest", "--json", "--", "echo", "seen"],
        ["compare", "latest~1", "latest", "--json"],
        ["report", "latest~1", "latest", "--json"],
        ["study", "list", "--json"],
        ["machine", "list", "--json"],
        ["receipt", "show", "--json"],
        ["receipt", "list", "--json"],
        ["receipt", "verify", "latest", "--json"],
        ["backends", "--json"],
        ["policies", "--json"],
        ["kinds", "--json"],
        ["plugins", "--json"],
        ["doctor", "--json"],
        ["init", "fresh", "--json"],
        ["gc", "--json"],
        ["completion", "bash", "--json"],
    ],
    ids=" ".join,
)
def test_the_shape(route: Route, folder: Path, args: list[str]) -> None:
    (folder / "work.py").write_text(SCRIPT)
    (folder / "cached.py").write_text(
        '# /// script\n# [tool.route]\n# volumes = { compile-cache = "/cache" }\n# ///\n'
        "import os, route_report\nopen(os.environ['TORCHINDUCTOR_CACHE_DIR'] + '/made', 'w').write('x')\n"
        "route_report.cache('inductor', hits=0, misses=1, verdict='miss')\n"
    )
    if args[0] in ("compare", "report"):
        (folder / "timed.py").write_text(TIMED)
        assert route("run", "timed.py").returncode == route("run", "timed.py").returncode == 0
    elif args[0] == "shell":
        assert route("run", "--detach", "--", "sleep", "60").returncode == 0
    elif args[0] not in (
        "machine",
        "run",
        "warm",
        "record",
        "plan",
        "backends",
        "policies",
        "kinds",
        "plugins",
        "doctor",
        "init",
        "completion",
    ):
        assert route("run", "work.py").returncode == 0
    out = route(*args)
    assert out.returncode == 0, out.stdout + out.stderr
    lines = out.stdout.splitlines()
    command = " ".join(args[:2]) if args[0] in ("receipt", "study", "machine") else args[0]
    assert document(lines[-1], command)["ok"]
    for line in lines[:-1]:
        assert args[0] in STREAMS, "only streams have more than one line"
        event = json.loads(line)
        assert (event["schema"], event["command"]) == ("route.cli/1", command)
        assert isinstance(event["event"], str)
    if args[0] == "shell":
        assert route("cancel", "latest").returncode == 0
        assert route("wait", "latest").returncode == 143


def test_a_seeding_pass_that_warms_nothing_is_not_ok(route: Route, folder: Path) -> None:
    (folder / "cached.py").write_text(
        '# /// script\n# [tool.route]\n# volumes = { compile-cache = "/cache" }\n# ///\nprint("seen")\n'
    )
    out = route("warm", "cached.py", "--json")
    assert out.returncode == 65
    found = document(out.stdout.splitlines()[-1], "warm")
    assert (found["error"]["code"], found["data"]["schema"]) == ("NOT_WARM", "route.receipt/1")


def test_every_verb_is_in_the_test_above() -> None:
    from compute_router.cli.app import SECTIONS

    [mark] = test_the_shape.pytestmark  # type: ignore[attr-defined]
    assert {args[0] for args in mark.args[1]} == {name for section in SECTIONS.values() for name in section}


@pytest.mark.parametrize(
    ("args", "command", "code", "name"),
    [
        (["statsu", "--json"], "", 64, "INPUT_ERROR"),
        (["ps", "--jsn", "--json"], "ps", 64, "USAGE"),
        (["run", "--json", "missing.py"], "run", 64, "WORKLOAD_ERROR"),
        (["status", "zzzzzzzz", "--json"], "status", 64, "NOT_FOUND"),
        (["receipt", "verify", "no.json", "--json"], "receipt verify", 64, "NOT_FOUND"),
        (["run", "--json", "--", "sh", "-c", "exit 7"], "run", 7, "RUN_FAILED"),
        (["run", "--json", "--", "sh", "-c", "kill -KILL $$"], "run", 137, "RUN_FAILED"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_have_the_same_shape(
    route: Route, args: list[str], command: str, code: int, name: str
) -> None:
    out = route(*args)
    assert out.returncode == code, out.stdout + out.stderr
    error = document(out.stdout.splitlines()[-1], command)["error"]
    assert error["code"] == name
    assert error["what"]
    assert error["mend"]


def test_an_option_of_the_work_is_not_ours(route: Route) -> None:
    out = route("run", "--", "echo", "--json", "--debug")
    assert out.returncode == 0, out.stderr
    assert out.stdout == "--json --debug\n"


def test_a_run_streams_events_log_and_receipt(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text(SCRIPT)
    out = route("run", "--json", "work.py", "--", "é\u202e")
    events = [json.loads(line) for line in out.stdout.splitlines()]
    names = [event.get("event") for event in events[:-1]]
    assert names.index("decided") < names.index("staging") < names.index("submitted")
    assert "".join(e["text"] for e in events[:-1] if e["event"] == "log") == "seen \x1b[31mred é\u202e\n"
    [run] = (home / "runs").iterdir()
    assert events[-1]["data"] == json.loads((run / "receipt.json").read_text())
    assert {e["run_id"] for e in events[:-1] if "run_id" in e} == {run.name}


def test_a_refusal_is_a_result(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text('# /// script\n# [tool.route]\n# accelerator = "H999:8"\n# ///\n')
    for verb in ("plan", "run"):
        out = route(verb, "--json", "work.py")
        assert out.returncode == 65
        found = document(out.stdout.splitlines()[-1], verb)
        assert found["error"]["code"] == "NO_PLACE"
        assert found["data"]["decision"]["outcome"] == "refused"
        assert found["data"]["decision"]["rejections"]


def test_a_dry_run_names_what_would_ship_and_starts_nothing(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text(SCRIPT)
    (folder / "data.txt").write_text("d")
    (folder / "big.bin").write_text("b")
    (folder / ".routeignore").write_text("big.bin\n")
    out = route("run", "--dry-run", "--json", "work.py")
    data = document(out.stdout, "run")["data"]
    assert {"work.py", "data.txt"} <= set(data["snapshot"]["paths"])
    assert "big.bin" in [path for path, _ in data["snapshot"]["skipped"]]
    assert data["decision"]["ranked"][0]["backend"] == "local"
    assert not list(home.glob("runs/*"))


def test_every_value_has_an_origin(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text(SCRIPT)
    (folder / "route.toml").write_text('purpose = "smoke"\n')
    out = route("plan", "--json", "work.py", "--set", "timeout=7s")
    values = {v["key"]: v for v in document(out.stdout, "plan")["data"]["values"]}
    assert values["timeout"]["value"] == 7_000_000
    assert "--set" in values["timeout"]["from"]
    assert "work.py" in values["outputs"]["from"]
    assert "route.toml" in values["purpose"]["from"]
    assert values["env"]["from"] == "default"


def test_a_plan_names_every_file_and_the_environment(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text("print(1)\n")
    (folder / ".routeignore").write_text("*.bin\n")
    for n in range(30):
        (folder / f"{n}.bin").write_text("x")
    out = route("plan", "--files", "work.py")
    assert out.returncode == 0, out.stderr
    assert "Environment: " in out.stdout
    assert sys.executable in out.stdout
    assert all(f"  not {n}.bin: named in .routeignore" in out.stdout for n in range(30))
    assert "  work.py" in out.stdout.splitlines()
    data = json.loads(route("plan", "--json", "work.py").stdout)["data"]
    assert data["environment"]["source"] == "current"
    assert "snapshot" not in data
    (folder / "needs.py").write_text("# /// script\n# dependencies = ['routedemo']\n# ///\n")
    listed = json.loads(route("plan", "--json", "needs.py").stdout)["data"]["environment"]
    assert listed["python"] is None
    assert "would be built" in listed["sentence"]
