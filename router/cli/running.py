"""`route run` and `route rerun`: from a workload to its receipt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.options import (
    RUN,
    Waiting,
    backend_option,
    policy_option,
    profile_option,
    set_option,
)
from compute_router.cli.target import TargetVerb, load

if TYPE_CHECKING:
    from compute_router.policy import Limits
    from compute_router.store import RunFolder
    from compute_router.workload import Workload

__all__ = ["go", "how", "limits", "rerun", "run", "secret_values"]


def how(f: Any) -> Any:
    """The options `run` and `rerun` share."""
    for option in reversed(
        [
            policy_option,
            backend_option,
            click.option("--detach", "-d", is_flag=True, help="Print the id alone and come back at once."),
            click.option("--dry-run", is_flag=True, help="Say what would be done; start nothing."),
            click.option(
                "--wait",
                type=Waiting(),
                default="0",
                metavar="TIME",
                help="Wait for a busy place: 0, 30m, forever.",
            ),
            click.option("--key", metavar="KEY", help="The same key and workload: the same run, once."),
            click.option("--env-file", metavar="PATH", help="NAME=VALUE lines to look secrets up in."),
            click.option("--raw", is_flag=True, help="Leave the log's escape sequences as they are."),
        ]
    ):
        f = option(f)
    return f


@verb(cls=TargetVerb)
@how
@set_option
@profile_option
@click.option("--cases", metavar="FILE", help="JSON lines: an independent run of the workload for each.")
@click.pass_obj
def run(
    cli: Cli,
    /,
    target: str | None,
    args: tuple[str, ...],
    sets: tuple[str, ...],
    profile: str | None,
    cases: str | None,
    **options: Any,
) -> int:
    """Run a workload where it fits best, and keep a receipt.

    TARGET is a Python script or a ready-made workload (bench:matmul); what stands behind `--` is
    passed on to it. Without TARGET the words behind `--` are the command itself.

    \b
      route run train.py -- --steps 100
      route run bench:matmul
      route run -- ./simulate input.dat

    The work's output goes to stdout, what route says to stderr. Exits with the work's code.
    """
    if cases is not None:
        from compute_router.cli.wave import wave

        return wave(cli, target, args, sets=sets, profile=profile, cases=cases, **options)
    loaded = load(cli, target, args, sets=sets, profile=profile)
    for warning in loaded.warnings:
        cli.out.warn(warning)
    return go(cli, loaded.workload, **options)


@verb()
@click.argument("receipt", type=RUN)
@how
@click.pass_obj
def rerun(cli: Cli, /, receipt: str, **options: Any) -> int:
    """Run again what RECEIPT tells of: a receipt's file, or a run.

    The workload is the recorded one; its files are those that lie in its folder now, and a
    warning says so if they have changed.
    """
    from compute_router.errors import InputError
    from compute_router.workload import Workload

    old = cli.folder(_run_of(receipt))
    workload = old.read("workload", Workload)
    if workload is None or not Path(workload.entry.root).is_dir():
        where = workload.entry.root if workload else "its workload"
        raise InputError(
            f"run {old.id} cannot be run again: {where} is gone", mend="put the folder back where it was"
        )
    return go(cli, workload, like=old, **options)


def _run_of(receipt: str) -> str:
    """The run a receipt's file tells of; anything that is no file already names a run."""
    from compute_router.errors import InputError

    path = Path(receipt)
    if not path.is_file():
        return receipt
    try:
        return str(json.loads(path.read_bytes())["run_id"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"{receipt} is no receipt ({type(e).__name__})", mend="route receipt list shows those there are"
        ) from e


def limits(
    cli: Cli, workload: Workload, *, backend: str | None, wait: int, detach: bool, cases: int = 1
) -> Limits:
    """What the caller allows, as the policy sees it."""
    from compute_router.policy import Limits

    return Limits(
        wait_us=None if wait < 0 else wait,
        detached=detach,
        cases=cases,
        price_limit=workload.price_limit,
        pin=backend,
        rules=cli.router.config.rules,
    )


def secret_values(workload: Workload, env_file: str | None) -> dict[str, str] | None:
    """The secrets looked up in `env_file` first; None leaves the look-up to the core."""
    if env_file is None:
        return None
    from compute_router.errors import InputError
    from compute_router.planning import ships
    from compute_router.secrets import resolve

    path, root = Path(env_file).resolve(), Path(workload.entry.root).resolve()
    found = resolve(workload.secrets, env_file=env_file)
    if path.is_relative_to(root) and str(path.relative_to(root)) in {e.path for e in ships(workload).entries}:
        raise InputError(
            f"the env file {env_file} would be sent along with the work's own files",
            mend="name it in .routeignore, or call it .env",
        )
    return found


def go(
    cli: Cli,
    workload: Workload,
    *,
    policy: str | None,
    backend: str | None,
    detach: bool,
    dry_run: bool,
    wait: int,
    key: str | None,
    env_file: str | None,
    raw: bool,
    like: RunFolder | None = None,
) -> int:
    """Plan, submit and (unless detached) follow one workload; returns the exit code."""
    from compute_router.cli.attached import Stages, attached, ended, guard, receipt_of
    from compute_router.cli.leaving import Leaving
    from compute_router.cli.logtext import LogText
    from compute_router.cli.nodes import several
    from compute_router.cli.planning import dry, refused

    out, router = cli.out, cli.router
    log = LogText(out, raw=raw)
    stages = Stages(cli, log)
    leaving = Leaving(asking=out.terminal_err and sys.stdin.isatty())

    def work() -> int:
        allowed = limits(cli, workload, backend=backend, wait=wait, detach=detach)
        out.busy("asking the backends")
        plan = router.plan(workload, policy=policy, limits=allowed)
        out.calm()
        cli.tell_warnings()
        if dry_run:
            return dry(cli, plan)
        if not plan.decision.ranked or plan.decision.outcome.value in ("refused", "warm"):
            return refused(cli, plan)
        if detach and wait and several(plan):
            out.note(
                "several machines are waited for by this client: it stays until the run has started, "
                "and prints the id then"
            )
        out.busy("looking at the files")
        folder = router.submit(plan, key=key, secrets=secret_values(workload, env_file), on_event=stages)
        stages.name(folder.id)
        if like is not None:
            _told_if_changed(cli, like, folder)
        if detach:
            if not out.as_json:
                out.text(folder.id + "\n")
            out.done(
                {"run_id": folder.id, "path": str(folder.path), "decision": folder.read_json("decision")}
            )
            return 0
        receipt = receipt_of(folder)
        if receipt is not None:
            out.note("the run of this key is over already; nothing was started")
            return ended(cli, folder, receipt)
        return attached(cli, folder, leaving, log, stages)

    return guard(cli, leaving, stages, work)


def _told_if_changed(cli: Cli, old: RunFolder, new: RunFolder) -> None:
    before, now = ((folder.read_json("intent") or {}).get("tree_sha256") for folder in (old, new))
    if before and before != now:
        cli.out.warn(f"the files have changed since run {old.id}: this run tells of them as they are now")
