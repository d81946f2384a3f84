"""The backend `metered`: this computer with a price, so that it can be weighed against what is billed."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import msgspec

from compute_router import (
    Backend,
    Cost,
    Handle,
    Health,
    NoOffer,
    Offer,
    Power,
    Quote,
    Record,
    Status,
    Submission,
    Workload,
    hookimpl,
)
from compute_router.backends.local import LocalBackend, LocalSettings

R = TypeVar("R", Handle, Health, NoOffer, Offer)


class MeteredSettings(Record, frozen=True, kw_only=True):
    """`per_hour`: what an hour of this computer costs in USD, a plain decimal; `since`: the day it is from."""

    per_hour: str = "0.10"
    since: str = "2026-01-01"


class MeteredBackend(Backend):
    """Starts and finds by another backend, which is told from this one by its folder and its name."""

    name, surface, Settings = "metered", LocalBackend.surface, MeteredSettings
    powers = LocalBackend.powers | {Power.COST}
    settings: MeteredSettings

    @functools.cached_property
    def inner(self) -> LocalBackend:
        return LocalBackend(LocalSettings(root=str(self.home / self.name)), self.home)

    def mine(self, record: R) -> R:
        return msgspec.structs.replace(record, backend=self.name)

    def health(self) -> Health:
        return self.mine(self.inner.health())

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        return [self.priced(o) if isinstance(o, Offer) else self.mine(o) for o in self.inner.offers(workload)]

    def priced(self, offer: Offer) -> Offer:
        quote = Quote(amount=self.settings.per_hour, source="settings", date=self.settings.since)
        return msgspec.structs.replace(self.mine(offer), quote=quote, powers=tuple(sorted(self.powers)))

    def submit(self, submission: Submission) -> Handle:
        return self.mine(self.inner.submit(submission))

    def find(self, key: str) -> Handle | None:
        found = self.inner.find(key)
        return None if found is None else self.mine(found)

    def status(self, handle: Handle) -> Status:
        return self.inner.status(handle)

    def logs(self, handle: Handle, offset: int = 0, follow: bool = False) -> Iterator[bytes]:
        return self.inner.logs(handle, offset, follow)

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        return self.inner.fetch(handle, into)

    def cancel(self, handle: Handle) -> None:
        self.inner.cancel(handle)

    def cleanup(self, handle: Handle) -> None:
        self.inner.cleanup(handle)

    def cost(self, handle: Handle) -> Cost | None:
        status = self.inner.status(handle)
        if status.started_us is None or status.ended_us is None:
            return None
        hours = Decimal(status.ended_us - status.started_us) / 3_600_000_000
        return Cost(amount=f"{hours * Decimal(self.settings.per_hour):.6f}", source="settings, by its time")


@hookimpl
def route_backends() -> list[type[Backend]]:
    """What this plugin brings."""
    return [MeteredBackend]
