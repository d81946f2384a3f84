"""The contract of a backend: what it offers, starts, finds again and gives back.

A backend raises `Rejected` (permanent, nothing started), `Unavailable` (transient, nothing started),
`SubmitUnknown` (may have started) or `HandleLost`; anything else becomes a `PluginError` naming the plugin.
"""

from __future__ import annotations

import dataclasses
import enum
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compute_router.beyond import Beyond, Freed, Kept, Node, Shell, There
from compute_router.errors import Unavailable
from compute_router.records import Record
from compute_router.workload import Framework, Role, Workload

if TYPE_CHECKING:
    from compute_router.snapshot import Snapshot

__all__ = [
    "Backend",
    "CacheState",
    "Cost",
    "Estimate",
    "Estimates",
    "Freed",
    "Handle",
    "Hardware",
    "Health",
    "HealthCheck",
    "Kept",
    "NoOffer",
    "Node",
    "Offer",
    "Power",
    "Quote",
    "RoleState",
    "Shell",
    "Source",
    "StartClass",
    "State",
    "Status",
    "Submission",
    "Surface",
    "There",
]


class Surface(enum.StrEnum):
    """The trait policies reason about; a backend declares its own."""

    LOCAL = "local"
    RESERVED = "reserved"
    SERVERLESS = "serverless"
    SLICE = "slice"
    CLUSTER = "cluster"


class Power(enum.StrEnum):
    """What a backend can do beyond running and collecting. A workload that needs more gets a NoOffer."""

    DETACH = "detach"  # the run outlives the client
    FOLLOW = "follow"  # logs arrive while it runs
    CANCEL = "cancel"
    SECRETS = "secrets"
    VOLUMES = "volumes"  # state that outlives a run
    MOUNTS = "mounts"  # volumes appear at the paths the workload asks for
    BUCKETS = "buckets"
    IMAGES = "images"
    MULTI_NODE = "multi-node"
    RESUME = "resume"  # a preempted start may go on
    COST = "cost"


class State(enum.StrEnum):
    """Where a run stands. A final state never changes."""

    PLANNED = "planned"
    STAGING = "staging"
    COMMITTED = "committed"
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    ORPHANED = "orphaned"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    PREEMPTED = "preempted"
    LOST = "lost"

    @property
    def final(self) -> bool:
        return self in _FINAL


_FINAL = {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.TIMED_OUT, State.PREEMPTED, State.LOST}


class CacheState(enum.StrEnum):
    """What a cache held before a run, told by its key, never by a directory being non-empty."""

    EMPTY = "empty"
    PARTIAL = "partial"
    WARM_SAME_KEY = "warm_same_key"
    WARM_OTHER_IMAGE = "warm_other_image"
    WARM_OTHER_WORLD = "warm_other_world"
    BAKED_IMAGE = "baked_image"
    SEEDED_TARBALL = "seeded_tarball"
    DISABLED = "disabled"
    UNWRITABLE = "unwritable"
    UNOBSERVED = "unobserved"


class StartClass(enum.StrEnum):
    """In what state a start finds its place."""

    COLD_IMAGE = "cold_image"
    COLD_CONTAINER_CACHED_IMAGE = "cold_container_cached_image"
    WARM_CONTAINER = "warm_container"
    WARM_MACHINE_FRESH_PROCESS = "warm_machine_fresh_process"
    WARM_MACHINE_AFTER_REBOOT = "warm_machine_after_reboot"
    SNAPSHOT_RESTORE = "snapshot_restore"
    RESUMED_CHECKPOINT = "resumed_checkpoint"
    UNOBSERVED = "unobserved"


class Source(enum.StrEnum):
    """Who says so: every figure carries one."""

    REQUESTED = "requested"
    OBSERVED = "observed"
    QUOTED = "quoted"
    ESTIMATED = "estimated"
    WORKLOAD = "workload"


class Hardware(Record, frozen=True, kw_only=True):
    """What one node of an offer has. `sku` as in `Accelerator`; sizes in bytes, None if not known."""

    family: str
    sku: str = ""
    count: int = 0
    nodes: int = 1
    cpus: int | None = None
    memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    form_factor: str | None = None


class RoleState(Record, frozen=True, kw_only=True):
    """What a volume role holds at the offered place for this workload's cache key."""

    role: Role
    state: CacheState
    storage: str = "unobserved"


class Estimate(Record, frozen=True, kw_only=True):
    """A duration in microseconds and who says so."""

    us: int
    source: Source = Source.ESTIMATED


class Estimates(Record, frozen=True, kw_only=True):
    """The parts of *time to first trustworthy result*: queue + start + staging + compile."""

    queue: Estimate | None = None
    start: Estimate | None = None
    staging: Estimate | None = None
    compile: Estimate | None = None


class Quote(Record, frozen=True, kw_only=True):
    """A price: decimal `amount` of `currency` per `unit` (`hour` or `run`), who quoted it and when."""

    amount: str
    currency: str = "USD"
    unit: str = "hour"
    source: str
    date: str


class Cost(Record, frozen=True, kw_only=True):
    """What a run cost: decimal string, how it was come by, and whether it is an estimate."""

    amount: str
    currency: str = "USD"
    source: str
    estimate: bool = True


class Offer(Record, frozen=True, kw_only=True):
    """A place that could run the workload now. Reads only: making one starts and spends nothing.

    `id` names the place within its backend and is stable while the place exists. `hardware` is what the
    run would get there, not all that the place has. `fabric` says that the nodes share a fabric of their
    own; `clean` that every run starts in a fresh container; `capacity` how many independent runs fit side
    by side (None = the backend queues). `busy` means that `estimates.queue` stands between the run and
    its start; None there is a queue of unknown length. `data` is the backend's own and opaque to
    policies.
    """

    backend: str
    id: str
    surface: Surface
    hardware: Hardware
    frameworks: tuple[Framework, ...] = (Framework.TORCH, Framework.ANY, Framework.NONE)
    start_class: StartClass = StartClass.UNOBSERVED
    roles: tuple[RoleState, ...] = ()
    estimates: Estimates = Estimates()
    busy: bool = False
    fabric: bool = False
    clean: bool = False
    capacity: int | None = 1
    quote: Quote | None = None
    powers: tuple[Power, ...] = ()
    note: str = ""
    data: dict[str, Any] = {}


class NoOffer(Record, frozen=True, kw_only=True):
    """Why a backend has no place for the workload, and how to mend it. `code` is a stable slug."""

    backend: str
    code: str
    reason: str
    mend: str = ""
    set_up: bool = True  # False: the user has given the backend no place at all, which is no fault


class HealthCheck(Record, frozen=True, kw_only=True):
    """One thing looked at: `ok`, or `warns` of what stops no run; what was seen; what mends it."""

    name: str
    ok: bool
    seen: str
    mend: str = ""
    warns: bool = False


class Health(Record, frozen=True, kw_only=True):
    """Whether one of a backend's places can be used now. `route doctor` prints `checks`."""

    backend: str
    ok: bool
    summary: str
    checks: tuple[HealthCheck, ...] = ()
    set_up: bool = True


class Handle(Record, frozen=True, kw_only=True):
    """Finds a started run again from any process. Only its backend reads `data`; `version` is its form."""

    schema: str = "route.handle/1"
    backend: str
    version: int
    run_id: str
    key: str
    attempt: int
    data: dict[str, Any] = {}


class Status(Record, frozen=True, kw_only=True):
    """One look at a run.

    For `unknown`, `last` is the last state seen and `since_us` when (epoch microseconds).
    `reason` is a stable slug (`never_executed`, `rebooted`, `waiter_died`, `oom_host`, ...),
    `detail` a sentence. Exactly one of `exit_code` and `signal` is set once the work has ended
    by itself. `nodes`, in rank order, are the machines of a run on several, None of any other.
    """

    state: State
    attempt: int = 1
    reason: str = ""
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    last: State | None = None
    since_us: int | None = None
    started_us: int | None = None
    ended_us: int | None = None
    position: int | None = None
    nodes: tuple[Node, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """All a backend needs to start one attempt. Not a record: it holds secret values and is never written.

    `key` is the idempotency key: the run id, unless the user gave one; then `id` is made from it
    (the same key always gives the same id). `wait_us` is how long a busy place may be waited for
    (0 = not at all, None = for ever); a `submit` that waits itself tells `waits` what for. `records` are
    lines of JSON, at most 1 MiB and without secrets, that a backend may leave beside the run: `kept`
    gives them to another client.
    """

    id: str
    key: str
    attempt: int
    workload: Workload
    offer: Offer
    snapshot: Snapshot
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    wait_us: int | None = 0
    records: bytes = dataclasses.field(default=b"", repr=False)
    waits: Callable[[Status], object] = lambda status: None


class Backend(Beyond, ABC):
    """A way to run workloads. One instance serves one process and may be called from several threads.

    What it may do beyond this, with defaults: `compute_router.beyond.Beyond`.
    """

    name: ClassVar[str]
    surface: ClassVar[Surface]
    Settings: ClassVar[type[Record]]
    powers: ClassVar[frozenset[Power]]

    def __init__(self, settings: Record, home: Path) -> None:
        """`settings` is an instance of `Settings`; `home` the router's own folder. Does no I/O."""
        self.settings = settings
        self.home = home

    @abstractmethod
    def health(self) -> Health:
        """Quick look (under 2 s). Never raises, starts nothing."""

    @abstractmethod
    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        """What could run `workload` now. Reads only and spends nothing; core calls it in a thread with
        a deadline of 10 s. May raise `Unavailable` or `CredentialsError`; both become a NoOffer."""

    @abstractmethod
    def submit(self, submission: Submission) -> Handle:
        """Start one attempt. Idempotent by `submission.key`: a second call with the same key and
        attempt returns the same run and starts nothing.

        A normal return guarantees that the run is committed and outlives this process (if the
        backend has `Power.DETACH`). `Rejected` and `Unavailable` guarantee that nothing started;
        `SubmitUnknown` guarantees nothing.
        """

    @abstractmethod
    def find(self, key: str) -> Handle | None:
        """The run started under `key`, from any process. None = surely not started; raises
        `Unavailable` when it cannot be known. May be repeated at will."""

    @abstractmethod
    def status(self, handle: Handle) -> Status:
        """One look. A final state never changes. What cannot be seen is `unknown`, without a raise."""

    @abstractmethod
    def logs(self, handle: Handle, offset: int = 0, follow: bool = False) -> Iterator[bytes]:
        """The log from byte `offset` on, raw. With `follow` it ends once the run is final and all is read.
        Raises `Unavailable` when the place cannot be reached; go on from the last offset."""

    def attached(self, handle: Handle, offset: int = 0) -> Iterator[bytes | Status]:
        """Log bytes from `offset` on and every change of the status as they come; the last item is
        a final `Status`. Rides out a lost connection: says `unknown` meanwhile and goes on.

        This default asks `logs` and `status`; a backend that can push does better.
        """
        pause = 0.05
        while True:
            try:
                for chunk in self.logs(handle, offset, follow=True):
                    offset, pause = offset + len(chunk), 0.05
                    yield chunk
            except Unavailable:
                pass
            status = self.status(handle)
            yield status
            if status.state.final:
                return
            time.sleep(pause)
            pause = min(pause * 2, 10.0)

    @abstractmethod
    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        """After a final state: bring `outputs/`, `log` and `measured.json` into `into`; returns the
        paths written. Repeatable, resumes, verified by digest, nothing partial under a final name."""

    @abstractmethod
    def cancel(self, handle: Handle) -> None:
        """Ask the run to end. Returns at once; repeatable; silent if it is over."""

    @abstractmethod
    def cleanup(self, handle: Handle) -> None:
        """After a final state and fetch: free what the run holds. Repeatable; then nothing bills."""
