"""Proves the main job as a user does it: one real process of `route` per step, real runs, real receipts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROUTE, Route

SCRIPT = """\
# /// script
# requires-python = ">=3.11"
# [tool.route]
# kind = "train"
# purpose = "smoke"
# timeout = "60s"
# outputs = ["results/"]
# ///
import os, sys, pathlib
from route_report import step
print("hello from", os.environ["ROUTE_RUN_ID"], sys.argv[1:])
for n in range(4):
    step(n, tokens=1000, loss=4.0 - n)
pathlib.Path("results").mkdir(exist_ok=True)
pathlib.Path("results/answer.txt").write_text("42\\n")
pathlib.Path(os.environ["ROUTE_OUTPUTS"], "more.txt").write_text("more\\n")
"""


def alive(word: str) -> list[int]:
    """The processes that have `word` on their command line."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if word in (process.info["cmdline"] or []):
            found.append(process.info["pid"])
    return found


def receipt_of(home: Path) -> dict[str, Any]:
    [path] = home.glob("runs/*/receipt.json")
    return dict(json.loads(path.read_text()))


def test_a_script_is_routed_run_and_leaves_a_receipt(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text(SCRIPT)
    out = route("run", "work.py", "--policy", "auto", "--", "--steps", "4")
    assert out.returncode == 0, out.stdout + out.stderr
    receipt = receipt_of(home)
    run_id = receipt["run_id"]
    assert f"hello from {run_id} ['--steps', '4']" in out.stdout
    [run] = (home / "runs").iterdir()
    assert (run / "outputs" / "results" / "answer.txt").read_text() == "42\n"
    assert list((run / "outputs").rglob("more.txt"))
    assert f"hello from {run_id}" in (run / "log").read_text()
    for name in ("workload", "offers", "decision", "intent", "handle", "status", "receipt"):
        assert (run / f"{name}.json").exists(), name
    verified = route("receipt", "verify", run_id)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    listed = json.loads(route("ps", "--all", "--json").stdout)
    assert [(r["run_id"], r["state"]) for r in listed["data"]["runs"]] == [(run_id, "succeeded")]


@pytest.mark.parametrize(
    ("code", "expected", "state"),
    [
        ("raise SystemExit(7)", 7, "failed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, "failed"),
        ("1 / 0", 1, "failed"),
        ("pass", 0, "succeeded"),
    ],
)
def test_run_passes_the_works_own_end(
    route: Route, folder: Path, home: Path, code: str, expected: int, state: str
) -> None:
    (folder / "work.py").write_text(code)
    out = route("run", "work.py", "--json")
    assert out.returncode == expected, out.stdout + out.stderr
    assert json.loads((next((home / "runs").iterdir()) / "status.json").read_text())["state"] == state
    assert receipt_of(home)["schema"] == "route.receipt/1"


def test_a_plain_command_runs_too(route: Route, folder: Path) -> None:
    out = route("run", "--", "sh", "-c", "echo plain; exit 3")
    assert out.returncode == 3
    assert "plain" in out.stdout


def test_a_time_limit_ends_the_whole_tree(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text(
        SCRIPT.replace('"60s"', '"1s"') + "\nimport subprocess, time\n"
        "subprocess.Popen(['sleep', '600.125'])\ntime.sleep(600)\n"
    )
    out = route("run", "work.py")
    assert out.returncode == 124, out.stdout + out.stderr
    assert alive("600.125") == []


def test_detach_status_wait_collect(route: Route, folder: Path, home: Path) -> None:
    stop = home.parent / "stop"
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(stop)!r}).exists(): time.sleep(0.02)\n"
    (folder / "work.py").write_text(f"{SCRIPT}\n{waits}print('late')\n")
    out = route("run", "--detach", "work.py")
    assert out.returncode == 0, out.stderr
    run_id = out.stdout.strip()
    assert len(run_id) == 26
    status = json.loads(route("status", run_id, "--json").stdout)
    assert status["data"]["state"] in {"committed", "starting", "running"}
    assert not (home / "runs" / run_id / "receipt.json").exists()
    stop.touch()
    waited = route("wait", run_id)
    assert waited.returncode == 0, waited.stderr
    collected = route("collect", run_id)
    assert collected.returncode == 0, collected.stderr
    assert receipt_of(home)["schema"] == "route.receipt/1"
    assert "late" in route("logs", run_id).stdout


def test_cancel_ends_a_detached_run(route: Route, folder: Path) -> None:
    run_id = route("run", "--detach", "--", "sleep", "600.25").stdout.strip()
    assert route("cancel", run_id).returncode == 0
    waited = route("wait", run_id)
    assert waited.returncode != 0
    assert json.loads(route("status", run_id, "--json").stdout)["data"]["state"] == "cancelled"
    assert route("cancel", run_id).returncode == 0
    assert alive("600.25") == []


def test_the_same_key_is_the_same_run(route: Route, folder: Path, home: Path) -> None:
    script = "import os; open(os.environ['TALLY'], 'a').write('x')"
    (folder / "work.py").write_text(script)
    env: dict[str, str | None] = {"TALLY": str(folder.parent / "tally")}
    for _ in range(3):
        out = route("run", "--key", "nightly", "work.py", env=env)
        assert out.returncode == 0, out.stderr
    assert (folder.parent / "tally").read_text() == "x"
    assert len(list((home / "runs").iterdir())) == 1
    (folder / "work.py").write_text(script + "\n# changed\n")
    changed = route("run", "--key", "nightly", "work.py", env=env)
    assert changed.returncode == 65
    assert "mend" in changed.stderr
    assert (folder.parent / "tally").read_text() == "x"


# Bad input: one clear line each, with the mend, and the right exit code


def one_line(out: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert out.returncode == code, out.stdout + out.stderr
    assert "Traceback" not in out.stderr
    first = out.stderr.strip().splitlines()[0]
    for word in words:
        assert word in out.stderr, out.stderr
    assert first.startswith("route:"), out.stderr
    assert len(out.stderr.strip().splitlines()) <= 4, out.stderr


def test_a_typo_in_the_table(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text(SCRIPT.replace("purpose", "porpoise"))
    one_line(route("run", "work.py"), 64, "work.py:5", "porpoise", "purpose")


def test_a_missing_secret(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text(SCRIPT.replace('outputs = ["results/"]', 'secrets = ["NO_SUCH_TOKEN"]'))
    one_line(route("run", "work.py"), 77, "NO_SUCH_TOKEN", "export")
    assert not list(home.glob("runs/*"))


def test_a_missing_file(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text("print('ran')")
    one_line(route("run", "wrok.py"), 64, "wrok.py")


def test_a_syntax_error(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text(SCRIPT + "\ndef (:\n")
    line = (folder / "work.py").read_text().splitlines().index("def (:") + 1
    one_line(route("run", "work.py"), 64, f"work.py:{line}")


def test_no_home(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text("print('ran')")
    env: dict[str, str | None] = {
        "HOME": None,
        "ROUTE_HOME": None,
        "XDG_DATA_HOME": None,
        "XDG_CONFIG_HOME": None,
    }
    out = route("run", "work.py", env=env | {"HOME": "/proc/no/such/home"})
    one_line(out, 73, "ROUTE_HOME")


def test_hardware_that_is_not_here_is_refused_with_the_reason(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text(
        SCRIPT.replace('kind = "train"', 'kind = "train"\n# accelerator = "H999:8"')
    )
    out = route("run", "work.py")
    assert out.returncode == 65, out.stdout + out.stderr
    assert "H999" in out.stderr
    assert "Traceback" not in out.stderr
    assert not list(home.glob("runs/*"))


def test_a_full_disk(folder: Path, tmp_path: Path) -> None:
    """A tmpfs of 1 MiB as ROUTE_HOME, filled but for a few KiB."""
    small = tmp_path / "small"
    small.mkdir()
    (folder / "work.py").write_text("print('ran')")
    shell = (
        f"mount -t tmpfs -o size=256k tmpfs {small} && head -c 250000 /dev/zero > {small}/fill 2>/dev/null;"
        f' exec "$@"'
    )
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs tmpfs {small}"], capture_output=True
    )
    if tried.returncode:
        pytest.skip("mounting a small file system needs root")
    out = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", *ROUTE, "run", "work.py"],
        cwd=folder,
        env={**os.environ, "ROUTE_HOME": str(small)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    one_line(out, 73, "space")


def test_a_broken_plugin_is_named_and_the_run_goes_on(route: Route, folder: Path, tmp_path: Path) -> None:
    from test_registry import install

    site = tmp_path / "site"
    site.mkdir()
    install(site, "broken-route", "raise RuntimeError('no driver')")
    out = route("run", "--", "true", env={"PYTHONPATH": str(site)})
    assert out.returncode == 0
    warning = [line for line in out.stderr.splitlines() if "broken-route" in line]
    assert len(warning) == 1, out.stderr
    assert "no driver" in warning[0]


def test_a_users_router_module_runs(route: Route, folder: Path) -> None:
    (folder / "router.py").write_text("EXPERTS = 8\n")
    (folder / "work.py").write_text("import router; print('experts', router.EXPERTS)")
    out = route("run", "work.py", env={"PYTHONPATH": str(folder)})
    assert out.returncode == 0, out.stderr
    assert "experts 8" in out.stdout


# Whatever dies, the same key goes on with the same run


def test_the_client_killed_at_any_moment(folder: Path, home: Path, seed: Any) -> None:
    """SIGKILL of `route run` at seeded moments, then the same command again: one execution, one receipt."""
    points = max(4, int(os.environ.get("ROUTE_KILLS", "60")) // 6)
    (folder / "work.py").write_text(
        "import os, sys, time\n"
        "path = os.path.join(os.environ['TALLIES'], sys.argv[1])\n"
        "fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "os.write(fd, b'x')\ntime.sleep(0.1)\nprint('done')\nsys.exit(3)\n"
    )
    tallies = folder.parent / "tallies"
    tallies.mkdir()
    env = {**os.environ, "TALLIES": str(tallies)}
    for point in range(points):
        command = [*ROUTE, "run", "--key", f"k{point}", "work.py", "--", f"t{point}"]
        client = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        delay = seed.uniform(0.0, 0.9)
        time.sleep(delay)
        client.send_signal(signal.SIGKILL)
        client.wait()
        again = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
        assert again.returncode == 3, f"killed after {delay:.3f} s: {again.stdout}{again.stderr}"
        assert (tallies / f"t{point}").read_text() == "x", f"killed after {delay:.3f} s"
    receipts = list(home.glob("runs/*/receipt.json"))
    assert len(receipts) == points
    checked = subprocess.run(
        [*ROUTE, "receipt", "verify", *[str(r) for r in receipts]], env=env, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_from_python_it_is_the_same(folder: Path, home: Path) -> None:
    (folder / "work.py").write_text(SCRIPT)
    code = (
        "import compute_router as route\n"
        "receipt = route.run(route.load('work.py', args=['a']))\n"
        "print(receipt['receipt_id'])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    assert receipt_of(home)["receipt_id"] in out.stdout
