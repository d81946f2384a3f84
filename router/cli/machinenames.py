"""Machines as the command line names and shows them: completion, where each is written, lines of a check."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.call import Cli
from compute_router.cli.options import Words
from compute_router.errors import NotFound, Refused

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from compute_router.backend import HealthCheck
    from compute_router.machines.entry import MachineEntry

__all__ = ["MachineName", "as_data", "entries", "known", "own_table", "show", "where"]


class MachineName(Words):
    """A machine of the configuration."""

    name = "machine"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from compute_router.config import load_config

        try:
            tables = load_config(Path.cwd()).machines
        except Exception:
            # Completion never complains; the verb itself will.
            return []
        named = set(ctx.params.get("names") or ())
        return [
            CompletionItem(name, help=str(tables[name].get("address", "")))
            for name in sorted(set(tables) - named)
            if name.startswith(incomplete)
        ]


def own_table(cli: Cli, name: str) -> dict[str, Any] | None:
    """What the user's own file says of `name`; raises `Refused` where a project's file does."""
    table = cli.router.config.machines.get(name)
    if table is None:
        return None
    file, line = where(cli, name)
    if not _is_own(file):
        raise Refused(
            f"{name} stands in a project's file, which is for you to edit",
            mend=f"edit it there, or give another name; `route machine check {name}` looks at it",
            file=file,
            line=line,
        )
    return dict(table)


def where(cli: Cli, name: str) -> tuple[str, int | None]:
    file, _, line = cli.router.config.origins.get(f"machines.{name}", "").rpartition(":")
    return file, int(line) if line.isdigit() else None


def _is_own(file: str) -> bool:
    from compute_router.config import own_path
    from compute_router.reading.layers import shown_path

    return file == shown_path(own_path(), Path(os.path.realpath(Path.cwd())))


def entries(cli: Cli, names: tuple[str, ...]) -> dict[str, MachineEntry]:
    """The machines called `names`, or all. Raises `NotFound` with the nearest name."""
    from compute_router.machines.entry import read_entries

    config = cli.router.config
    for name in names:
        known(name, config.machines)
    chosen = {n: t for n, t in config.machines.items() if not names or n in names}
    return read_entries(chosen, config.origins)


def known(name: str, tables: Mapping[str, Any]) -> None:
    from compute_router.cli.words import nearest

    if name not in tables:
        near = nearest(name, list(tables))
        mend = f"did you mean {near}? " if near else ""
        raise NotFound(f"there is no machine {name!r}", mend=f"{mend}`route machine list` lists them")


def show(cli: Cli, checks: tuple[HealthCheck, ...]) -> None:
    for each in checks:
        cli.out.marked(each.ok, f"{each.name}: {each.seen}", warns=each.warns)
        if each.mend and (each.warns or not each.ok):
            cli.out.below(f"mend: {each.mend}")


def as_data(each: HealthCheck) -> dict[str, Any]:
    return {"check": each.name, "ok": each.ok, "warns": each.warns, "seen": each.seen, "mend": each.mend}
