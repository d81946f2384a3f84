"""`route cancel`, `resume` and `collect`: act on runs that exist."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.codes import ENDS, told
from compute_router.cli.each import each
from compute_router.cli.options import RUN

if TYPE_CHECKING:
    from compute_router.store import RunFolder

__all__ = ["cancel", "collect", "resume"]

env_file_option = click.option("--env-file", metavar="PATH", help="NAME=VALUE lines to look secrets up in.")


def _learn(cli: Cli, run: RunFolder, env_file: str | None) -> None:
    """Know the secrets that a run declares, from a file."""
    if env_file is None:
        return
    from compute_router.secrets import resolve
    from compute_router.workload import Workload

    workload = run.read("workload", Workload)
    if workload is not None:
        cli.router.given[run.id] = resolve(workload.secrets, env_file=env_file)


@verb()
@click.argument("ids", nargs=-1, required=True, type=RUN, metavar="ID...")
@click.pass_obj
def cancel(cli: Cli, ids: tuple[str, ...]) -> int:
    """Ask runs to end. Comes back at once; silent if one is over already."""

    def ask(ref: str) -> dict[str, Any]:
        run = cli.folder(ref)
        cli.router.cancel(run)
        # The state that was looked at before anything was asked: a final one was asked for nothing.
        status = run.read_json("status") or {"state": "planned"}
        if status["state"] not in ENDS:
            cli.out.line(f"{run.id}  asked to end; it was {told(status)}")
        return {"run_id": run.id, "status": status}

    return each(cli, ids, ask)


@verb()
@click.argument("id", type=RUN, metavar="ID")
@click.option("--raw", is_flag=True, help="Leave the log's escape sequences as they are.")
@env_file_option
@click.pass_obj
def resume(cli: Cli, id: str, raw: bool, env_file: str | None) -> int:
    """Go on with a run from wherever it was left, to its receipt. Starts nothing twice.

    Shows the log from its beginning, or only how it ended where that is here already, and exits like
    `route run`.
    """
    from compute_router.cli.attached import Stages, attached, ended, guard, receipt_of
    from compute_router.cli.leaving import Leaving
    from compute_router.cli.logtext import LogText

    run = cli.folder(id)
    _learn(cli, run, env_file)
    log = LogText(cli.out, raw=raw)
    stages = Stages(cli, log)
    stages.name(run.id)
    leaving = Leaving(asking=cli.out.terminal_err and sys.stdin.isatty())

    def work() -> int:
        receipt = receipt_of(run)
        if receipt is not None:
            return ended(cli, run, receipt)
        return attached(cli, run, leaving, log, stages)

    return guard(cli, leaving, stages, work)


@verb()
@click.argument("ids", nargs=-1, required=True, type=RUN, metavar="ID...")
@env_file_option
@click.pass_obj
def collect(cli: Cli, ids: tuple[str, ...], env_file: str | None) -> int:
    """Bring back final runs' outputs and write their receipts.

    Repeatable: what is there is not fetched again.
    """

    from compute_router.cli.attached import brought
    from compute_router.cli.transfers import Transfers
    from compute_router.collecting import gone
    from compute_router.progress import watched

    def bring(ref: str) -> dict[str, Any]:
        run = cli.folder(ref)
        _learn(cli, run, env_file)
        cli.out.busy("bringing back what it left")
        with watched(Transfers(cli.out)):
            receipt = cli.router.collect(run)
        cli.out.line(str(run.path / "receipt.json"))
        cli.out.note(f"outputs: {brought(run) or 'the work left none'}")
        if said := gone(run):
            cli.out.warn(said)
        return {"run_id": run.id, "path": str(run.path), "receipt_id": receipt.get("receipt_id")}

    return each(cli, ids, bring)
