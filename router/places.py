"""The places a workload can go: backends with their settings, their health, their offers, and a decision."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from compute_router import errors
from compute_router.backend import Backend, Health, NoOffer
from compute_router.gather import gather, healths
from compute_router.machines.entry import read_entries
from compute_router.planning import Plan
from compute_router.policy import History, Limits
from compute_router.reading import verify
from compute_router.recording import RECORDED
from compute_router.records import plain
from compute_router.starting import guarded
from compute_router.workload import Workload

if TYPE_CHECKING:
    from compute_router.config import Config
    from compute_router.registry import Registry

__all__ = ["Places"]


class Places:
    """The backends of one process. Each is made once per set of settings, when first needed."""

    def __init__(self, registry: Registry, config: Config, home: Path) -> None:
        self.registry, self.config, self.home = registry, config, home
        self._made: dict[tuple[str, str], Backend] = {}

    def backend(self, name: str, workload: Workload | None = None) -> Backend:
        """The backend called `name` with its settings: the configuration's, then the workload's own.

        Raises `NotFound` with the nearest name, `ConfigError` for settings it does not have.
        """
        cls = self._recorded() if name == RECORDED else self.registry.backends().get(name)
        if cls is None:
            raise self._none_such("backend", name, self.registry.backends())
        table = {**self.config.backend(name), **(workload.backend.get(name, {}) if workload else {})}
        if "machines" in {field.name for field in msgspec.structs.fields(cls.Settings)}:
            # They stand in a table of their own, for several backends may reach them.
            entries = read_entries(self.config.machines, self.config.origins)
            table["machines"] = {n: plain(entry) for n, entry in entries.items()}
        at = (name, json.dumps(table, sort_keys=True, default=str))
        if at not in self._made:
            try:
                settings = msgspec.convert(table, cls.Settings)
            except msgspec.ValidationError as e:
                known = ", ".join(field.name for field in msgspec.structs.fields(cls.Settings)) or "none"
                raise errors.ConfigError(
                    f"settings of backend {name!r}: {e}", mend=f"its settings are: {known}"
                ) from e
            self._made[at] = guarded(name, lambda: cls(settings, self.home))
        return self._made[at]

    def _recorded(self) -> type[Backend]:
        from compute_router.recording.place import Recorded

        return Recorded

    def healths(self) -> list[Health]:
        """The health of every backend, by name; one whose settings cannot be read is not healthy."""
        good, bad = self._backends(None)
        return sorted(
            [*healths(good), *(Health(backend=b.backend, ok=False, summary=b.reason) for b in bad)],
            key=lambda health: health.backend,
        )

    def _backends(self, workload: Workload | None) -> tuple[dict[str, Backend], list[NoOffer]]:
        """The backends that can be made, and why the others cannot."""
        good: dict[str, Backend] = {}
        bad: list[NoOffer] = []
        for name in self.registry.backends():
            try:
                good[name] = self.backend(name, workload)
            except errors.RouteError as e:
                bad.append(NoOffer(backend=name, code=e.code.lower(), reason=e.what, mend=e.mend))
        return good, bad

    def _none_such(self, what: str, name: str, known: Iterable[str]) -> errors.NotFound:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, 1)
        mend = f"did you mean {near[0]!r}? " if near else ""
        mend += f"installed: {', '.join(known) or 'none'}"
        if self.registry.warnings:
            mend += " (and a plugin that cannot be loaded: route plugins)"
        return errors.NotFound(f"there is no {what} {name!r}", mend=mend)

    def plan(self, workload: Workload, *, policy: str | None = None, limits: Limits | None = None) -> Plan:
        """Gather offers and decide. Writes nothing, starts nothing; may be repeated.

        With `limits.pin` the policy is `pinned` unless one is named. A refusal is an outcome of
        the decision. Raises `NotFound` for a policy, backend or kind there is none
        of, `WorkloadError` for a workload made in Python that cannot be.
        """
        limits = limits or Limits()
        for name in filter(None, [limits.pin, *workload.backend]):
            if name not in self.registry.backends():
                raise self._none_such("backend", name, self.registry.backends())
        verify(workload, self.registry.kinds())
        name = policy or ("pinned" if limits.pin else self.config.policy or "auto")
        chooser = self.registry.policies().get(name)
        if chooser is None:
            raise self._none_such("policy", name, self.registry.policies())
        good, bad = self._backends(workload)
        offers = sorted([*gather(good, workload), *bad], key=lambda offer: offer.backend)
        decision = guarded(
            name,
            lambda: chooser.decide(
                workload, offers, History(), asked_at=time.time_ns() // 1000, limits=limits
            ),
        )
        return Plan(workload=workload, offers=tuple(offers), decision=decision)
