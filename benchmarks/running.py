"""How long a trivial run takes with `route`, beside a bare process, torchx, submitit and PSI/J.

Each peer gets an environment of its own, made by uv below a temporary folder from the package
index that uv is set up for; one that cannot be installed is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measuring import ROUTE, Measured, interleaved, machine, process, table

PEERS = {"torchx": "torchx", "submitit": "submitit", "psij": "psij-python"}

# One script for each way of running in process: `ROUNDS` rounds, and what each took in milliseconds
# until the call returned and until the end was seen, as JSON.
LOOP = """
import json, sys, time
returned, seen = [], []
def tick(begin): return (time.perf_counter() - begin) * 1e3
{setup}
for number in range(int(sys.argv[1]) + 1):
    begin = time.perf_counter()
    {submit}
    first = tick(begin)
    {wait}
    if number:
        returned.append(first)
        seen.append(tick(begin))
print(json.dumps({{"returned": returned, "seen": seen, **{more}}}))
"""
SCRIPTS = {
    "bare": LOOP.format(
        setup="import subprocess",
        submit="child = subprocess.Popen([sys.executable, '-c', 'pass'])",
        wait="child.wait()",
        more="{}",
    ),
    "route": LOOP.format(
        setup="""
import os
from compute_router import Entry, Router, Workload
router, intent, late = Router(), [], []
def told(event):
    if event["event"] == "staging":
        intent.append(tick(planned))
work = Workload(name="pass", kind="train", entry=Entry(root=os.getcwd(), argv=("python3", "-c", "pass")))
""",
        submit="plan = router.plan(work); planned = time.perf_counter(); "
        "run = router.submit(plan, on_event=told)",
        wait="status = router.attach(run); late.append((time.time_ns() // 1000 - status.ended_us) / 1e3)",
        more="{'late': late[1:], 'intent': intent[1:]}",
    ),
    "submitit": LOOP.format(
        setup="""
import os, submitit
executor = submitit.AutoExecutor(folder="logs", cluster="local")
executor.update_parameters(timeout_min=1)
task = submitit.helpers.CommandFunction([sys.executable, "-c", "pass"], verbose=False)
""",
        submit="job = executor.submit(task)",
        wait="job.result()",
        more="{}",
    ),
    "psij": LOOP.format(
        setup="""
from psij import Job, JobExecutor, JobSpec
executor = JobExecutor.get_instance("local")
spec = JobSpec(executable=sys.executable, arguments=["-c", "pass"])
""",
        submit="job = Job(spec); executor.submit(job)",
        wait="job.wait()",
        more="{}",
    ),
}


def environments(folder: Path) -> dict[str, Path]:
    """The Python of each peer's environment, made now."""
    import uv

    made = {}
    binary = uv.find_uv_bin()
    for name, distribution in PEERS.items():
        python = folder / name / "bin" / "python"
        try:
            for argv in (
                [binary, "venv", "-q", "-p", sys.executable, str(folder / name)],
                [binary, "pip", "install", "-q", "-p", str(python), distribution],
            ):
                subprocess.run(argv, check=True, capture_output=True, text=True, timeout=300)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as e:
            said = str(getattr(e, "stderr", None) or e).strip().splitlines() or ["no message"]
            print(f"{name} is left out, it cannot be installed: {said[-1]}", file=sys.stderr)
            continue
        made[name] = python
    return made


def detached(env: dict[str, str], cwd: Path) -> Callable[[], float | None]:
    """`route run --detach`, with the run waited for before the next thing is measured."""
    merged = {**os.environ, **env}

    def once() -> float | None:
        begin = time.perf_counter()
        argv = [*ROUTE, "run", "--detach", "--", "python3", "-c", "pass"]
        done = subprocess.run(argv, cwd=cwd, env=merged, capture_output=True, text=True, check=True)
        spent = (time.perf_counter() - begin) * 1e3
        argv = [*ROUTE, "wait", done.stdout.strip()]
        subprocess.run(argv, cwd=cwd, env=merged, capture_output=True, check=True)
        return spent

    return once


def whole(peers: dict[str, Path], at: Path, env: dict[str, str], runs: int) -> None:
    """Whole processes: what a user who types a command waits for."""
    work = [sys.executable, "-c", "pass"]
    things: dict[str, Callable[[], float | None]] = {
        "python -c pass": process(work, cwd=at),
        "route run": process([*ROUTE, "run", "--", *work], cwd=at, env=env),
        "route run --detach": detached(env, at),
    }
    if "torchx" in peers:
        torchx = str(peers["torchx"].with_name("torchx"))
        things["torchx run"] = process([torchx, "run", "-s", "local_cwd", "utils.sh", *work], cwd=at)
    for name in ("submitit", "psij"):
        if name in peers:
            things[f"{name} script"] = process([str(peers[name]), str(at / f"{name}_loop.py"), "0"], cwd=at)
    measured = interleaved(things, runs=runs)
    goals = {"route run": ("torchx run", 0.5)} if "torchx" in peers else {}
    table(
        f"Running `python -c pass`, whole process, {runs} rounds",
        measured,
        floor="python -c pass",
        goals=goals,
    )
    over = measured["route run"].median - measured["python -c pass"].median
    print(f"  route run is bare + {over:.0f} ms (goal <= 150), receipt included;", end=" ")
    print(f"detached {measured['route run --detach'].median:.0f} ms (goal <= 150)")


def inside(peers: dict[str, Path], at: Path, env: dict[str, str], runs: int) -> None:
    """Within one process: until the call returns, until the end is seen."""
    pythons = {"bare": Path(sys.executable), "route": Path(sys.executable)}
    pythons |= {name: path for name, path in peers.items() if name in SCRIPTS}
    returned, seen = {}, {}
    more: dict[str, Measured] = {}
    for name, python in pythons.items():
        rounds = max(3, runs // 4) if name == "submitit" else runs  # a second for each
        out = subprocess.run(
            [str(python), str(at / f"{name}_loop.py"), str(rounds)],
            cwd=at,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=True,
        )
        told = json.loads(out.stdout.splitlines()[-1])
        returned[name] = Measured(name, tuple(told["returned"]))
        seen[name] = Measured(name, tuple(told["seen"]))
        more |= {key: Measured(key, tuple(told[key])) for key in ("late", "intent") if told.get(key)}
    table("In process: submitting returns", returned, floor="bare")
    table("In process: the end is seen", seen, floor="bare")
    print(
        f"  route: the intent is on disk {more['intent'].median:.1f} ms after the plan (goal <= 10);", end=" "
    )
    print(f"the end is seen {more['late'].median:.1f} ms after it (goal <= 20)")


def many(at: Path, home: Path, env: dict[str, str], runs: int) -> None:
    """Durable runs one after the other, against the start of a supervisor and of the work."""
    bundle = max((home / "machine" / "bin").iterdir(), key=lambda path: path.stat().st_mtime)
    supervisor = f"import sys; sys.path.insert(0, {str(bundle)!r}); import route_supervisor.waiter"
    begin = time.perf_counter()
    for _ in range(runs):
        subprocess.run([sys.executable, "-I", "-S", "-c", supervisor], check=True)
        subprocess.run([sys.executable, "-c", "pass"], check=True)
    floor = runs / (time.perf_counter() - begin)
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, str(at / "route_loop.py"), str(runs - 1)],
        cwd=at,
        env={**os.environ, **env},
        check=True,
        capture_output=True,
    )
    rate = runs / (time.perf_counter() - begin)
    met = "met" if rate >= 0.5 * floor else "MISSED"
    print(f"\n{runs} durable runs one after the other: {rate:.1f} a second; supervisor + work alone", end=" ")
    print(f"{floor:.1f} a second; ratio {rate / floor:.2f} (goal >= 0.5, {met})")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=15, help="counted rounds")
    options.add_argument("--many", type=int, default=200, help="runs one after the other; 0 leaves it out")
    options.add_argument("--no-peers", action="store_true", help="measure route and the floor alone")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="route-running-", ignore_cleanup_errors=True) as folder:
        at, home = Path(folder) / "at", Path(folder) / "home"
        at.mkdir()
        env = {"ROUTE_HOME": str(home), "XDG_CONFIG_HOME": str(Path(folder) / "config")}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        for name, text in SCRIPTS.items():
            (at / f"{name}_loop.py").write_text(text)
        peers = {} if given.no_peers else environments(Path(folder))
        print(machine())
        whole(peers, at, env, given.runs)
        inside(peers, at, env, given.runs)
        if given.many:
            many(at, home, env, given.many)
        shutil.rmtree(at, ignore_errors=True)


if __name__ == "__main__":
    main()
