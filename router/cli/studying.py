"""`route study run | plan | status | list | resume | cancel`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import VerbGroup
from compute_router.cli.call import Cli
from compute_router.cli.options import Waiting
from compute_router.cli.studynames import ARM, FILE, STUDY, known
from compute_router.cli.words import age, duration, one_line
from compute_router.errors import ExitCode, Refused

if TYPE_CHECKING:
    from compute_router.studies.folder import StudyFolder
    from compute_router.studies.plan import StudyPlan
    from compute_router.studies.reading import Read

__all__ = ["study"]


def _open(cli: Cli, ref: str) -> StudyFolder:
    from compute_router.home import default_home
    from compute_router.studies.folder import StudyFolder

    return StudyFolder.open(default_home(), ref)


@click.group(cls=VerbGroup, subcommand_metavar="VERB [ARGS]...")
def study() -> None:
    """Compare by design: runs in an order fixed beforehand.

    A study.toml names the arms, how often each is run and what is to differ; the runs are
    interleaved, outlive the terminal, and none that counted is repeated.
    """


def _going(f: Any) -> Any:
    """The options of what may start a driver."""
    for option in reversed(
        [
            click.option("--detach", "-d", is_flag=True, help="Print the id alone and come back at once."),
            click.option("--keep-going", is_flag=True, help="Do not stop after failures in a row."),
            click.option(
                "--wait",
                type=Waiting(),
                default="1h",
                metavar="TIME",
                help="Wait for a busy place: 0, 1h (the default), forever.",
            ),
            click.option("--env-file", metavar="PATH", help="NAME=VALUE lines to look secrets up in."),
        ]
    ):
        f = option(f)
    return f


@study.command("run")
@click.argument("file", type=FILE, metavar="[FILE]", default="study.toml")
@_going
@click.option("--new", is_flag=True, help="Another study, though one of this file is not over.")
@click.pass_obj
def run(
    cli: Cli, file: str, detach: bool, keep_going: bool, wait: int, env_file: str | None, new: bool
) -> int:
    """Run the study of FILE, or go on with it, and follow it.

    FILE is a study.toml (default: the one here) or a ready-made study (attention). The same
    file and the same code are the same study: what counted is not repeated.
    """
    from compute_router.studies.folder import StudyFolder

    found = _read(cli, file)
    home = cli.router.store.home
    folder = StudyFolder(home, found.plan.id)
    if not folder.file.is_file():
        if not new:
            _alone(home, found.plan)
        cli.router.store.writable()
        folder.create(found.plan)
    return _go(cli, folder, detach=detach, keep_going=keep_going, wait=wait, env_file=env_file)


@study.command("resume")
@click.argument("id", type=STUDY, metavar="[ID]", default="latest")
@_going
@click.pass_obj
def resume(cli: Cli, id: str, detach: bool, keep_going: bool, wait: int, env_file: str | None) -> int:
    """Go on with a study (default: the newest), or follow it if it is running.

    Its files must be those it was begun with.
    """
    folder = _open(cli, id)
    return _go(cli, folder, detach=detach, keep_going=keep_going, wait=wait, env_file=env_file)


def _read(cli: Cli, file: str, *, keep: bool = True) -> Read:
    from compute_router.config import load_config
    from compute_router.studies.reading import find, read

    path, stand = find(file)
    cli.out.busy("looking at the files")
    found = read(
        path,
        stand=stand,
        kinds=cli.router.registry.kinds(),
        config=load_config(stand),
        home=cli.router.store.home,
        keep=keep,
    )
    cli.out.calm()
    for warning in found.warnings:
        cli.out.warn(warning)
    return found


def _alone(home: Path, plan: StudyPlan) -> None:
    """Refuse to begin a study while another of the same file is not over: it has lost its order."""
    from compute_router.studies.folder import studies
    from compute_router.studies.standing import standing

    for folder in studies(home):
        old = folder.plan
        if old.file != plan.file or old.name != plan.name:
            continue
        stands = standing(folder)
        begun = sum(seen.counted for seen in stands.seen)
        if begun and stands.state not in ("over", "cancelled"):
            raise Refused(
                f"{_differs(old, plan)} since study {old.id} was begun, of which {begun} of "
                f"{len(old.turns)} runs counted",
                mend=f"put it back, or begin another study: route study run {_short(plan.file)} --new",
            )
        return


def _short(file: str) -> str:
    from compute_router.reading.layers import shown_path

    return shown_path(Path(file))


def _differs(old: StudyPlan, new: StudyPlan) -> str:
    before = {arm.name: arm for arm in old.arms}
    arms = [arm for arm in new.arms if arm.name in before]
    code = [arm.name for arm in arms if arm.code_sha256 != before[arm.name].code_sha256]
    if code and len(before) == len(new.arms) == len(arms):
        which = "all arms" if len(code) == len(arms) else f"arm {', '.join(code)}"
        return f"the files of {which} have changed"
    return f"what {_short(new.file)} says has changed"


def _go(
    cli: Cli, folder: StudyFolder, *, detach: bool, keep_going: bool, wait: int, env_file: str | None
) -> int:
    from compute_router.cli.studied import begun, ended, follow
    from compute_router.studies.driver import start
    from compute_router.studies.driving import changed
    from compute_router.studies.standing import standing

    stands = standing(folder)
    if stands.state == "over":
        cli.out.note("the study is over already; nothing was started")
        return ended(cli, folder)
    process = None
    offset = folder.told()
    if not stands.driven:
        in_flight = any(folder.turn(s.turn.index).open for s in stands.seen)
        if not in_flight and (what := changed(folder, cli.router)):
            mend = "put them back, or begin another study: route study run FILE --new"
            raise Refused(what, mend=mend)
        values: dict[str, str] = {}
        for arm in folder.plan.arms:
            values |= _secrets(arm.workload, env_file)
        process = start(
            folder,
            secrets=values,
            wait_us=None if wait < 0 else wait,
            keep_going=keep_going,
            plugins=cli.plugins,
        )
    if detach:
        if not cli.out.as_json:
            cli.out.text(folder.id + "\n")
        cli.out.done({"study_id": folder.id, "path": str(folder.path), "started": process is not None})
        return 0
    begun(cli, folder, started=process is not None)
    return follow(cli, folder, process, offset)


def _secrets(workload: Any, env_file: str | None) -> dict[str, str]:
    """The values of what a workload declares, looked up where `route run` looks."""
    from compute_router.cli.running import secret_values
    from compute_router.secrets import resolve

    if not workload.secrets:
        return {}
    return secret_values(workload, env_file) or resolve(workload.secrets)


@study.command("plan")
@click.argument("file", type=FILE, metavar="[FILE]", default="study.toml")
@click.option("--wait", type=Waiting(), default="1h", metavar="TIME", help="As for `route study run`.")
@click.pass_obj
def plan(cli: Cli, file: str, wait: int) -> int:
    """Show the order, and where each arm would run and why. Starts nothing.

    Exits 65 if an arm has no place.
    """
    from compute_router.cli.output import problem
    from compute_router.cli.studied import headed
    from compute_router.policy import Limits

    found = _read(cli, file, keep=False).plan
    places: list[dict[str, Any]] = []
    error = None
    cli.out.busy("asking the backends")
    for arm in found.arms:
        limits = Limits(
            wait_us=None if wait < 0 else wait,
            detached=True,
            price_limit=arm.workload.price_limit,
            pin=arm.backend,
            rules=cli.router.config.rules,
        )
        made = cli.router.plan(arm.workload, policy=arm.policy, limits=limits).decision
        place = {"arm": arm.name, "outcome": made.outcome.value, "sentence": made.sentence, "mend": made.mend}
        places.append({**place, "backend": made.ranked[0].backend if made.ranked else None})
        if made.outcome.value == "refused" and error is None:
            error = problem("NO_PLACE", f"arm {arm.name}: {made.sentence}", made.mend)
    cli.out.calm()
    cli.out.pairs(
        [
            *headed(found),
            *((f"arm {p['arm']}", one_line(f"{p['outcome']}: {p['sentence']}")) for p in places),
        ]
    )
    cli.out.line()
    cli.out.table(["RUN", "BLOCK", "ARM"], [[str(t.index), str(t.block), t.arm] for t in found.turns])
    from compute_router.records import plain

    cli.out.done({"plan": plain(found), "places": places}, error=error)
    return int(ExitCode.REFUSED) if error else 0


@study.command("status")
@click.argument("id", type=STUDY, metavar="[ID]", default="latest")
@click.option("--arm", type=ARM, metavar="NAME", help="Only the runs of this arm.")
@click.pass_obj
def status(cli: Cli, id: str, arm: str | None) -> int:
    """Show each run in its order, what is missing and what claims to belong (default: the newest).

    Asks no place: what runs is followed by its driver.
    """
    from compute_router.cli.studied import as_data, show
    from compute_router.errors import NotFound
    from compute_router.reading.values import near
    from compute_router.studies.standing import standing

    found = standing(_open(cli, id))
    names = [each.name for each in found.plan.arms]
    if arm is not None and arm not in names:
        raise NotFound(f"study {found.plan.id} has no arm {arm!r}", mend=near(arm, names))
    show(cli, found, arm)
    cli.out.done(as_data(found))
    return 0


@study.command("list")
@click.pass_obj
def list_(cli: Cli) -> int:
    """List studies, newest first."""
    from compute_router.studies.standing import standing

    found = [(folder, standing(folder)) for folder in known()]
    cli.out.table(
        ["STUDY", "STATE", "RUNS", "ARMS", "BEGUN"],
        [
            [
                folder.id,
                stands.state,
                f"{sum(s.counted for s in stands.seen)} of {len(stands.seen)}",
                ", ".join(arm.name for arm in stands.plan.arms),
                age(stands.plan.created_us),
            ]
            for folder, stands in found
        ],
    )
    cli.out.done(
        [
            {
                "study_id": folder.id,
                "sha256": stands.plan.sha256,
                "name": stands.plan.name,
                "state": stands.state,
                "counted": sum(s.counted for s in stands.seen),
                "planned": len(stands.seen),
                "arms": [arm.name for arm in stands.plan.arms],
                "created_us": stands.plan.created_us,
                "file": stands.plan.file,
                "path": str(folder.path),
            }
            for folder, stands in found
        ]
    )
    return 0


@study.command("cancel")
@click.argument("id", type=STUDY, metavar="ID")
@click.pass_obj
def cancel(cli: Cli, id: str) -> int:
    """End a study and its run in flight. Silent if it is over.

    The run in flight is collected; it counts as cancelled.
    """
    from compute_router.cli.studied import as_data
    from compute_router.studies.standing import standing

    folder = _open(cli, id)
    if standing(folder).state != "over":
        end(cli, folder)
    found = standing(folder)
    counted = sum(seen.counted for seen in found.seen)
    cli.out.line(f"{folder.id}  {found.state}; {counted} of {len(found.seen)} runs counted")
    cli.out.done(as_data(found))
    return 0


def end(cli: Cli, folder: StudyFolder) -> None:
    """End the driver of a study, or what a dead one left in flight; returns when it has ended."""
    from compute_router.errors import Unavailable
    from compute_router.studies.driving import Driver

    folder.ask_cancel()
    asked: int | None = None
    began = time.monotonic()
    cli.out.busy("ending the run in flight")
    while (lock := folder.take(patience=0.2)) is None:
        pid = folder.driver
        if pid is not None and pid != asked:
            asked = pid
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        if time.monotonic() - began > 300:
            what = f"the driver of {folder.id} has been asked to end and has not for {duration(300_000_000)}"
            raise Unavailable(what, mend=f"route study status {folder.id}")
    try:
        ending = folder.ending
        if ending is None or ending.state != "cancelled":
            # Nobody drove it, or the driver ended before it could do this.
            made = Driver(cli.router, folder).cancel()
            folder.end(made)
    finally:
        os.close(lock)
        folder.ask_cancel(False)
        cli.out.calm()
