"""What one machine of the configuration offers a workload, by its own answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from compute_router.backend import (
    Backend,
    CacheState,
    Estimate,
    Estimates,
    Hardware,
    NoOffer,
    Offer,
    Quote,
    RoleState,
    StartClass,
)
from compute_router.cachekey import STACK, distinct, key_parts
from compute_router.errors import Broken, RouteError
from compute_router.machines.entry import MachineEntry
from compute_router.machines.judging import facts
from compute_router.machines.offering import (
    No,
    Seen,
    frameworks,
    hashed,
    never,
    start_class,
    unmounted,
    wants_devices,
)
from compute_router.machines.session import Sessions
from compute_router.machines.specification import volume_name
from compute_router.records import digest
from compute_router.workload import Role, Workload

__all__ = ["ask", "machine_offers", "refused", "sentence"]

START_US, STAGING_US = 60_000, 50_000
"""A supervisor's start, and what little is sent. How much has to be sent is not known at this point."""
ROUNDS = 3
"""Round trips of a submission over a connection that stands."""
TOLD = {"OLD_PYTHON": "python", "NETWORK_ROOT": "network_root", "BAD_ROOT": "root", "NO_SPACE": "disk"}
RAISED = {"UNAVAILABLE": "unreachable", "CREDENTIALS_ERROR": "login", "CONFIG_ERROR": "settings"}
FABRICS = ("infiniband", "roce")
"""Fabrics of a group's own: what goes by ethernet shares the way with everybody."""
Ask = Callable[..., Mapping[str, Any]]
"""Asks a machine for an operation with these fields; returns the facts of its reply."""


def ask(sessions: Sessions) -> Ask:
    """Asking over `sessions`. It raises what a request may raise."""
    return lambda op, **fields: sessions.ask(op, **fields).head


def machine_offers(
    backend: Backend,
    name: str,
    entry: MachineEntry,
    asks: Ask,
    workload: Workload,
    *,
    python: str | None = "python3",
    stack: Mapping[str, str] | None = None,
    rtt_us: int | None = None,
) -> Sequence[Offer | NoOffer]:
    """The offers of one machine for one node of `workload`, or the one reason why there is none.

    `python` is what the work is to run under and is looked for there; None = an environment that is
    built, of which `stack` is known. Raises what asking the machine may raise.
    """
    if (no := never(workload, whose=name)) is not None:
        return [refused(backend, name, no)]
    look = ["checkup", "host", "leases", *(["devices"] if wants_devices(workload.needs) else [])]
    told = asks("probe", look=look, python=python, dists=list(STACK))
    if (no := _unfit(told.get("checkup") or {}, entry)) is not None:
        return [refused(backend, name, no)]
    seen = Seen.of(told, whose=name)
    found = told.get("python") or {}
    if python is not None:
        if (no := _python(found, workload)) is not None:
            return [refused(backend, name, no)]
        stack = found.get("stack") or {}
    hardware = seen.serving(workload.needs)
    if not hardware:
        return [refused(backend, name, _differs(entry, seen, seen.lacks(workload.needs.accelerator)))]
    state = start_class(told.get("host") or {})
    made = [_offer(backend, name, entry, seen, each, workload, rtt_us, state) for each in hardware]
    data: dict[str, Any] = {"machines": [name], "stack": dict(stack) if stack is not None else None}
    data["python"] = {name: found.get("path")} if python is not None else {}
    made = [msgspec.structs.replace(offer, data=data) for offer in made]
    return _with_roles(made, asks, workload, stack)


def refused(backend: Backend, name: str, no: No) -> NoOffer:
    """`no` as an answer of `backend`, which names the machine."""
    named = name in no.reason.replace(":", " ").replace(",", " ").split()
    reason = no.reason if named else f"{name}: {no.reason}"
    return NoOffer(backend=backend.name, code=no.code, reason=reason, mend=no.mend)


def sentence(e: RouteError | Broken) -> No:
    """Why a machine could not be asked."""
    if isinstance(e, Broken):
        return No("unreachable", str(e), "try again")
    return No(TOLD.get(e.told) or RAISED.get(e.code) or e.code.lower(), e.what, e.mend)


def _unfit(told: Mapping[str, Any], entry: MachineEntry) -> No | None:
    """What keeps every run from a machine, of the facts of a checkup: its root, its leases, its logins.
    GPUs are another matter: what is left of them may do."""
    for check in facts(told, msgspec.structs.replace(entry, accelerator="cpu")):
        if not check.ok:
            return No(check.name, check.seen, check.mend)
    return None


def _python(found: Mapping[str, Any], workload: Workload) -> No | None:
    if "path" not in found:
        return No("python", str(found.get("why") or "it has no python3"), "install Python 3.8 or later there")
    from compute_router.environment import satisfies

    wanted, has = workload.requires_python, str(found.get("version"))
    if wanted is None:
        return None
    try:
        good = satisfies(has, wanted)
    except (RouteError, ValueError) as e:
        return No("python", str(e), 'write it like ">=3.11,<3.14"')
    if good:
        return None
    what = f"{found['path']} is {has}, the workload needs Python {wanted}"
    return No("python", what, 'set python = "/path/on/the/machine"')


def _differs(entry: MachineEntry, seen: Seen, no: No) -> No:
    """`no`, and that the machine was said to have more than was found: what was found counts."""
    said = _declared(entry, seen)
    return dataclasses.replace(no, reason=f"{no.reason}; {said}") if said else no


def _declared(entry: MachineEntry, seen: Seen) -> str:
    """What differs between what the configuration says and what was found; empty if nothing does."""
    has = entry.has
    if has is None or has.family != "gpu" or (not seen.devices and seen.error is None):
        return ""
    well = len(seen.like(has.sku))
    if well == has.count:
        return ""
    return f"its entry says {entry.accelerator}, found are {well} x {has.sku} that are well"


def _offer(
    backend: Backend,
    name: str,
    entry: MachineEntry,
    seen: Seen,
    hardware: Hardware,
    workload: Workload,
    rtt_us: int | None,
    state: StartClass,
) -> Offer:
    busy = seen.busy(hardware, exclusive=entry.exclusive)
    slots = seen.slots(hardware, exclusive=entry.exclusive, most=entry.slots)
    ways = ROUNDS * (rtt_us or 0)
    on_gpu = hardware.family == "gpu"
    notes = [unmounted(workload), _declared(entry, seen) if on_gpu else ""]
    return Offer(
        backend=backend.name,
        id=f"{name}:{hardware.sku.lower()}:{hardware.count}" if on_gpu else name,
        surface=backend.surface,
        hardware=hardware,
        frameworks=tuple(frameworks(hardware)),
        start_class=state,
        estimates=Estimates(
            queue=None if busy else Estimate(us=0),
            start=Estimate(us=START_US + ways),
            staging=Estimate(us=STAGING_US + ways),
        ),
        busy=busy,
        fabric=entry.group is not None and entry.fabric in FABRICS,
        capacity=slots,
        quote=_quote(name, entry, seen, hardware, slots),
        powers=tuple(sorted(backend.powers)),
        note="; ".join(filter(None, notes)),
    )


def _quote(name: str, entry: MachineEntry, seen: Seen, hardware: Hardware, slots: int) -> Quote | None:
    """The owner's price of the share of the machine that is taken: its GPUs, else one of its slots."""
    if entry.price_per_hour is None:
        return None
    if entry.exclusive:
        part, whole, named = 1, 1, f"the whole of {name}"
    elif hardware.family == "gpu":
        whole = max(len([device for device in seen.devices if device.get("uuid")]), hardware.count)
        part, named = hardware.count, f"{hardware.count} of {whole} GPUs of {name}"
    else:
        part, whole, named = 1, slots, f"one of {slots} slots of {name}"
    amount = (Decimal(entry.price_per_hour) * part / whole).quantize(Decimal("0.000001"))
    text = f"{amount:f}".rstrip("0").rstrip(".")
    source = f"the owner's price of {entry.price_per_hour} an hour for {name}: {named}"
    today = datetime.now(UTC).date().isoformat()
    return Quote(amount=text, currency=entry.currency, source=source, date=today)


def _with_roles(
    offers: Sequence[Offer], asks: Ask, workload: Workload, stack: Mapping[str, str] | None
) -> list[Offer]:
    """The offers with what the volumes of the workload hold there for its cache key; one more request."""
    if not workload.volumes:
        return list(offers)
    work, name, roles = hashed(workload), volume_name(workload.name), sorted(workload.volumes)
    asked = []
    for offer in offers:
        parts = key_parts(work, None, offer, stack) if stack is not None else None
        for role in roles:
            entry: dict[str, Any] = {"role": role.value, "name": name}
            if role is Role.COMPILE_CACHE and parts is not None:
                entry |= {"key": digest(parts), "parts": distinct(parts)}
            asked.append(entry)
    told = asks("probe", look=["volumes"], volumes=asked).get("volumes")
    rows = told if isinstance(told, list) and len(told) == len(asked) else [{}] * len(asked)
    made = []
    for number, offer in enumerate(offers):
        mine = rows[number * len(roles) : (number + 1) * len(roles)]
        states = [_state(role, row) for role, row in zip(roles, mine, strict=True)]
        free = {
            f"{role.value}_free_bytes": row.get("free_bytes") for role, row in zip(roles, mine, strict=True)
        }
        made.append(msgspec.structs.replace(offer, roles=tuple(states), data={**offer.data, **free}))
    return made


def _state(role: Role, row: Mapping[str, Any]) -> RoleState:
    try:
        state = CacheState(str(row.get("state")))
    except ValueError:
        state = CacheState.UNOBSERVED
    return RoleState(role=role, state=state, storage=str(row.get("storage") or "unobserved"))
