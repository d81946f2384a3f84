"""`route logs` and `route wait`: read along, or wait for the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.codes import exit_code, told
from compute_router.cli.logtext import LogText
from compute_router.cli.nodes import log_of, node_option, part_of
from compute_router.cli.options import RUN
from compute_router.cli.output import problem
from compute_router.errors import Refused, RouteError

if TYPE_CHECKING:
    from compute_router.backend import Backend, Handle
    from compute_router.store import RunFolder

__all__ = ["logs", "wait"]

PIECE = 1 << 16


@verb()
@click.argument("id", type=RUN, metavar="[ID]", default="latest")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run is over.")
@click.option(
    "--tail", "-n", type=click.IntRange(min=0), metavar="N", help="Only the last N lines, then go on."
)
@click.option("--raw", is_flag=True, help="Leave escape sequences as they are.")
@node_option
@click.pass_obj
def logs(cli: Cli, id: str, follow: bool, tail: int | None, raw: bool, node: int | None) -> int:
    """Print a run's log (default: the newest run's).

    Of a run on several machines that is the log of node 0; --node takes another's.

    On a terminal escape sequences are shown as text, so that a log cannot take it over.
    """
    run = cli.folder(id)
    log = LogText(cli.out, raw=raw)
    offset = 0
    if tail is not None:
        kept, offset = _last(_pieces(cli, run, 0, follow=False, node=node), tail)
        for piece in kept:
            log.write(piece)
    try:
        for piece in _pieces(cli, run, offset, follow=follow, log=log, node=node):
            log.write(piece)
            offset += len(piece)
    except KeyboardInterrupt:
        log.close()
        more = "" if node is None else f" --node {node}"
        cli.out.failed(
            "INTERRUPTED", f"stopped reading; run {run.id} goes on", mend=f"route logs -f {run.id}{more}"
        )
        return 130
    log.close()
    cli.out.done({"run_id": run.id, "bytes": offset})
    return 0


def _pieces(
    cli: Cli, run: RunFolder, offset: int, *, follow: bool, log: LogText | None = None, node: int | None
) -> Iterator[bytes]:
    """The log from `offset` on: the collected one if it is here, else from the run's place."""
    if (kept := log_of(run.path, node)) is not None:
        with kept.open("rb") as file:
            file.seek(offset)
            while piece := file.read(PIECE):
                yield piece
        return
    from compute_router.backend import Handle
    from compute_router.starting import guarded
    from compute_router.workload import Workload

    handle = run.read("handle", Handle)
    if handle is None:
        raise Refused(f"run {run.id} was never started, so it has no log", mend=f"route status {run.id}")
    backend = cli.router.backend(handle.backend, run.read("workload", Workload))
    found = part_of(backend, handle, node)
    if follow and log is not None:
        yield from _attached(cli, run, backend, found, offset, log, whole=found == handle)
        return
    stream = guarded(handle.backend, lambda: iter(backend.logs(found, offset, follow)))
    while (more := guarded(found.backend, lambda: next(stream, None))) is not None:
        yield more


def _attached(
    cli: Cli, run: RunFolder, backend: Backend, handle: Handle, offset: int, log: LogText, *, whole: bool
) -> Iterator[bytes]:
    """The log as it comes; that it cannot be seen for a while, and can again, is said beside it."""
    from compute_router.backend import State
    from compute_router.cli.attached import Stages
    from compute_router.journal import Journal
    from compute_router.starting import guarded

    stages = Stages(cli, log)

    def tell(event: dict[str, Any]) -> None:
        if event.get("event") == "back" or event.get("state") == "unknown":
            stages(event)

    # What one machine of several tells of itself is not the state of the run.
    journal = Journal(run, cli.router.registry, tell) if whole else None
    stream = backend.attached(handle, offset)
    while (item := guarded(handle.backend, lambda: next(stream, None))) is not None:
        if isinstance(item, bytes):
            yield item
        elif journal is not None:
            journal.became(item)
        elif item.state is State.UNKNOWN:
            cli.out.stage("unknown", f"node cannot be seen: {item.detail}")


def _last(pieces: Iterable[bytes], lines: int) -> tuple[list[bytes], int]:
    """The last `lines` lines of a log and its length; holds no more than those, long lines cut."""
    kept: deque[bytes] = deque(maxlen=max(lines, 1))
    rest, total = b"", 0
    for piece in pieces:
        total += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        kept.extend(line[-PIECE:] + b"\n" for line in whole)
        # A log without line ends must not fill the memory: only the end of such a line is kept.
        rest = rest[-PIECE:]
    if rest:
        kept.append(rest)
    return (list(kept) if lines else []), total


@verb()
@click.argument("ids", nargs=-1, required=True, type=RUN, metavar="ID...")
@click.pass_obj
def wait(cli: Cli, ids: tuple[str, ...]) -> int:
    """Wait until runs are over and collect them.

    Exits with the work's code; of several runs, with the first that is not 0, in the order given.
    """
    from compute_router.cli.attached import Stages, guard
    from compute_router.cli.leaving import Leaving

    runs = [cli.folder(ref) for ref in ids]
    stages = Stages(cli)
    leaving = Leaving(asking=False)
    leaving.attached = True

    def work() -> int:
        done: list[dict[str, Any]] = []
        code = 0
        bad: dict[str, Any] | None = None
        for run in runs:
            stages.run_id = run.id
            status, error = _end_of(cli, run, stages)
            this = error.exit_code if error else exit_code(status)
            done.append({"run_id": run.id, "status": status, "exit_code": int(this)})
            cli.out.line(f"{run.id}  {told(status)}")
            if this and bad is None:
                code = int(this)
                what = error.what if error else f"run {run.id} {told(status)}"
                name = error.code if error else "RUN_" + str(status.get("state", "unknown")).upper()
                bad = problem(name, what, (error.mend if error else "") or f"route logs {run.id}")
            if error:
                cli.out.note(f"route: {error.what}")
        cli.out.done(done, error=bad)
        return code

    return guard(cli, leaving, stages, work)


def _end_of(cli: Cli, run: RunFolder, stages: Any) -> tuple[dict[str, Any], RouteError | None]:
    """Wait for one run; an error about it is told and does not keep the others waiting."""
    from compute_router.cli.attached import receipt_of

    try:
        if receipt_of(run) is None:
            seen = cli.router.attach(run, on_event=stages)
            if not seen.state.final:
                raise Refused(
                    f"run {run.id} was never started, so it cannot end",
                    mend=f"`route resume {run.id}` goes on with it",
                )
            cli.router.collect(run, on_event=stages)
    except RouteError as e:
        return run.read_json("status") or {"state": "unknown"}, e
    return run.read_json("status") or {"state": "unknown"}, None
