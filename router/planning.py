"""What would run where, and why: a workload, the offers for it, and the decision among them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from compute_router.backend import NoOffer, Offer
from compute_router.errors import InputError
from compute_router.policy import Decision
from compute_router.records import plain
from compute_router.workload import Workload

if TYPE_CHECKING:
    from compute_router.snapshot import Snapshot
    from compute_router.store import RunFolder

__all__ = ["Plan", "ships", "the_same"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A workload, what every backend said to it, and what the policy made of that."""

    workload: Workload
    offers: tuple[Offer | NoOffer, ...]
    decision: Decision

    def offer(self, backend: str, offer_id: str) -> Offer:
        """The offer of that name. Raises `KeyError` if there is none."""
        for offer in self.offers:
            if isinstance(offer, Offer) and (offer.backend, offer.id) == (backend, offer_id):
                return offer
        raise KeyError((backend, offer_id))

    def save(self, run: RunFolder) -> None:
        """Write `offers.json`, then `decision.json`: the second says that both are whole."""
        run.write("offers", {"schema": "route.offers/1", "offers": [_tagged(o) for o in self.offers]})
        run.write("decision", self.decision)

    @classmethod
    def load(cls, run: RunFolder, workload: Workload) -> Plan | None:
        """The plan a run was made by; None if its client died before it was written."""
        decision, offers = run.read("decision", Decision), run.read_json("offers")
        if decision is None or offers is None:
            return None
        return cls(workload=workload, offers=cls.read(offers), decision=decision)

    @staticmethod
    def read(offers: Mapping[str, Any]) -> tuple[Offer | NoOffer, ...]:
        """The offers of the record `offers`. Raises `KeyError`, `TypeError` or msgspec's error for none."""
        return tuple(map(_untagged, offers["offers"]))


def _tagged(offer: Offer | NoOffer) -> dict[str, Any]:
    return {"type": "offer" if isinstance(offer, Offer) else "no_offer", **plain(offer)}


def _untagged(data: dict[str, Any]) -> Offer | NoOffer:
    rest = {name: value for name, value in data.items() if name != "type"}
    return msgspec.convert(rest, Offer) if data["type"] == "offer" else msgspec.convert(rest, NoOffer)


def ships(workload: Workload, home: Path | None = None, *, keep: bool = True) -> Snapshot:
    """What ships with `workload`: its root, and whatever an ignore rule says the file it runs. `home` and
    `keep` are those of `snapshot.take`."""
    from compute_router.snapshot import take

    entry = workload.entry
    # A script is named below the root, the words of a command from where it starts.
    named = [entry.script] if entry.script else [os.path.normpath(f"{entry.cwd}/{w}") for w in entry.argv]
    return take(Path(entry.root), only=[Path(name) for name in named], home=home, keep=keep)


def the_same(workload: Workload, home: Path, tree_sha256: str | None) -> Snapshot | None:
    """What ships, if that is byte for byte what shipped; None if it has changed or is not here: the files
    of an adopted run are with the client that submitted it."""
    try:
        found = ships(workload, home)
    except InputError:
        return None
    return found if found.tree_sha256 == tree_sha256 else None
