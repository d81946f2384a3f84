"""Proves that a place whose hardware fails at the start is left for the next, and a receipt tells both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import scripted
from boards import serving, told, uuid

from compute_router import Backend, Hardware, NoOffer, Offer, Router, Workload, hookimpl, load
from compute_router.entrypoints import EntryPoint, installed
from compute_router.receipt import verify
from compute_router.registry import Registry

WORK = """# /// script
# [tool.route]
# accelerator = "H200"
# substitutes = ["L4"]
# kind = "bench"
# ///
import os, pathlib
print(os.environ["CUDA_VISIBLE_DEVICES"])
"""


@pytest.fixture
def router(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Router:
    (folder / "work.py").write_text(WORK)
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))
    monkeypatch.chdir(folder)
    return Router(tmp_path / "home", start=folder)


class Elsewhere(scripted.Scripted):
    """Another place with such a GPU, slower to start; what it does is scripted, nothing runs there."""

    name = "second"
    order = 2

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        [offer] = super().offers(workload)
        assert isinstance(offer, Offer)
        return [msgspec.structs.replace(offer, hardware=Hardware(family="gpu", sku="H200", count=1))]


@hookimpl
def route_backends() -> list[type[Backend]]:
    return [Elsewhere]


def test_the_next_place_is_tried(router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The H200 here is well when it is offered and lost when its start looks again."""
    monkeypatch.setattr(scripted, "WORLD", scripted.World())
    env = serving(tmp_path, told(["H200-SXM"], _0__power_limit_mw="!15"))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    router.registry = Registry(entries=[*installed(), EntryPoint("second", __name__, "a-third-party", "1")])
    run = router.submit(router.plan(load("work.py", router=router)))
    receipt = router.resume(run)
    assert verify(run.file("receipt")) == []
    assert scripted.WORLD.started == [("second", 1)]
    context = receipt["context"]
    assert context["outcome"]["state"]["v"] == "succeeded"
    [refused] = context["decision"]["tries"]["v"]
    assert refused["backend"] == "local"
    assert refused["code"] == "unavailable"
    for words in ("GPU 0", uuid(0), "is lost"):
        assert words in refused["what"]
    attempts = list((tmp_path / "home" / "machine" / "runs").glob("*/attempts/*/started.json"))
    assert attempts == [], "nothing was started here"


def test_a_substitute_is_declared(router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = serving(tmp_path, told(["H200-SXM", "L4-PCIE"], _0__ecc_uncorrected=1))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    run = router.submit(router.plan(load("work.py", router=router)))
    context = router.resume(run)["context"]
    hardware = context["hw"]["observed"]
    assert context["outcome"]["state"]["v"] == "succeeded"
    assert (run.path / "log").read_text().split() == [uuid(1)]
    assert (hardware["sku"]["v"], hardware["sku"]["src"]) == ("L4-PCIE", "observed:nvml")
    assert context["hw"]["match"]["v"] == "declared"
    assert (hardware["power_limit_w"]["v"], hardware["topology"]["v"], hardware["errors"]["v"]) == (
        72,
        "1",
        [],
    )


def test_the_next_offer_may_be_on_the_same_machine(
    router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in serving(tmp_path, told(["H200-SXM", "L4-PCIE"], _0__power_limit_mw="!15")).items():
        monkeypatch.setenv(name, value)
    run = router.submit(router.plan(load("work.py", router=router)))
    context = router.resume(run)["context"]
    assert context["outcome"]["state"]["v"] == "succeeded"
    assert (run.path / "log").read_text().split() == [uuid(1)]
    [refused] = context["decision"]["tries"]["v"]
    assert "is lost" in refused["what"]
    assert context["hw"]["match"]["v"] == "declared"


def test_hardware_that_fails_while_it_runs_lowers_the_evidence(
    router: Router, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = serving(tmp_path, told(["H200-SXM"]))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "worse").write_text(told(["H200-SXM"], _0__ecc_uncorrected=7))
    line = f"pathlib.Path({str(tmp_path / 'told')!r}).write_text(open({str(tmp_path / 'worse')!r}).read())\n"
    (folder / "work.py").write_text(WORK + line)
    receipt = router.resume(router.submit(router.plan(load("work.py", router=router))))
    assert receipt["context"]["hw"]["match"]["v"] == "exact"
    assert "went from 0 to 7" in receipt["context"]["hw"]["observed"]["errors"]["v"][0]
    assert "HW_ERRORS" in {reason["code"] for reason in receipt["evidence_reasons"]}
