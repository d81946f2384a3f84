"""Which machines of a group could run one workload together, out of what each of them offers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import msgspec

from compute_router.backend import (
    CacheState,
    Estimate,
    Estimates,
    NoOffer,
    Offer,
    Power,
    Quote,
    RoleState,
    StartClass,
)
from compute_router.machines.entry import MachineEntry
from compute_router.workload import Workload

__all__ = ["group_offers", "meeting"]

WARM = CacheState.WARM_SAME_KEY


class _Alike(NamedTuple):
    """What machines must have in common to take part in one run: the same question, asked once."""

    group: str
    family: str
    sku: str
    each: int
    stack: str


def meeting(entry: MachineEntry) -> tuple[str, str | None]:
    """Where the others of a group reach this machine, and the interface there that leads to them."""
    if entry.peer_address:
        return entry.peer_address, entry.interface
    from compute_router.machines.hops import resolve

    # What the user's own ssh knows under a short name is nothing that the other machines know.
    return resolve(entry.address, entry.identity).target.address, entry.interface


def group_offers(
    backend: str,
    workload: Workload,
    entries: Mapping[str, MachineEntry],
    found: Mapping[str, Sequence[Offer | NoOffer]],
) -> list[Offer | NoOffer]:
    """The offers of `needs.nodes` machines together, out of those that each makes for one node.

    They are machines of one group with the same hardware and the same installed stack: other versions
    on another node would be another question. Of more than are needed those that are free come first,
    then those whose volumes are warm, then by name. Where no group has enough there is one NoOffer, and
    those of the machines themselves.
    """
    nodes = workload.needs.nodes
    alike: dict[_Alike, list[tuple[str, Offer]]] = {}
    refused: list[NoOffer] = []
    for name in sorted(found):
        group = entries[name].group
        for answer in found[name]:
            if isinstance(answer, NoOffer):
                refused.append(answer)
            elif group is not None:
                h = answer.hardware
                stack = json.dumps(answer.data.get("stack"), sort_keys=True)
                alike.setdefault(_Alike(group, h.family, h.sku, h.count, stack), []).append((name, answer))
    made = [_offer(key, members, nodes) for key, members in alike.items() if len(members) >= nodes]
    # Of one hardware in one group the larger set of equal stacks is the group's; ids stay one each.
    best: dict[str, Offer] = {}
    for offer in made:
        if offer.id not in best or (best[offer.id].busy and not offer.busy):
            best[offer.id] = offer
    if best:
        return [best[name] for name in sorted(best)]
    return [_none(backend, workload, entries, alike), *refused]


def _offer(key: _Alike, members: Sequence[tuple[str, Offer]], nodes: int) -> Offer:
    def order(item: tuple[str, Offer]) -> tuple[bool, int, str]:
        name, offer = item
        return offer.busy, -sum(role.state is WARM for role in offer.roles), name

    chosen = sorted(sorted(members, key=order)[:nodes])
    names, offers = [name for name, _ in chosen], [offer for _, offer in chosen]
    first = offers[0]
    busy = any(offer.busy for offer in offers)
    what = f":{key.sku.lower()}:{key.each}" if key.family == "gpu" else ""
    classes = {offer.start_class for offer in offers}
    notes = [f"on {', '.join(names)}", *dict.fromkeys(offer.note for offer in offers if offer.note)]
    return msgspec.structs.replace(
        first,
        id=f"{key.group}{what}:{nodes}-nodes",
        hardware=msgspec.structs.replace(first.hardware, nodes=nodes),
        start_class=first.start_class if len(classes) == 1 else StartClass.UNOBSERVED,
        roles=_roles(offers),
        estimates=_estimates(offers, busy=busy),
        busy=busy,
        fabric=all(offer.fabric for offer in offers),
        capacity=min((len(members) // nodes, *(o.capacity for o in offers if o.capacity is not None))),
        quote=_quote(offers),
        powers=tuple(sorted({*first.powers, Power.MULTI_NODE})),
        note="; ".join(notes),
        data={**first.data, "machines": names, "python": _pythons(offers)},
    )


def _pythons(offers: Sequence[Offer]) -> dict[str, str]:
    """Where the interpreter of each machine is."""
    return {name: path for offer in offers for name, path in (offer.data.get("python") or {}).items()}


def _roles(offers: Sequence[Offer]) -> tuple[RoleState, ...]:
    """What every machine has: a role that is warm on one and not on another is as the other has it."""
    roles = []
    for number, role in enumerate(offers[0].roles):
        each = [offer.roles[number] for offer in offers]
        cold = next((other for other in each if other.state is not WARM), role)
        storages = {other.storage for other in each}
        roles.append(
            RoleState(
                role=role.role, state=cold.state, storage=role.storage if len(storages) == 1 else "unobserved"
            )
        )
    return tuple(roles)


def _estimates(offers: Sequence[Offer], *, busy: bool) -> Estimates:
    """The slowest machine's: all are waited for."""

    def slowest(name: str) -> Estimate | None:
        each = [getattr(offer.estimates, name) for offer in offers]
        known = [one for one in each if one is not None]
        return max(known, key=lambda one: one.us) if known and len(known) == len(each) else None

    return Estimates(
        queue=None if busy else slowest("queue"),
        start=slowest("start"),
        staging=slowest("staging"),
        compile=slowest("compile"),
    )


def _quote(offers: Sequence[Offer]) -> Quote | None:
    quotes = [offer.quote for offer in offers if offer.quote is not None]
    if len(quotes) < len(offers) or len({(q.currency, q.unit) for q in quotes}) > 1:
        return None
    try:
        amount = sum((Decimal(quote.amount) for quote in quotes), Decimal(0))
    except InvalidOperation:
        return None
    source = "; ".join(quote.source for quote in quotes)
    return msgspec.structs.replace(quotes[0], amount=f"{amount:f}", source=source)


def _none(
    backend: str,
    workload: Workload,
    entries: Mapping[str, MachineEntry],
    alike: Mapping[_Alike, Sequence[tuple[str, Any]]],
) -> NoOffer:
    nodes = workload.needs.nodes
    groups = sorted({entry.group for entry in entries.values() if entry.group is not None})
    asked = f"{nodes} machines of one group with {workload.needs.accelerator} each are asked for"
    if not groups:
        return NoOffer(
            backend=backend,
            code="multi_node",
            reason=f"{asked}, and no machine is in a group",
            mend='say group = "NAME" and fabric = "infiniband" of machines that share one',
        )
    most = max(alike.items(), key=lambda item: len(item[1]), default=None)
    if most is None:
        reason = f"{asked}, and no machine of group {' or '.join(groups)} has that"
    else:
        names = ", ".join(name for name, _ in most[1])
        reason = f"{asked}; of group {most[0].group} that are alike there are {len(most[1])} ({names})"
        stacks = {key.stack for key in alike if key[:4] == most[0][:4]}
        if len(stacks) > 1:
            reason += ", others have other versions installed"
    mend = f"set nodes to fewer than {nodes}, or mend the others"
    return NoOffer(backend=backend, code="multi_node", reason=reason, mend=mend)
