"""What to run: the Workload record and its parts, and the contract of a Kind."""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from compute_router.records import Record, digest

__all__ = [
    "SEEDING",
    "Accelerator",
    "Check",
    "Coupling",
    "Entry",
    "Field",
    "Framework",
    "Kind",
    "Launcher",
    "MetricRule",
    "Needs",
    "OnInterrupt",
    "Purpose",
    "Role",
    "Stage",
    "Warmth",
    "Workload",
]


class Purpose(enum.StrEnum):
    """Why this run is made. Kind and purpose together pick the rules that apply to it."""

    BENCHMARK = "benchmark"
    SMOKE = "smoke"
    BRINGUP = "bringup"
    REPEATABLE = "repeatable"
    SCALE = "scale"
    COLD_START = "cold-start"


class Coupling(enum.StrEnum):
    """How tightly the parts of the work move together."""

    INDEPENDENT = "independent"
    SINGLE_NODE = "single-node"
    MULTI_NODE = "multi-node"


class Warmth(enum.StrEnum):
    """The start state the claim needs. A `warm` claim never starts cold, nor the reverse."""

    ANY = "any"
    WARM = "warm"
    COLD = "cold"


class Framework(enum.StrEnum):
    """Whose compiler path the work is on. `any` runs on either, `none` uses no accelerator framework."""

    TORCH = "torch"
    XLA = "xla"
    ANY = "any"
    NONE = "none"


class Launcher(enum.StrEnum):
    """What starts the processes. `auto` is torchrun when coupled or on several GPUs, else python."""

    AUTO = "auto"
    PYTHON = "python"
    TORCHRUN = "torchrun"


class OnInterrupt(enum.StrEnum):
    """What a start that was preempted may do. Training never silently starts again from step 0."""

    RESUME = "resume"
    STOP = "stop"


class Role(enum.StrEnum):
    """The four kinds of state a workload can keep; never interchangeable."""

    COMPILE_CACHE = "compile-cache"
    CHECKPOINTS = "checkpoints"
    DATA = "data"
    HOME = "home"


_GPU = re.compile(r"([A-Za-z][A-Za-z0-9+-]*)(?::([1-9][0-9]{0,3}))?")
_TPU = re.compile(r"(v[0-9]+[a-z]*)-([1-9][0-9]{0,4})")


class Accelerator(Record, frozen=True, kw_only=True):
    """A number of accelerators of one kind on each node, e.g. `H200:8`, `v6e-8`, `cpu`, `any`.

    `family` is `cpu`, `gpu`, `tpu` or `any`; `sku` the vendor's name (upper case for GPUs,
    Google's own for TPUs, empty for `cpu` and `any`); `count` GPUs on a node, or the number
    behind the dash of a TPU slice; 0 for `cpu`.
    """

    family: str
    sku: str = ""
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> Accelerator:
        """Read `cpu`, `any`, `any:2`, `H200`, `H200:8` or `v6e-8`. Raises `ValueError` for anything else."""
        text = text.strip()
        if text.lower() == "cpu":
            return cls(family="cpu")
        if match := _TPU.fullmatch(text.lower()):
            return cls(family="tpu", sku=match[1], count=int(match[2]))
        if (match := _GPU.fullmatch(text)) and not re.match(r"v[0-9]+[a-z]*-[0-9]+", text.lower()):
            count = int(match[2] or 1)
            if match[1].lower() == "any":
                return cls(family="any", count=count)
            if match[1].lower() != "cpu":
                return cls(family="gpu", sku=match[1].upper(), count=count)
        raise ValueError(f"{text!r} is no accelerator (write cpu, any, H200:8 or v6e-8)")

    def __str__(self) -> str:
        if self.family == "cpu":
            return "cpu"
        if self.family == "any":
            return "any" if self.count <= 1 else f"any:{self.count}"
        return f"{self.sku}-{self.count}" if self.family == "tpu" else f"{self.sku}:{self.count}"


class Needs(Record, frozen=True, kw_only=True):
    """What the work needs of a place."""

    accelerator: Accelerator = Accelerator(family="cpu")
    substitutes: tuple[Accelerator, ...] = ()
    coupling: Coupling = Coupling.INDEPENDENT
    nodes: int = 1
    warmth: Warmth = Warmth.ANY
    framework: Framework = Framework.ANY


class Entry(Record, frozen=True, kw_only=True):
    """What is started: a Python `script` with `args`, or a plain command `argv`; never both.

    `script` is a path below `root`; `root` is the absolute folder that is shipped. `ready` is
    set for a ready-made workload (`bench:matmul`). `cwd` is where the work starts, below `root`.
    """

    root: str
    script: str | None = None
    argv: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    cwd: str = "."
    ready: str | None = None
    sha256: str | None = None


class Stage(Record, frozen=True, kw_only=True):
    """Files copied once from a bucket or a path (`source`, may hold wildcards) into a volume role."""

    source: str = msgspec.field(name="from")
    to: Role


class MetricRule(Record, frozen=True, kw_only=True):
    """Which metric is the primary one, and how many first steps never count."""

    primary: str | None = None
    higher_is_better: bool = True
    discard_steps: int = 1


SEEDING = "seeding"
"""The tag of a run that fills a compile cache (`route warm`): it is never evidence."""


class Workload(Record, frozen=True, kw_only=True):
    """One thing to run. Frozen; two workloads are the same exactly if their digests are equal.

    Units: `timeout_us` and every other `_us` in microseconds. `volumes` maps a role to the path
    the work would like to see it at; `backend` holds each backend's own keys, checked by it.
    `fields` holds the record fields of the kind that the file declares.
    """

    schema: str = "route.workload/1"
    name: str
    entry: Entry
    tags: tuple[str, ...] = ()
    kind: str = "train"
    purpose: Purpose = Purpose.SMOKE
    needs: Needs = Needs()
    launcher: Launcher = Launcher.AUTO
    shapes: str | None = None
    timeout_us: int = 4 * 3600 * 1_000_000
    on_interrupt: OnInterrupt = OnInterrupt.STOP
    secrets: tuple[str, ...] = ()
    env: dict[str, str] = {}
    outputs: tuple[str, ...] = ()
    volumes: dict[Role, str] = {}
    buckets: dict[str, str] = {}
    stage: tuple[Stage, ...] = ()
    metrics: MetricRule = MetricRule()
    dependencies: tuple[str, ...] = ()
    requires_python: str | None = None
    python: str | None = None
    import_probes: tuple[str, ...] = ()
    image: str | None = None
    package_index: str | None = None
    price_limit: str | None = None
    fields: dict[str, Any] = {}
    backend: dict[str, dict[str, Any]] = {}

    @property
    def digest(self) -> str:
        """sha256 of the canonical form without `entry.root`: where the files lay is not what they are."""
        data = msgspec.to_builtins(self)
        data["entry"].pop("root")
        return digest(data)


class Field(Record, frozen=True, kw_only=True):
    """One field of a kind's record, given under `[tool.route.fields]`: its name, type and meaning."""

    name: str
    type: str = "string"  # string | integer | boolean | decimal
    required: bool = False
    about: str = ""


class Check(Record, frozen=True, kw_only=True):
    """The outcome of one check. `ok` is None where it could not be observed, with the reason in `why`."""

    name: str
    ok: bool | None
    why: str = ""


class Kind(ABC):
    """A lane: `train`, `bench`, `validate` or a plugin's own. Kinds are never compared with each other.

    Each kind has its own record fields, its own health checks and its own test of success;
    a green run of one kind proves nothing about another. All methods are pure.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    purposes: ClassVar[tuple[Purpose, ...]]
    fields: ClassVar[tuple[Field, ...]] = ()
    default_purpose: ClassVar[Purpose]
    primary: ClassVar[str | None] = None
    """The primary metric of a run that names none."""
    ready: ClassVar[Mapping[str, str]] = {}
    """Ready-made workloads: name -> absolute path of the script, run as `kind:name`."""

    def problems(self, workload: Workload) -> Sequence[str]:
        """What about this workload cannot be a run of this kind; empty if nothing."""
        return ()

    @abstractmethod
    def checks(self, measured: Mapping[str, Any]) -> Sequence[Check]:
        """Health checks over the measured block of a receipt. Never a threshold on speed."""

    @abstractmethod
    def success(self, measured: Mapping[str, Any]) -> Check:
        """Whether the run did what a run of this kind is for (exit code 0 alone may not be it)."""

    def promotion(self, measured: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """`{"status", "criteria", "ready"}` for kinds that accept or reject something, else None."""
        return None
