"""`route receipt sign | export`: a signature beside a receipt, and what carries both to others."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from compute_router.cli.app import Verb
from compute_router.cli.call import Cli
from compute_router.cli.options import RUN
from compute_router.cli.verifying import place
from compute_router.errors import InputError

if TYPE_CHECKING:
    from compute_router.receipt.opening import Opened

__all__ = ["export", "sign"]

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


@click.command(cls=Verb)
@click.argument("ref", type=RUN, metavar="RECEIPT")
@click.option(
    "--format", "form", type=click.Choice(["bundle", "in-toto"]), default="bundle", show_default=True,
    help="A zip archive with what the run left, or an in-toto statement about it.",
)  # fmt: skip
@click.option("-o", "--output", required=True, metavar="FILE", help="Where to; - is stdout.")
@click.option("--key", metavar="FILE", help=f"in-toto: sign the statement. {KEY}")
@click.option("--replace", is_flag=True, help="Write over FILE if it is there.")
@click.pass_obj
def export(cli: Cli, ref: str, form: str, output: str, key: str | None, replace: bool) -> int:
    """Write a receipt for others: with its artifacts, or as an in-toto statement about them.

    RECEIPT is a receipt's file, a folder with one, or a run. `route receipt verify` reads both.
    What is not good, not whole or not there any more is refused.
    """
    from compute_router.receipt.exporting import bundle, good, into_file, sources, statement_of

    if key is not None and form == "bundle":
        raise InputError(
            "a bundle carries the receipt's own signature", mend="route receipt sign it, then export it"
        )
    into = None if output == "-" else Path(output)
    if into is None and cli.out.as_json:
        raise InputError("stdout cannot carry both the document and the export", mend="-o FILE")
    if into is not None and os.path.lexists(into) and not (replace and into.is_file()):
        what = "is there already" if into.is_file() else "is no regular file"
        raise InputError(f"{into} {what}", mend="another -o, or --replace to write over a file")
    path = place(cli, ref)
    found = good(path)
    if into and into.exists() and any(into.samefile(each) for each in (path, *sources(found))):
        raise InputError(f"{into} is part of what is to be exported", mend="another -o")
    _warn(cli, found, form, key)
    count = 0
    if form == "bundle":
        if into is None and sys.stdout.isatty():
            raise InputError("a terminal shows no archive", mend="-o FILE, or a pipe behind it")
        count = into_file(into, lambda f: bundle(found, f)) if into else _streamed(cli, found)
    else:
        data = statement_of(found, key, prompting=prompting(cli))
        if into:
            into_file(into, lambda f: f.write(data))
        else:
            cli.out.bytes(data)
    if into:
        with_ = f" with {count} artifacts" if form == "bundle" else ", signed" if key else ""
        cli.out.line(f"{into}: {form} of the receipt{with_}")
        cli.out.done({"path": str(into), "format": form, "artifacts": count if form == "bundle" else None})
    return 0


def _warn(cli: Cli, found: Opened, form: str, key: str | None) -> None:
    """What whoever sends this off should know."""
    import json

    from compute_router.receipt.facts import value

    for caveat in value(json.loads(found.data).get("context"), "caveats") or []:
        if "for secrets" in caveat:
            cli.out.warn(f"the receipt says: {caveat}")
    if form == "in-toto" and found.signatures and key is None:
        cli.out.warn("a statement does not carry the receipt's signature; --key signs the statement")


def _streamed(cli: Cli, found: Opened) -> int:
    """A bundle on stdout, once it is whole."""
    from compute_router.receipt.exporting import bundle

    try:
        with tempfile.TemporaryFile() as f:
            whole: BinaryIO = f
            count = bundle(found, whole)
            f.seek(0)
            while piece := f.read(1 << 20):
                cli.out.bytes(piece)
    except OSError as e:
        if isinstance(e, BrokenPipeError):
            raise
        raise InputError(
            f"the bundle cannot be made: {e.strerror}", mend="set TMPDIR to a folder with room"
        ) from e
    return count
