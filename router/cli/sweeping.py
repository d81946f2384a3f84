"""`route gc`: what may be removed. Records and receipts stay unless they are asked for by name."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.codes import ENDS
from compute_router.cli.options import RUN, Waiting
from compute_router.cli.words import age, short_id, size
from compute_router.errors import Refused, RouteError

if TYPE_CHECKING:
    from compute_router.rows import Row
    from compute_router.store import RunFolder

__all__ = ["gc"]

HOUR, DAY = 3600, 86400


@verb()
@click.option("--delete", is_flag=True, help="Remove it; without this it is only shown.")
@click.option("--dry-run", is_flag=True, help="Only show it (the default).")
@click.option(
    "--older-than", type=Waiting(), default="30d", metavar="TIME", help="Runs over for this long (30d)."
)
@click.option("--outputs", is_flag=True, help="Also the outputs and logs kept here of those runs.")
@click.option(
    "--run", "named", multiple=True, type=RUN, metavar="ID", help="Remove this run with its receipt."
)
@click.pass_obj
def gc(cli: Cli, delete: bool, dry_run: bool, older_than: int, outputs: bool, named: tuple[str, ...]) -> int:
    """Show what may be removed; --delete removes it.

    That is what old collected runs may still hold at the places they ran, code and data there that
    no run needs any more, and what unfinished writes left behind; with --outputs also what was
    brought here. Records and receipts stay here: a run goes as a whole only if --run names it.
    """
    delete = delete and not dry_run
    store = cli.router.store
    now = time.time()
    found: list[dict[str, Any]] = []
    if named:
        for ref in named:
            found.append(_whole(cli, store.open(ref), delete))
    else:
        for row in store.list(limit=None, state=list(ENDS)):
            before = int(now * 1e6) - older_than
            if older_than >= 0 and row.collected and (row.ended_us or row.created_us) < before:
                run = store.open(row.id)
                found += filter(None, [_place(cli, run, row, delete)])
                found += filter(None, [_brought(run, delete)] if outputs else [])
        found += _there(cli, delete, int(now * 1e6) - older_than) if older_than >= 0 else []
        found += _broken(cli, delete, before=now - HOUR)
        if delete and store.home.is_dir():
            swept = store.sweep(before=now - DAY)
            if swept:
                found.append({"run_id": None, "what": f"{swept} unfinished writes", "removed": True})
    rows = [
        [short_id(e["run_id"]) if e["run_id"] and cli.out.terminal else e["run_id"] or "-", e["what"]]
        for e in found
    ]
    if rows:
        cli.out.table(["RUN", "REMOVED" if delete else "WOULD GO"], rows)
    else:
        cli.out.line("nothing to remove")
    if rows and not delete:
        cli.out.note("nothing was removed: --delete does it")
    cli.out.done(found)
    return 0


def _whole(cli: Cli, run: RunFolder, delete: bool) -> dict[str, Any]:
    """One run with all it has; refused while it may be going on."""
    status = run.read_json("status") or {}
    if run.has("intent") and status.get("state") not in ENDS:
        raise Refused(f"run {run.id} is not over", mend=f"route cancel {run.id}, then route wait {run.id}")
    files = [path for path in run.path.rglob("*") if path.is_file() and not path.is_symlink()]
    what = f"everything: {_many(len(files), 'file')}, {size(sum(map(_bytes, files)))}, its receipt with them"
    if delete:
        if not _cleaned(run):
            _clean(cli, run)
        cli.router.store.remove(run.id)
    return {"run_id": run.id, "what": what, "removed": delete}


def _bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _place(cli: Cli, run: RunFolder, row: Row, delete: bool) -> dict[str, Any] | None:
    """What one collected run holds at its place; None if that was freed before."""
    if not run.has("handle") or _cleaned(run):
        return None
    what = f"what it may still hold at {row.backend}; it was over {age(row.ended_us)}"
    if delete:
        try:
            _clean(cli, run)
        except RouteError as e:
            cli.out.warn(f"{run.id}: {e.what}")
            return None
    return {"run_id": run.id, "what": what, "removed": delete}


def _there(cli: Cli, delete: bool, before_us: int) -> list[dict[str, Any]]:
    """What the places hold that nobody needs any more, whichever client brought it there."""
    from compute_router.gather import side_by_side

    cli.out.busy("asking the places")
    calls = {}
    for name in cli.router.registry.backends():
        try:
            calls[name] = functools.partial(cli.router.backend(name).sweep, before_us, delete=delete)
        except RouteError as e:
            cli.out.warn(f"{name}: {e.what}")
    answers = side_by_side(calls, None)
    cli.out.calm()
    found = []
    for name, freed in sorted(answers.items()):
        if isinstance(freed, BaseException):
            cli.out.warn(f"{name}: {freed.what if isinstance(freed, RouteError) else freed}")
            continue
        for each in freed:
            place = f"{name}/{each.place}"
            if each.why:
                cli.out.warn(f"{place} could not be asked: {each.why}")
            elif each.runs or each.files or each.size_bytes:
                parts = [_many(len(each.runs), "collected run")] if each.runs else []
                parts += [f"{_many(each.files, 'file')} no run there needs"] if each.files else []
                what = ", ".join([*parts, size(each.size_bytes)])
                found.append(
                    {"run_id": None, "place": place, "what": f"{place}: {what}", "removed": delete}
                    | {"runs": list(each.runs), "bytes": each.size_bytes}
                )
    return sorted(found, key=lambda entry: str(entry["place"]))


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _broken(cli: Cli, delete: bool, *, before: float) -> list[dict[str, Any]]:
    """Folders that no longer say what was run: no list shows them, and nothing can be done with them."""
    from compute_router.index import folders

    found = []
    for path in map(Path, folders(cli.router.store.home)):
        if not (path / "workload.json").exists() and path.stat().st_mtime < before:
            if delete:
                cli.router.store.remove(path.name)
            found.append({"run_id": path.name, "what": "broken: it has no workload.json", "removed": delete})
    return found


def _brought(run: RunFolder, delete: bool) -> dict[str, Any] | None:
    """The outputs and the log of one run, of each of its machines, kept here."""
    import shutil

    places = [run.path, *run.path.glob("nodes/*-*")]
    files = [p for at in places for p in (at / "outputs").rglob("*") if p.is_file() and not p.is_symlink()]
    files += [p for at in places if (p := at / "log").is_file()]
    if not files:
        return None
    what = f"outputs and log kept here: {_many(len(files), 'file')}, {size(sum(map(_bytes, files)))}"
    if delete:
        for at in places:
            shutil.rmtree(at / "outputs", ignore_errors=True)
            (at / "log").unlink(missing_ok=True)
    return {"run_id": run.id, "what": what, "removed": delete}


def _clean(cli: Cli, run: RunFolder) -> None:
    from compute_router.backend import Handle
    from compute_router.starting import guarded
    from compute_router.workload import Workload

    handle = run.read("handle", Handle)
    if handle is not None:
        found, backend = handle, cli.router.backend(handle.backend, run.read("workload", Workload))
        guarded(handle.backend, lambda: backend.cleanup(found))
        run.append_event({"event": "cleaned", "run_id": run.id, "at_us": time.time_ns() // 1000})


def _cleaned(run: RunFolder) -> bool:
    try:
        return b'"event":"cleaned"' in (run.path / "events.jsonl").read_bytes()
    except OSError:
        return False
