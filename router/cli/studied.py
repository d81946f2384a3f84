"""Following a study: a line for each run, what is left, how it ended, and its table."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from compute_router.cli.call import Cli
from compute_router.cli.leaving import AskCancel, Leave, Leaving
from compute_router.cli.words import duration, short_id
from compute_router.errors import ExitCode

if TYPE_CHECKING:
    from compute_router.studies.folder import StudyFolder
    from compute_router.studies.plan import StudyPlan
    from compute_router.studies.standing import Seen, Standing

__all__ = ["as_data", "begun", "ended", "follow", "headed", "show"]

LOOKS = 0.15
"""Seconds between looks at what the driver tells."""


def headed(plan: StudyPlan) -> list[tuple[str, str]]:
    """What a study is, as labelled lines."""
    arms = ", ".join(arm.name for arm in plan.arms)
    runs = f"{len(plan.turns)} runs in {plan.n} block{'s' * (plan.n > 1)}"
    found = [
        ("study", plan.id),
        ("runs", f"{runs}: {plan.order}"),
        ("arms", f"{arms} (the first is the base)"),
    ]
    found += [("differ in", ", ".join(plan.vary))] if plan.vary else []
    return [*found, ("decides", f"{plan.metric or 'no metric'}, margin {float(plan.margin):.4g}")]


def begun(cli: Cli, folder: StudyFolder, *, started: bool) -> None:
    plan = folder.plan
    if cli.out.as_json:
        cli.out.event({"event": "study", "study_id": folder.id, "started": started})
        return
    cli.out.stage("study", folder.id + ("" if started else "; it is running already"))
    counted = sum(folder.turn(turn.index).over for turn in plan.turns)
    again = f"; {counted} counted before" if counted else ""
    cli.out.stage("planned", f"{len(plan.turns)} runs, {len(plan.arms)} arms, {plan.order}{again}")


def follow(cli: Cli, folder: StudyFolder, process: subprocess.Popen[bytes] | None, offset: int) -> int:
    """Show what the driver of a study tells until it ends; returns the exit code.

    Ctrl-C leaves it running and says how to come back; a second one asks about cancelling.
    """
    leaving = Leaving(asking=cli.out.terminal_err and sys.stdin.isatty())
    leaving.attached = True
    teller = _Teller(cli, folder)
    at = [offset]
    with leaving:
        while True:
            try:
                leaving.again()
                return _followed(cli, folder, process, teller, at)
            except AskCancel:
                if leaving.confirm(f"cancel study {folder.id}?"):
                    from compute_router.cli.studying import end

                    end(cli, folder)
                    continue
                return _left(cli, folder)
            except (Leave, BrokenPipeError):
                return _left(cli, folder)


def _left(cli: Cli, folder: StudyFolder) -> int:
    cli.out.failed(
        "DETACHED",
        f"detached; study {folder.id} goes on",
        mend=f"come back: `route study resume {folder.id}`; end it: `route study cancel {folder.id}`",
        data={"study_id": folder.id},
    )
    return int(ExitCode.DETACHED)


def _followed(
    cli: Cli, folder: StudyFolder, process: subprocess.Popen[bytes] | None, teller: _Teller, at: list[int]
) -> int:
    looked = time.monotonic()
    while True:
        gone = process is not None and process.poll() is not None
        if not gone and time.monotonic() - looked > 1:
            looked, gone = time.monotonic(), not folder.driven
        # In this order: what it told last was told before it went.
        for offset, event in folder.events(at[0]):
            at[0] = offset
            teller(event)
            if event.get("event") == "ended":
                # It holds its lock until it is gone, which is soon.
                while folder.driven:
                    time.sleep(LOOKS)
                return ended(cli, folder)
        if gone:
            return ended(cli, folder)
        time.sleep(LOOKS)


class _Teller:
    """Turns what the driver tells into stage lines."""

    def __init__(self, cli: Cli, folder: StudyFolder) -> None:
        self._out, self._folder, self._plan = cli.out, folder, folder.plan

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self._out.as_json:
            self._out.event(event)
            return
        line = self._line(str(event.get("event")), event)
        if line is not None:
            self._out.stage(*line)
        if event.get("event") in ("turn", "seeding"):
            self._out.busy("running")

    def _line(self, name: str, event: Mapping[str, Any]) -> tuple[str, str] | None:
        arm, run_id = event.get("arm"), event.get("run_id")
        match name:
            case "turn":
                again = f", try {event['n']}" if event.get("n", 1) > 1 else ""
                at = f"run {event.get('index')}/{len(self._plan.turns)}"
                return at, f"block {event.get('block')}, arm {arm}{again}: {run_id}"
            case "seeding":
                return "seeding", f"arm {arm}: {run_id}; it fills the cache and never counts"
            case "run":
                said = event.get("detail") or event.get("what") or ""
                if event.get("of") == "submitted":
                    return None
                return str(event.get("state") or event.get("of")), str(said)
            case "over":
                return self._over(event)
        return None

    def _over(self, event: Mapping[str, Any]) -> tuple[str, str]:
        from compute_router.studies.standing import standing

        stands = standing(self._folder)
        if not event.get("executed"):
            return "not started", f"{event.get('what') or event.get('reason')}; it does not count"
        seen = next(s for s in stands.seen if s.turn.index == event.get("index"))
        parts = [figure(seen, self._plan.metric)[0], f"in {duration(_took(seen))}"]
        left = _left_us(stands)
        parts += [f"about {duration(left)} left"] if left else []
        return str(event.get("state")), "; ".join(filter(None, parts))


def _took(seen: Seen) -> int | None:
    return seen.over_us - seen.began_us if seen.over_us and seen.began_us else None


def _left_us(stands: Standing) -> int:
    """What the runs that are left will take, from those of the same arm so far; 0 if nothing tells."""
    every = [(s.turn.arm, took) for s in stands.seen if s.counted and (took := _took(s))]
    if not every:
        return 0
    mean = sum(took for _, took in every) // len(every)
    total = 0
    for seen in stands.seen:
        if not seen.counted:
            own = [took for arm, took in every if arm == seen.turn.arm]
            total += sum(own) // len(own) if own else mean
    return total


def figure(seen: Seen, metric: str | None) -> tuple[str, str | None]:
    """The study's metric of one run: for people, and the decimal as the receipt has it."""
    import json

    if seen.receipt is None:
        return "", None
    try:
        rows = json.loads(seen.receipt.read_bytes())["context"]["metrics"]["values"]["v"]
        row = next(r for r in rows if r["name"] == metric)
        value = str(row["value"])
        amount = float(value)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return "", None
    shown = f"{amount:,.5g}" if abs(amount) < 1e5 else f"{amount:,.0f}"
    return f"{metric} {shown} {row.get('unit') or ''}".strip(), value


def ended(cli: Cli, folder: StudyFolder) -> int:
    """Say how a study ended and what to do next; returns the exit code."""
    from compute_router.studies.standing import standing

    found, out = standing(folder), cli.out
    plan, ending = found.plan, found.ending
    for arm in plan.arms if not out.as_json else ():
        own = [s for s in found.seen if s.turn.arm == arm.name]
        counted = sum(s.counted for s in own)
        good = sum(s.state == "succeeded" for s in own)
        out.stage(
            f"arm {arm.name}",
            f"{good} of {counted} succeeded" + f", {len(own)} planned" * (counted < len(own)),
        )
    data = as_data(found)
    if found.state == "over":
        out.stage("over", f"every planned run counted; `route compare {folder.id}` tells what it comes to")
        out.done(data)
        return 0
    if ending is None or ending.state == "over":
        what = f"the driver of study {folder.id} is gone, and did not say why"
        mend = f"`route study resume {folder.id}` goes on; {folder.path / 'log'} may tell"
        out.failed("DRIVER_GONE", what, mend=mend, data=data)
        return int(ExitCode.UNKNOWN)
    out.failed(
        ending.code or ending.state.upper(), f"study {folder.id}: {ending.what}", mend=ending.mend, data=data
    )
    return ending.exit_code


def show(cli: Cli, found: Standing, only: str | None) -> None:
    """The table of a study: its runs in their order, then what is wrong with it."""
    out, plan = cli.out, found.plan
    counted = sum(seen.counted for seen in found.seen)
    state = f"{found.state}; {counted} of {len(found.seen)} runs counted"
    if found.state not in ("over", "running") and found.ending and found.ending.what:
        state += f": {found.ending.what}"
    out.pairs([*headed(plan), ("state", state)])
    out.line()
    rows = []
    for seen in found.seen:
        if only in (None, seen.turn.arm):
            value = figure(seen, plan.metric)[0].removeprefix(f"{plan.metric} ")
            run = (short_id(seen.run_id) if out.terminal else seen.run_id) if seen.run_id else "-"
            note = seen.why if seen.receipt is None and seen.why != "never started" else ""
            cells = [str(seen.turn.index), str(seen.turn.block), seen.turn.arm, seen.state, run]
            rows.append([*cells, value or "-", duration(_took(seen)) if seen.counted else "-", note])
    out.table(["RUN", "BLOCK", "ARM", "STATE", "ID", (plan.metric or "VALUE").upper(), "TOOK", "NOTE"], rows)
    for path in found.retried:
        out.line(f"does not count: {_run_of(path)} never executed, and was tried again")
    for path in found.extra:
        out.line(f"extra: {_run_of(path)} claims to belong to this study, and is no part of it")


def _run_of(path: Path) -> str:
    return path.parent.name if path.name == "receipt.json" else path.name


def as_data(found: Standing) -> dict[str, Any]:
    """A study as JSON data."""
    plan = found.plan
    return {
        "study_id": plan.id,
        "sha256": plan.sha256,
        "name": plan.name,
        "file": plan.file,
        "state": found.state,
        "n": plan.n,
        "margin": plan.margin,
        "seed": plan.seed,
        "vary": list(plan.vary),
        "metric": plan.metric,
        "arms": [arm.name for arm in plan.arms],
        "order": plan.order,
        "ending": msgspec.to_builtins(found.ending),
        "counted": sum(seen.counted for seen in found.seen),
        "failed": list(found.failed),
        "missing": [{"index": m.index, "arm": m.arm, "why": m.why} for m in found.missing],
        "retried": [str(path) for path in found.retried],
        "extra": [_run_of(path) for path in found.extra],
        "runs": [
            {
                "index": seen.turn.index,
                "block": seen.turn.block,
                "arm": seen.turn.arm,
                "state": seen.state,
                "run_id": seen.run_id,
                "tries": seen.tries,
                "value": figure(seen, plan.metric)[1],
                "took_us": _took(seen),
                "receipt": str(seen.receipt) if seen.receipt else None,
                "why": seen.why,
            }
            for seen in found.seen
        ],
    }
