"""`route machine add | list | check | remove`: the machines of the configuration that are reached by SSH."""

from __future__ import annotations

import click

from compute_router.cli.adding import add
from compute_router.cli.app import VerbGroup
from compute_router.cli.call import Cli
from compute_router.cli.machinenames import MachineName, as_data, entries, known, own_table, show, where
from compute_router.errors import ExitCode, NotFound, RouteError

__all__ = ["machine"]


@click.group(cls=VerbGroup, subcommand_metavar="VERB [ARGS]...")
def machine() -> None:
    """Add, list, check and remove machines reached by SSH.

    They stand as [machines.NAME] in your config.toml, or in a project's route.toml.
    """


machine.add_command(add)


@machine.command("list")
@click.pass_obj
def listing(cli: Cli) -> int:
    """List the machines of the configuration. Asks no network."""
    from compute_router.records import plain

    found = entries(cli, ())
    rows, data = [], []
    for name, entry in found.items():
        group = f"{entry.group} ({entry.fabric})" if entry.group and entry.fabric else entry.group
        price = f"{entry.price_per_hour} {entry.currency}/h" if entry.price_per_hour else "-"
        rows.append([name, entry.address, entry.accelerator or "-", entry.root, group or "-", price])
        file, line = where(cli, name)
        data.append({"name": name, **plain(entry), "file": file or None, "line": line})
    if rows or not cli.out.terminal:
        header = ["NAME", "ADDRESS", "ACCELERATOR", "ROOT", "GROUP", "PRICE"]
        cli.out.table(header, rows, fold=("ADDRESS", "ROOT", "GROUP"))
    else:
        cli.out.line("no machines; `route machine add NAME USER@ADDRESS` adds one")
    cli.out.done(data)
    return 0


@machine.command("check")
@click.argument("names", nargs=-1, type=MachineName(), metavar="[NAME]...")
@click.pass_obj
def check(cli: Cli, names: tuple[str, ...]) -> int:
    """Look whether runs can be had on machines (default: all), all at once, within 10 s.

    Exits 69 if one of them cannot be used. A line with !! stops no run.
    """
    from compute_router.machines.checking import check_all
    from compute_router.machines.reaching import reach

    chosen = entries(cli, names)
    if not chosen:
        raise NotFound("there are no machines", mend="route machine add NAME USER@ADDRESS adds one")
    cli.out.busy(f"looking at {', '.join(chosen)}")
    found = check_all({name: (reach(name, entry), entry) for name, entry in chosen.items()})
    cli.out.calm()
    for name, checks in found.items():
        cli.out.line(f"{name}  {chosen[name].address}", style="bold")
        show(cli, checks)
    data = [
        {"machine": name, "ok": all(c.ok for c in checks), "checks": [as_data(c) for c in checks]}
        for name, checks in found.items()
    ]
    bad = [name for name, checks in found.items() if not all(c.ok for c in checks)]
    if not bad:
        warnings = sum(c.warns for checks in found.values() for c in checks)
        things = "one thing" if warnings == 1 else f"{warnings} things"
        cli.out.line(f"usable; {things} to look at" if warnings else "all is well")
        cli.out.done(data)
        return 0
    mends = {c.mend for name in bad for c in found[name] if not c.ok}
    mend = mends.pop() if len(mends) == 1 else "what stands below each `no`"
    cli.out.failed("UNHEALTHY", f"{', '.join(bad)} cannot be used", mend=mend, data=data)
    return int(ExitCode.UNAVAILABLE)


@machine.command("remove")
@click.argument("name", type=MachineName())
@click.pass_obj
def remove(cli: Cli, name: str) -> int:
    """Forget a machine and its key. Runs that it has go on, and can be found once it is added again."""
    from compute_router.home import default_home
    from compute_router.machines.editing import remove as take_out
    from compute_router.machines.memory import Memory
    from compute_router.machines.pins import alias, pinned, unpin

    there = own_table(cli, name)
    had_key = bool(pinned(alias(name)))
    if there is None and not had_key:
        known(name, cli.router.config.machines)
    live = _live(cli, name)
    if there is not None:
        take_out(name)
    unpin(name)
    Memory(default_home()).forget(name)
    cli.out.line(
        f"removed {name}" + ("" if there is not None else ": its key, which was all there was of it")
    )
    if live:
        runs = ", ".join(live)
        what = "1 run there is" if len(live) == 1 else f"{len(live)} runs there are"
        cli.out.warn(f"{what} not over and go{'es' if len(live) == 1 else ''} on unseen: {runs}")
    cli.out.done({"machine": name, "removed": there is not None, "key_removed": had_key, "live": live})
    return 0


def _live(cli: Cli, name: str) -> list[str]:
    """Runs of this store that are not over and were started on the machine `name`."""
    from compute_router.backend import Handle
    from compute_router.home import default_home
    from compute_router.index import list_runs

    found = []
    try:
        for row in list_runs(default_home(), limit=None, live=True):
            handle = cli.router.store.open(row.id).read("handle", Handle)
            if handle is not None and name in handle.data.get("machines", ()):
                found.append(row.id)
    except RouteError as e:
        cli.out.warn(f"it cannot be told whether {name} has runs: {e.what}")
    return found
