"""The verbs plugins bring: from a small cache, so that `--help` and completion load no plugin.

Metadata names the plugins, not their verbs. Only when a plugin that is not bundled is installed
and the set of plugins has changed are they loaded once, to ask; then the answer is kept.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compute_router.entrypoints import installed

if TYPE_CHECKING:
    from compute_router.cli.call import Cli

__all__ = ["commands", "plugin_command"]


def _others() -> list[tuple[str, ...]]:
    return [tuple(entry) for entry in installed() if entry.distribution != "compute-router"]


def _file() -> Path | None:
    from compute_router.errors import StoreError
    from compute_router.home import default_home

    try:
        return default_home() / "cache" / "verbs.json"
    except StoreError:
        return None


def commands(cli: Cli, *, load: bool = True) -> dict[str, str]:
    """Verb -> short help of what plugins bring. With `load=False` an empty cache stays empty."""
    others = _others() if cli.plugins else []
    if not others:
        return {}
    key, file = [list(entry) for entry in others], _file()
    try:
        kept = json.loads(file.read_bytes()) if file else {}
        if kept["plugins"] == key:
            return {str(name): str(text) for name, text in kept["verbs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    if not load:
        return {}
    found = {name: command.get_short_help_str(70) for name, command in sorted(_load(cli).items())}
    if file:
        _keep(file, {"plugins": key, "verbs": found})
    return found


def _keep(file: Path, data: object) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        # The store's own folder is nobody else's to read, whoever makes it first.
        file.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        part.write_text(json.dumps(data))
        part.replace(file)
    except OSError:
        # A cache that cannot be kept costs time, nothing else.
        return


def _load(cli: Cli) -> dict[str, click.Command]:
    scratch = click.Group("route")
    cli.router.registry.add_commands(scratch)
    cli.tell_warnings()
    return dict(scratch.commands)


def plugin_command(cli: Cli, name: str) -> click.Command | None:
    """The verb `name` of a plugin, or None; plugins are loaded only if the listing has it."""
    if name not in commands(cli):
        return None
    cli.plugin_verb = name
    return _load(cli).get(name)
