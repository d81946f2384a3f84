"""`route receipt`: show and list receipts; the other verbs of the group have rooms of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from compute_router.cli.app import VerbGroup
from compute_router.cli.call import Cli
from compute_router.cli.options import RUN
from compute_router.cli.sealing import export, sign
from compute_router.cli.verifying import place, verify
from compute_router.cli.words import age, short_id
from compute_router.errors import InputError

__all__ = ["receipt"]


@click.group(cls=VerbGroup, subcommand_metavar="VERB [ARGS]...")
def receipt() -> None:
    """Show, list, verify, sign and export receipts. RECEIPT is a file, a folder with one, or a run."""


def _read(path: Path) -> dict[str, Any]:
    """The receipt in whatever lies at `path`."""
    from compute_router.receipt.opening import opened

    found = opened(path)
    if not found.data:
        raise InputError(
            f"{path} cannot be read: {found.problems[0].what}", mend=f"route receipt verify {path}"
        )
    try:
        data = json.loads(found.data)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path} is no JSON: {e}", mend=f"route receipt verify {path}") from e
    if not isinstance(data, dict) or not str(data.get("schema", "")).startswith("route.receipt/"):
        raise InputError(f"{path} is no receipt", mend="route receipt list shows the receipts there are")
    return data


@receipt.command("show")
@click.argument("ref", type=RUN, metavar="[RECEIPT]", default="latest")
@click.pass_obj
def show(cli: Cli, ref: str) -> int:
    """Show what was asked for and what was got.

    RECEIPT is a file or a run (default: the newest run).
    """
    from compute_router.receipt.summary import lines

    path = place(cli, ref)
    found = _read(path)
    cli.out.pairs([*lines(found), ("file", str(path))])
    cli.out.done(found)
    return 0


@receipt.command("list")
@click.option("--limit", "-n", type=click.IntRange(min=1), default=50, help="How many, newest first (50).")
@click.option("--kind", metavar="KIND", help="Only of this kind.")
@click.option("--name", metavar="NAME", help="Only of workloads of this name.")
@click.pass_obj
def list_(cli: Cli, limit: int, kind: str | None, name: str | None) -> int:
    """List receipts, newest first."""
    from compute_router.cli.codes import ENDS
    from compute_router.home import default_home
    from compute_router.index import list_runs

    rows = list_runs(default_home(), limit=None, state=list(ENDS), kind=kind, name=name, notice=cli.out.warn)
    rows = [row for row in rows if row.collected][:limit]
    short = short_id if cli.out.terminal else str
    cli.out.table(
        ["RUN", "RECEIPT", "KIND", "NAME", "STATE", "OVER"],
        [
            [
                short(r.id),
                (r.receipt_id or "-")[:12],
                r.kind,
                r.name,
                r.state,
                age(r.ended_us or r.created_us),
            ]
            for r in rows
        ],
    )
    home = default_home()
    cli.out.done(
        [
            {
                "run_id": row.id,
                "receipt_id": row.receipt_id,
                "kind": row.kind,
                "name": row.name,
                "state": row.state,
                "ended_us": row.ended_us,
                "path": str(home / "runs" / row.id / "receipt.json"),
            }
            for row in rows
        ]
    )
    return 0


for _verb in (verify, sign, export):
    receipt.add_command(_verb)
