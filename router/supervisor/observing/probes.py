"""Import probes: what the work's own Python says to the modules that it names, before it starts.

In a process of its own that has ended before the work begins, so that it holds no device memory then.
A probe that fails stops nothing: it is recorded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

from .. import files, machine, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from ..runs import Attempt

    Json = Dict[str, Any]

DEADLINE = 60.0
"""Seconds for all probes of a start together."""
MOST_TEXT = 300
_CODE = """
import importlib, sys
def one(text):
    return " ".join(str(text).split())[:300].encode("ascii", "backslashreplace").decode()
out = sys.__stdout__
sys.stdout = sys.stderr
for name in sys.argv[1:]:
    out.write("> " + name + "\\n"); out.flush()
    try:
        module = importlib.import_module(name)
        top = sys.modules.get(name.partition(".")[0])
        version = getattr(module, "__version__", None) or getattr(top, "__version__", None)
        said = "ok " + one(version) if isinstance(version, str) else "ok"
    except ModuleNotFoundError as e:
        wanted = e.name or ""
        missing = wanted == name or name.startswith(wanted + ".")
        said = ("missing " if missing else "broken ") + "ModuleNotFoundError " + one(e)
    except BaseException as e:
        said = "broken " + type(e).__name__ + " " + one(e)
    out.write("< " + said.strip() + "\\n"); out.flush()
out.flush()
__import__("os")._exit(0)
"""


def run(attempt: Attempt, spec: Json, env: Dict[str, str]) -> None:
    """Import every module of `import_probes` and write what came of it to `probes.json`. Never raises."""
    begun, until = machine.mono_us(), time.monotonic() + DEADLINE
    wanted: List[str] = list(spec.get("import_probes", ()))
    said: Dict[str, str] = {}
    # What the probes do is not the work's: it is neither counted nor reported.
    theirs = {k: v for k, v in env.items() if k not in ("ROUTE_INSIDE", "ROUTE_METRICS")}
    theirs["ROUTE_OBSERVE"] = "0"
    try:
        while len(said) < len(wanted) and time.monotonic() < until and not attempt.has("cancel.json"):
            rest = [name for name in wanted if name not in said]
            said.update(_once(attempt, spec, rest, theirs, until))
    except Exception as e:
        for name in wanted:
            said.setdefault(name, "not looked at: %s %s" % (type(e).__name__, str(e)[:200]))
    for name in wanted:
        said.setdefault(name, "not looked at: the probes before it took all %d s" % DEADLINE)
    record = {
        "at_us": machine.now_us(),
        "spent_us": machine.mono_us() - begun,
        "probes": ["%s: %s" % (name, said[name]) for name in wanted],
    }
    try:
        files.write_hint(attempt.at("probes.json"), wire.dumps(record))
    except OSError:
        pass


def _once(
    attempt: Attempt, spec: Json, names: List[str], env: Dict[str, str], until: float
) -> Dict[str, str]:
    """One process that imports `names` in turn. What it did not get to stays out."""
    cwd = os.path.join(attempt.run.work, spec.get("cwd") or ".")
    os.makedirs(cwd, 0o700, exist_ok=True)
    path = attempt.at("probes.out")
    with open(path, "wb") as out:
        child = subprocess.Popen(
            [spec.get("python") or "python3", "-c", _CODE, *names],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    ended = "took longer than the %d s that all probes have" % DEADLINE
    try:
        while time.monotonic() < until and not attempt.has("cancel.json"):
            # A short wait first: most imports are quick.
            try:
                code = child.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            ended = "ended by signal %d" % -code if code < 0 else "ended its process with %d" % code
            break
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except OSError:
            pass
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            pass  # it hangs in a driver, where no signal reaches it: it is left behind
    with open(path, "rb") as f:
        lines = f.read(1 << 20).decode("ascii", "replace").splitlines()
    os.unlink(path)
    found: Dict[str, str] = {}
    name = ""
    for line in lines:
        if line.startswith("> "):
            name = line[2:]
            found[name] = "broken " + ended
        elif line.startswith("< ") and name in found:
            found[name] = line[2 : 2 + MOST_TEXT]
    if not found:
        found[names[0]] = "broken " + ended
    return found
