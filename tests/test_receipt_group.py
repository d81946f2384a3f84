"""Proves what one receipt says of several machines: joined, alike or told, and nothing bad hidden."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from compute_router.receipt.across import Node, broken, observe_all, rows
from compute_router.receipt.facts import at_path
from compute_router.records import digest


def block(node: int, **more: Any) -> dict[str, Any]:
    def seen(v: Any) -> dict[str, Any]:
        return {"v": v, "src": "supervisor", "at": 5}

    observed = {"sku": seen("H200-SXM"), "count": seen(8), "uuid": seen([f"GPU-{node}"]), "errors": seen([])}
    base: dict[str, Any] = {
        "schema": "route.measured/1",
        "run_id": "r",
        "attempt": 1,
        "launch": {"ranks": 8, "members": ["h1", "h2"], "node_rank": node},
        "hw": {"observed": observed},
        "distributed": {"first_step_us": seen([node] * 8)},
        "startup": {"class": seen("warm_machine_fresh_process")},
    }
    for path, v in more.items():
        section, _, name = path.partition("__")
        at = base[section]["observed"] if section == "hw" else base[section]
        at[name] = seen(v) if v is not None else {"v": None, "why": "the driver hung"}
    return base


def facts(*blocks: dict[str, Any] | None) -> dict[str, Any]:
    others = [
        Node(rank, f"h{rank + 1}", b, digest(b) if b else None) for rank, b in enumerate(blocks) if rank
    ]
    return observe_all(blocks[0], others, at=9, cpu=False)


def test_facts_of_several_machines_are_added_joined_or_alike() -> None:
    found = facts(block(0), block(1, hw__errors=["Xid 79"]))
    assert at_path(found, "distributed.world.v") == 16
    assert at_path(found, "distributed.first_step_us.v") == [0] * 8 + [1] * 8
    assert at_path(found, "hw.observed.uuid.v") == ["GPU-0", "GPU-1"]
    assert at_path(found, "hw.observed.count.v") == 8
    assert at_path(found, "hw.observed.errors.v") == ["h2: Xid 79"]
    assert at_path(found, "startup.class.v") == "warm_machine_fresh_process"


def test_what_differs_from_machine_to_machine_was_not_observed_of_the_run() -> None:
    other = block(1, hw__sku="H100-SXM", startup__class="warm_machine_after_reboot", hw__count=None)
    found = facts(block(0), other)
    assert at_path(found, "hw.observed.sku")["v"] is None
    assert "H200-SXM on h1, H100-SXM on h2" in at_path(found, "hw.observed.sku.why")
    assert at_path(found, "startup.class.v") is None
    assert at_path(found, "hw.observed.count.why") == "unobserved: h2: the driver hung"
    assert at_path(facts(block(0), None), "distributed.world.v") is None


def test_what_one_machine_saw_is_not_undone_by_another_that_could_not_look() -> None:
    """Of two machines one was used by others, failed or lost its volume; the other one hung, or is gone."""
    first = block(0, hw__cotenants=2, hw__errors=["Xid 79"], hw__throttle_reasons=["hw_slowdown 9%"])
    first["volumes"] = [{"name": "c", "role": "checkpoints", "event": [], "committed": False}]
    first["compile"] = {"recompiles": {"v": 3, "src": "supervisor", "at": 5}}
    for other in (block(1, hw__cotenants=None, hw__errors=None, hw__throttle_reasons=None), None):
        for found in (facts(first, other), *([facts(other, first)] if other else [])):
            assert at_path(found, "hw.observed.cotenants.v") == 2
            assert at_path(found, "hw.observed.errors.v")[0].endswith("Xid 79")
            assert at_path(found, "hw.observed.throttle_reasons.v") == ["hw_slowdown 9%"]
            assert at_path(found, "volumes.v")[0]["committed"] is False
            assert at_path(found, "compile.recompiles.v") == 3
    quiet = facts(block(0, hw__cotenants=0), block(1, hw__cotenants=None))
    assert at_path(quiet, "hw.observed.cotenants.v") is None, "nobody saw that there were none"


def test_a_machine_that_differs_from_node_0_is_told() -> None:
    """A driver, a variable or data of the second machine is as much of the run as those of the first."""
    second = block(1, hw__driver="575.10", hw__clock_sm_mhz={"p50": 1200, "min": 900})
    second["env"] = {
        "allow": {"v": {"NCCL_ALGO": "Tree", "NCCL_DEBUG": "WARN"}, "src": "supervisor", "at": 5}
    }
    second["data"] = {"manifest_sha256": {"v": "bb", "src": "supervisor", "at": 5}}
    first = block(0, hw__driver="570.86", hw__clock_sm_mhz={"p50": 1980, "min": 1900})
    first["env"] = {"allow": {"v": {"NCCL_DEBUG": "WARN"}, "src": "supervisor", "at": 5}}
    first["data"] = {"manifest_sha256": {"v": "aa", "src": "supervisor", "at": 5}}
    found = facts(first, second)
    assert "570.86 on h1, 575.10 on h2" in at_path(found, "hw.observed.driver.why")
    assert at_path(found, "env.allow.v") == {"NCCL_ALGO": "(not set) | Tree", "NCCL_DEBUG": "WARN"}
    assert at_path(found, "hw.observed.clock_sm_mhz.v") == {"p50": 1200, "min": 900}
    assert at_path(found, "data.manifest_sha256.v") not in ("aa", "bb", None)
    assert at_path(found, "data.manifest_sha256") == at_path(facts(first, second), "data.manifest_sha256")
    same = facts(first, {**second, "data": first["data"]})
    assert at_path(same, "data.manifest_sha256.v") == "aa"


def test_a_block_of_another_machine_is_what_its_digest_stands_for() -> None:
    first, second = block(0), block(1)
    listed = rows(first, digest(first), [Node(1, "h2", second, digest(second))])
    receipt = {
        "run_id": "r",
        "attempt": 1,
        "measured_sha256": digest(first),
        "context": {"nodes": {"v": listed, "src": "observed", "at": 1}},
    }
    assert list(broken(receipt)) == []
    spoils: list[Callable[[Any], Any]] = [
        lambda r: r[1]["measured"].update(attempt=2),
        lambda r: r[1].update(measured=None),
        lambda r: r[1].update(measured_sha256="0" * 64),
        lambda r: r[0].update(measured_sha256="0" * 64),
        lambda r: r[0].update(measured={}),
    ]
    for spoil in spoils:
        copy = json.loads(json.dumps(receipt))
        spoil(copy["context"]["nodes"]["v"])
        assert len(list(broken(copy))) == 1
