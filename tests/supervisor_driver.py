"""Speaks the protocol of docs/protocol.md to a real supervisor over pipes, for the supervisor tests."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compute_router.records import canonical, new_run_id
from compute_router.supervisor.boot import BOOT, bundle

DIGEST, BUNDLE = bundle()
PYTHON = os.environ.get("ROUTE_TEST_PYTHON", sys.executable)
"""The interpreter that supervisors run on; any from 3.8 on."""
FINAL = {"succeeded", "failed", "cancelled", "timed_out", "preempted", "lost"}


class Fault(Exception):
    """An error reply."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['what']}")
        self.code: str = error["code"]
        self.error = error


class Link:
    """One connection: a `python3 -I -S -c BOOT` of our own, spoken to over its pipes."""

    def __init__(self, root: Path, *, python: str = PYTHON, env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [python, "-I", "-S", "-c", BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "ROUTE_LEASE_DIR": str(root.parent / "leases"), **(env or {})},
        )
        self.nonce = os.urandom(16).hex()
        hello = {"route": 1, "nonce": self.nonce, "root": str(root), "digest": DIGEST}
        self.write(json.dumps(hello).encode() + b"\n")
        said = self.greeting()
        self.wanted = said == "want"
        if self.wanted:
            self.write(json.dumps({"size": len(BUNDLE)}).encode() + b"\n" + BUNDLE)
            said = self.greeting()
        self.hello: dict[str, Any] = json.loads(said)
        if not self.hello["ok"]:
            raise Fault(self.hello["error"])

    def greeting(self) -> str:
        assert self.process.stdout is not None
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise EOFError(self.stderr())
            if line.startswith(self.nonce.encode()):
                return line.decode().partition(" ")[2].strip()

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def stderr(self) -> str:
        assert self.process.stderr is not None
        self.process.wait(10)
        return self.process.stderr.read().decode()

    def send(self, op: str, body: bytes = b"", **fields: Any) -> None:
        head = {"op": op, **fields}
        if body:
            head["size"] = len(body)
        self.write(json.dumps(head).encode() + b"\n" + body)

    def receive(self) -> tuple[dict[str, Any], bytes]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(self.stderr())
        head = json.loads(line)
        return head, self.process.stdout.read(head["size"]) if "size" in head else b""

    def ask(self, op: str, body: bytes = b"", **fields: Any) -> dict[str, Any]:
        self.send(op, body, **fields)
        head, data = self.receive()
        if not head["ok"]:
            raise Fault(head["error"])
        assert head["re"] == op
        return {**head, "": data}

    # A run, end to end

    def commit(self, spec: dict[str, Any], files: Mapping[str, bytes] | None = None) -> dict[str, Any]:
        blobs = {hashlib.sha256(data).hexdigest(): data for data in (files or {}).values()}
        data = canonical(spec)
        ready = self.ask(
            "prepare",
            run_id=spec["run_id"],
            spec_sha256=hashlib.sha256(data).hexdigest(),
            blobs=[[digest, len(blob)] for digest, blob in blobs.items()],
        )
        for digest, offset in ready["want"]:
            self.blob(digest, blobs[digest], offset)
        return self.ask("commit", data, run_id=spec["run_id"])

    def blob(self, digest: str, data: bytes, offset: int = 0, piece: int = 1 << 19) -> None:
        while True:
            body = data[offset : offset + piece]
            last = offset + len(body) == len(data)
            self.send("blob", body, sha256=digest, offset=offset, last=last)
            offset += len(body)
            if last:
                return

    def start(
        self, run_id: str, attempt: int = 1, wait_us: int | None = 0, secrets: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        body = json.dumps(dict(secrets)).encode() if secrets else b""
        found: dict[str, Any] = self.ask("start", body, run_id=run_id, attempt=attempt, wait_us=wait_us)[
            "status"
        ]
        return found

    def status(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status", run_ids=[run_id])["statuses"][run_id]
        return found

    def follow(self, run_id: str, offset: int = 0) -> tuple[dict[str, Any], bytes, list[dict[str, Any]]]:
        """Until the end: the last status, the log, and every status on the way."""
        self.send("follow", run_id=run_id, offset=offset)
        log = bytearray()
        seen: list[dict[str, Any]] = []
        while True:
            head, data = self.receive()
            if "error" in head:
                raise Fault(head["error"])
            if head.get("log"):
                log += data
            elif head.get("end"):
                return head["status"], bytes(log), seen
            elif "status" in head:
                seen.append(head["status"])

    def fetch(self, run_id: str, paths: Sequence[str]) -> dict[str, bytes | str]:
        self.send("fetch", run_id=run_id, files=[[path, 0] for path in paths])
        found: dict[str, bytes | str] = {}
        while True:
            head, data = self.receive()
            if "end" in head:
                return found
            if "error" in head:
                found[head["path"]] = head["error"]["code"]
            else:
                before = found.get(head["path"], b"")
                assert isinstance(before, bytes)
                found[head["path"]] = before + data

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait(20)
        self.process.stdout.close()
        self.process.stderr.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def spec(argv: Sequence[str], *, files: Mapping[str, bytes] | None = None, **more: Any) -> dict[str, Any]:
    """A specification that runs `argv`, with what a test does not care for filled in."""
    tree = [
        {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "mode": 0o644}
        for path, data in sorted((files or {}).items())
    ]
    base: dict[str, Any] = {
        "schema": "route.spec/1",
        "run_id": new_run_id(),
        "key": "test",
        "workload_digest": "0" * 64,
        "kind": "train",
        "purpose": "smoke",
        "argv": list(argv),
        "python": sys.executable,
        "cwd": ".",
        "tree": tree,
        "env": {},
        "secrets": [],
        "timeout_us": 60_000_000,
        "grace_us": 2_000_000,
        "log_cap_bytes": 64 << 20,
        "outputs": [],
        "volumes": {},
        "cache_key": None,
        "launcher": {"name": "python", "ranks": 1},
        "devices": {"family": "cpu", "sku": "", "substitutes": [], "count": 0, "uuids": None},
        "leases": [],
        "metrics": {"primary": None, "discard_steps": 1},
        "observe": {"sample_us": 10_000_000},
    }
    return {**base, **more}


def shell(script: str, **more: Any) -> dict[str, Any]:
    """A specification that runs a shell script."""
    return spec(["/bin/sh", "-c", script], **more)


class Place:
    """A root of our own, and the links and runs made in it; at the end nothing of it is left running."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.env: dict[str, str] = {}
        self.links: list[Link] = []
        self.runs: list[str] = []

    def link(self, *, python: str = PYTHON, env: Mapping[str, str] | None = None) -> Link:
        made = Link(self.root, python=python, env={**self.env, **(env or {})})
        self.links.append(made)
        return made

    def submit(self, link: Link, made: dict[str, Any], *, files: Mapping[str, bytes] | None = None) -> str:
        run_id: str = made["run_id"]
        self.runs.append(run_id)
        link.commit(made, files)
        return run_id

    def attempt(self, run_id: str, number: int = 1) -> Path:
        return self.root / "runs" / run_id / "attempts" / str(number)

    def read(self, run_id: str, name: str, number: int = 1) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.attempt(run_id, number) / name).read_text())
        return found

    def until(self, link: Link, run_id: str, states: set[str], seconds: float = 30.0) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            found = link.status(run_id)
            if found["state"] in states or time.monotonic() > end:
                assert found["state"] in states, found
                return found
            time.sleep(0.01)

    def close(self) -> None:
        for link in self.links:
            if link.process.poll() is None:
                link.process.kill()
            link.process.wait(10)
            for pipe in (link.process.stdin, link.process.stdout, link.process.stderr):
                try:
                    if pipe is not None:
                        pipe.close()
                except BrokenPipeError:
                    pass
        for pid in supervised(self.root):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def supervised(root: Path) -> list[int]:
    """Processes that have a file below `root` open: waiters, watchers and work of this test's runs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                links = [os.readlink(fd) for fd in (entry / "fd").iterdir()]
            except OSError:
                continue
            if any(link.startswith(f"{root}/runs/") for link in links):
                found.append(int(entry.name))
    return found


def ended(pid: int, seconds: float = 5.0) -> bool:
    """Whether the process ends within `seconds`; a zombie has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def holders(attempt: Path, name: str) -> list[int]:
    """Pids that have the lock file `name` of the attempt open: waiter and its child, or watcher."""
    wanted, found = str(attempt / name), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if any(os.readlink(fd) == wanted for fd in (entry / "fd").iterdir()):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def kill(pids: list[int]) -> bool:
    hit = False
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            hit = True
        except ProcessLookupError:
            pass
    return hit
