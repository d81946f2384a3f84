"""The specification of a run: what a Submission becomes on the machine. Holds no secret value."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from compute_router.backend import Offer, Submission
from compute_router.cachekey import distinct, key_parts, launcher, world_size
from compute_router.errors import Rejected
from compute_router.machines.contract import Interpreter
from compute_router.records import canonical, digest, plain
from compute_router.workload import Framework, Role

__all__ = ["GRACE_US", "LOG_CAP_BYTES", "SAMPLE_US", "specification", "volume_name"]

GRACE_US = 10_000_000
"""Between the request to end and the kill."""
LOG_CAP_BYTES = 256 << 20
"""What a log may take on the machine's disk; beyond it the middle is given up."""
SAMPLE_US = 10_000_000
MOST_SPEC = 16 << 20


def volume_name(name: str) -> str:
    """The name of a workload's volumes: its own as lower-case letters, digits, `.`, `_` and `-`.

    Names that are no such text keep what they have of it and get six digits of their digest, so
    that two workloads never share a volume by accident.
    """
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:80]
    return slug if slug == name else f"{slug or 'workload'}-{digest(name)[:6]}"


def specification(
    submission: Submission,
    interpreter: Interpreter,
    leases: Sequence[str],
    *,
    in_place: Mapping[str, Any] | None = None,
    group: Mapping[str, Any] | None = None,
) -> bytes:
    """The canonical bytes of spec.json for `submission`. The same submission gives the same bytes.

    With `in_place` (see docs/protocol.md) nothing is staged and nothing is limited: the command runs
    as it is, in the folder and the environment that it was given. `group` is this machine's place among
    those of the run, where it has several.

    Raises `Rejected` if they are more than the protocol carries.
    """
    workload, offer = submission.workload, submission.offer
    entry, hardware = workload.entry, offer.hardware
    if entry.script is not None:
        # The script is named below the root, and the work starts in `cwd`.
        argv = ["{python}", posixpath.relpath(entry.script, entry.cwd), *entry.args]
    else:
        argv = [*entry.argv, *entry.args]
    starter = launcher(workload, hardware)
    ranks = world_size(workload, hardware) // max(1, hardware.nodes, workload.needs.nodes)
    cached = Role.COMPILE_CACHE in workload.volumes
    parts = key_parts(workload, submission.snapshot, offer, interpreter.stack) if cached else None
    framework = workload.needs.framework
    spec: dict[str, Any] = {
        "schema": "route.spec/1",
        "run_id": submission.id,
        "key": submission.key,
        "workload_digest": workload.digest,
        "kind": workload.kind,
        "purpose": workload.purpose.value,
        "argv": argv,
        "python": interpreter.python,
        "environment": {"source": interpreter.source, "lock_sha256": interpreter.lock_sha256},
        "import_probes": list(workload.import_probes),
        "cwd": entry.cwd,
        "tree": [plain(item) for item in submission.snapshot.entries],
        "env": dict(workload.env),
        "secrets": list(workload.secrets),
        "timeout_us": workload.timeout_us,
        "grace_us": GRACE_US,
        "log_cap_bytes": LOG_CAP_BYTES,
        "outputs": list(workload.outputs),
        "volumes": {role.value: volume_name(workload.name) for role in workload.volumes},
        "cache_key": digest(parts) if parts else None,
        "cache_parts": distinct(parts) if parts else None,
        "framework": framework.value,
        "launcher": {"name": starter.value, "ranks": max(1, ranks)},
        "devices": _devices(offer),
        "leases": list(leases),
        "metrics": plain(workload.metrics),
        "observe": {
            "sample_us": SAMPLE_US,
            "torch_trace": framework in (Framework.TORCH, Framework.ANY),
        },
    }
    if group is not None:
        spec["group"] = dict(group)
    if workload.stage:
        from compute_router.machines.staging import shards_of

        spec["stage"] = [shard.entry for shard in shards_of(submission)]
    if in_place is not None:
        block = dict(in_place)
        spec["log_cap_bytes"] = block.pop("log_cap_bytes", LOG_CAP_BYTES)
        spec |= {"in_place": block, "timeout_us": None, "launcher": {"name": "python", "ranks": 1}}
    data = canonical(spec)
    if len(data) > MOST_SPEC:
        raise Rejected(
            f"the list of {len(submission.snapshot.entries):,} files is too long to be sent",
            mend="name what need not ship in .routeignore",
        )
    return data


def _devices(offer: Offer) -> dict[str, Any]:
    """What the machine leases: exactly the hardware that was offered, which may be a substitute already."""
    hardware = offer.hardware
    if hardware.family != "gpu":
        return {"family": "cpu", "sku": "", "substitutes": [], "count": 0, "uuids": None}
    return {
        "family": "gpu",
        "sku": hardware.sku,
        "substitutes": [],
        "count": hardware.count,
        "uuids": None,
    }
