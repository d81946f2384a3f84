"""The local backend offers what this machine has, says why not otherwise, and starts nothing to find out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from boards import element, lost, printed, tool
from peers import submission, workload

from compute_router.backend import CacheState, NoOffer, Offer, Power, StartClass, Surface
from compute_router.backends import local as module
from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.machines.offering import hashed
from compute_router.machines.specification import volume_name
from compute_router.supervisor.observing import container
from compute_router.supervisor.observing.mounted import Places
from compute_router.workload import (
    Accelerator,
    Coupling,
    Framework,
    Needs,
    Role,
    Stage,
)


@pytest.fixture
def local(home: Path) -> LocalBackend:
    return LocalBackend(LocalSettings(), home)


def asks(text: str, *others: str, **more: Any) -> Needs:
    substitutes = tuple(Accelerator.parse(other) for other in others)
    return Needs(accelerator=Accelerator.parse(text), substitutes=substitutes, **more)


def only(backend: LocalBackend, folder: Path, **fields: Any) -> Offer | NoOffer:
    [found] = backend.offers(workload(folder, **fields))
    return found


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's tool that says two H200 and one RTX 4090 are here."""
    boards = (("GPU-aaaa", "H200-SXM"), ("GPU-bbbb", "H200-SXM"), ("GPU-cccc", "RTX-4090"))
    env = tool(tmp_path, printed(*(element(sku, i, uuid=one) for i, (one, sku) in enumerate(boards))))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))
    return tmp_path / "tools" / "nvidia-smi"


def test_a_plain_script_gets_the_processors(local: LocalBackend, folder: Path) -> None:
    offer = only(local, folder)
    assert isinstance(offer, Offer)
    assert (offer.backend, offer.id, offer.surface) == ("local", "machine", Surface.LOCAL)
    assert (offer.hardware.family, offer.hardware.count) == ("cpu", 0)
    assert offer.hardware.cpus == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else True
    assert container.inside() or offer.start_class is StartClass.WARM_MACHINE_FRESH_PROCESS
    assert not offer.busy
    assert set(offer.powers) == {
        Power.DETACH, Power.FOLLOW, Power.CANCEL, Power.SECRETS, Power.VOLUMES, Power.RESUME,
    }  # fmt: skip
    assert offer.estimates.queue is not None
    assert offer.estimates.queue.us == 0


def test_looking_makes_no_folder_and_starts_nothing(local: LocalBackend, home: Path, folder: Path) -> None:
    assert local.health().ok
    only(local, folder)
    only(local, folder, needs=asks("H200:8"))
    assert not home.exists()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"needs": asks("H200:8")}, "accelerator"),
        ({"needs": asks("v6e-8")}, "accelerator"),
        ({"needs": asks("any:2")}, "accelerator"),
        ({"needs": asks("cpu", coupling=Coupling.MULTI_NODE, nodes=2)}, "multi_node"),
        ({"buckets": {"/d": "s3://b"}}, "buckets"),
        ({"image": "docker.io/x"}, "image"),
        ({"stage": (Stage(source="/d/*", to=Role.DATA),)}, "stage"),
        ({"python": "/no/such/python"}, "python"),
        ({"requires_python": ">=9"}, "python"),
    ],
)
def test_what_is_not_here_is_said_with_a_mend(
    local: LocalBackend, folder: Path, fields: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_gpu_tool", lambda: False)
    found = only(local, folder, **fields)
    assert isinstance(found, NoOffer)
    assert (found.backend, found.code) == ("local", code)
    assert found.reason
    assert found.mend
    assert "\n" not in found.reason + found.mend


def test_a_substitute_will_do(local: LocalBackend, folder: Path) -> None:
    offer = only(local, folder, needs=asks("v6e-8", "cpu"))
    assert isinstance(offer, Offer)
    assert offer.hardware.family == "cpu"


@pytest.mark.parametrize(
    ("needs", "sku", "count", "capacity"),
    [
        (asks("H200:2"), "H200", 2, 1), (asks("h200"), "H200", 1, 2), (asks("RTX-4090"), "RTX-4090", 1, 1),
        (asks("B200:1", "H200:1"), "H200", 1, 2), (asks("any"), "H200", 1, 2),
    ],
)  # fmt: skip
def test_gpus_are_found_by_their_names(
    home: Path, folder: Path, gpus: Path, needs: Needs, sku: str, count: int, capacity: int
) -> None:
    offer = only(LocalBackend(LocalSettings(slots=8), home), folder, needs=needs)
    assert isinstance(offer, Offer)
    assert (offer.hardware.family, offer.hardware.sku, offer.hardware.count) == ("gpu", sku, count)
    assert offer.capacity == capacity
    assert offer.hardware.device_memory_bytes
    assert not offer.busy
    assert Framework.XLA not in offer.frameworks


@pytest.mark.parametrize("asked", ["H200:3", "H100", "H20", "RTX-4080"])
def test_too_few_or_other_gpus_are_none(local: LocalBackend, folder: Path, gpus: Path, asked: str) -> None:
    found = only(local, folder, needs=asks(asked))
    assert isinstance(found, NoOffer)
    assert "NVIDIA H200" in found.reason


def test_leased_gpus_make_it_busy(local: LocalBackend, folder: Path, gpus: Path) -> None:
    one = asks("H200:1")
    source = "import os, time\nprint(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\ntime.sleep(60)\n"
    first = local.submit(submission(local, workload(folder, source, needs=one)))
    assert next(local.logs(first, follow=True)).strip() in (b"GPU-aaaa", b"GPU-bbbb")
    more = only(local, folder, needs=one)
    both = only(local, folder, needs=asks("H200:2"))
    assert isinstance(more, Offer)
    assert isinstance(both, Offer)
    assert not more.busy
    assert both.busy
    assert both.estimates.queue is None
    local.cancel(first)


def test_a_sick_gpu_makes_no_offer(local: LocalBackend, folder: Path, gpus: Path, tmp_path: Path) -> None:
    """It is named where it is missed, and passed over where there are enough without it."""
    rows = [element("H200-SXM", 0), element("H200-SXM", 1, failure="Yes")]
    tool(tmp_path, printed(*rows) + lost(7))
    refusal = only(local, folder, needs=asks("H200:2"))
    assert isinstance(refusal, NoOffer)
    assert refusal.code == "sick_gpu"
    assert "could not replace a broken row" in refusal.reason
    assert "is lost" in refusal.reason
    assert refusal.mend
    offer = only(local, folder, needs=asks("H200"))
    assert isinstance(offer, Offer)
    assert offer.capacity == 1


def test_a_driver_that_fails_is_no_offer(local: LocalBackend, folder: Path, gpus: Path) -> None:
    gpus.write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n")
    found = only(local, folder, needs=asks("H200:1"))
    assert isinstance(found, NoOffer)
    assert "no devices were found" in found.reason


def test_the_state_of_a_cache_is_told_by_its_stamps(local: LocalBackend, folder: Path) -> None:
    work = workload(folder, volumes={Role.COMPILE_CACHE: "/cache", Role.DATA: "/data"}, name="caches")

    def state(role: Role = Role.COMPILE_CACHE) -> CacheState:
        [offer] = local.offers(work)
        assert isinstance(offer, Offer)
        return {r.role: r.state for r in offer.roles}[role]

    assert state() is CacheState.EMPTY
    assert state(Role.DATA) is CacheState.EMPTY
    [before] = local.offers(work)
    assert isinstance(before, Offer)
    here = Places().of(str(local.root))["class"] or "unobserved"
    assert {r.storage for r in before.roles} == {here}, "told before the folder is made"
    volume = local.root / "volumes" / "compile-cache" / "caches"
    (volume / ".route").mkdir(parents=True)
    (volume / "inductor").mkdir()
    assert state() is CacheState.EMPTY
    (volume / "inductor" / "x").write_text("")
    assert state() is CacheState.PARTIAL
    (volume / ".route" / ("0" * 64 + ".json")).write_text("{}")
    assert state() is CacheState.WARM_OTHER_IMAGE
    from compute_router.cachekey import cache_key

    [offer] = local.offers(work)
    assert isinstance(offer, Offer)
    key = cache_key(hashed(work), None, offer, local.interpreter(work).stack)
    stamp = volume / ".route" / f"{key}.json"
    for text, expected in (
        ('{"verdicts": []}', CacheState.WARM_SAME_KEY),
        ('{"verdicts": ["miss", "hit"]}', CacheState.WARM_SAME_KEY),
        ('{"verdicts": ["hit", "failed_load"]}', CacheState.PARTIAL),
        ("rubbish", CacheState.PARTIAL),
    ):
        stamp.write_text(text)
        assert state() is expected


def test_the_nearest_stamp_says_what_differs(local: LocalBackend, folder: Path) -> None:
    from compute_router.cachekey import distinct, key_parts

    work = workload(folder, volumes={Role.COMPILE_CACHE: "/cache"}, name="caches")
    [offer] = local.offers(work)
    assert isinstance(offer, Offer)
    parts = distinct(key_parts(hashed(work), None, offer, local.interpreter(work).stack))
    volume = local.root / "volumes" / "compile-cache" / "caches"
    (volume / ".route").mkdir(parents=True)
    (volume / "x").write_text("")
    for changed, expected in (
        ({"shapes": "larger"}, CacheState.PARTIAL),
        ({"world": 8}, CacheState.WARM_OTHER_WORLD),
        ({"python": "3.99"}, CacheState.WARM_OTHER_IMAGE),
    ):
        stamp = {"verdicts": [], "parts": {**parts, **changed}}
        (volume / ".route" / ("0" * 64 + ".json")).write_text(json.dumps(stamp))
        [again] = local.offers(work)
        assert isinstance(again, Offer)
        assert [role.state for role in again.roles] == [expected]


def test_the_note_says_what_is_not_mounted(local: LocalBackend, folder: Path) -> None:
    offer = only(local, folder, volumes={Role.DATA: "/data"})
    assert isinstance(offer, Offer)
    assert "/data" in offer.note
    assert "$ROUTE_VOLUME_" in offer.note


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("gpt-small", "gpt-small"),
        ("a.b_c", "a.b_c"),
        ("GPT small", "gpt-small-"),
        ("../x", "x-"),
        ("日本", "workload-"),
    ],
)
def test_volume_names_are_plain_and_never_shared_by_accident(name: str, slug: str) -> None:
    made = volume_name(name)
    assert made.startswith(slug)
    assert (made == name) is (slug == name)
    assert "/" not in made
    assert not made.startswith(".")
    assert len(volume_name("x" * 500)) <= 100


def test_health_names_what_is_wrong(home: Path, tmp_path: Path) -> None:
    good = LocalBackend(LocalSettings(), home).health()
    assert good.ok
    assert [check.name for check in good.checks] == ["python", "root", "disk", "file system"]
    (tmp_path / "file").write_text("")
    bad = LocalBackend(LocalSettings(root=str(tmp_path / "file" / "below")), home).health()
    assert not bad.ok
    assert "not writable" in bad.summary
    assert next(check for check in bad.checks if not check.ok).mend


def test_settings_are_checked_and_used(home: Path, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"slot": 3}, LocalSettings)
    backend = LocalBackend(LocalSettings(root=str(tmp_path / "r"), slots=5), home)
    offer = only(backend, folder)
    assert isinstance(offer, Offer)
    assert offer.capacity == 5
    handle = backend.submit(submission(backend, workload(folder)))
    assert handle.data["roots"] == [str(tmp_path / "r")]
    assert (tmp_path / "r" / "runs" / handle.run_id / "spec.json").exists()
    assert backend.machines(offer) == backend.places()


def test_the_plugin_is_found_and_light() -> None:
    code = (
        "import sys\nimport compute_router.backends.local, compute_router.machines.running\n"
        "import compute_router.snapshot\n"
        "heavy = {'rich', 'uv', 'pathspec', 'torch', 'asyncio', 'importlib.metadata'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert module.route_backends() == [LocalBackend]
