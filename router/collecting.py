"""Bring back what a final run left, write its receipt, and let its place go."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from compute_router import errors
from compute_router.adopting import is_adopted
from compute_router.backend import Backend, Cost, Handle, State, Status
from compute_router.starting import Intent, guarded, noticed

if TYPE_CHECKING:
    from compute_router.planning import Plan
    from compute_router.registry import Origin, Registry
    from compute_router.store import RunFolder
    from compute_router.workload import Workload

__all__ = ["STUDY", "collect", "gone"]

MOST_EVENTS = 10_000
STUDY = "study"
"""The label of a run that belongs to a study: the values of its receipt's `study.*`, as JSON."""


def collect(
    run: RunFolder,
    status: Status,
    *,
    workload: Workload,
    plan: Plan | None,
    backend: Backend | None,
    handle: Handle | None,
    registry: Registry,
    tell: Callable[..., None],
) -> dict[str, Any]:
    """Fetch, then write the receipt of `status` (final), then clean up; returns the receipt.

    Each step may be repeated. The place is let go only after the receipt is on the disk, so that
    nothing is lost whenever this is cut off. Raises `Unavailable` while the place of a run that is
    not lost cannot be reached.
    """
    if workload.secrets:
        from compute_router.secrets import recall

        recall(workload.secrets)
    measured: bytes | None = None
    cost: Cost | None = None
    if backend is not None and handle is not None:
        measured = _fetch(run, status, backend, handle)
        try:
            cost = guarded(backend.name, lambda: backend.cost(handle))
        except errors.RouteError:
            cost = None  # a price that cannot be told stands as such in the receipt
    seen = noticed(backend, handle) if backend is not None and handle is not None else {}
    intent = run.read("intent", Intent)

    def build(chain: Mapping[str, Any]) -> dict[str, Any]:
        from compute_router.receipt import build

        return build(
            run_id=run.id,
            key=run.key,
            workload=workload,
            status=status,
            created_us=time.time_ns() // 1000,
            chain=chain,
            snapshot_facts=intent.snapshot if intent else None,
            offers=plan.offers if plan else (),
            decision=plan.decision if plan else None,
            intent=intent,
            handle=handle,
            measured=measured,
            kind=registry.kinds().get(workload.kind),
            plugin_origins=_origins(registry, workload, plan, handle),
            cost=cost,
            events=_events(run),
            clock={name: seen[name] for name in ("offset_us", "rtt_us") if name in seen},
            study=_study(run),
            adopted=is_adopted(run),
            nodes=_nodes(run, measured) if backend is not None else (),
            remarks=[said] if (said := gone(run)) else [],
        )

    receipt = run.seal(build, attempt=status.attempt)
    tell("receipt", receipt_id=receipt["receipt_id"])
    if said := gone(run):
        tell("gone", what=said)
    if backend is not None and handle is not None:
        try:
            guarded(backend.name, lambda: backend.cleanup(handle))
            tell("cleaned", backend=backend.name)
        except errors.RouteError:
            # The receipt stands; what is left over there is removed by a later `route gc`.
            pass
    return receipt


def _fetch(run: RunFolder, status: Status, backend: Backend, handle: Handle) -> bytes | None:
    try:
        guarded(backend.name, lambda: backend.fetch(handle, run.path))
    except (errors.HandleLost, errors.Unavailable):
        if status.state is not State.LOST:
            raise
    try:
        return (run.path / "measured.json").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise errors.StoreError(
            f"{run.path / 'measured.json'} cannot be read: {e.strerror}", mend="see its permissions"
        ) from e


def _nodes(run: RunFolder, measured: bytes | None) -> list[tuple[int, str, bytes | None]]:
    """What the machines beside node 0 measured, where the run had several: each has a folder
    `nodes/RANK-MACHINE`. One that left none is named all the same."""
    found: dict[int, tuple[str, bytes | None]] = {}
    with contextlib.suppress(ValueError, AttributeError):
        launch = (json.loads(measured) if measured else {}).get("launch") or {}
        members = launch.get("members")
        if isinstance(members, list):
            found = {rank: (str(name), None) for rank, name in enumerate(members) if rank}
    for folder in sorted((run.path / "nodes").glob("*-*")):
        rank, _, name = folder.name.partition("-")
        with contextlib.suppress(OSError, ValueError):
            found[int(rank)] = name, (folder / "measured.json").read_bytes()
    return [(rank, name, data) for rank, (name, data) in sorted(found.items())]


def gone(run: RunFolder) -> str:
    """Which outputs were not there any more when they were fetched, and who has them; empty if all were."""
    from compute_router.rows import load

    # Each further machine of a group has a folder of the same form.
    files = [run.path / "gone.json", *sorted(run.path.glob("nodes/*/gone.json"))]
    notes = [note for note in map(load, map(str, files)) if type(note.get("files")) is int]
    if not notes:
        return ""
    count, size = (sum(note.get(name) or 0 for note in notes) for name in ("files", "bytes"))
    by, at = notes[0].get("by"), notes[0].get("collected_us")
    when = f" at {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(at / 1e6))} UTC" if type(at) is int else ""
    return (
        f"{count} outputs ({size:,} bytes) are not here: another client collected them"
        f"{f' ({by})' if by else ''}{when}, and they were removed"
    )


def _study(run: RunFolder) -> dict[str, Any]:
    """The values of `study.*` of a run that belongs to a study; it was made with them."""
    try:
        found = json.loads(run.labels.get(STUDY, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _origins(
    registry: Registry, workload: Workload, plan: Plan | None, handle: Handle | None
) -> dict[tuple[str, str], Origin]:
    """Which plugins had a hand in the run."""
    used = {"kind": workload.kind}
    if plan is not None:
        used["policy"] = plan.decision.policy
    if handle is not None:
        used["backend"] = handle.backend
    found = {}
    for thing, name in used.items():
        try:
            found[thing, name] = registry.origin(thing, name)
        except KeyError:
            continue
    return found


def _events(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of `events.jsonl`; a line cut short by a dying client is passed over."""
    found: list[dict[str, Any]] = []
    try:
        with open(run.path / "events.jsonl", "rb") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    found.append(event)
                if len(found) >= MOST_EVENTS:
                    break
    except FileNotFoundError:
        pass
    return found
