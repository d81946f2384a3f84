"""Makes the receipt of a final run out of its records and what its machine measured."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from compute_router import __version__
from compute_router.backend import Cost, NoOffer, Offer, Status
from compute_router.policy import Decision
from compute_router.receipt.across import Node, observe_all, rows
from compute_router.receipt.context import Context
from compute_router.receipt.evidence import comparability, evidence
from compute_router.receipt.facts import at_path
from compute_router.receipt.schema import MEASURED, RULES, SCHEMA
from compute_router.records import canonical, plain
from compute_router.workload import Kind, Workload

__all__ = ["build", "receipt_id"]

MOST_MEASURED = 16 << 20


def receipt_id(receipt: Mapping[str, Any]) -> str:
    """sha256 of the canonical bytes of `receipt` without `receipt_id` and `signatures`."""
    rest = {name: item for name, item in receipt.items() if name not in ("receipt_id", "signatures")}
    return hashlib.sha256(canonical(rest)).hexdigest()


def build(
    *,
    run_id: str,
    key: str,
    workload: Workload,
    status: Status,
    created_us: int,
    chain: Mapping[str, Any] | None,
    snapshot_facts: Mapping[str, Any] | None = None,
    offers: Sequence[Offer | NoOffer] = (),
    decision: Decision | None = None,
    intent: Any = None,
    handle: Any = None,
    measured: bytes | Mapping[str, Any] | None = None,
    measured_sha256: str | None = None,
    kind: Kind | None = None,
    plugin_origins: Mapping[tuple[str, str], Any] | None = None,
    cost: Cost | None = None,
    events: Sequence[Mapping[str, Any]] = (),
    clock: Mapping[str, int] | None = None,
    study: Mapping[str, Any] | None = None,
    adopted: bool = False,
    nodes: Sequence[tuple[int, str, bytes | None]] = (),
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """The receipt of one final attempt, of whatever state. Pure; never raises for what a machine said.

    `status` is final (`ValueError` otherwise). `measured` is `measured.json` as it came, bytes or
    data, None if the machine is lost; `measured_sha256` the digest the machine gave for it. A
    block that is not canonical, too large or not what its digest says is left out, with a caveat.
    `intent` and `handle` are records or plain data; `events` the lines of `events.jsonl`;
    `plugin_origins` maps (thing, name) to an `Origin`; `clock` may hold `offset_us` and `rtt_us`;
    `study` the values of the fields `study.*` of a run that belongs to one; `adopted` says that another
    client submitted it; `remarks` are further caveats.
    `nodes` are rank, name and `measured.json` of the machines beside node 0, where there are several.
    `chain` is what `RunFolder.seal` gives.
    """
    if not status.state.final:
        raise ValueError(f"a run that is {status.state.value} has no receipt yet")
    block, sha256, caveats = _measured(measured, measured_sha256, run_id, status.attempt)
    caveats += remarks
    others = []
    for rank, machine, data in nodes:
        other, digest, wrong = _measured(data, None, run_id, status.attempt)
        caveats += [f"{machine}: {text}" for text in wrong]
        if other is None and not wrong:
            caveats.append(f"{machine} left no measurements")
        others.append(Node(rank, machine, other, digest))
    if at_path(block, "log.scrubbed.v") is False:
        caveats.append("nobody could look through all of the log and the outputs for secrets")
    cpu = _family(workload, offers, intent) == "cpu"
    context = Context(
        workload=workload,
        status=status,
        at=created_us,
        snapshot=plain(snapshot_facts) or {},
        offers=offers,
        decision=decision,
        intent=plain(intent) or {},
        handle=plain(handle) or {},
        measured=block,
        observed=observe_all(block, others, at=created_us, cpu=cpu),
        nodes=rows(block, sha256, others) if others else (),
        family=_family(workload, offers, intent),
        kind=kind,
        origins=plugin_origins or {},
        cost=cost,
        events=events,
        clock=clock or {},
        study=study or {},
        caveats=caveats,
        client={
            "version": __version__,
            "python": platform.python_version(),
            "os": f"{platform.system()} {platform.release()} {platform.machine()}",
            "adopted": adopted,
        },
    ).build()
    receipt: dict[str, Any] = {
        "schema": SCHEMA,
        "rules": RULES,
        "run_id": run_id,
        "attempt": status.attempt,
        "idempotency_key": key,
        "created_us": created_us,
        "kind": workload.kind,
        "purpose": workload.purpose.value,
        "measured": block,
        "measured_sha256": sha256,
        "context": context,
        "chain": None if chain is None else dict(chain),
        "signatures": [],
    }
    receipt["comparability"] = comparability(receipt)
    receipt["evidence_class"], receipt["evidence_reasons"] = evidence(receipt)
    receipt["receipt_id"] = receipt_id(receipt)
    return receipt


def _measured(
    measured: bytes | Mapping[str, Any] | None, told: str | None, run_id: str, attempt: int
) -> tuple[dict[str, Any] | None, str | None, list[str]]:
    """The block, its digest, and caveats. A block is taken only if its canonical bytes are what came."""
    if measured is None:
        return None, None, []
    try:
        if isinstance(measured, (bytes, bytearray)):
            if len(measured) > MOST_MEASURED:
                raise ValueError(f"it is larger than {MOST_MEASURED >> 20} MiB")
            data = bytes(measured).rstrip(b"\n")
            block = json.loads(data)
            if canonical(block) != data:
                raise ValueError("its form is not canonical")
        else:
            block, data = measured, canonical(measured)
        if not isinstance(block, Mapping) or block.get("schema") != MEASURED:
            raise ValueError(f"its schema is not {MEASURED}")
        digest = hashlib.sha256(data).hexdigest()
        if told is not None and told != digest:
            raise ValueError("its digest is not the one the machine gave for it")
        if block.get("run_id") != run_id or block.get("attempt") != attempt:
            raise ValueError("it is that of another run or attempt")
    except (ValueError, TypeError, RecursionError) as e:
        return None, None, [f"measurements left out: {str(e)[:200]}"]
    return dict(block), digest, []


def _family(workload: Workload, offers: Sequence[Offer | NoOffer], intent: Any) -> str:
    """The hardware class of the run: what was asked for; what was offered where anything would do."""
    asked = workload.needs.accelerator.family
    if asked != "any":
        return asked
    facts = plain(intent) or {}
    if facts.get("recorded"):
        # Nothing was asked for where there were GPUs: what the launcher left visible is the hardware.
        return "gpu"
    for offer in offers:
        if isinstance(offer, Offer) and (offer.backend, offer.id) == (
            facts.get("backend"),
            facts.get("offer_id"),
        ):
            return offer.hardware.family
    return asked
