"""A real OpenSSH server for the benchmarks, behind a delay or not, and how each peer and route reach it."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import interleaved, process, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ssh_machines import entry_of, pin_all
from sshd import Sshd

from compute_router.backend import Handle, Offer, Submission
from compute_router.backends.ssh import SSHBackend, SSHSettings
from compute_router.machines.contract import Interpreter, Machine
from compute_router.machines.entry import MachineEntry
from compute_router.machines.reaching import reach
from compute_router.machines.session import Session
from compute_router.machines.shipping import finish, ship
from compute_router.machines.specification import specification
from compute_router.records import new_run_id
from compute_router.snapshot import Snapshot, take
from compute_router.workload import Entry, Workload

RELAY = Path(__file__).resolve().parents[1] / "tests" / "relay.py"
MACHINES = 8
BIG = 50_000_000
Once = Callable[[], "float | None"]


@dataclasses.dataclass
class Bench:
    """One server, behind a delay or not, and how each peer reaches it."""

    folder: Path
    server: Sshd
    port: int
    runs: int
    about: str

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.home.mkdir(exist_ok=True)

    @property
    def options(self) -> list[str]:
        known = self.folder / "known"
        return [
            "-F", "none", "-i", str(self.server.identity), "-o", f"Port={self.port}", "-o", "BatchMode=yes",
            "-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={known}", "-q",
        ]  # fmt: skip

    @property
    def login(self) -> str:
        return f"{self.server.user}@127.0.0.1"

    def ssh(self, *words: str) -> list[str]:
        return ["ssh", *self.options, self.login, *words]

    def rsync(self, source: str, target: str) -> list[str]:
        return ["rsync", "-a", "--delete", "-e", " ".join(["ssh", *self.options]), source, target]

    def run(self, words: Sequence[str]) -> Once:
        return process(words, cwd=self.folder)

    def entry(self, name: str = "h1", root: str = "there") -> MachineEntry:
        entry = through(entry_of(self.server, self.folder / root), self.port)
        if name not in self._pinned:
            pin_all(name, entry)
            self._pinned.add(name)
        return entry

    _pinned: set[str] = dataclasses.field(default_factory=set)
    offers: dict[str, Offer] = dataclasses.field(default_factory=dict)

    @contextmanager
    def machine(self, name: str = "h1", root: str = "there") -> Iterator[Machine]:
        """A machine whose connection is new."""
        made = reach(name, self.entry(name, root))
        try:
            yield made
        finally:
            made.close()

    def backend(self) -> SSHBackend:
        return SSHBackend(SSHSettings(machines={"h1": self.entry()}), self.home)

    def table(self, title: str, things: dict[str, Once], floor: str, goals: Any = None) -> None:
        table(f"{title} ({self.about})", interleaved(things, runs=self.runs), floor=floor, goals=goals)


def through(entry: MachineEntry, port: int) -> MachineEntry:
    """The entry through another port."""
    import msgspec

    return msgspec.structs.replace(entry, address=f"{entry.address.rpartition(':')[0]}:{port}")


def workload(root: Path, **fields: Any) -> Workload:
    return Workload(name="bench", entry=Entry(root=str(root), script="work.py"), **fields)


def submission(offer: Offer, work: Workload, snapshot: Snapshot) -> Submission:
    run_id = new_run_id()
    return Submission(id=run_id, key=run_id, attempt=1, workload=work, offer=offer, snapshot=snapshot)


def offered(bench: Bench, work: Workload) -> Offer:
    [offer] = bench.backend().offers(work)
    assert isinstance(offer, Offer), offer
    return offer


class Counted:
    """A stream that counts how often something was heard after something was said."""

    def __init__(self, inner: Any, counts: list[int]) -> None:
        self.inner, self.counts, self.said = inner, counts, True

    def write(self, data: bytes) -> None:
        self.said = True
        self.inner.write(data)

    def read(self, limit: int) -> bytes:
        data: bytes = self.inner.read(limit)
        if self.said and data:
            self.said = False
            self.counts[0] += 1
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def until_over(backend: SSHBackend, handle: Handle) -> None:
    for _ in backend.attached(handle):
        pass


def close(backend: SSHBackend) -> None:
    for there in backend.places():
        backend._running.sessions(there).close()
        there.close()


@contextmanager
def behind(server: Sshd, delay_ms: int) -> Iterator[int]:
    """The port that leads to the server, with a delay of `delay_ms` for a round trip."""
    if not delay_ms:
        yield server.port
        return
    words = [sys.executable, str(RELAY), str(server.port), str(delay_ms / 2)]
    relay = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert relay.stdout is not None
        yield int(relay.stdout.readline())
    finally:
        relay.terminate()
        relay.wait()


def arrive(bench: Bench, path: Path) -> float:
    """One file up as part of a run's tree, to the answer that it is committed."""
    root = bench.folder / "there"
    for name in ("blobs", "stage"):
        shutil.rmtree(root / name, ignore_errors=True)
    tree = bench.folder / "onebig"
    tree.mkdir(exist_ok=True)
    if not (tree / "big").exists():
        shutil.copy(path, tree / "big")
        (tree / "work.py").write_text("pass\n")
    work = workload(tree)
    made = submission(bench.offers.setdefault(str(tree), offered(bench, work)), work, take(tree))
    begin = time.perf_counter()
    spec = specification(made, Interpreter(python="python3"), ())
    with bench.machine() as there:
        session = Session(there)
        finish(session, ship(session, made, spec))
        spent = (time.perf_counter() - begin) * 1e3
        session.close()
    shutil.rmtree(root / "runs" / made.id, ignore_errors=True)
    return spent
