"""Samples for tests of the store: workloads, runs, records and receipts as small as can be."""

from __future__ import annotations

from typing import Any

from compute_router.records import new_run_id
from compute_router.store import RunFolder, Store
from compute_router.workload import Entry, Workload


def workload(name: str = "gpt", **more: Any) -> Workload:
    return Workload(name=name, entry=Entry(root="/src", script="train.py"), **more)


def begin(store: Store, name: str = "gpt", **more: Any) -> RunFolder:
    run_id = new_run_id()
    return store.create(run_id, workload(name, **more), key=run_id)


def intent(run: RunFolder, backend: str = "local") -> dict[str, Any]:
    return {
        "schema": "route.intent/1",
        "run_id": run.id,
        "attempt": 1,
        "backend": backend,
        "offer_id": "here",
    }


def offers(backend: str = "local", surface: str = "local") -> dict[str, Any]:
    return {"offers": [{"type": "offer", "backend": backend, "id": "here", "surface": surface}]}


def receipt(run: RunFolder, attempt: int = 1) -> dict[str, Any]:
    return run.seal(
        lambda chain: {"receipt_id": f"of {run.id} {attempt}", "attempt": attempt, "chain": dict(chain)},
        attempt=attempt,
    )
