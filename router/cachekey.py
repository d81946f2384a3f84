"""The cache key: what must be equal for a compile cache to be of use, as one digest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from compute_router.backend import Hardware, Offer
from compute_router.records import digest
from compute_router.workload import Framework, Launcher, Role, Workload

if TYPE_CHECKING:
    from compute_router.snapshot import Snapshot

__all__ = ["STACK", "cache_key", "distinct", "key_parts", "launcher", "world_size"]

STACK = ("torch", "triton", "jax")
"""Distributions whose version decides whether compiled code can be used again."""


def launcher(workload: Workload, hardware: Hardware) -> Launcher:
    """What starts the processes on `hardware`; `auto` is resolved here and nowhere else.

    torchrun for a script that may use torch and gets several GPUs on a node or several nodes; it
    makes one rank for each GPU. A plain command starts its processes itself, and so does work on
    the XLA path.
    """
    if workload.launcher is not Launcher.AUTO:
        return workload.launcher
    torch = workload.needs.framework in (Framework.TORCH, Framework.ANY)
    several = hardware.family == "gpu" and hardware.count > 1
    many = several or hardware.nodes > 1 or workload.needs.nodes > 1
    return Launcher.TORCHRUN if many and torch and workload.entry.script else Launcher.PYTHON


def world_size(workload: Workload, hardware: Hardware) -> int:
    """How many ranks the work has: those of all nodes together, 1 without torchrun."""
    if launcher(workload, hardware) is not Launcher.TORCHRUN:
        return 1
    ranks = hardware.count if hardware.family == "gpu" else 1
    return max(1, ranks) * max(hardware.nodes, workload.needs.nodes)


def key_parts(
    workload: Workload,
    snapshot: Snapshot | None,
    offer: Offer,
    stack: Mapping[str, str],
    *,
    role: Role = Role.COMPILE_CACHE,
) -> dict[str, object]:
    """What the cache key of `workload` at `offer` is made of, as plain data. Pure.

    Made of: the role; the digest of the lock or image in `stack`, else its versions of `STACK`;
    `python` (`3.11`) of `stack`; SKU and count of the accelerator; the world size; `shapes`, else
    the entry's digest and its arguments. The entry's digest is taken from the workload, else from
    `snapshot`.
    """
    fixed = {name: stack[name] for name in ("lock", "image") if name in stack}
    entry = workload.entry
    sha256 = entry.sha256
    if sha256 is None and snapshot is not None and entry.script is not None:
        sha256 = next((e.sha256 for e in snapshot.files if e.path == entry.script), None)
    shapes: object = workload.shapes or {
        "entry": sha256,
        "argv": list(entry.argv),
        "args": list(entry.args),
    }
    return {
        "schema": "route.cachekey/1",
        "role": role.value,
        "stack": fixed or {name: stack.get(name) for name in STACK},
        "python": stack.get("python"),
        "accelerator": [offer.hardware.family, offer.hardware.sku, offer.hardware.count],
        "world": world_size(workload, offer.hardware),
        "shapes": shapes,
    }


def distinct(parts: Mapping[str, object]) -> dict[str, object]:
    """What of `parts` tells one key of a role from another: it stands in stamps, and is compared."""
    return {name: value for name, value in parts.items() if name not in ("schema", "role")}


def cache_key(
    workload: Workload,
    snapshot: Snapshot | None,
    offer: Offer,
    stack: Mapping[str, str],
    *,
    role: Role = Role.COMPILE_CACHE,
) -> str:
    """The cache key of `workload` at `offer`, 64 hex digits: the digest of `key_parts`. Pure."""
    return digest(key_parts(workload, snapshot, offer, stack, role=role))
