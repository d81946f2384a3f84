"""The one path of a run: gather, decide, submit, watch, collect; entered again at the last file present."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from compute_router import errors, scrubbing
from compute_router.backend import Backend, Handle, Health, State, Status
from compute_router.durable import held
from compute_router.journal import Journal, OnEvent
from compute_router.planning import Plan, ships, the_same
from compute_router.policy import Limits, Outcome
from compute_router.recording import is_recorded, unstarted
from compute_router.records import key_run_id, new_run_id
from compute_router.scrubbing import resolved
from compute_router.starting import NOTHING_STARTED, Intent, guarded, load_the_end, standing, start
from compute_router.workload import Workload

if TYPE_CHECKING:
    from compute_router.config import Config
    from compute_router.places import Places
    from compute_router.registry import Registry
    from compute_router.snapshot import Snapshot
    from compute_router.store import RunFolder, Store

__all__ = ["Router"]

OnLog = Callable[[bytes], None]

MOST_ATTEMPTS = 3
"""Starts of one run, with those that are proven never to have executed."""


class Router:
    """The router as one process sees it: a store, the plugins, the configuration; read when needed.

    `home` is the folder everything is kept in (default: ROUTE_HOME, else the platform's data
    folder). With `plugins=False` only the bundled plugins are loaded. `route.toml` is sought from `start`.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        plugins: bool = True,
        config: Config | None = None,
        start: Path | None = None,
    ) -> None:
        self._home, self._plugins, self._config, self._folder = home, plugins, config, start
        self.given: dict[str, Mapping[str, str]] = {}  # run id -> secrets, for a start that comes later

    @functools.cached_property
    def config(self) -> Config:
        from compute_router.config import load_config

        return self._config or load_config(self._folder or Path.cwd())

    @functools.cached_property
    def store(self) -> Store:
        from compute_router.store import Store, default_home

        return Store(self._home or default_home())

    @functools.cached_property
    def registry(self) -> Registry:
        from compute_router.registry import Registry

        return Registry(disabled=self.config.plugins_disable, enabled=self._plugins)

    @functools.cached_property
    def places(self) -> Places:
        from compute_router.places import Places

        return Places(self.registry, self.config, self.store.home)

    def backend(self, name: str, workload: Workload | None = None) -> Backend:
        """The backend called `name` with its settings; see `Places.backend`."""
        return self.places.backend(name, workload)

    def healths(self) -> list[Health]:
        """The health of every backend, by name. Never raises for a backend."""
        return self.places.healths()

    def plan(self, workload: Workload, *, policy: str | None = None, limits: Limits | None = None) -> Plan:
        """Gather offers and decide; see `Places.plan`. Writes nothing, starts nothing."""
        scrubbing.declare(workload.secrets)
        return self.places.plan(workload, policy=policy, limits=limits)

    # Submit

    def submit(
        self,
        plan: Plan,
        *,
        key: str | None = None,
        secrets: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        on_event: OnEvent | None = None,
    ) -> RunFolder:
        """Start what was planned, along the ranked offers; returns once a backend has committed it.

        Repeating it with the same `key` and workload returns the same run and starts nothing; `labels`
        are kept from the first time. Raises `NoPlace`, `CredentialsError` (nothing is kept), `Conflict`
        (the key names another workload), `SubmitUnknown` (the run is kept, `status` goes on asking), or
        the last refusal once every offer said no: then the run is `failed` and has a receipt.
        """
        if plan.decision.outcome in (Outcome.REFUSED, Outcome.WARM):
            raise errors.NoPlace(plan.decision.sentence, mend=plan.decision.mend)
        values = resolved(plan.workload, key, secrets, self.store.notice)
        first = plan.decision.ranked[0]
        self.backend(first.backend, plan.workload).expect(plan.offer(first.backend, first.offer_id))
        snapshot = ships(plan.workload, self.store.home)
        run_id = key_run_id(key) if key else new_run_id()
        run = self.store.create(run_id, plan.workload, key=key or run_id, labels=labels)
        self.given[run.id] = values
        self._begin(run, plan, values, snapshot, on_event)
        return run

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
                key=run.key,
                attempt=attempt,
                journal=self._journal(run, on_event),
            )
        except errors.SubmitUnknown as e:
            self._journal(run, on_event).became(
                Status(state=State.UNKNOWN, attempt=attempt, last=State.STAGING, detail=e.what)
            )
            raise
        except NOTHING_STARTED as e:
            if run.has("handle"):
                raise
            now = time.time_ns() // 1000
            self._journal(run, on_event).became(
                Status(
                    state=State.FAILED, attempt=attempt, reason="not_submitted", detail=e.what, ended_us=now
                )
            )
            self.collect(run, on_event=on_event)
            raise

    def _begin(
        self,
        run: RunFolder,
        plan: Plan | None,
        secrets: Mapping[str, str],
        snapshot: Snapshot,
        on_event: OnEvent | None,
    ) -> None:
        """Start a run, or enter one that was begun before: what may have started is looked for, and
        something is started only if nothing was. One client at a time, so that two with the same
        key cannot end at two places."""
        with held(run.file("run")):
            if run.has("handle") or run.has("receipt"):
                return
            intent = run.read("intent", Intent)
            if intent is None:
                if plan is not None and not run.has("decision"):
                    plan.save(run)
                plan = self._planned(run)
                self._journal(run, on_event).tell(
                    "decided", policy=plan.decision.policy, sentence=plan.decision.sentence
                )
            else:
                plan = self._planned(run)
                if self._found(run, intent, plan.workload) is not None:
                    return
                if snapshot.tree_sha256 != intent.tree_sha256:
                    raise errors.Conflict(
                        f"the files of run {run.id} have changed since it was made",
                        mend="start a new run (another --key, or none)",
                    )
            self._start(
                run, plan, snapshot, secrets, attempt=intent.attempt if intent else 1, on_event=on_event
            )

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
                return self._journal(run, on_event).became(
                    Status(state=State.UNKNOWN, attempt=intent.attempt, detail=e.what)
                )
            if handle is None:
                return standing(run, known, intent.attempt)
        found = handle
        backend = self.backend(handle.backend, workload)
        try:
            seen = guarded(handle.backend, lambda: backend.status(found))
        # That a handle names nothing any more may be a moved root or a machine taken away: only what
        # is proven is called lost.
        except (errors.PluginError, errors.HandleLost) as e:
            seen = Status(state=State.UNKNOWN, attempt=found.attempt, detail=e.what)
        return self._journal(run, on_event).became(seen)

    def attach(
        self,
        run: RunFolder,
        *,
        offset: int = 0,
        on_log: OnLog | None = None,
        on_event: OnEvent | None = None,
    ) -> Status:
        """Follow a run to its end: log bytes from `offset` and every change of state as they come.

        Only what is proven never to have executed is started again, at the same place. May be left
        (Ctrl-C) and called again. Raises `Unavailable` if one start after another leads to nothing.
        """
        # While the work runs there is time to load what its end needs.
        threading.Thread(target=load_the_end, daemon=True).start()
        for _ in range(MOST_ATTEMPTS + 1):
            status = self._follow(run, offset, on_log, on_event)
            if status.state is State.COMMITTED:
                attempt = status.attempt
            elif status.reason == "never_executed" and status.attempt < MOST_ATTEMPTS:
                attempt = status.attempt + 1
            else:
                return status
            if not self._start_again(run, status, attempt, on_event):
                return status
            offset = 0
        raise errors.Unavailable(f"every start of run {run.id} led to nothing", mend="route doctor")

    def _start_again(self, run: RunFolder, status: Status, attempt: int, on_event: OnEvent | None) -> bool:
        """Start what is proven not to run: an attempt whose start was cut off, or the one after an
        attempt that never executed. At the same place, with the same files, or not at all: False
        leaves a final state as it is."""
        if is_recorded(run):
            return unstarted.end_committed(cast("Any", self), run, status)
        plan, intent = self._planned(run), run.read("intent", Intent)
        snapshot = the_same(plan.workload, self.store.home, intent.tree_sha256 if intent else None)
        if intent is None or snapshot is None:
            if status.state.final:
                return False
            raise errors.Conflict(
                f"run {run.id} never executed, and its files are not here as they were",
                mend="start a new run (another --key, or none)",
            )
        self._journal(run, on_event).tell("again", attempt=attempt, reason=status.reason)
        here = [
            r for r in plan.decision.ranked if (r.backend, r.offer_id) == (intent.backend, intent.offer_id)
        ]
        plan = dataclasses.replace(plan, decision=msgspec.structs.replace(plan.decision, ranked=tuple(here)))
        secrets = resolved(plan.workload, run.key, self.given.get(run.id), self.store.notice)
        with held(run.file("run")):
            handle = run.read("handle", Handle)
            if handle is None or handle.attempt < attempt or status.state is State.COMMITTED:
                self._start(run, plan, snapshot, secrets, attempt=attempt, on_event=on_event)
        return True

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
                break
            if isinstance(item, Status):
                status = self._journal(run, on_event).became(item)
                # Committed and not started: whoever was to start it is gone.
                if item.state is State.COMMITTED:
                    return status
            elif on_log is not None:
                on_log(item)
        # Read to its end, not only to the final state: the rest of the log may come after that.
        if status is None or not status.state.final:
            raise errors.PluginError(
                f"backend {handle.backend!r} ended its stream before the run was final",
                mend=f"route status {run.id}",
            )
        return status

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

        status = self.status(run, on_event=on_event)
        receipt = run.read_json("receipt")
        if receipt is not None and receipt.get("attempt") == status.attempt:
            return receipt
        if not status.state.final:
            raise errors.Refused(
                f"run {run.id} is {status.state.value}, not final", mend=f"route wait {run.id}"
            )
        handle, workload = run.read("handle", Handle), self._workload(run)
        return collect(
            run,
            status,
            workload=workload,
            plan=Plan.load(run, workload),
            backend=None if handle is None else self.backend(handle.backend, workload),
            handle=handle,
            registry=self.registry,
            tell=self._journal(run, on_event).tell,
        )

    def resume(
        self, run: RunFolder, *, on_log: OnLog | None = None, on_event: OnEvent | None = None
    ) -> dict[str, Any]:
        """Go on with a run from wherever it was left, to its receipt. Repeatable; starts nothing twice."""
        if not run.has("receipt"):
            if is_recorded(run):
                unstarted.close_unstarted(cast("Any", self), run, on_event)
            elif not run.has("handle"):
                workload = self._workload(run)
                secrets = resolved(workload, run.key, self.given.get(run.id), self.store.notice)
                self._begin(run, None, secrets, ships(workload, self.store.home), on_event)
            self.attach(run, on_log=on_log, on_event=on_event)
        return self.collect(run, on_event=on_event)

    # What a run's folder says

    def _workload(self, run: RunFolder) -> Workload:
        if workload := run.read("workload", Workload):
            return workload
        raise errors.StoreError(f"{run.path} has no workload.json", mend="route gc removes broken runs")

    def _planned(self, run: RunFolder) -> Plan:
        """The plan as it was made; made afresh if the client died before it was written."""
        workload = self._workload(run)
        plan = Plan.load(run, workload)
        if plan is None:
            plan = self.plan(workload)
            if not plan.decision.ranked:
                raise errors.NoPlace(plan.decision.sentence, mend=plan.decision.mend)
            plan.save(run)
        return plan

    def _journal(self, run: RunFolder, on_event: OnEvent | None) -> Journal:
        return Journal(run, self.registry, on_event)
