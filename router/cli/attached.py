"""Following a run to its receipt: stage lines, the log, the summary, and how to come back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compute_router.cli.call import Cli
from compute_router.cli.codes import ENDS, exit_code, told
from compute_router.cli.leaving import AskCancel, Leave, Leaving
from compute_router.cli.logtext import LogText
from compute_router.cli.output import problem
from compute_router.cli.transfers import Transfers
from compute_router.cli.words import clock, duration, size
from compute_router.errors import ExitCode
from compute_router.progress import watched

if TYPE_CHECKING:
    from compute_router.store import RunFolder

__all__ = ["Stages", "attached", "brought", "ended", "guard", "left", "problem_of", "receipt_of", "summary"]


class Stages:
    """Turns events of a run into stage lines; keeps the id, so that an interrupted start can be named."""

    def __init__(self, cli: Cli, log: LogText | None = None) -> None:
        self.run_id = ""
        self._cli, self._log = cli, log
        self._last = ("", "")
        self._named = False
        self._refused = ""

    def name(self, run_id: str, sentence: str = "") -> None:
        """Print the run's id, once, and the deciding sentence."""
        self.run_id = run_id
        if not self._named and not self._cli.out.as_json:
            self._cli.out.stage("run", run_id)
            if sentence:
                self._cli.out.stage("decided", sentence)
        self._named = True

    def __call__(self, event: dict[str, Any]) -> None:
        """One event, as the core tells it."""
        out, name = self._cli.out, str(event.get("event"))
        self.run_id = str(event.get("run_id") or self.run_id)
        if name == "again" and self._log is not None:
            # The log of the new attempt begins at its own first byte.
            self._log.bytes = 0
        if out.as_json:
            out.event(event)
            return
        if name == "decided":
            self.name(self.run_id, str(event.get("sentence") or ""))
        line = self._line(name, event)
        if name == "refused" and line is not None:
            # Told once something comes after it: the last refusal is the error that the verb ends with.
            self._refused, line = line[1], None
        elif self._refused:
            out.stage("refused", self._refused)
            self._refused = ""
        if line is not None:
            if self._log is not None:
                self._log.close()
            out.stage(*line)
        if slow := _slow(name, event):
            out.busy(slow)

    def _line(self, name: str, event: dict[str, Any]) -> tuple[str, str] | None:
        place = "/".join(filter(None, [event.get("backend"), event.get("offer")]))
        attempt = event.get("attempt", 1)
        nth = f" (attempt {attempt})" if attempt and attempt > 1 else ""
        match name:
            case "snapshot":
                return "snapshot", f"{event.get('files')} files, {size(event.get('bytes'))}"
            case "staging":
                return "staging", f"to {place}{nth}"
            case "submitted":
                return "submitted", f"to {place}{nth}"
            case "refused":
                return "refused", f"by {place}: {event.get('what')}"
            case "back":
                # The state that follows says the same.
                self._last = (str(event.get("state")), self._last[1])
                return "back", f"after {duration(event.get('after_us'))}; {event.get('state')}"
            case "gone":
                return "left out", str(event.get("what"))
            case "again":
                return "again", f"attempt {attempt}: the one before never executed"
            case "state":
                return self._state(event)
        return None

    def _state(self, event: dict[str, Any]) -> tuple[str, str] | None:
        state = str(event.get("state"))
        if state in ("planned", "staging", "committed", "starting"):
            return None
        detail = str(event.get("detail") or event.get("reason") or "").replace("_", " ")
        where = f"place {event['position']} in the queue" if event.get("position") else ""
        # On a terminal the spinner tells of every further place; elsewhere each is a line.
        last, self._last = self._last, (state, where if not self._cli.out.terminal_err else "")
        if self._last == last:
            return None
        match state:
            case "waiting":
                return state, "; ".join(filter(None, [where, detail]))
            case "unknown":
                return state, unseen(event)
            case "running" | "orphaned":
                return state, detail
        # A final state is told by the summary.
        return None


def _slow(name: str, event: dict[str, Any]) -> str:
    """What may take a while after an event, if anything does."""
    if name == "staging":
        return "sending the files"
    if name != "state":
        return ""
    match str(event.get("state")):
        case "waiting":
            where = f": place {event['position']} in the queue" if event.get("position") else ""
            return f"waiting for the place{where}"
        case "unknown":
            return "trying to reach it again"
        case state:
            return "bringing back what it left" if state in ENDS else ""


def unseen(status: dict[str, Any]) -> str:
    """Since when a run cannot be seen, how it was then, and why."""
    since = f"since {clock(status['since_us'])}" if status.get("since_us") else "now"
    last = f", last seen {status['last']}" if status.get("last") else ""
    why = f": {status['detail']}" if status.get("detail") else ""
    return f"unreachable {since}{last}; the run itself goes on{why}"


def receipt_of(run: RunFolder) -> dict[str, Any] | None:
    """The receipt of a run that is over; None while it goes on, whatever an earlier attempt left."""
    receipt, status = run.read_json("receipt"), run.read_json("status") or {}
    if receipt is None or status.get("state") not in ENDS:
        return None
    return receipt if receipt.get("attempt") == status.get("attempt") else None


def attached(cli: Cli, run: RunFolder, leaving: Leaving, log: LogText, stages: Stages) -> int:
    """Go on with `run` to its end and collect it; returns the exit code. May raise `Leave`."""
    router = cli.router
    leaving.attached = run.has("handle")
    receipt: dict[str, Any] | None = None

    def tell(event: dict[str, Any]) -> None:
        leaving.attached = leaving.attached or event.get("event") == "submitted"
        stages(event)

    while receipt is None:
        try:
            if leaving.again():
                router.attach(run, offset=log.bytes, on_log=log.write, on_event=tell)
                receipt = router.collect(run, on_event=stages)
            else:
                receipt = router.resume(run, on_log=log.write, on_event=tell)
            log.close()
        except AskCancel:
            log.close()
            if not leaving.confirm(f"cancel run {run.id}?"):
                raise Leave from None
            router.cancel(run)
            cli.out.stage("cancelled", "asked to end; waiting for it")
    return ended(cli, run, receipt)


def left(cli: Cli, run_id: str, *, committed: bool) -> int:
    """Say that the terminal is given back and how to come back; returns exit code 130."""
    out = cli.out
    if not run_id:
        out.failed("INTERRUPTED", "interrupted; nothing was started")
    elif not committed:
        out.failed(
            "INTERRUPTED",
            f"interrupted while run {run_id} was being started",
            mend=f"`route status {run_id}` says how far it came, `route resume {run_id}` goes on",
            data={"run_id": run_id},
        )
    else:
        out.failed(
            "DETACHED",
            f"detached; run {run_id} goes on",
            mend=f"come back: `route resume {run_id}`; end it: `route cancel {run_id}`",
            data={"run_id": run_id},
        )
    return int(ExitCode.DETACHED)


def guard(cli: Cli, leaving: Leaving, stages: Stages, work: Callable[[], int]) -> int:
    """Do `work` with signals turned into detaching; a closed stdout detaches as well."""
    try:
        with leaving, watched(Transfers(cli.out)):
            return work()
    except (Leave, AskCancel):
        return left(cli, stages.run_id, committed=leaving.attached)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return left(cli, stages.run_id, committed=leaving.attached)


def ended(cli: Cli, run: RunFolder, receipt: dict[str, Any]) -> int:
    """Print how the run ended and return its exit code."""
    status = run.read_json("status") or {}
    code = exit_code(status)
    out = cli.out
    error = problem_of(run, status) if code else None
    if not out.as_json:
        for label, text in summary(run, status, receipt):
            out.stage(label, text)
    out.done(receipt, error=error)
    return code


def problem_of(run: RunFolder, status: dict[str, Any]) -> dict[str, Any]:
    """The `error` of a run that did not end well."""
    name = "RUN_" + str(status.get("state", "unknown")).upper()
    return problem(name, f"run {run.id} {told(status)}", f"route logs {run.id}")


def brought(run: RunFolder) -> str:
    """How many files the work left that are here, and where; empty if it left none."""
    outputs = run.path / "outputs"
    files = [path for path in outputs.rglob("*") if path.is_file()] if outputs.is_dir() else []
    if not files:
        return ""
    total = size(sum(path.stat().st_size for path in files))
    return f"{len(files)} file{'s' if len(files) > 1 else ''}, {total}, in {outputs}"


def summary(run: RunFolder, status: dict[str, Any], receipt: dict[str, Any]) -> list[tuple[str, str]]:
    """The last lines: state and duration, hardware, storage, cache, result, the receipt's path."""
    from compute_router.receipt.summary import lines

    told_of = dict(lines(receipt))
    text, took = told(status), told_of.get("duration")
    first = text.removeprefix(str(status.get("state")).replace("_", " ")).lstrip(": ")
    found = [(str(status.get("state")), ", ".join(filter(None, [first, took and f"in {took}"])))]
    wanted = ("hardware", "storage", "cache", "metric", "verdict", "left out")
    found += [(label, told_of[label]) for label in wanted if told_of.get(label)]
    if left := brought(run):
        found.append(("outputs", left))
    return [*found, ("receipt", str(run.path / "receipt.json"))]
