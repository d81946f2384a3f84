"""`route receipt sign`: a signature beside a receipt, by ssh-keygen."""

from __future__ import annotations

import sys
from typing import Any

import click

from compute_router.cli.app import Verb
from compute_router.cli.call import Cli
from compute_router.cli.options import RUN
from compute_router.cli.verifying import place

__all__ = ["sign"]

KEY = "A private key, or a .pub whose private key an SSH agent holds."


def prompting(cli: Cli) -> bool:
    """Whether somebody is there who can be asked for a passphrase."""
    return not cli.out.as_json and sys.stdin.isatty() and cli.out.terminal_err


@click.command(cls=Verb)
@click.argument("refs", nargs=-1, required=True, type=RUN, metavar="RECEIPT...")
@click.option("--key", required=True, metavar="FILE", help=KEY)
@click.option("--replace", is_flag=True, help="Sign again where there is a signature.")
@click.pass_obj
def sign(cli: Cli, refs: tuple[str, ...], key: str, replace: bool) -> int:
    """Sign receipts by `ssh-keygen -Y sign`, each into receipt.json.sig beside it.

    RECEIPT is a receipt's file, a folder with one, or a run. A passphrase is asked for on the
    terminal. Anyone checks it without route: docs/receipts.md shows the command.
    """
    from compute_router.receipt.signing import sign as seal

    found: list[dict[str, Any]] = []
    for ref in refs:
        path = place(cli, ref)
        made = seal(path, key, prompting=prompting(cli), replace=replace)
        cli.out.line(f"{made}: signed by {key}")
        found.append({"receipt": str(path), "signature": str(made)})
    cli.out.done(found)
    return 0
