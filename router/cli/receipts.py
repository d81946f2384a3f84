"""`route receipt show | list | verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from compute_router.cli.app import VerbGroup
from compute_router.cli.call import Cli
from compute_router.cli.options import RUN
from compute_router.cli.words import age, short_id
from compute_router.errors import ExitCode, InputError, NotFound

__all__ = ["receipt"]


@click.group(cls=VerbGroup, subcommand_metavar="VERB [ARGS]...")
def receipt() -> None:
    """Show, list and verify receipts. RECEIPT is a file or a run."""


def _bytes(cli: Cli, ref: str) -> tuple[Path, bytes]:
    """The receipt that `ref` names, as it lies there."""
    path = Path(ref)
    if not path.is_file():
        if path.suffix == ".json" or "/" in ref:
            raise NotFound(f"there is no file {ref}", mend="route receipt list shows the receipts there are")
        run = cli.folder(ref)
        path = run.path / "receipt.json"
        if not path.is_file():
            raise NotFound(f"run {run.id} has no receipt yet", mend=f"route collect {run.id}")
    try:
        return path, path.read_bytes()
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}", mend="check its permissions") from e


def _read(path: Path, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as e:
        raise InputError(f"{path} is no JSON: {e}", mend=f"route receipt verify {path}") from e
    if not isinstance(found, dict) or not str(found.get("schema", "")).startswith("route.receipt/"):
        raise InputError(f"{path} is no receipt", mend="route receipt list shows the receipts there are")
    return found


@receipt.command("show")
@click.argument("ref", type=RUN, metavar="RECEIPT", default="latest")
@click.pass_obj
def show(cli: Cli, ref: str) -> int:
    """Show what was asked for and what was got.

    RECEIPT is a file or a run (default: the newest run).
    """
    from compute_router.receipt.summary import lines

    path, data = _bytes(cli, ref)
    found = _read(path, data)
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


@receipt.command("verify")
@click.argument("refs", nargs=-1, required=True, type=RUN, metavar="RECEIPT...")
@click.pass_obj
def verify(cli: Cli, refs: tuple[str, ...]) -> int:
    """Check that receipts are whole and unchanged. Needs no network and no configuration.

    Exits 65 if one is not. A good digest proves that nothing changed since, not who wrote it.
    """
    from compute_router.receipt import verify as check

    found: list[dict[str, Any]] = []
    bad = 0
    for ref in refs:
        path, _ = _bytes(cli, ref)
        problems = list(check(path))
        bad += bool(problems)
        cli.out.line(f"{path}: {'whole and unchanged' if not problems else 'NOT GOOD'}")
        for problem in problems:
            cli.out.line(f"  {problem}")
        found.append({"path": str(path), "ok": not problems, "problems": [str(p) for p in problems]})
    if bad:
        what = f"{bad} of {len(refs)} receipts are not good"
        cli.out.failed("RECEIPT_INVALID", what, mend="route collect brings a lost one back", data=found)
        return int(ExitCode.REFUSED)
    cli.out.done(found)
    return 0
