"""The cache key changes with what a compile cache depends on, and with nothing else; so does the launcher."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from compute_router.backend import Hardware, Offer, Surface
from compute_router.cachekey import cache_key, launcher, world_size
from compute_router.workload import (
    Accelerator,
    Coupling,
    Entry,
    Framework,
    Launcher,
    Needs,
    Role,
    Workload,
)

STACK = {"torch": "2.13.0", "python": "3.11"}
WORK = Workload(name="w", entry=Entry(root="/r", script="a.py", sha256="0" * 64), shapes="s")


def offer(**hardware: Any) -> Offer:
    found = Hardware(**{"family": "gpu", "sku": "H200", "count": 8, **hardware})
    return Offer(backend="b", id="o", surface=Surface.LOCAL, hardware=found)


def changed(**fields: Any) -> Workload:
    return msgspec.structs.replace(WORK, **fields)


BASE = cache_key(WORK, None, offer(), STACK)


@pytest.mark.parametrize(
    "key",
    [
        cache_key(changed(shapes="t"), None, offer(), STACK),
        cache_key(WORK, None, offer(sku="H100"), STACK),
        cache_key(WORK, None, offer(count=4), STACK),
        cache_key(WORK, None, offer(nodes=2), STACK),
        cache_key(WORK, None, offer(), {**STACK, "torch": "2.14.0"}),
        cache_key(WORK, None, offer(), {**STACK, "triton": "3.0"}),
        cache_key(WORK, None, offer(), {**STACK, "python": "3.12"}),
        cache_key(WORK, None, offer(), {"lock": "ab", "python": "3.11"}),
        cache_key(WORK, None, offer(), STACK, role=Role.DATA),
        cache_key(changed(launcher=Launcher.PYTHON), None, offer(), STACK),
    ],
)
def test_what_it_depends_on(key: str) -> None:
    assert key != BASE
    assert len(key) == 64


@pytest.mark.parametrize(
    "key",
    [
        cache_key(changed(name="other", env={"A": "b"}, timeout_us=5), None, offer(), STACK),
        cache_key(changed(entry=Entry(root="/q", script="b.py", args=("x",))), None, offer(), STACK),
        cache_key(WORK, None, msgspec.structs.replace(offer(), backend="c", id="p"), STACK),
        cache_key(WORK, None, offer(cpus=64, memory_bytes=5), {**STACK, "numpy": "2"}),
    ],
)
def test_what_it_does_not_depend_on(key: str) -> None:
    assert key == BASE


def test_without_shapes_the_entry_and_its_arguments_count() -> None:
    def key(**entry: Any) -> str:
        fields = {"root": "/r", "script": "a.py", "sha256": "0" * 64, **entry}
        return cache_key(changed(shapes=None, entry=Entry(**fields)), None, offer(), STACK)

    assert len({key(), key(sha256="1" * 64), key(args=("--big",))}) == 3
    assert key() == key(root="/elsewhere")


@pytest.mark.parametrize(
    ("fields", "hardware", "name", "ranks"),
    [
        ({}, {"family": "cpu", "count": 0, "sku": ""}, "python", 1),
        ({}, {"count": 1}, "python", 1),
        ({}, {"count": 8}, "torchrun", 8),
        ({"needs": Needs(coupling=Coupling.SINGLE_NODE)}, {"count": 8}, "torchrun", 8),
        ({"needs": Needs(coupling=Coupling.SINGLE_NODE)}, {"count": 1}, "python", 1),
        ({"needs": Needs(nodes=2, coupling=Coupling.MULTI_NODE)}, {"count": 8, "nodes": 2}, "torchrun", 16),
        ({"needs": Needs(framework=Framework.XLA)}, {"count": 8}, "python", 1),
        ({"needs": Needs(framework=Framework.NONE)}, {"count": 8}, "python", 1),
        ({"launcher": Launcher.PYTHON}, {"count": 8}, "python", 1),
        ({"launcher": Launcher.TORCHRUN}, {"count": 1}, "torchrun", 1),
        ({"entry": Entry(root="/r", argv=("./x",))}, {"count": 8}, "python", 1),
        (
            {"needs": Needs(accelerator=Accelerator.parse("v6e-8"))},
            {"family": "tpu", "sku": "v6e"},
            "python",
            1,
        ),
    ],
)
def test_launcher_and_world_size(
    fields: dict[str, Any], hardware: dict[str, Any], name: str, ranks: int
) -> None:
    work, found = changed(**fields), offer(**hardware).hardware
    assert (launcher(work, found).value, world_size(work, found)) == (name, ranks)
