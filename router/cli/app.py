"""The group of verbs, loaded one by one, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from compute_router import __version__
from compute_router.cli.call import Cli
from compute_router.cli.output import Output, written
from compute_router.errors import ExitCode, InputError, RouteError

__all__ = ["SECTIONS", "Cli", "Verb", "VerbGroup", "group", "start", "verb"]

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Start": {
        "init": ("beginning", "Write a starter workload and a route.toml, with comments."),
        "plan": ("planning", "Say where a workload would run and why, and why not elsewhere."),
        "run": ("running", "Run a workload where it fits best, and keep a receipt."),
        "record": ("recording", "Observe a command that another launcher started, and write a receipt."),
        "warm": ("warming", "Fill a workload's compile cache by running it once; never evidence."),
        "rerun": ("running", "Run again what RECEIPT tells of: a receipt's file, or a run."),
    },
    "Look": {
        "ps": ("listing", "List runs, newest first."),
        "status": ("looking", "Say where one run stands (default: the newest)."),
        "logs": ("following", "Print a run's log (default: the newest run's)."),
        "wait": ("following", "Wait until runs are over and collect them."),
    },
    "Act on a run": {
        "cancel": ("acting", "Ask runs to end."),
        "resume": ("acting", "Go on with a run from wherever it was left, to its receipt."),
        "shell": ("shell", "Open a shell where a run is, or run a command there."),
        "collect": ("acting", "Bring back final runs' outputs and write their receipts."),
    },
    "Evidence": {
        "compare": ("comparing", "Tell which of two things is faster, or refuse with the reason."),
        "report": ("reporting", "Write what `route compare` says as one HTML file."),
        "receipt": ("receipts", "Show, list, verify, sign and export receipts."),
        "study": ("studying", "Compare by design: runs in an order fixed beforehand."),
    },
    "Installation": {
        "doctor": ("doctor", "Check that everything is there, and say what mends it."),
        "machine": ("machines", "Add, list, check and remove machines reached by SSH."),
        "backends": ("places", "List backends and whether they can be used now."),
        "policies": ("places", "List policies."),
        "kinds": ("places", "List kinds of workload, and the ready-made workloads that run by name."),
        "plugins": ("plugging", "List installed plugins; `plugins new` writes the skeleton of one."),
        "gc": ("sweeping", "Show what may be removed; --delete removes it."),
        "completion": ("completing", "Print the completion script of a shell."),
    },
}
"""Every verb of core: section -> verb -> (module below compute_router.cli, short help)."""

_AGAIN = "run it again with --debug and report what it shows"
_VERBS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _flags() -> list[click.Parameter]:
    # Read from the arguments by `start` before anything is parsed, so that an error in parsing
    # is already told in the form that was asked for; here they are only accepted and explained.
    names = (
        ("--json", "One JSON document on stdout."),
        ("--no-plugins", "Load only the bundled plugins."),
        ("--debug", "Show the traceback of an error."),
    )
    return [click.Option([name], is_flag=True, expose_value=False, help=text) for name, text in names]


def _show_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        with written():
            click.echo(ctx.get_help(), color=ctx.color)
            sys.stdout.flush()
        ctx.exit()


class _Helping(click.Command):
    """A command whose `--help` says in one line that stdout cannot be written."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show_help
        return option


class Verb(_Helping):
    """A command that also takes `--json`, `--no-plugins` and `--debug` and tells its name to the output."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["context_settings"] = CONTEXT
        super().__init__(*args, **kwargs)
        self.params += _flags()

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if parent is not None and isinstance(parent.obj, Cli):
            above = parent.info_name if parent.parent else None
            parent.obj.out.command = " ".join(filter(None, [above, info_name]))
        return super().make_context(info_name, args, parent, **extra)


class VerbGroup(_Helping, click.Group):
    """A verb with verbs of its own (`receipt show`)."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["context_settings"] = CONTEXT
        super().__init__(*args, **kwargs)
        self.params += _flags()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not set(args) - {"--json", "--no-plugins", "--debug"} and not ctx.resilient_parsing:
            args = ["--help"]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            raise self.no_such(ctx, args)
        return (name if command else None), command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            names = self.list_commands(ctx)
            formatter.write_dl([(n, self.commands[n].get_short_help_str(400)) for n in names])

    def no_such(self, ctx: click.Context, args: list[str]) -> InputError:
        """The error for a verb there is none of, with the nearest one."""
        from compute_router.cli.words import nearest

        near = nearest(args[0], self.list_commands(ctx))
        mend = f"did you mean `{ctx.command_path} {near}`? " if near else ""
        return InputError(
            f"`{ctx.command_path}` has no verb {args[0]!r}",
            mend=f"{mend}`{ctx.command_path} --help` lists them",
        )


class Route(VerbGroup):
    """The top: core's verbs from a table, plugins' verbs from a cached listing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from compute_router.cli.names import commands

        return [*_VERBS, *(name for name in commands(_cli(ctx)) if name not in _VERBS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _VERBS:
            module = importlib.import_module(f"compute_router.cli.{_VERBS[cmd_name][0]}")
            found: click.Command = getattr(module, cmd_name)
            return found
        from compute_router.cli.names import plugin_command

        return plugin_command(_cli(ctx), cmd_name)

    def no_such(self, ctx: click.Context, args: list[str]) -> InputError:
        if args[0].endswith(".py") or os.path.isfile(args[0]):
            return InputError(f"route has no verb {args[0]!r}", mend=f"to run it: route run {args[0]}")
        return super().no_such(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from compute_router.cli.names import commands

        for section, verbs in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, (_, text) in verbs.items()], col_max=12)
        extra = {name: text for name, text in commands(_cli(ctx)).items() if name not in _VERBS}
        if extra:
            with formatter.section("Of plugins"):
                formatter.write_dl(list(extra.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        from compute_router.cli.names import commands

        known = {name: text for name, (_, text) in _VERBS.items()} | commands(_cli(ctx), load=False)
        found = [CompletionItem(n, help=t) for n, t in sorted(known.items()) if n.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def _cli(ctx: click.Context) -> Cli:
    return ctx.obj if isinstance(ctx.obj, Cli) else Cli(Output())


def verb(name: str | None = None, *, cls: type[Verb] = Verb) -> Callable[[Callable[..., Any]], Verb]:
    """Decorator: a function becomes a verb; its docstring is the help."""
    return click.command(name, cls=cls)


@click.group(
    cls=Route,
    subcommand_metavar="VERB [ARGS]...",
    epilog="`route VERB --help` tells more. Exit codes: docs/commands.md.",
)
@click.version_option(__version__, "-V", "--version", message="route %(version)s")
def group() -> None:
    """Route one workload to the compute you own, and keep a receipt of what it really got."""


def start(args: Sequence[str]) -> int:
    """Run one verb and return the exit code; every error ends here."""
    own = list(args[: args.index("--")] if "--" in args else args)
    out = Output(as_json="--json" in own)
    debug = "--debug" in own or os.environ.get("ROUTE_DEBUG", "0") not in ("", "0")
    cli = Cli(out, plugins="--no-plugins" not in own, debug=debug)
    code: int = ExitCode.OK
    try:
        with group.make_context("route", list(args), obj=cli) as ctx:
            code = int(group.invoke(ctx) or 0)
    except click.exceptions.Exit as e:
        code = e.exit_code
    except BrokenPipeError:
        raise
    except (click.Abort, KeyboardInterrupt):
        out.failed("INTERRUPTED", "interrupted")
        code = ExitCode.DETACHED
    except click.ClickException as e:
        what, mend = _usage(e)
        out.failed("USAGE", what, mend=mend)
        code = ExitCode.BAD_INPUT
    except RouteError as e:
        if debug:
            _traceback()
        out.failed(e.code, e.what, mend=e.mend, file=e.file, line=e.line)
        code = e.exit_code
    # Whatever it is, it is ours and not the user's: one line, and the traceback only when asked for.
    except Exception as e:
        if debug:
            _traceback()
        from compute_router.receipt.redacting import Redactor

        said = Redactor().text((str(e).splitlines() or [""])[0][:500], "error")
        first = f"{type(e).__name__}: {said}".rstrip(": ")
        if cli.plugin_verb:
            out.failed("PLUGIN_ERROR", f"{cli.plugin_verb} of a plugin failed: {first}", mend=_AGAIN)
        else:
            out.failed("INTERNAL", f"internal error: {first}", mend="" if debug else _AGAIN)
        code = ExitCode.INTERNAL
    cli.tell_warnings()
    out.calm()
    try:
        out.flush()
    except RouteError as e:
        out.failed(e.code, e.what, mend=e.mend)
        code = e.exit_code
    return int(code)


def _usage(error: click.ClickException) -> tuple[str, str]:
    """What is wrong with the arguments and how to mend it, from click's own error."""
    from compute_router.cli.words import nearest

    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx else "route"
    if isinstance(error, click.NoSuchOption):
        known = [o for p in (ctx.command.get_params(ctx) if ctx else []) for o in p.opts]
        # Without the dashes, which every option has in common.
        words = {option.lstrip("-"): option for option in known}
        near = words.get(nearest(error.option_name.lstrip("-"), list(words)), "")
        hint = f"did you mean {near}? " if near else ""
        if path == "route run" and not near:
            hint = "options of the script itself go behind `--`; "
        return f"`{path}` has no option {error.option_name}", f"{hint}`{path} --help` lists them"
    return error.format_message().rstrip("."), f"`{path} --help` shows how it is used"


def _traceback() -> None:
    import traceback

    from compute_router.scrubbing import clean

    sys.stderr.write(clean(traceback.format_exc()))
