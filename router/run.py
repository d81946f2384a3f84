"""The one path of a run: gather, decide, submit, watch, collect; entered again at the last file present."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from compute_router import errors
from compute_router.backend import Backend, Handle, Health, NoOffer, Offer, State, Status
from compute_router.gather import gather, healths
from compute_router.policy import Decision, History, Limits, Outcome
from compute_router.records import key_run_id, new_run_id, plain
from compute_router.starting import Intent, guarded, start
from compute_router.workload import Workload

if TYPE_CHECKING:
    from compute_router.config import Config
    from compute_router.registry import Registry
    from compute_router.snapshot import Snapshot
    from compute_router.store import RunFolder, Store

__all__ = ["Plan", "Router", "run"]

OnEvent = Callable[[dict[str, Any]], None]
OnLog = Callable[[bytes], None]

MOST_ATTEMPTS = 3
"""Starts of one run, those counted in that are proven never to have executed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What would run where, and why. Making one writes and starts nothing."""

    workload: Workload
    offers: tuple[Offer | NoOffer, ...]
    decision: Decision

    def offer(self, backend: str, offer_id: str) -> Offer:
        """The offer of that name. Raises `KeyError` if there is none."""
        for offer in self.offers:
            if isinstance(offer, Offer) and (offer.backend, offer.id) == (backend, offer_id):
                return offer
        raise KeyError((backend, offer_id))


class Router:
    """The router as one process sees it: a store, the plugins, the configuration.

    `home` is the folder everything is kept in (default: ROUTE_HOME, else the platform's data
    folder). With `plugins=False` only the bundled plugins are loaded. `start` is the folder from
    which `route.toml` is looked for. Nothing is read before it is needed.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        plugins: bool = True,
        config: Config | None = None,
        start: Path | None = None,
    ) -> None:
        self._home, self._plugins, self._config, self._start = home, plugins, config, start
        self._made: dict[tuple[str, str], Backend] = {}

    @functools.cached_property
    def config(self) -> Config:
        from compute_router.config import load_config

        return self._config or load_config(self._start or Path.cwd())

    @functools.cached_property
    def store(self) -> Store:
        from compute_router.store import Store, default_home

        return Store(self._home or default_home())

    @functools.cached_property
    def registry(self) -> Registry:
        from compute_router.registry import Registry

        return Registry(disabled=self.config.plugins_disable, enabled=self._plugins)

    # Backends

    def backend(self, name: str, workload: Workload | None = None) -> Backend:
        """The backend called `name` with its settings: the configuration's, then the workload's own.

        Raises `NotFound` with the nearest name, `ConfigError` for settings it does not have.
        """
        cls = self.registry.backends().get(name)
        if cls is None:
            raise self._none_such("backend", name, self.registry.backends())
        table = {**self.config.backend(name), **(workload.backend.get(name, {}) if workload else {})}
        at = (name, json.dumps(table, sort_keys=True, default=str))
        if at not in self._made:
            try:
                settings = msgspec.convert(table, cls.Settings)
            except msgspec.ValidationError as e:
                known = ", ".join(field.name for field in msgspec.structs.fields(cls.Settings)) or "none"
                raise errors.ConfigError(
                    f"settings of backend {name!r}: {e}", mend=f"its settings are: {known}"
                ) from e
            self._made[at] = guarded(name, lambda: cls(settings, self.store.home))
        return self._made[at]

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

    # Offers and decision

    def plan(self, workload: Workload, *, policy: str | None = None, limits: Limits | None = None) -> Plan:
        """Gather offers and decide. Writes nothing, starts nothing; may be repeated.

        With `limits.pin` the policy is `pinned` unless one is named. A refusal is an outcome of
        the decision. Raises `NotFound` for a policy, backend or kind there is none of.
        """
        limits = limits or Limits()
        for name in filter(None, [limits.pin, *workload.backend]):
            if name not in self.registry.backends():
                raise self._none_such("backend", name, self.registry.backends())
        if workload.kind not in self.registry.kinds():
            raise self._none_such("kind", workload.kind, self.registry.kinds())
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

    # Submit

    def submit(
        self,
        plan: Plan,
        *,
        key: str | None = None,
        secrets: Mapping[str, str] | None = None,
        on_event: OnEvent | None = None,
    ) -> RunFolder:
        """Start what was planned, along the ranked offers; returns once a backend has committed it.

        Repeating it with the same `key` and workload returns the same run and starts nothing.
        Raises `NoPlace` (nothing is kept), `CredentialsError` (likewise), `Conflict` (the key names
        another workload), `SubmitUnknown` (the run is kept, `status` goes on asking), or the last
        refusal once every offer said no: then the run is `failed` and has a receipt.
        """
        if plan.decision.outcome in (Outcome.REFUSED, Outcome.WARM):
            raise errors.NoPlace(plan.decision.sentence, mend=plan.decision.mend)
        values = self._secrets(plan.workload) if secrets is None else secrets
        snapshot = _snapshot(plan.workload)
        run_id = key_run_id(key) if key else new_run_id()
        run = self.store.create(run_id, plan.workload, key=key or run_id)
        if run.has("intent") or run.has("receipt"):
            return self._again(run, values, snapshot, on_event)
        run.write("offers", {"schema": "route.offers/1", "offers": [_tagged(o) for o in plan.offers]})
        run.write("decision", plan.decision)
        self._tell(run, on_event, "decided", policy=plan.decision.policy, sentence=plan.decision.sentence)
        self._start(run, plan, snapshot, values, attempt=1, on_event=on_event)
        return run

    def _secrets(self, workload: Workload) -> dict[str, str]:
        from compute_router.secrets import resolve

        return resolve(workload.secrets)

    def _start(
        self,
        run: RunFolder,
        plan: Plan,
        snapshot: Snapshot,
        secrets: Mapping[str, str],
        *,
        attempt: int,
        on_event: OnEvent | None,
    ) -> Handle:
        try:
            return start(
                run,
                plan.workload,
                plan.decision,
                offer_of=plan.offer,
                backend_of=lambda name: self.backend(name, plan.workload),
                snapshot=snapshot,
                secrets=secrets,
                key=self._key(run),
                attempt=attempt,
                tell=functools.partial(self._tell, run, on_event),
            )
        except errors.SubmitUnknown as e:
            self._became(
                run, Status(state=State.UNKNOWN, attempt=attempt, last=State.STAGING, detail=e.what), on_event
            )
            raise
        except (errors.Unavailable, errors.Rejected, errors.Refused, errors.PluginError) as e:
            status = Status(
                state=State.FAILED,
                attempt=attempt,
                reason="not_submitted",
                detail=e.what,
                ended_us=time.time_ns() // 1000,
            )
            self._became(run, status, on_event)
            self.collect(run, on_event=on_event)
            raise

    def _again(
        self, run: RunFolder, secrets: Mapping[str, str], snapshot: Snapshot, on_event: OnEvent | None
    ) -> RunFolder:
        """Enter a run that was begun before: look for what may have started, start it only if nothing did."""
        intent = run.read("intent", Intent)
        if run.has("receipt") or run.has("handle") or intent is None:
            return run
        workload, plan = self._planned(run)
        handle = self._found(run, intent, workload)
        if handle is None:
            if snapshot.tree_sha256 != intent.tree_sha256:
                raise errors.Conflict(
                    f"the files of run {run.id} have changed since it was made",
                    mend="start a new run (another --key, or none)",
                )
            self._start(run, plan, snapshot, secrets, attempt=intent.attempt, on_event=on_event)
        return run

    def _found(self, run: RunFolder, intent: Intent, workload: Workload) -> Handle | None:
        """What stands at the backend for an intent whose answer never came; writes the handle."""
        backend = self.backend(intent.backend, workload)
        handle = guarded(intent.backend, lambda: backend.find(intent.key))
        if handle is not None:
            run.write("handle", handle)
        return handle

    # Watch

    def status(self, run: RunFolder, *, on_event: OnEvent | None = None) -> Status:
        """Where the run stands: from the store if final, else one look at its backend. Changes nothing
        there; what cannot be seen is `unknown`. May be repeated at will."""
        known = run.read("status", Status)
        if known is not None and known.state.final:
            return known
        handle = run.read("handle", Handle)
        workload = self._workload(run)
        if handle is None:
            intent = run.read("intent", Intent)
            if intent is None:
                return known or Status(state=State.PLANNED)
            try:
                handle = self._found(run, intent, workload)
            except errors.RouteError as e:
                return self._became(
                    run, Status(state=State.UNKNOWN, attempt=intent.attempt, detail=e.what), on_event
                )
            if handle is None:
                return known or Status(state=State.STAGING, attempt=intent.attempt)
        found = handle
        backend = self.backend(handle.backend, workload)
        try:
            seen = guarded(handle.backend, lambda: backend.status(found))
        except errors.PluginError as e:
            seen = Status(state=State.UNKNOWN, attempt=found.attempt, detail=e.what)
        return self._became(run, seen, on_event)

    def attach(
        self,
        run: RunFolder,
        *,
        offset: int = 0,
        on_log: OnLog | None = None,
        on_event: OnEvent | None = None,
    ) -> Status:
        """Follow a run to its end: log bytes from `offset` and every change of state as they come.

        An attempt that is proven never to have executed is started again (at most
        `MOST_ATTEMPTS` times); nothing else ever is. May be left (Ctrl-C) and called again.
        """
        while True:
            status = self._follow(run, offset, on_log, on_event)
            if status.reason != "never_executed" or status.attempt >= MOST_ATTEMPTS:
                return status
            workload, plan = self._planned(run)
            snapshot, intent = _snapshot(workload), run.read("intent", Intent)
            if intent is None or snapshot.tree_sha256 != intent.tree_sha256:
                return status
            self._tell(run, on_event, "again", attempt=status.attempt + 1, reason=status.reason)
            self._start(
                run, plan, snapshot, self._secrets(workload), attempt=status.attempt + 1, on_event=on_event
            )
            offset = 0

    def _follow(self, run: RunFolder, offset: int, on_log: OnLog | None, on_event: OnEvent | None) -> Status:
        status = self.status(run, on_event=on_event) if not run.has("handle") else run.read("status", Status)
        handle = run.read("handle", Handle)
        if handle is None:
            return status or Status(state=State.PLANNED)
        if status is not None and status.state.final and status.attempt >= handle.attempt and on_log is None:
            return status
        backend = self.backend(handle.backend, self._workload(run))
        stream = backend.attached(handle, offset)
        while True:
            item = guarded(handle.backend, lambda: next(stream, None))
            if item is None:
                raise errors.PluginError(
                    f"backend {handle.backend!r} ended its stream before the run was final",
                    mend=f"route status {run.id}",
                )
            if isinstance(item, Status):
                status = self._became(run, item, on_event)
                if item.state.final:
                    return status
            elif on_log is not None:
                on_log(item)

    def cancel(self, run: RunFolder) -> None:
        """Ask the run to end. Returns at once; repeatable; silent if it is over."""
        if self.status(run).state.final:
            return
        handle = run.read("handle", Handle)
        if handle is None:
            raise errors.NotFound(
                f"run {run.id} was never submitted, so there is nothing to cancel", mend="route ps shows it"
            )
        backend = self.backend(handle.backend, self._workload(run))
        guarded(handle.backend, lambda: backend.cancel(handle))

    # Collect

    def collect(self, run: RunFolder, *, on_event: OnEvent | None = None) -> dict[str, Any]:
        """Bring back outputs, log and measurements of a final run and write its receipt, once.

        Returns the receipt. Repeatable: what is there is not fetched again. Raises `Refused` while
        the run is not final, `Unavailable` when its place cannot be reached now.
        """
        from compute_router.collecting import collect

        receipt = run.read_json("receipt")
        if receipt is not None:
            return dict(receipt)
        status = self.status(run, on_event=on_event)
        if not status.state.final:
            raise errors.Refused(
                f"run {run.id} is {status.state.value}, not final", mend=f"route wait {run.id}"
            )
        receipt = collect(self, run, status)
        self._tell(run, on_event, "receipt", receipt_id=receipt["receipt_id"])
        return receipt

    def resume(
        self, run: RunFolder, *, on_log: OnLog | None = None, on_event: OnEvent | None = None
    ) -> dict[str, Any]:
        """Go on with a run from wherever it was left, to its receipt. Repeatable; starts nothing twice."""
        if not run.has("receipt"):
            if not run.has("handle"):
                workload, plan = self._planned(run)
                secrets, snapshot = self._secrets(workload), _snapshot(workload)
                if run.has("intent"):
                    self._again(run, secrets, snapshot, on_event)
                else:
                    self._start(run, plan, snapshot, secrets, attempt=1, on_event=on_event)
            self.attach(run, on_log=on_log, on_event=on_event)
        return self.collect(run, on_event=on_event)

    # What a run's folder says

    def _workload(self, run: RunFolder) -> Workload:
        workload = run.read("workload", Workload)
        if workload is None:
            raise errors.StoreError(f"{run.path} has no workload.json", mend="route gc removes broken runs")
        return workload

    def _key(self, run: RunFolder) -> str:
        return run.key or run.id

    def _planned(self, run: RunFolder) -> tuple[Workload, Plan]:
        """The plan as it was made; planned afresh if the client died before it was written."""
        workload, decision = self._workload(run), run.read("decision", Decision)
        offers = run.read_json("offers")
        if decision is None or offers is None:
            plan = self.plan(workload)
            run.write("offers", {"schema": "route.offers/1", "offers": [_tagged(o) for o in plan.offers]})
            run.write("decision", plan.decision)
            if not plan.decision.ranked:
                raise errors.NoPlace(plan.decision.sentence, mend=plan.decision.mend)
            return workload, plan
        return workload, Plan(
            workload=workload, offers=tuple(_untagged(o) for o in offers["offers"]), decision=decision
        )

    def _became(self, run: RunFolder, status: Status, on_event: OnEvent | None) -> Status:
        """Write a status down if it tells something new; a final one is never replaced."""
        known = run.read("status", Status)
        if known is not None and known.state.final and known.attempt >= status.attempt:
            return known
        if status.state is State.UNKNOWN and known is not None:
            last, since = (
                (known.last, known.since_us) if known.state is State.UNKNOWN else (known.state, None)
            )
            status = msgspec.structs.replace(
                status, last=last, since_us=since or status.since_us or time.time_ns() // 1000
            )
        if known != status:
            run.write("status", status)
            self._tell(run, on_event, "state", **{k: v for k, v in plain(status).items() if v is not None})
        return status

    def _tell(self, run: RunFolder, on_event: OnEvent | None, event: str, **facts: Any) -> None:
        """Append an event to the run's folder, then tell plugins and the caller."""
        line = {"event": event, "run_id": run.id, "at_us": time.time_ns() // 1000, **facts}
        run.append_event(line)
        self.registry.notify(run.id, line)
        if on_event is not None:
            on_event(line)


def _tagged(offer: Offer | NoOffer) -> dict[str, Any]:
    return {"type": "offer" if isinstance(offer, Offer) else "no_offer", **plain(offer)}


def _untagged(data: dict[str, Any]) -> Offer | NoOffer:
    rest = {k: v for k, v in data.items() if k != "type"}
    if data["type"] == "offer":
        return msgspec.convert(rest, Offer)
    return msgspec.convert(rest, NoOffer)


def _snapshot(workload: Workload) -> Snapshot:
    from compute_router.snapshot import take

    named = [workload.entry.script] if workload.entry.script else list(workload.entry.argv)
    return take(Path(workload.entry.root), only=[Path(name) for name in named])


def run(
    workload: Workload,
    *,
    policy: str | None = None,
    limits: Limits | None = None,
    key: str | None = None,
    router: Router | None = None,
    on_log: OnLog | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Plan, start, follow and collect `workload`; returns its receipt.

    The same path as `route run`. Raises as `Router.submit` does; a run that fails is no error
    here: its receipt says so. Called again with the same `key` it goes on with the same run.
    """
    router = router or Router()
    folder = router.submit(router.plan(workload, policy=policy, limits=limits), key=key, on_event=on_event)
    return router.resume(folder, on_log=on_log, on_event=on_event)
