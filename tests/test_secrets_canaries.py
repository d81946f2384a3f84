"""Proves that of 1,000 secrets in six encodings none is in any file, receipt, command line or output."""

from __future__ import annotations

import base64
import functools
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from conftest import ROUTE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SEED = int(os.environ.get("ROUTE_SEED") or int.from_bytes(os.urandom(4), "big"))
WORK = """# /// script
# [tool.route]
# secrets = %s
# outputs = ["left/"]
# ///
import base64, json, os, random, shlex, sys, time
from urllib.parse import quote
random.seed(%d)
values = [v for n, v in sorted(os.environ.items()) if n.startswith("CANARY_")]
assert len(values) == %d
def ways(v):
    b = v.encode()
    yield b
    yield base64.b64encode(b"x" * random.randrange(3) + b + b"y" * random.randrange(3))
    yield base64.urlsafe_b64encode(b"x" * random.randrange(3) + b)
    yield quote(v, safe=random.choice(["", "/"])).encode()
    yield json.dumps(v, ensure_ascii=random.random() < 0.5).encode()
    yield shlex.quote(v).encode()
def put(data):
    while data:
        n = random.randint(1, len(data))
        os.write(random.choice((1, 2)) if n == len(data) else 1, data[:n])
        data = data[n:]
        if random.random() < 0.002:
            time.sleep(0.01)
os.makedirs("left", exist_ok=True)
out = os.environ["ROUTE_OUTPUTS"]
open(out + "/fine.txt", "w").write("nothing to see")
for number, value in enumerate(values):
    for way in ways(value):
        put(random.choice([b" ", b"\\n", b"\\xc3", "\\u6f22".encode(), b"key="]) + way)
    with open(os.environ["ROUTE_METRICS"], "a") as f:
        step = {"step": number, "tokens": 10, "step_us": 1000, "loss": 1.5, "note": value}
        note = {"event": random.choice(["kernel", "cache", "odd"]), "observed": value, value: 1}
        f.write(json.dumps(step) + "\\n" + json.dumps(note) + "\\n")
    with open("%%s/%%d.bin" %% (random.choice([out, "left"]), number), "wb") as f:
        f.write(os.urandom(random.randrange(9)) + b"".join(ways(value)))
    if value.isalnum() and %r:
        open(out + "/" + value, "w").write("x")
        os.symlink(value, out + "/link-%%d" %% number)
sys.stdout.flush()
while os.path.exists(%r):
    time.sleep(0.01)
put(b" and at last " + values[0].encode() + values[1].encode())
%s
"""


def canaries(count: int, seed: int) -> dict[str, str]:
    """Secrets as they come: tokens, passwords with anything in them, foreign letters, several lines."""
    chance = random.Random(seed)
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
    odd = letters + "+/@:$ '\"\\%&=!#{}[]<>?*~;|-_.äßé漢\U0001f600"

    def one(number: int) -> str:
        size = chance.randrange(16, 48)
        if number % 4 == 0:
            return "hf_" + "".join(chance.choices(letters, k=size))
        if number % 20 == 1:
            return "\n".join("".join(chance.choices(letters, k=64)) for _ in range(4))
        middle = "".join(chance.choices(odd if number % 2 else letters, k=size))
        return f"{chance.choice(letters)}{middle}{chance.choice(letters)}"

    return {f"CANARY_{number:03}": one(number) for number in range(count)}


def ways(value: str) -> Iterator[bytes]:
    """The six encodings, each without what its neighbours would change."""
    data = value.encode()
    yield data
    for before, first in ((0, 0), (1, 2), (2, 3)):
        inner = base64.b64encode(b"x" * before + data)[first : (before + len(data)) * 8 // 6]
        yield inner
        yield inner.replace(b"+", b"-").replace(b"/", b"_")
    for text in (quote(value), quote(value, safe=""), quote_plus(value)):
        yield text.encode()
    for escape in (True, False):
        yield json.dumps(value, ensure_ascii=escape)[1:-1].encode()
    yield shlex.quote(value).strip("'").encode()


def found_in(data: bytes, secrets: dict[str, str]) -> list[str]:
    """The names of those that stand in `data`; lines of several each count."""
    return sorted(name for name, value in secrets.items() if any(way in data for way in every_way(value)))


@functools.cache
def every_way(value: str) -> tuple[bytes, ...]:
    return tuple({way for part in {value, *value.splitlines()} for way in ways(part)})


def call(folder: Path, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`route ARGS...`; what it prints may be no UTF-8."""
    return subprocess.run(
        [*ROUTE, *args],
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=1500,
        stdin=subprocess.DEVNULL,
    )


class Scan:
    """Looks at every command line of this machine, a hundred times a second, and at the environment of
    every supervisor."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self.secrets = secrets
        self.lines: set[bytes] = set()
        self.environs: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.01):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    self.lines.add(line)
                    if b"\0-I\0-S\0-c\0" in line:
                        self.environs.add(Path(f"/proc/{pid}/environ").read_bytes())
                except OSError:
                    continue

    def __enter__(self) -> Scan:
        if sys.platform == "linux":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if sys.platform == "linux":
            self._thread.join()
            assert len(self.lines) > 1
            assert found_in(b"\n".join(self.lines), self.secrets) == []
            assert found_in(b"\n".join(self.environs), self.secrets) == []


class Place:
    """A folder with the script, its secrets, and a file that holds the work until it is removed."""

    def __init__(
        self, folder: Path, home: Path, count: int, seed: int, last: str, *, named: bool = True
    ) -> None:
        print("ROUTE_SEED", SEED)
        self.folder, self.home = folder, home
        self.secrets = canaries(count, SEED + seed)
        self.hold = folder.parent / "hold"
        names = json.dumps(sorted(self.secrets))
        (folder / "work.py").write_text(WORK % (names, SEED, count, named, str(self.hold), last))

    def env_file(self) -> str:
        """The secrets in a file; returns its path."""
        path = self.folder / ".env"
        rows = []
        for name, value in self.secrets.items():
            quoted = value.replace("\\", "\\\\").replace("'", "\\'")
            rows.append(f"{name}='{quoted}'\n")
        path.write_text("".join(rows), encoding="utf-8")
        return str(path)

    def clean(self, *told: str, but: tuple[str, ...] = ()) -> None:
        """No secret stands in any file below the home, nor in what was told."""
        for text in told:
            assert found_in(text.encode(), self.secrets) == []
        count = 0
        for path in sorted(self.home.rglob("*")):
            assert found_in(str(path).encode(), self.secrets) == [], path
            if path.is_symlink() or not path.is_file():
                continue
            count += 1
            if not any(word in str(path) for word in but):
                assert found_in(path.read_bytes(), self.secrets) == [], path
        assert count > 15

    def run(self) -> Path:
        [run] = [path for path in (self.home / "runs").iterdir() if not path.name.startswith(".")]
        return run

    def receipt(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run() / "receipt.json").read_bytes())
        return found

    def waiter(self) -> int:
        """The pid of the waiter, once the work has printed a lot."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for started in self.home.glob("machine/runs/*/attempts/1/started.json"):
                log = started.with_name("log")
                left = list(started.parent.glob("outputs/fine.txt"))
                if left and log.exists() and log.stat().st_size > 20_000:
                    return int(json.loads(started.read_bytes())["waiter"]["pid"])
            time.sleep(0.02)
        raise AssertionError("the work never printed")


def test_an_attached_run_that_fails(folder: Path, home: Path) -> None:
    place = Place(folder, home, 250, 0, "raise RuntimeError(values[2] + repr(values[3]))")
    with Scan(place.secrets):
        out = call(folder, "--json", "run", "work.py", env=dict(place.secrets))
    assert out.returncode == 1, out.stderr[-2000:]
    place.clean(out.stdout, out.stderr)
    log = (place.run() / "log").read_text("utf-8", "replace")
    assert "RuntimeError: ****" in log
    receipt = place.receipt()
    assert receipt["measured"]["log"]["scrubbed"]["v"] is True
    skipped = receipt["measured"]["skipped"]
    assert sum("holds the value of secret CANARY_" in entry["why"] for entry in skipped) == 250
    assert (place.run() / "outputs" / "fine.txt").read_text() == "nothing to see"


def test_a_run_on_a_terminal_with_an_env_file(folder: Path, home: Path) -> None:
    place = Place(folder, home, 250, 1, "print('done')")
    with Scan(place.secrets):
        out = call(folder, "run", "--env-file", place.env_file(), "work.py")
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout.endswith("done\n")
    place.clean(out.stdout, out.stderr)


def test_a_detached_run_collected_by_another_process(folder: Path, home: Path) -> None:
    place = Place(folder, home, 250, 2, "sys.exit(values[2])")
    with Scan(place.secrets):
        begun = call(folder, "run", "--detach", "work.py", env=dict(place.secrets))
        assert begun.returncode == 0, begun.stderr
        out = call(folder, "wait", begun.stdout.strip())
        logs = call(folder, "logs", begun.stdout.strip())
    assert out.returncode == 1
    place.clean(begun.stdout, begun.stderr, out.stdout, out.stderr, logs.stdout)
    assert "and at last ****" in logs.stdout


@pytest.mark.parametrize("how", ["waiter alone", "both, given again", "both, not given"])
def test_client_and_supervisor_are_killed(folder: Path, home: Path, how: str) -> None:
    """Who is left with the values goes on; where nobody is, they are given again, or what may hold them
    stays on its machine and that is said."""
    # Where nobody knows what to look for, nobody can tell what a name of the user's own files holds.
    named = how != "both, not given"
    place = Place(folder, home, 125, 3 + len(how), "print('the end')", named=named)
    place.hold.touch()
    with Scan(place.secrets):
        client = subprocess.Popen(
            [*ROUTE, "run", "work.py"],
            cwd=folder,
            env={**os.environ, **place.secrets},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        waiter = place.waiter()
        [lock] = home.glob("machine/runs/*/attempts/1/watch.lock")
        watcher = int(json.loads(lock.read_bytes())["pid"])
        client.kill()
        told = client.communicate()
        if how != "waiter alone":
            os.kill(watcher, signal.SIGKILL)
        os.kill(waiter, signal.SIGKILL)
        place.hold.unlink()
        given = ("--env-file", place.env_file()) if how == "both, given again" else ()
        out = call(folder, "resume", *given, "latest")
    clean = how != "both, not given"
    # What stays on its machine is left out where nobody could clean it, and so are the user's outputs.
    place.clean(*told, out.stdout, out.stderr, but=() if clean else ("attempts/1/log", "withheld", "outputs"))
    receipt = place.receipt()
    assert receipt["measured"]["log"]["scrubbed"]["v"] is clean
    assert any("secrets" in text for text in receipt["context"]["caveats"]["v"] or []) is not clean
    log = (place.run() / "log").read_bytes()
    assert (b"the end" in log) is clean
    assert (b"more bytes may hold secrets and stay there" in log) is not clean
    reasons = {entry["path"]: entry["why"] for entry in receipt["measured"]["skipped"]}
    for path in ("log", "metrics.jsonl", "outputs"):
        assert (path in reasons) is not clean
