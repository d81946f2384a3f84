"""Several roots on this computer as the machines of one run, for the tests of groups."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from supervisor_driver import supervised

from compute_router.backend import Handle, NoOffer, Offer, State, Status, Submission
from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.machines.contract import Interpreter, Machine
from compute_router.machines.local import LocalMachine
from compute_router.records import new_run_id
from compute_router.snapshot import take
from compute_router.workload import Accelerator, Coupling, Entry, Framework, Needs, Workload

__all__ = ["TORCH", "Own", "Pair", "attempt", "ended", "executed", "submission", "swept", "work"]

TORCH = """
import os, sys, time
import torch, torch.distributed as dist
import route_report
mode, steps = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo")
rank = dist.get_rank()
# In one piece: both ranks of a machine write to one log.
os.write(1, b"rank %d of %d is %d\\n" % (rank, dist.get_world_size(), os.getpid()))
for step in range(steps):
    x = torch.ones(8) * rank
    dist.all_reduce(x)
    assert x[0] == sum(range(dist.get_world_size()))
    route_report.step(step, tokens=10, loss=1.0 / (step + 1))
    if mode == "raise" and rank == 3 and step == 3:
        raise ValueError("three has had enough")
    time.sleep(0.05)
open(os.environ["ROUTE_OUTPUTS"] + "/of-%d" % rank, "w").write(str(rank))
dist.barrier()
dist.destroy_process_group()
"""


class Own(LocalMachine):
    """A machine with leases of its own, as every computer has."""

    def _given(self) -> tuple[dict[str, str], tuple[int, ...]]:
        environ, kept = super()._given()
        return {**environ, "ROUTE_LEASE_DIR": self.root + "-leases"}, kept


class Pair(LocalBackend):
    """The local backend over several machines, all of which every run takes."""

    def __init__(self, home: Path, *machines: Machine) -> None:
        super().__init__(LocalSettings(), home)
        self.given = machines or tuple(LocalMachine(home / name, name=name) for name in ("h1", "h2"))
        self.needed: Sequence[str] = ()

    def places(self) -> Sequence[Machine]:
        return self.given

    def machines(self, offer: Offer) -> Sequence[Machine]:
        return self.given[: offer.hardware.nodes]

    def meeting(self, machine: Machine) -> tuple[str, str | None]:
        return "127.0.0.1", "lo"

    def leases(self, offer: Offer) -> Sequence[str]:
        return self.needed

    def interpreter(self, workload: Workload) -> Interpreter:
        return Interpreter(python=sys.executable, source="current")

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        needs = msgspec.structs.replace(workload.needs, nodes=1, coupling=Coupling.SINGLE_NODE)
        alone = msgspec.structs.replace(workload, needs=needs)
        [offer] = super().offers(alone)
        assert isinstance(offer, Offer)
        hardware = msgspec.structs.replace(offer.hardware, nodes=workload.needs.nodes)
        return [msgspec.structs.replace(offer, hardware=hardware, fabric=True)]


def work(
    root: Path,
    source: str,
    *args: str,
    nodes: int = 2,
    torch: bool = False,
    accelerator: str = "cpu",
    **more: Any,
) -> Workload:
    root.mkdir(exist_ok=True, parents=True)
    (root / "work.py").write_text(source)
    framework = Framework.TORCH if torch else Framework.NONE
    coupling = Coupling.MULTI_NODE if nodes > 1 else Coupling.INDEPENDENT
    wanted = Accelerator.parse(accelerator)
    needs = Needs(nodes=nodes, coupling=coupling, framework=framework, accelerator=wanted)
    entry = Entry(root=str(root), script="work.py", args=args)
    return Workload(name="group", entry=entry, needs=needs, **more)


def submission(backend: Pair, workload: Workload, *, run_id: str | None = None, **more: Any) -> Submission:
    [offer] = backend.offers(workload)
    assert isinstance(offer, Offer)
    run_id = run_id or new_run_id()
    return Submission(
        id=run_id,
        key=more.pop("key", run_id),
        attempt=more.pop("attempt", 1),
        workload=workload,
        offer=offer,
        snapshot=take(Path(workload.entry.root)),
        **more,
    )


def ended(backend: Pair, handle: Handle, *, within: float = 90.0) -> Status:
    until = time.monotonic() + within
    while True:
        status = backend.status(handle)
        if status.state.final:
            return status
        assert time.monotonic() < until, status
        assert status.state is not State.UNKNOWN, status
        time.sleep(0.1)


def attempt(machine: Machine, run_id: str) -> Path:
    return Path(machine.root) / "runs" / run_id / "attempts" / "1"


def executed(backend: Pair, run_id: str) -> list[bool]:
    return [(attempt(machine, run_id) / "exec.json").exists() for machine in backend.given]


def swept(roots: Iterable[str]) -> None:
    """Leave no process of ours behind below these roots."""
    for root in roots:
        for pid in supervised(Path(root)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
