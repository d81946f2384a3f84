"""What a machine can be offered for, read from its reply to `probe`: one rule for all backends of such."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from compute_router.backend import Hardware, StartClass
from compute_router.workload import Accelerator, Framework, Needs, Workload

__all__ = [
    "EXCLUSIVE",
    "No",
    "Seen",
    "frameworks",
    "hashed",
    "never",
    "start_class",
    "unmounted",
    "wants_devices",
]

EXCLUSIVE = "machine"
"""The lease that everything on a machine takes that wants it for itself."""
NAMED = 8


@dataclasses.dataclass(frozen=True)
class No:
    """Why a machine has no place for a workload: a stable slug, a sentence, and what mends it."""

    code: str
    reason: str
    mend: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What one machine has: `devices` are all that were listed, `held` the leases somebody has now,
    `error` what the driver said in place of an answer. `whose` begins sentences about it."""

    cpus: int | None = None
    memory_bytes: int | None = None
    devices: tuple[Mapping[str, Any], ...] = ()
    held: frozenset[str] = frozenset()
    error: Mapping[str, Any] | None = None
    whose: str = "this machine"

    @classmethod
    def of(cls, probe: Mapping[str, Any], **given: Any) -> Seen:
        """What a reply to `probe` tells; `given` counts where it says something else."""
        host = probe.get("host") or {}
        devices = probe.get("devices") or {}
        leases, error = probe.get("leases"), devices.get("error")
        told: dict[str, Any] = {
            "cpus": host.get("cpus"),
            "memory_bytes": host.get("memory_bytes"),
            "devices": tuple(devices.get("list") or ()),
            "held": frozenset(entry.get("lease") for entry in leases) if isinstance(leases, list) else (),
            "error": error if isinstance(error, dict) else None,
        }
        return cls(**(told | {name: value for name, value in given.items() if value is not None}))

    @property
    def well(self) -> list[Mapping[str, Any]]:
        """The devices that may be used, each with `uuid`, `name`, `sku` and `memory_bytes`."""
        whole = [device for device in self.devices if device.get("uuid") and device.get("name")]
        return [device for device in whole if not device.get("sick")]

    @property
    def sick(self) -> list[Mapping[str, Any]]:
        return [device for device in self.devices if device.get("sick")]

    def fitting(self, sku: str) -> list[Mapping[str, Any]]:
        """The devices that are such a GPU, by the rule that the machine starts runs by; those that
        processes of others use are left out."""
        return [device for device in self.like(sku) if not self._taken(device)]

    def like(self, sku: str) -> list[Mapping[str, Any]]:
        """The devices that are such a GPU and are well, whoever uses them."""
        from compute_router.supervisor.observing.skus import same

        return [device for device in self.well if same(sku, device.get("full") or _sku(device)) == "exact"]

    def _leased(self, device: Mapping[str, Any]) -> bool:
        return "device." + str(device["uuid"]).replace("/", "_") in self.held

    def _taken(self, device: Mapping[str, Any]) -> bool:
        # What computes on a leased one is the run that holds the lease.
        return bool(device.get("used")) and not self._leased(device)

    def serving(self, needs: Needs) -> list[Hardware]:
        """What is here of all that `needs` would take, the one asked for first."""
        found = [self._match(wanted) for wanted in (needs.accelerator, *needs.substitutes)]
        return list(dict.fromkeys(hardware for hardware in found if hardware is not None))

    def _match(self, wanted: Accelerator) -> Hardware | None:
        """The hardware of this machine that is exactly what `wanted` says, or None."""
        cpu = Hardware(family="cpu", cpus=self.cpus, memory_bytes=self.memory_bytes or None)
        if wanted.family == "cpu":
            return cpu
        if wanted.family == "tpu":
            return None
        skus = sorted({_sku(device) for device in self.well}) if wanted.family == "any" else [wanted.sku]
        for sku in skus:
            same = self.fitting(sku)
            if len(same) >= wanted.count > 0:
                memory = same[0].get("memory_bytes")
                return Hardware(
                    family="gpu",
                    sku=sku,
                    count=wanted.count,
                    cpus=self.cpus,
                    memory_bytes=self.memory_bytes or None,
                    device_memory_bytes=memory if isinstance(memory, int) else None,
                )
        return cpu if wanted.family == "any" and wanted.count <= 1 else None

    def lacks(self, wanted: Accelerator) -> No:
        """Why nothing here serves: a driver without an answer, sick GPUs, GPUs that others use, or
        hardware that is not there."""
        if self.error is not None:
            return No("driver", str(self.error.get("what")), str(self.error.get("mend")))
        missing = f"{wanted} is asked for, {self._has()}"
        if self.sick:
            named = "; ".join(str(device["sick"]) for device in self.sick[:NAMED])
            return No("sick_gpu", f"{missing}; {named}", str(self.sick[0].get("mend")))
        used = [device for device in self.well if self._taken(device)]
        if used:
            named = "; ".join(str(device["used"]) for device in used[:NAMED])
            return No("foreign", f"{missing}; {named}", "end that process, or use another place")
        return No(
            "accelerator",
            missing,
            'use a backend that has one (route backends), or set accelerator = "cpu"',
        )

    def _has(self) -> str:
        well = self.well
        names = ", ".join(sorted({str(device["name"]) for device in well}))
        return f"{self.whose} has {len(well)} ({names})" if well else f"{self.whose} has no accelerator"

    def busy(self, hardware: Hardware, *, exclusive: bool = False) -> bool:
        """Whether too few of what `hardware` names are free now."""
        if exclusive and EXCLUSIVE in self.held:
            return True
        if hardware.family != "gpu":
            return False
        return sum(not self._leased(device) for device in self.fitting(hardware.sku)) < hardware.count

    def slots(self, hardware: Hardware, *, exclusive: bool = False, most: int | None = None) -> int:
        """How many runs of this hardware have room side by side; `most` is the owner's own figure."""
        slots = 1 if exclusive else most or self.cpus or 1
        if hardware.family == "gpu":
            slots = min(slots, max(1, len(self.fitting(hardware.sku)) // hardware.count))
        return slots


def _sku(device: Mapping[str, Any]) -> str:
    """What a GPU is called in a workload: `NVIDIA H200` is H200, `... RTX 4090` is RTX-4090."""
    return str(device.get("sku") or device["name"])


def wants_devices(needs: Needs) -> bool:
    """Whether GPUs have to be looked at for `needs`: that is slow where a driver is in trouble."""
    return any(wanted.family in ("gpu", "any") for wanted in (needs.accelerator, *needs.substitutes))


def frameworks(hardware: Hardware) -> Sequence[Framework]:
    """Whose compiled code runs on `hardware`: XLA's own path is not CUDA's."""
    some = (Framework.TORCH, Framework.ANY, Framework.NONE)
    return some if hardware.family == "gpu" else (*some, Framework.XLA)


def never(workload: Workload, *, whose: str = "this machine") -> No | None:
    """What no machine does that we only open a command on, told before anything is measured."""
    if workload.buckets:
        return No(
            "buckets",
            f"buckets are not mounted on {whose} ({', '.join(workload.buckets)})",
            "copy the data into the volume `data`, or use a backend that mounts buckets",
        )
    if workload.stage:
        from compute_router.machines.staging import refusal

        if (why := refusal(workload)) is not None:
            return No("stage", *why)
    if workload.image is not None:
        return No("image", f"{whose} runs no container images", "leave out `image` and list dependencies")
    return None


def unmounted(workload: Workload) -> str:
    """Which declared paths are not there for the work; empty if it declares none."""
    paths = [path for path in workload.volumes.values() if path]
    if not paths:
        return ""
    return f"{', '.join(paths)}: not mounted here, the work reads $ROUTE_VOLUME_*"


def hashed(workload: Workload) -> Workload:
    """The workload with its script's digest, which its compile cache may depend on."""
    entry = workload.entry
    if entry.sha256 is not None or entry.script is None or workload.shapes:
        return workload
    try:
        sha256 = hashlib.sha256((Path(entry.root) / entry.script).read_bytes()).hexdigest()
    except OSError:
        return workload
    return msgspec.structs.replace(workload, entry=msgspec.structs.replace(entry, sha256=sha256))


def start_class(host: Mapping[str, Any]) -> StartClass:
    """The state in which the next start finds a machine, by what its probe says of it; the first one in a
    container that has just begun is none that can be told."""
    if host.get("warm_container") is not None:
        return StartClass.WARM_CONTAINER if host["warm_container"] else StartClass.UNOBSERVED
    if host.get("rebooted"):
        return StartClass.WARM_MACHINE_AFTER_REBOOT
    return StartClass.WARM_MACHINE_FRESH_PROCESS
