"""What the conformance tests stand on: the author's hooks, and the ways to run work and look at it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from compute_router.backend import Backend, Handle, Offer, Power, State, Status, Submission
from compute_router.records import Record, canonical, new_run_id, plain
from compute_router.snapshot import take
from compute_router.testing import works
from compute_router.workload import Accelerator, Entry, Launcher, Needs, Role, Workload

__all__ = ["Kit", "Witness", "needs"]

F = TypeVar("F", bound=Callable[..., Any])
CLIENT = Path(__file__).with_name("client.py")
ORDER = {State.PLANNED: 0, State.STAGING: 1, State.COMMITTED: 2, State.WAITING: 3, State.STARTING: 4,
         State.RUNNING: 5, State.ORPHANED: 5}  # fmt: skip


def needs(*powers: Power, here: str = "") -> Callable[[F], F]:
    """Mark a test that only a backend with all of `powers` can pass; `here` says why the work must be
    on this computer, if it must. Others skip it, and say why."""

    def mark(function: F) -> F:
        function.powers, function.here = powers, here  # type: ignore[attr-defined]
        return function

    return mark


class Kit:
    """The hooks of an author. `backend` must be given; everything else has a default."""

    patience: ClassVar[float] = 30.0
    """Seconds that a start, an end or a reaction may take. More for a slow cloud."""
    pause: ClassVar[float] = 0.02
    """Seconds between two looks at a run. More for a place that counts requests."""
    accelerator: ClassVar[str] = "cpu"
    """What the works of the kit ask for; a place that has no processors to offer names its smallest."""
    python: ClassVar[str | None] = None
    """`python` of the works: None is whatever the backend runs a plain script with."""
    here: ClassVar[bool] = True
    """Whether the work runs on this computer, so that its files and processes can be looked at."""
    signals: ClassVar[bool] = True
    """Whether a work killed by a signal is told from one that exits."""
    measures: ClassVar[bool] = True
    """Whether `fetch` brings `measured.json`. Without it a receipt has `measured: null` and proves little."""
    kills: ClassVar[int] = 4
    """How many clients are killed in the middle of a submit and of a fetch."""
    sdks: ClassVar[Sequence[str]] = ()
    """Packages that importing the plugin may not import: the SDKs it uses inside functions."""
    timeout_us: ClassVar[int] = 1_000_000
    """The timeout of a work that is to run into it."""
    names: ClassVar[Sequence[str]] = ("empty", "a/b/deep.bin", "with space", "ünï", "quo'te\"$(x)", "-dash")
    """Names of files that outputs come back under. The first is an empty file, the second a large one."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        """The router's own folder, as the backend is given it. Not made yet."""
        return tmp_path / "kit-home"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Where the user's files lie."""
        folder = tmp_path / "kit-project"
        folder.mkdir()
        return folder

    @pytest.fixture
    def backend(self, home: Path) -> Backend:
        """The backend to be proved, new for each test."""
        raise NotImplementedError(f"{type(self).__name__} gives no `backend`: override this fixture")

    @pytest.fixture
    def chance(self) -> random.Random:
        """A generator whose seed is printed with a failure; ROUTE_SEED repeats a run."""
        number = int(os.environ.get("ROUTE_SEED", random.randrange(2**32)))
        print(f"ROUTE_SEED={number}")
        return random.Random(number)

    @pytest.fixture(autouse=True)
    def _able(self, request: pytest.FixtureRequest) -> None:
        """Skip what the backend does not claim to do."""
        powers, here = getattr(request.function, "powers", ()), getattr(request.function, "here", "")
        if here and not self.here:
            pytest.skip(f"here = False: {here}")
        if powers:
            backend: Backend = request.getfixturevalue("backend")
            if lacking := [power for power in powers if power not in backend.powers]:
                pytest.skip(f"{backend.name} does not claim {', '.join(f'Power.{p.name}' for p in lacking)}")

    def fresh(self, backend: Backend) -> Backend:
        """Another instance of the same backend, as another process would make it."""
        return type(backend)(backend.settings, backend.home)

    def cut(self, backend: Backend) -> Backend | None:
        """An instance for which the same place cannot be reached. None = there is no way to make one."""
        return None

    def workload(self, folder: Path, source: str, *args: str, **fields: Any) -> Workload:
        """A workload of one script. Override it to add what the backend needs in `fields`."""
        (folder / "work.py").write_text(source, encoding="utf-8")
        given: dict[str, Any] = {
            "name": "conformance",
            "entry": Entry(root=str(folder), script="work.py", args=args),
            "needs": Needs(accelerator=Accelerator.parse(self.accelerator)),
            "launcher": Launcher.PYTHON,
            "python": self.python,
            "timeout_us": 10 * 60 * 1_000_000,
        }
        return Workload(**(given | fields))

    # Ways to run work

    def offer(self, backend: Backend, work: Workload) -> Offer:
        """The first offer for `work`; there must be one."""
        found = backend.offers(work)
        offers = [offer for offer in found if isinstance(offer, Offer)]
        assert offers, f"nothing is offered for a work of the kit: {found}"
        return offers[0]

    def submission(self, backend: Backend, work: Workload, **more: Any) -> Submission:
        """A first attempt of `work`."""
        run_id = more.pop("id", None) or new_run_id()
        given = {"id": run_id, "key": run_id, "attempt": 1, "workload": work, "wait_us": None}
        offer = more.pop("offer", None) or self.offer(backend, work)
        return Submission(**(given | {"offer": offer, "snapshot": take(Path(work.entry.root))} | more))

    def started(self, backend: Backend, work: Workload, **more: Any) -> Handle:
        """The handle of a run of `work` that was just submitted."""
        return backend.submit(self.submission(backend, work, **more))

    def until(self, happened: Callable[[], Any], what: str) -> Any:
        """What `happened` returns once it is true, within the patience."""
        end = time.monotonic() + self.patience
        while not (answer := happened()):
            assert time.monotonic() < end, f"after {self.patience} s: not {what}"
            time.sleep(self.pause)
        return answer

    def final(self, backend: Backend, handle: Handle) -> Status:
        """The final status of a run. What is seen on the way must never go back."""
        seen: list[Status] = []

        def over() -> bool:
            status = backend.status(handle)
            assert isinstance(status, Status), f"status returns {type(status).__name__}"
            if (
                seen
                and status.state in ORDER
                and seen[-1].state in ORDER
                and status.attempt == seen[-1].attempt
            ):
                assert ORDER[status.state] >= ORDER[seen[-1].state], f"{status.state} after {seen[-1].state}"
            if status.state is not State.UNKNOWN:
                seen.append(status)
            return status.state.final

        self.until(over, "final")
        return seen[-1]

    def ran(self, backend: Backend, work: Workload, **more: Any) -> tuple[Handle, Status, bytes]:
        """A run of `work` at its end: handle, final status, log."""
        handle = self.started(backend, work, **more)
        status = self.final(backend, handle)
        return handle, status, b"".join(backend.logs(handle))

    def told(self, log: bytes, mark: str) -> Any:
        """The JSON that a work of the kit printed behind `mark`."""
        lines = [line for line in log.decode().splitlines() if line.startswith(mark)]
        assert lines, f"the log does not hold what the work printed: {log[-500:]!r}"
        return json.loads(lines[-1][len(mark) :])

    def witness(self, backend: Backend, folder: Path) -> Witness:
        """Counts executions, by a file here, a volume there, or else the log."""
        return Witness(self, backend, folder)

    def running(self, backend: Backend, handle: Handle, witness: Path) -> list[int]:
        """The process ids that the work `TREE` wrote, once it runs."""
        self.until(witness.exists, "running")
        return [int(word) for word in witness.read_text().split()]

    def gone(self, pids: Sequence[int]) -> None:
        """Wait until none of these processes lives."""
        self.until(lambda: not [pid for pid in pids if _alive(pid)], f"gone: processes {pids}")

    # Another process

    def order(self, backend: Backend, do: str, **more: Any) -> str:
        """One line of JSON for the client."""
        cls = type(backend)
        assert "<locals>" not in cls.__qualname__, (
            "another process must be able to import the backend's class"
        )
        order = {
            "do": do,
            "path": sys.path,
            "class": f"{cls.__module__}:{cls.__qualname__}",
            "settings": plain(backend.settings),
            "home": str(backend.home),
        }
        return json.dumps({**order, **more}) + "\n"

    def elsewhere(self, backend: Backend, do: str, **more: Any) -> Any:
        """What a process of its own answers, which makes the backend anew."""
        with self.client(self.order(backend, do, **more)) as client:
            out, err = client.communicate()
        assert client.returncode == 0, err
        return json.loads(out.splitlines()[-1])

    @contextlib.contextmanager
    def client(self, order: str) -> Iterator[subprocess.Popen[str]]:
        """A client process that has its order."""
        command = [sys.executable, "-P", str(CLIENT)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as client:
            assert client.stdin is not None
            try:
                client.stdin.write(order)
                client.stdin.flush()
                yield client
            finally:
                client.kill()

    def killed(self, order: str, after: float) -> str:
        """What a client printed that was killed `after` seconds behind its go."""
        with self.client(order) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            if client.stdout.readline() != "ready\n":
                raise AssertionError(client.communicate()[1])
            client.stdin.write("go\n")
            client.stdin.flush()
            time.sleep(after)
            client.kill()
            return client.communicate()[0]

    def same(self, got: bytes, due: bytes) -> None:
        """Every byte as it must be. Says where they part: pytest's own view of long bytes takes minutes."""
        if got != due:
            pairs = enumerate(zip(got, due, strict=False))
            at = next((i for i, (one, other) in pairs if one != other), min(len(got), len(due)))
            parted = f"{got[at:][:20]!r} for {due[at:][:20]!r}"
            raise AssertionError(f"{len(got)} bytes for {len(due)}, and from byte {at} on {parted}")

    def keeps(self, record: Record) -> None:
        """A record survives its canonical JSON, byte for byte."""
        try:
            data = canonical(record)
        except (ValueError, TypeError) as e:
            raise AssertionError(f"{type(record).__name__} has no canonical JSON: {e}") from None
        import msgspec

        again = msgspec.json.decode(data, type=type(record))
        assert canonical(again) == data
        assert "\n" not in str(getattr(record, "reason", "")) + str(getattr(record, "mend", ""))


class Witness:
    """Where a work leaves one line for each time that it is executed."""

    def __init__(self, kit: Kit, backend: Backend, folder: Path) -> None:
        self.kit, self.backend, self.folder = kit, backend, folder
        self.name = f"witness-{new_run_id()}"
        self.handles: list[Handle] = []
        self.fields: dict[str, Any] = {}
        if kit.here:
            self.where = str(folder.parent / self.name)
        elif Power.VOLUMES in backend.powers:
            self.where, self.fields = f"volume:{self.name}", {"volumes": {Role.DATA: "/data"}}
        else:
            self.where = "log"

    def workload(self, code: int = 0, **fields: Any) -> Workload:
        """The work that is counted; it ends with `code`."""
        return self.kit.workload(self.folder, works.COUNTED, self.where, str(code), **self.fields, **fields)

    def count(self, *handles: Handle) -> int:
        """How often it was executed, by all that can be seen (`handles`: the runs whose logs may tell)."""
        if self.kit.here:
            return Path(self.where).read_text().count("executed") if os.path.exists(self.where) else 0
        if self.fields:
            work = self.kit.workload(self.folder, works.READER, self.name, **self.fields)
            return self.kit.ran(self.backend, work)[2].count(b"executed")
        logs = (b"".join(self.backend.logs(handle)) for handle in handles)
        return len({line for log in logs for line in log.splitlines() if line.startswith(b"executed")})


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # one that has ended and waits for its parent to notice does nothing any more
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return not os.path.exists("/proc/self")
