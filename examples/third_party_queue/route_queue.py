"""The backend `queue`: its runs wait in one line on this computer and go one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from compute_router import (
    Accelerator,
    Backend,
    Handle,
    HandleLost,
    Hardware,
    Health,
    NoOffer,
    Offer,
    Power,
    Record,
    Rejected,
    State,
    Status,
    Submission,
    Surface,
    Workload,
    hookimpl,
)


class QueueSettings(Record, frozen=True, kw_only=True):
    """No settings yet. A field here becomes a key of `[backends.queue]` in a route.toml."""


class QueueBackend(Backend):
    """One folder for each key. What is yours to change: where a run goes, and how it is asked about."""

    name = "queue"
    surface = Surface.LOCAL
    Settings = QueueSettings
    powers = frozenset({Power.DETACH, Power.FOLLOW, Power.CANCEL})

    def _at(self, key: str) -> Path:
        return self.home / self.name / hashlib.sha256(key.encode()).hexdigest()

    def health(self) -> Health:
        return Health(backend=self.name, ok=True, summary="one run at a time on this computer")

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        cpu, needs = Accelerator(family="cpu"), workload.needs
        more = ("secrets", "volumes", "buckets", "stage", "image", "dependencies")
        lacks = [name for name in more if getattr(workload, name)]
        if needs.nodes > 1 or cpu not in (needs.accelerator, *needs.substitutes):
            lacks.append(f"{needs.nodes} x {needs.accelerator}")
        if lacks:
            reason = f"it has no {', no '.join(lacks)}"
            return [NoOffer(backend=self.name, code="lacks", reason=reason, mend="use another backend")]
        hardware, powers = Hardware(family="cpu", cpus=os.cpu_count()), tuple(sorted(self.powers))
        offer = Offer(
            backend=self.name,
            id="line",
            surface=self.surface,
            hardware=hardware,
            capacity=None,
            powers=powers,
        )
        return [offer]

    def submit(self, submission: Submission) -> Handle:
        at, work = self._at(submission.key), submission.workload
        if work.secrets or submission.attempt != 1:
            raise Rejected("it takes no secrets and no second attempt", mend="use another backend")
        entry, python = work.entry, sys.executable if work.python in (None, "current") else work.python
        argv = [python, posixpath.relpath(entry.script, entry.cwd)] if entry.script else entry.argv
        spec = {
            "id": submission.id,
            "key": submission.key,
            "what": [work.digest, submission.snapshot.tree_sha256],
            "argv": [*argv, *entry.args],
            "cwd": entry.cwd,
            "env": work.env,
            "outputs": work.outputs,
            "timeout_us": work.timeout_us,
        }
        at.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=at.parent, prefix=".staged-"))
        try:
            submission.snapshot.lay_out(staged / "work")
            (staged / "outputs").mkdir()
            (staged / "log").touch()
            (staged / "spec.json").write_text(json.dumps(spec))
            with open(staged / "held", "w") as held:
                # The process beside the work is there before the commit and waits for this one to let
                # go of its input: whoever dies when, either nothing is committed or it is run.
                fcntl.flock(held, fcntl.LOCK_EX)
                command = [sys.executable, __file__, str(at), str(held.fileno())]
                beside = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=[held.fileno()],
                )
            with contextlib.suppress(OSError):  # the key is taken: what stands there is the run
                os.rename(staged, at)
            assert beside.stdin is not None
            beside.stdin.close()
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        if json.loads((at / "spec.json").read_bytes())["what"] != spec["what"]:
            raise Rejected(f"the key {submission.key!r} is taken by other work", mend="give another --key")
        return self._handle(at)

    def _handle(self, at: Path) -> Handle:
        spec = json.loads((at / "spec.json").read_bytes())
        return Handle(backend=self.name, version=1, run_id=spec["id"], key=spec["key"], attempt=1)

    def find(self, key: str) -> Handle | None:
        at = self._at(key)
        return self._handle(at) if at.exists() else None

    def status(self, handle: Handle) -> Status:
        at = self._at(handle.key)
        if not at.exists():
            raise HandleLost(f"no run of the key {handle.key!r} is here", mend="give the former ROUTE_HOME")
        # In this order: an end that is written after the look at the lock is seen by the next look.
        alive = _held(at / "held")
        if (at / "end.json").exists():
            return msgspec.json.decode((at / "end.json").read_bytes(), type=Status)
        if not alive:
            return Status(state=State.LOST, reason="runner_died")
        return Status(state=State.RUNNING if (at / "started").exists() else State.WAITING)

    def logs(self, handle: Handle, offset: int = 0, follow: bool = False) -> Iterator[bytes]:
        with open(self._at(handle.key) / "log", "rb") as log:
            log.seek(offset)
            while True:
                last = not follow or self.status(handle).state.final
                while data := log.read(1 << 18):
                    yield data
                if last:
                    return
                time.sleep(0.1)

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        at = self._at(handle.key)
        outputs = json.loads((at / "spec.json").read_bytes())["outputs"]
        found = {into / "log": at / "log"}
        for base, folder in (
            (at / "outputs", at / "outputs"),
            *((at / "work", at / "work" / o) for o in outputs),
        ):
            for path in (folder, *folder.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    found[into / "outputs" / path.relative_to(base)] = path
        for to, source in found.items():
            to.parent.mkdir(parents=True, exist_ok=True)
            part = to.with_name(f".{to.name[:200]}.part")
            shutil.copyfile(source, part)
            os.replace(part, to)
        return sorted(found)

    def cancel(self, handle: Handle) -> None:
        (self._at(handle.key) / "cancel").touch()

    def cleanup(self, handle: Handle) -> None:
        for name in ("work", "outputs"):
            shutil.rmtree(self._at(handle.key) / name, ignore_errors=True)


def _held(path: Path) -> bool:
    """Whether a process beside the work, or the work, still lives: they hold a lock for that long."""
    with open(path) as file:
        return not _lock(file.fileno(), fcntl.LOCK_SH)


def _lock(number: int, kind: int) -> bool:
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def beside(at: Path, held: int) -> None:
    """The process beside the work: waits for the commit, for its turn, for the end, and writes that down."""
    sys.stdin.read()
    if not at.exists() or not os.path.samestat(os.stat(at / "held"), os.fstat(held)):
        return  # never committed, or the key was another's
    spec = json.loads((at / "spec.json").read_bytes())
    ended = Status(state=State.CANCELLED)
    with open(at.parent / "line", "w") as line:
        while not (turn := _lock(line.fileno(), fcntl.LOCK_EX)) and not (at / "cancel").exists():
            time.sleep(0.05)
        if turn and not (at / "cancel").exists():
            ended = work(at, spec, [held, line.fileno()])
    (at / "end.part").write_bytes(msgspec.json.encode(ended))
    os.replace(at / "end.part", at / "end.json")


def work(at: Path, spec: dict[str, Any], keep: list[int]) -> Status:
    """Run the work and return its end. `keep`: locks that it holds as long as anything of it lives."""
    ours = {
        "ROUTE_RUN_ID": spec["id"],
        "ROUTE_ATTEMPT": "1",
        "ROUTE_OUTPUTS": at / "outputs",
        "ROUTE_METRICS": at / "metrics.jsonl",
    }
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ROUTE_")}
    with open(at / "log", "ab") as log:
        began = time.time_ns() // 1000
        (at / "started").touch()
        try:
            process = subprocess.Popen(
                spec["argv"],
                cwd=at / "work" / spec["cwd"],
                env=environ | spec["env"] | {name: str(value) for name, value in ours.items()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=keep,
            )
        except OSError as e:
            return Status(state=State.FAILED, reason="not_executable", detail=str(e))
    over = began + spec["timeout_us"]
    while (code := process.poll()) is None and not (at / "cancel").exists() and time.time_ns() // 1000 < over:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    state = State.FAILED if code else State.SUCCEEDED
    if code is None:
        state = State.CANCELLED if (at / "cancel").exists() else State.TIMED_OUT
    return Status(
        state=state,
        exit_code=code if code is not None and code >= 0 else None,
        signal=-code if code is not None and code < 0 else None,
        started_us=began,
        ended_us=time.time_ns() // 1000,
    )


@hookimpl
def route_backends() -> list[type[Backend]]:
    """What this plugin brings."""
    return [QueueBackend]


if __name__ == "__main__":
    beside(Path(sys.argv[1]), int(sys.argv[2]))
