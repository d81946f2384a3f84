"""What `run` and `plan` are given: a script, a ready-made workload, or a command behind `--`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from compute_router.cli.app import Verb
from compute_router.cli.call import Cli
from compute_router.cli.options import Words

if TYPE_CHECKING:
    from compute_router.reading import Loaded

__all__ = ["TargetVerb", "load"]


class Target(Words):
    """A script (completed by file name) or a ready-made workload."""

    name = "target"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class TargetVerb(Verb):
    """A verb with an optional TARGET; what stands behind the first `--` is `args`, untouched.

    click drops the `--`, and with it the difference between a script with arguments and a command.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.insert(0, click.Argument(["target"], required=False, type=Target()))

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "[TARGET]", "[-- ARGS...]"]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        behind: list[str] = []
        dashes = "--" in args
        if dashes:
            at = args.index("--")
            args, behind = args[:at], args[at + 1 :]
        rest = super().parse_args(ctx, args)
        ctx.params["args"] = tuple(behind)
        if ctx.resilient_parsing:
            return rest
        if ctx.params.get("target") is None and not behind:
            command = "the words behind `--` are missing" if dashes else "it names nothing to run"
            raise click.UsageError(
                f"{command} (a script, a ready-made workload such as bench:matmul, or -- COMMAND)", ctx
            )
        return rest


def load(
    cli: Cli, target: str | None, args: Sequence[str], *, sets: Sequence[str], profile: str | None
) -> Loaded:
    """Read what is to be run, by the rules of `compute_router.reading`."""
    from compute_router import reading

    router = cli.router
    return reading.load(
        target,
        args=list(args),
        sets=sets,
        profile=profile,
        config=router.config,
        kinds=router.registry.kinds(),
    )
