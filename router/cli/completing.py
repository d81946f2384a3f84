"""Shell completion: the scripts, and the quick answers they ask for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from compute_router.cli.app import group, verb
from compute_router.cli.call import Cli
from compute_router.cli.output import Output

if TYPE_CHECKING:
    from click.shell_completion import ShellComplete

__all__ = ["complete", "completion"]

VARIABLE = "_ROUTE_COMPLETE"
SHELLS = ("bash", "fish", "zsh")


def _shell(name: str) -> ShellComplete | None:
    from click.shell_completion import get_completion_class

    found = get_completion_class(name)
    return found(group, {"obj": Cli(Output())}, "route", VARIABLE) if found else None


def complete(instruction: str) -> int:
    """Answer a shell; `instruction` is `bash_complete` and the like. Never says anything else."""
    shell = _shell(instruction.partition("_")[0])
    if shell is None:
        return 1
    try:
        answer = shell.complete()
    except Exception:
        # Nobody can read an error in the middle of typing; the verb itself will tell it.
        return 1
    sys.stdout.write(answer + "\n" if answer else "")
    sys.stdout.flush()
    return 0


@verb()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_obj
def completion(cli: Cli, shell: str) -> int:
    """Print the completion script of a shell.

    \b
      bash: eval "$(route completion bash)"     in ~/.bashrc
      zsh:  eval "$(route completion zsh)"      in ~/.zshrc, after compinit
      fish: route completion fish | source      in ~/.config/fish/config.fish
    """
    from click.shell_completion import ShellComplete

    made = _shell(shell)
    assert made is not None, f"click knows no {shell}"
    # The base class's method: bash's own starts a shell to ask for its version.
    text = ShellComplete.source(made)
    if not cli.out.as_json:
        cli.out.text(text)
    cli.out.done({"shell": shell, "script": text})
    return 0
