"""The backend `local`: runs work on this very computer, under the same supervisor as everywhere."""

from __future__ import annotations

import functools
import hashlib
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
    Hardware,
    Health,
    HealthCheck,
    NoOffer,
    Offer,
    Power,
    RoleState,
    StartClass,
    Surface,
)
from compute_router.cachekey import key_parts
from compute_router.errors import RouteError
from compute_router.hookspecs import hookimpl
from compute_router.machines.contract import Interpreter, Machine, MachineBackend
from compute_router.records import Record, digest
from compute_router.workload import Accelerator, Framework, Role, Workload

if TYPE_CHECKING:
    from compute_router.machines.local import LocalMachine

__all__ = ["LocalBackend", "LocalSettings", "route_backends"]

LEAST_FREE = 1 << 30
"""Bytes below which the disk counts as full."""
EXCLUSIVE = "machine"
"""The lease that everything on this machine takes that wants it for itself."""


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
        needs = workload.needs
        probe: Mapping[str, Any] = {}
        wants_devices = any(a.family in ("gpu", "any") for a in (needs.accelerator, *needs.substitutes))
        if self.settings.exclusive or (wants_devices and _gpu_tool()):
            probe = self._probe()
        devices = _devices(probe)
        found = [
            hardware
            for wanted in (needs.accelerator, *needs.substitutes)
            if (hardware := _match(wanted, devices)) is not None
        ]
        if not found:
            error = (probe.get("devices") or {}).get("error")
            if isinstance(error, dict):
                return [self._no("driver", str(error.get("what")), str(error.get("mend")))]
            sick = [device for device in _listed(probe) if device.get("sick")]
            if sick:
                _, reason, _ = _missing(needs.accelerator, devices)
                named = "; ".join(str(device["sick"]) for device in sick[:8])
                return [self._no("sick_gpu", f"{reason}; {named}", str(sick[0].get("mend")))]
            return [self._no(*_missing(needs.accelerator, devices))]
        return [self._offer(workload, hardware, probe) for hardware in dict.fromkeys(found)]

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
        if workload.buckets:
            return self._no(
                "buckets",
                f"buckets are not mounted on this machine ({', '.join(workload.buckets)})",
                "copy the data into the volume `data`, or use a backend that mounts buckets",
            )
        if workload.stage:
            return self._no("stage", "staging into a volume is not possible here yet", "leave out `stage`")
        if workload.image is not None:
            return self._no(
                "image", "this machine runs no container images", "leave out `image` and list dependencies"
            )
        if workload.python is not None or not workload.dependencies:
            try:
                self.interpreter(workload)
            except RouteError as e:
                return self._no("python", e.what, e.mend)
        return None

    def _probe(self) -> Mapping[str, Any]:
        return self._running.sessions(self._machine).ask("probe", keys=[]).head

    def _offer(self, workload: Workload, hardware: Hardware, probe: Mapping[str, Any]) -> Offer:
        on_gpu = hardware.family == "gpu"
        busy = self._busy(hardware, probe)
        slots = 1 if self.settings.exclusive else self.settings.slots or _cpus()
        if on_gpu:
            slots = min(slots, max(1, len(_fitting(hardware.sku, _devices(probe))) // hardware.count))
        frameworks = (Framework.TORCH, Framework.ANY, Framework.NONE)
        offer = Offer(
            backend=self.name,
            id=f"machine-{hardware.sku.lower()}-{hardware.count}" if on_gpu else "machine",
            surface=self.surface,
            hardware=hardware,
            frameworks=frameworks if on_gpu else (*frameworks, Framework.XLA),
            start_class=StartClass.WARM_MACHINE_FRESH_PROCESS,
            estimates=Estimates(
                queue=None if busy else Estimate(us=0),
                start=Estimate(us=60_000),
                staging=Estimate(us=50_000),
            ),
            busy=busy,
            capacity=slots,
            powers=tuple(sorted(self.powers)),
            note=_unmounted(workload),
        )
        return msgspec.structs.replace(offer, roles=self._roles(workload, offer))

    def _busy(self, hardware: Hardware, probe: Mapping[str, Any]) -> bool:
        leases = probe.get("leases")
        held = {entry.get("lease") for entry in leases} if isinstance(leases, list) else set()
        if self.settings.exclusive and EXCLUSIVE in held:
            return True
        if hardware.family != "gpu":
            return False
        fitting = _fitting(hardware.sku, _devices(probe))
        return sum(f"device.{device['uuid']}" not in held for device in fitting) < hardware.count

    def _roles(self, workload: Workload, offer: Offer) -> tuple[RoleState, ...]:
        if not workload.volumes:
            return ()
        from compute_router.environment import known
        from compute_router.machines.specification import volume_name
        from compute_router.supervisor.observing.mounted import Places

        interpreter = known(workload, self.root / "envs")
        parts = key_parts(_hashed(workload), None, offer, interpreter.stack) if interpreter else None
        states, places = [], Places()
        for role in sorted(workload.volumes):
            folder = self.root / "volumes" / role.value / volume_name(workload.name)
            known_by = parts if role is Role.COMPILE_CACHE else None
            state = _state(folder, digest(known_by) if known_by else None, known_by)
            found = places.of(str(folder))["class"]
            states.append(RoleState(role=role, state=state, storage=found or "unobserved"))
        return tuple(states)


def _hashed(workload: Workload) -> Workload:
    """The workload with its script's digest, which its compile cache may depend on."""
    entry = workload.entry
    if entry.sha256 is not None or entry.script is None or workload.shapes:
        return workload
    try:
        sha256 = hashlib.sha256((Path(entry.root) / entry.script).read_bytes()).hexdigest()
    except OSError:
        return workload
    return msgspec.structs.replace(workload, entry=msgspec.structs.replace(entry, sha256=sha256))


def _state(folder: Path, key: str | None, parts: Mapping[str, object] | None = None) -> CacheState:
    """What a volume holds, by its stamps alone: a folder that is not empty proves nothing."""
    from compute_router.supervisor import stamps

    return CacheState(stamps.state(str(folder), key, dict(parts) if parts else None))


def _unmounted(workload: Workload) -> str:
    paths = [path for path in workload.volumes.values() if path]
    if not paths:
        return ""
    return f"{', '.join(paths)}: not mounted here, the work reads $ROUTE_VOLUME_*"


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


def _listed(probe: Mapping[str, Any]) -> list[dict[str, Any]]:
    return (probe.get("devices") or {}).get("list") or []


def _devices(probe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The GPUs in a reply to `probe` that may be used, each with `uuid`, `name`, `sku` and `memory_bytes`."""
    whole = [device for device in _listed(probe) if device.get("uuid") and device.get("name")]
    return [device for device in whole if not device.get("sick")]


def _sku(device: Mapping[str, Any]) -> str:
    """What a GPU is called in a workload: `NVIDIA H200` is H200, `... RTX 4090` is RTX-4090."""
    return str(device.get("sku") or device["name"])


def _fitting(sku: str, devices: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The devices that are such a GPU: by the rule that the machine starts runs by."""
    from compute_router.supervisor.observing.skus import same

    return [device for device in devices if same(sku, device.get("full") or _sku(device)) == "exact"]


def _match(wanted: Accelerator, devices: Sequence[Mapping[str, Any]]) -> Hardware | None:
    """The hardware of this machine that is exactly what `wanted` says, or None."""
    cpu = Hardware(family="cpu", cpus=_cpus(), memory_bytes=_memory() or None)
    if wanted.family == "cpu":
        return cpu
    if wanted.family == "tpu":
        return None
    skus = sorted({_sku(device) for device in devices}) if wanted.family == "any" else [wanted.sku]
    for sku in skus:
        same = _fitting(sku, devices)
        if len(same) >= wanted.count > 0:
            memory = same[0].get("memory_bytes")
            return Hardware(
                family="gpu",
                sku=sku,
                count=wanted.count,
                cpus=_cpus(),
                memory_bytes=_memory() or None,
                device_memory_bytes=memory if isinstance(memory, int) else None,
            )
    return cpu if wanted.family == "any" and wanted.count <= 1 else None


def _missing(wanted: Accelerator, devices: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    has = ", ".join(sorted({device["name"] for device in devices}))
    seen = f"this machine has {len(devices)} ({has})" if devices else "this machine has no accelerator"
    return (
        "accelerator",
        f"{wanted} is asked for, {seen}",
        'use a backend that has one (route backends), or set accelerator = "cpu"',
    )


@hookimpl
def route_backends() -> Sequence[type[Backend]]:
    """The backend this module brings."""
    return [LocalBackend]
