"""The backend `local`: runs work on this very computer, under the same supervisor as everywhere."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from compute_router.backend import (
    Backend,
    CacheState,
    Estimate,
    Estimates,
    Freed,
    Hardware,
    Health,
    HealthCheck,
    Kept,
    NoOffer,
    Offer,
    Power,
    RoleState,
    Surface,
    There,
)
from compute_router.cachekey import distinct, key_parts
from compute_router.errors import RouteError
from compute_router.hookspecs import hookimpl
from compute_router.machines.contract import Interpreter, Machine, MachineBackend
from compute_router.machines.offering import (
    EXCLUSIVE,
    Seen,
    frameworks,
    hashed,
    never,
    start_class,
    unmounted,
    wants_devices,
)
from compute_router.records import Record, digest
from compute_router.workload import Role, Workload

if TYPE_CHECKING:
    from compute_router.machines.local import LocalMachine

__all__ = ["LocalBackend", "LocalSettings", "route_backends"]

LEAST_FREE = 1 << 30
"""Bytes below which the disk counts as full."""


class LocalSettings(Record, frozen=True, kw_only=True):
    """`root`: where runs are kept (default `machine` in the router's folder; a disk of this machine).
    `exclusive`: one run at a time on the whole machine. `slots`: how many runs are offered room
    side by side (default: the number of processors)."""

    root: str | None = None
    exclusive: bool = False
    slots: int | None = None


class LocalBackend(MachineBackend):
    """This computer: its processors, and its GPUs where it has some."""

    name = "local"
    surface = Surface.LOCAL
    Settings = LocalSettings
    powers = frozenset({Power.DETACH, Power.FOLLOW, Power.CANCEL, Power.SECRETS, Power.VOLUMES, Power.RESUME})
    settings: LocalSettings

    @property
    def root(self) -> Path:
        """The folder everything of this backend is kept below."""
        given = self.settings.root
        return Path(os.path.abspath(os.path.expanduser(given) if given else self.home / "machine"))

    @functools.cached_property
    def _machine(self) -> LocalMachine:
        from compute_router.machines.local import LocalMachine

        return LocalMachine(self.root)

    def places(self) -> Sequence[Machine]:
        return (self._machine,)

    def machines(self, offer: Offer) -> Sequence[Machine]:
        return (self._machine,)

    def interpreter(self, workload: Workload) -> Interpreter:
        from compute_router.environment import interpreter

        return interpreter(workload, self.root / "envs")

    def environment(self, workload: Workload) -> Mapping[str, Any] | None:
        if workload.python is not None or not workload.dependencies:
            return super().environment(workload)
        from compute_router.environment import known

        found = known(workload, self.root / "envs")
        many = len(workload.dependencies)
        listed = f"{many} {'dependency' if many == 1 else 'dependencies'}"
        if found is None:
            sentence = f"would be built by uv from {listed}"
        else:
            # What is newest by now is only known to the index, which is asked at the start.
            sentence = f"lock {found.lock_sha256 or ''}"[:17] + f", built before from {listed}; used again"
            sentence += " unless the index has something newer"
        return {
            "source": "uv",
            "python": found.python if found else None,
            "lock_sha256": found.lock_sha256 if found else None,
            "sentence": sentence,
        }

    def kept(self, ref: str) -> Kept | None:
        return super().kept(ref) if self._made else None

    def there(self) -> Sequence[There]:
        return super().there() if self._made else ()

    def sweep(self, before_us: int, *, delete: bool) -> Sequence[Freed]:
        return super().sweep(before_us, delete=delete) if self._made else ()

    @property
    def _made(self) -> bool:
        """Whether there may be runs: the router's own folder is made with the first."""
        return self.settings.root is not None or self.root.is_dir()

    def keeps(self) -> int:
        # Nobody else comes to a root in the router's own folder.
        return 0 if self.settings.root is None else super().keeps()

    def leases(self, offer: Offer) -> Sequence[str]:
        return (EXCLUSIVE,) if self.settings.exclusive else ()

    # Health

    def health(self) -> Health:
        checks = (self._python(), *self._disk())
        bad = [check for check in checks if not check.ok]
        gpus = "GPUs: not looked at" if _gpu_tool() else "no GPU"
        summary = bad[0].seen if bad else f"{_cpus()} processors, {_memory() >> 30} GiB, {gpus}"
        return Health(backend=self.name, ok=not bad, summary=summary, checks=checks)

    def _python(self) -> HealthCheck:
        there = bool(sys.executable) and os.access(sys.executable, os.X_OK)
        return HealthCheck(
            name="python",
            ok=there,
            seen=f"Python {platform.python_version()} at {sys.executable or 'an unknown place'}",
            mend="" if there else "run route with a Python that is installed",
        )

    def _disk(self) -> Sequence[HealthCheck]:
        from compute_router.supervisor import machine

        there = next((p for p in (self.root, *self.root.parents) if p.exists()), Path("/"))
        writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        mount = machine.mount_of(str(there))
        network = mount is not None and machine.is_network(mount.fs)
        try:
            space = os.statvfs(there)
            free = space.f_bavail * space.f_frsize
        except OSError:
            free = 0
        elsewhere = "give backend local another root on a disk of this machine"
        return (
            HealthCheck(
                name="root",
                ok=writable,
                seen=f"{self.root} is {'writable' if writable else 'not writable'}",
                mend="" if writable else f"make {there} writable, or {elsewhere}",
            ),
            HealthCheck(
                name="disk",
                ok=free >= LEAST_FREE,
                seen=f"{free >> 20:,} MiB free below {there}",
                mend="" if free >= LEAST_FREE else "route gc frees space",
            ),
            HealthCheck(
                name="file system",
                ok=not network,
                seen=f"{there} lies on {mount.fs if mount else 'an unknown file system'}",
                mend=elsewhere if network else "",
            ),
        )

    # Offers

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        refusal = self._never(workload)
        if refusal is not None:
            return [refusal]
        probe: Mapping[str, Any] = {}
        if self.settings.exclusive or (wants_devices(workload.needs) and _gpu_tool()):
            probe = self._running.sessions(self._machine).ask("probe", keys=[]).head
        seen = Seen.of(probe, cpus=_cpus(), memory_bytes=_memory())
        found = seen.serving(workload.needs)
        if not found:
            lacks = seen.lacks(workload.needs.accelerator)
            return [self._no(lacks.code, lacks.reason, lacks.mend)]
        return [self._offer(workload, hardware, seen) for hardware in found]

    def _no(self, code: str, reason: str, mend: str) -> NoOffer:
        return NoOffer(backend=self.name, code=code, reason=reason, mend=mend)

    def _never(self, workload: Workload) -> NoOffer | None:
        """What this machine cannot do for any workload, looked at before anything is measured."""
        if workload.needs.nodes > 1:
            return self._no(
                "multi_node",
                f"{workload.needs.nodes} nodes are asked for, this is one machine",
                "set nodes = 1",
            )
        if (no := never(workload)) is not None:
            return self._no(no.code, no.reason, no.mend)
        if workload.python is not None or not workload.dependencies:
            try:
                self.interpreter(workload)
            except RouteError as e:
                return self._no("python", e.what, e.mend)
        return None

    def _offer(self, workload: Workload, hardware: Hardware, seen: Seen) -> Offer:
        from compute_router.supervisor.observing import container

        on_gpu, exclusive = hardware.family == "gpu", self.settings.exclusive
        busy = seen.busy(hardware, exclusive=exclusive)
        offer = Offer(
            backend=self.name,
            id=f"machine-{hardware.sku.lower()}-{hardware.count}" if on_gpu else "machine",
            surface=self.surface,
            hardware=hardware,
            frameworks=tuple(frameworks(hardware)),
            start_class=start_class({"warm_container": container.warm(str(self.root))}),
            estimates=Estimates(
                queue=None if busy else Estimate(us=0),
                start=Estimate(us=60_000),
                staging=Estimate(us=50_000),
            ),
            busy=busy,
            capacity=seen.slots(hardware, exclusive=exclusive, most=self.settings.slots),
            powers=tuple(sorted(self.powers)),
            note=unmounted(workload),
        )
        return msgspec.structs.replace(offer, roles=self._roles(workload, offer))

    def _roles(self, workload: Workload, offer: Offer) -> tuple[RoleState, ...]:
        if not workload.volumes:
            return ()
        from compute_router.environment import known
        from compute_router.machines.specification import volume_name
        from compute_router.supervisor.observing.mounted import Places

        interpreter = known(workload, self.root / "envs")
        parts = key_parts(hashed(workload), None, offer, interpreter.stack) if interpreter else None
        states, places = [], Places()
        for role in sorted(workload.volumes):
            folder = self.root / "volumes" / role.value / volume_name(workload.name)
            known_by = parts if role is Role.COMPILE_CACHE else None
            state = _state(folder, known_by)
            found = places.of(str(folder))["class"]
            states.append(RoleState(role=role, state=state, storage=found or "unobserved"))
        return tuple(states)


def _state(folder: Path, parts: Mapping[str, object] | None) -> CacheState:
    """What a volume holds, by its stamps alone: a folder that is not empty proves nothing."""
    from compute_router.supervisor import stamps

    if parts is None:
        return CacheState(stamps.state(str(folder), None))
    return CacheState(stamps.state(str(folder), digest(parts), distinct(parts)))


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has none
        return os.cpu_count() or 1


def _memory() -> int:
    """Bytes of memory, or the cgroup's limit where that is less; 0 if it cannot be told."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _gpu_tool() -> bool:
    """Whether it is worth asking for GPUs: there is a driver, its tool, or a library that is named."""
    named = os.environ.get("ROUTE_NVML", "none") != "none"
    return named or os.path.exists("/dev/nvidiactl") or shutil.which("nvidia-smi") is not None


@hookimpl
def route_backends() -> Sequence[type[Backend]]:
    """The backend this module brings."""
    return [LocalBackend]
