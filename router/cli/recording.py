"""`route record`: observe a command that any other launcher started, and write a receipt."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import Verb, verb
from compute_router.cli.call import Cli
from compute_router.cli.options import Words
from compute_router.errors import ExitCode

if TYPE_CHECKING:
    from compute_router.cli.logtext import LogText
    from compute_router.recording.launchers import Found
    from compute_router.recording.recorder import Command, Recording
    from compute_router.store import RunFolder
    from compute_router.workload import Workload

__all__ = ["record"]

SURFACES = ("local", "reserved", "serverless", "slice", "cluster")
SETTABLE = ("fields", "metrics", "shapes", "substitutes", "coupling", "nodes", "warmth", "framework", "tags")
"""The keys of a workload that only say what it is. All others say how it is to be started."""


class Kinds(Words):
    """The name of a kind, completed from the bundled ones."""

    name = "kind"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(n) for n in ("bench", "train", "validate") if n.startswith(incomplete)]


class RecordVerb(Verb):
    """A verb with a command behind `--`, which is taken as it is."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "-- COMMAND [ARGS...]"]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        behind = args[at + 1 :]
        asks = ctx.resilient_parsing or "--help" in args or "-h" in args
        if at == len(args) and not asks and any(not word.startswith("-") for word in args):
            raise click.UsageError("there is no `--` in front of the command", ctx)
        rest = super().parse_args(ctx, args[:at])
        ctx.params["command"] = tuple(behind)
        if not ctx.resilient_parsing and (not behind or not behind[0]):
            raise click.UsageError(
                "the command is missing: write it behind `--`, as in -- python train.py", ctx
            )
        return rest


@verb(cls=RecordVerb)
@click.option("--name", metavar="NAME", help="Name of the run (default: that of the script or program).")
@click.option("--kind", type=Kinds(), metavar="KIND", help="train, bench, validate or a plugin's (train).")
@click.option("--purpose", metavar="PURPOSE", help="benchmark, smoke, bringup, ... (the kind's own).")
@click.option("--accelerator", metavar="ACC", help="What the launcher was asked for: H200:8, cpu.")
@click.option(
    "--surface", type=click.Choice(SURFACES), help="What sort of place this is, where you know better."
)
@click.option("--output", "outputs", multiple=True, metavar="PATH", help="List this result by digest.")
@click.option("--keep-outputs", is_flag=True, help="Copy what --output names to the run as well.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Say more of the work: fields.*, ...")
@click.option("--no-stdin", is_flag=True, help="Let the command read from /dev/null.")
@click.option("--strict", is_flag=True, help="Do not run the command if it cannot be recorded.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but warnings on stderr.")
@click.pass_obj
def record(cli: Cli, /, command: tuple[str, ...], **how: Any) -> int:
    """Observe a command that another launcher started, and write a receipt.

    The words behind `--` are run as they are, in this folder and with this environment; nothing is
    copied, chosen or limited. For batch scripts, the `run:` of other launchers, containers, shells:

    \b
      srun route record --accelerator H200:8 -- python train.py

    Signals are passed on, and so is the exit code (128+n for a signal). If it cannot be recorded, it is
    run all the same and a warning says why.
    """
    from compute_router.errors import ConfigError, InputError, RouteError, Unavailable
    from compute_router.recording.recorder import Cancelled, NotRecorded, Recording, Signals

    if how["keep_outputs"] and not how["outputs"]:
        raise InputError("--keep-outputs keeps nothing", mend="name what to keep: --output PATH")
    try:
        made = _command(cli, command, **how)
    except RouteError as e:
        if isinstance(e, InputError) and not isinstance(e, ConfigError):
            raise
        return _bare(cli, command, e, how["strict"])
    # Whatever is wrong with us, it must not cost the work.
    except Exception as e:
        return _bare(cli, command, RouteError(f"{type(e).__name__}: {e}"), how["strict"])
    stages = _Stages(cli, quiet=how["quiet"])
    recording = Recording(cli.router, made, on_event=stages)
    with Signals(recording.heed) as signals:
        try:
            run = recording.begin()
        except Cancelled:
            assert recording.run is not None
            _collected(cli, recording.run)
            cli.out.failed("CANCELLED", "asked to end before the command was started")
            return 128 + recording.asked_to_end
        except NotRecorded as e:
            if recording.run is not None:
                _collected(cli, recording.run)
            if recording.asked_to_end:
                return 128 + recording.asked_to_end
            signals.__exit__()
            return _bare(cli, command, e.error, how["strict"])
        code = _follow(cli, run, recording, quiet=how["quiet"])
        if code is not None:
            return code
        signals.__exit__()
        error = Unavailable("it was never executed", mend=f"route status {run.id} says why")
        return _bare(cli, command, error, how["strict"])


def _command(cli: Cli, argv: tuple[str, ...], **how: Any) -> Command:
    from compute_router.backend import Hardware, Surface
    from compute_router.errors import StoreError
    from compute_router.recording.command import code_of, ranks_of
    from compute_router.recording.launchers import find
    from compute_router.recording.recorder import Command

    try:
        cwd = Path(os.getcwd())
    except OSError as e:
        raise StoreError(f"the current folder is gone: {e.strerror}", mend="cd to one that exists") from e
    launcher = find(os.environ)
    code = code_of(argv, cwd)
    workload = _workload(cli, argv, cwd, launcher, code.name, code.sha256, **how)
    asked = workload.needs.accelerator
    return Command(
        workload=workload,
        launcher=launcher,
        hardware=Hardware(
            family="gpu" if asked.family == "any" else asked.family, sku=asked.sku, count=asked.count
        ),
        surface=Surface(how["surface"]) if how["surface"] else None,
        ranks=ranks_of(argv, launcher.ranks),
        code_why=code.why,
        keep=how["keep_outputs"],
        stdin=-1 if how["no_stdin"] else _stdin(),
    )


def _workload(
    cli: Cli, argv: tuple[str, ...], cwd: Path, launcher: Found, code: str, sha256: str | None, **how: Any
) -> Workload:
    import msgspec

    from compute_router.errors import WorkloadError
    from compute_router.reading.build import Recipe, build
    from compute_router.reading.layers import Layer, set_layer
    from compute_router.reading.script import as_name
    from compute_router.workload import Accelerator, Entry

    given = {n: how[n] for n in ("name", "kind", "purpose", "accelerator") if how[n] is not None}
    if how["outputs"]:
        given["outputs"] = list(how["outputs"])
    said = set_layer(how["sets"]).checked()
    _only_settable(said.values)
    stem = os.path.basename(code).removesuffix(".py").removesuffix(".sh")
    recipe = Recipe(
        layers=(Layer("route record", given), said),
        entry=Entry(root=str(cwd), argv=argv, sha256=sha256),
        name=as_name(stem),
        kinds=cli.router.registry.kinds(),
    )
    workload = build(recipe).workload
    if launcher.nodes > 1 and "nodes" not in said.values:
        # What the launcher gave is what it was asked for; where that fits no kind, the words count.
        nodes = Layer("the launcher", {"nodes": launcher.nodes, "coupling": "multi-node"})
        with contextlib.suppress(WorkloadError):
            workload = build(dataclasses.replace(recipe, layers=(nodes, *recipe.layers))).workload
    if how["accelerator"] is None and _sees_gpus():
        nothing = Accelerator(family="any", count=0)
        needs = msgspec.structs.replace(workload.needs, accelerator=nothing)
        workload = msgspec.structs.replace(workload, needs=needs)
    return workload


def _only_settable(values: Any) -> None:
    from compute_router.errors import InputError

    for key in values:
        if key not in SETTABLE:
            raise InputError(
                f"--set {key} says how work is to be started, and record starts it as it is",
                mend=f"it may set {', '.join(SETTABLE)}",
            )


def _sees_gpus() -> bool:
    """Whether GPUs are there for the command, by the cheapest signs: their files, and what hides them."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and (not hidden.strip() or hidden.strip().startswith("-")):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _stdin() -> int:
    """Our stdin under a number that is free in the supervisor, or -1 if there is nothing to read: it is
    closed, or a terminal that others are using."""
    try:
        if os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp():
            return -1
        return fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 64)
    except OSError:
        return -1


def _bare(cli: Cli, command: tuple[str, ...], error: Any, strict: bool) -> int:
    """Become the command, for a recorder must not cost the work. Returns only if it cannot be run."""
    if strict:
        raise error
    cli.out.warn(f"not recorded: {error.what}; the command is run without a receipt")
    cli.out.calm()
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores this one, and what is executed would go on doing so.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except (OSError, ValueError) as e:
        number = getattr(e, "errno", 0)
        cli.out.failed("CANNOT_START", f"{command[0]}: {getattr(e, 'strerror', None) or e}")
        return 127 if number == errno.ENOENT else 126


class _Stages:
    """Tells the few things worth telling while a command is recorded."""

    def __init__(self, cli: Cli, *, quiet: bool) -> None:
        self._out, self._quiet = cli.out, quiet

    def __call__(self, event: dict[str, Any]) -> None:
        if self._out.as_json:
            self._out.event(event)
        elif event.get("event") == "submitted" and not self._quiet:
            self._out.stage("recording", str(event.get("run_id")))


class _Shown:
    """The command's output on its way to our stdout. One who stops reading is told to the command."""

    def __init__(self, cli: Cli, log: LogText, recording: Recording) -> None:
        self._cli, self._log, self._recording = cli, log, recording
        self._closed = False

    def __call__(self, data: bytes) -> None:
        from compute_router.errors import RouteError

        if self._closed:
            return
        try:
            self._log.write(data)
        except BrokenPipeError:
            self.close()
            self._recording.heed(signal.SIGPIPE)
        except (RouteError, OSError) as e:
            self.close()
            self._cli.out.warn(f"the output is no longer shown, but kept: {e}")

    def close(self) -> None:
        """Show no more: what stdout still holds goes nowhere."""
        self._closed = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _follow(cli: Cli, run: RunFolder, recording: Recording, *, quiet: bool) -> int | None:
    """Show the command's output to its end; its exit code, or None if it is proven never to have run."""
    from compute_router.cli.attached import problem_of
    from compute_router.cli.logtext import LogText
    from compute_router.errors import RouteError
    from compute_router.records import plain

    log = LogText(cli.out, raw=True)
    try:
        status = plain(recording.follow(_Shown(cli, log, recording), cli.out.warn))
    except RouteError as e:
        cli.out.failed(e.code, e.what, mend=f"route status {run.id} says what became of it")
        return int(ExitCode.UNKNOWN)
    with contextlib.suppress(RouteError, OSError):
        log.close()
    if recording.gone:
        _gone(cli, run, recording)
    receipt = None if recording.gone else _collected(cli, run)
    never = status.get("reason") == "cannot_start" and status.get("exit_code") is None
    if (never or status.get("reason") == "never_executed") and not recording.asked_to_end:
        return None
    code = _exit_code(status)
    if quiet and status.get("reason") == "cannot_start":
        cli.out.note(f"route: {status.get('detail')}")
    if not cli.out.as_json and not quiet:
        _tell(cli, run, status, receipt)
    cli.out.done(receipt, error=problem_of(run, status) if code else None)
    return code


def _tell(cli: Cli, run: RunFolder, status: dict[str, Any], receipt: dict[str, Any] | None) -> None:
    from compute_router.cli.attached import summary

    if receipt is not None:
        for label, text in summary(run, status, receipt):
            cli.out.stage(label, text)


def _gone(cli: Cli, run: RunFolder, recording: Recording) -> None:
    """Say that there is no receipt, and how there will be one the next time."""
    assert recording.backend is not None
    cli.out.warn(
        f"there is no receipt: the records of run {run.id} below {recording.backend.root} were removed while "
        "the command ran; set ROUTE_HOME (or ROUTE_RECORD_ROOT) to a folder that it does not remove"
    )


def _collected(cli: Cli, run: RunFolder) -> dict[str, Any] | None:
    """The receipt, if it can be written now: whatever fails, the exit code is the command's."""
    try:
        return cli.router.collect(run)
    except Exception as e:
        cli.out.warn(f"no receipt yet: {e}; `route collect {run.id}` writes it later")
        return None


def _exit_code(status: dict[str, Any]) -> int:
    """The command's own, whatever its end is called."""
    from compute_router.cli.codes import exit_code

    if status.get("signal"):
        return 128 + int(status["signal"])
    if status.get("exit_code") is not None:
        return int(status["exit_code"])
    return exit_code(status)
