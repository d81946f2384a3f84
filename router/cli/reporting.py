"""`route report`: a comparison as one HTML file to look at."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import verb
from compute_router.cli.arms import answer, comparison_options
from compute_router.cli.call import Cli
from compute_router.errors import ExitCode, InputError

if TYPE_CHECKING:
    from compute_router.compare.outcome import Comparison

__all__ = ["report"]


@verb()
@comparison_options
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False),
    default="report.html",
    metavar="FILE",
    help="Where to write it (report.html); `-` is stdout.",
)
@click.option("--title", default="", metavar="TEXT", help="The heading (default: the arms).")
@click.pass_obj
def report(cli: Cli, /, output: str, title: str, **options: Any) -> int:
    """Write what `route compare` says as one HTML file that needs no network.

    REF and the options are those of `route compare`. Overwrites nothing but a report.

    Exits 65 if nothing can be compared; the report then says why.
    """
    from compute_router.report import page
    from compute_router.scrubbing import clean

    if output == "-" and cli.out.as_json:
        raise InputError("stdout cannot hold both a page and JSON", mend="name a file: -o report.html")
    if output != "-":
        _writable(output)
    found = answer(cli, **options)
    text = clean(page(found, title=title, command=_command(cli, options)))
    if output == "-":
        cli.out.text(text)
    else:
        _write(output, text)
        for contrast in found.contrasts:
            cli.out.line(contrast.sentence)
        cli.out.line(os.path.abspath(output))
    return _end(cli, found, output, len(text.encode()))


def _end(cli: Cli, found: Comparison, output: str, size: int) -> int:
    data = {
        "path": None if output == "-" else os.path.abspath(output),
        "bytes": size,
        "refused": found.refused,
        "contrasts": [
            {
                "base": c.base,
                "candidate": c.candidate,
                "result": c.result.value,
                "verdict": c.verdict and c.verdict.value,
                "standing": c.standing and c.standing.value,
                "sentence": c.sentence,
            }
            for c in found.contrasts
        ],
    }
    if not found.refused:
        cli.out.done(data)
        return 0
    rules = (*found.refusals, *(r for c in found.contrasts for r in c.refusals))
    standing = [r for r in rules if not r.waived]
    what = (
        f"{standing[0].number} {standing[0].code}: {standing[0].what}" if standing else "nothing was compared"
    )
    mend = standing[0].mend if standing else "name receipts of two things"
    cli.out.failed(standing[0].code if standing else "REFUSED", what, mend=mend, data=data)
    return int(ExitCode.REFUSED)


def _command(cli: Cli, options: dict[str, Any]) -> str:
    """The comparison as it was asked for, with runs by their ids."""
    refs = [
        cli.folder(ref).id if ref.startswith("latest") and not os.path.lexists(ref) else ref
        for ref in options["refs"]
    ]
    words = ["route", "compare", *refs]
    for name in ("by", "metric", "margin", "allowed_signers"):
        if options[name] is not None:
            words += [f"--{name.replace('_', '-')}", f"{options[name]}"]
    for name in ("vary", "allow", "because"):
        words += [word for value in options[name] for word in (f"--{name}", value)]
    words += [f"--{word}" for word, name in (("olympic", "olympic"), ("self", "itself")) if options[name]]
    return shlex.join(words)


def _writable(output: str) -> None:
    """Raises `InputError` where a page may not be written: whatever is there and is no report stays."""
    from compute_router.report import is_page

    try:
        if os.path.lexists(output) and not os.path.isfile(output):
            raise InputError(
                f"{output} is no file to write to", mend="name another: -o FILE, or -o - for stdout"
            )
        with open(output, "rb") as there:
            mine = is_page(there.read(2000))
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
            raise InputError(f"there is no folder for {output}", mend="make it, or name another file")
        return
    except OSError as e:
        raise InputError(f"{output} cannot be written: {e.strerror}", mend="name another file: -o FILE")
    if not mine and os.path.getsize(output):
        what = f"{output} is there already, and is no report"
        raise InputError(what, mend="name another file (-o FILE), or remove it")


def _write(output: str, text: str) -> None:
    """The whole page under its name, or nothing. A link is followed."""
    from compute_router.durable import write_beside

    # What a new file of this process may be; it can only be asked by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    path = Path(os.path.realpath(output))
    try:
        beside = write_beside(path.parent, path.name, text.encode())
        try:
            beside.chmod(0o666 & ~mask)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as e:
        raise InputError(f"{output} cannot be written: {e.strerror}", mend="name another file: -o FILE")
