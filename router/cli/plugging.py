"""`route plugins`: which plugins are installed, and the skeleton of a new one."""

from __future__ import annotations

import re
from pathlib import Path

import click

from compute_router.cli.app import VerbGroup
from compute_router.cli.call import Cli
from compute_router.errors import InputError, Refused

__all__ = ["plugins", "written"]

KINDS = ("backend", "machine", "policy")
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class _Listing(VerbGroup):
    """A verb that lists when no other is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return click.Group.parse_args(self, ctx, args)


@click.group(cls=_Listing, invoke_without_command=True, subcommand_metavar="[VERB [ARGS]...]")
@click.option("--check", is_flag=True, help="Import them all and name those that are broken.")
@click.pass_context
def plugins(ctx: click.Context, check: bool) -> int:
    """List installed plugins; `plugins new` writes the skeleton of one.

    From metadata alone: nothing of theirs is imported without --check."""
    cli: Cli = ctx.obj
    if ctx.invoked_subcommand is not None:
        return 0
    cli.out.command = "plugins"
    registry = cli.router.registry
    if check:
        for load in (registry.backends, registry.policies, registry.kinds):
            load()
        cli.tell_warnings()
    rows, data = [], []
    for entry, used in registry.listing():
        broken = next((w for w in registry.warnings if entry.name in w and entry.distribution in w), "")
        if not broken and _gone(entry.value):
            broken = f"there is no module {entry.value.partition(':')[0]}"
        state = "broken" if broken else "yes" if used else "no"
        rows.append([entry.name, state, f"{entry.distribution} {entry.version}".rstrip(), entry.value])
        data.append({**entry._asdict(), "used": used, "broken": broken or None})
    cli.out.table(["PLUGIN", "USED", "FROM", "MODULE"], rows)
    for each in data:
        if each["broken"]:
            cli.out.line(f"{each['name']}: {each['broken']}")
    cli.out.done(data)
    return 0


def _gone(value: str) -> bool:
    """Whether the top package of an entry point is not installed. Looked for, not imported."""
    from importlib.util import find_spec

    try:
        return find_spec(value.partition(":")[0].partition(".")[0]) is None
    except (ImportError, ValueError):
        return True


@plugins.command("new")
@click.argument("name")
@click.argument("folder", required=False, type=click.Path(file_okay=False))
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="machine",
    show_default=True,
    help="machine: a backend for a computer that a command reaches; backend: one that does all itself.",
)
@click.pass_obj
def new(cli: Cli, name: str, folder: str | None, kind: str) -> int:
    """Write the skeleton of a plugin that works, with its conformance test. Overwrites nothing.

    NAME is what the backend or policy will be called; FOLDER is new or empty (default: route-NAME).
    """
    taken = cli.router.registry.policies() if kind == "policy" else cli.router.registry.backends()
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a plugin",
            mend="use lower-case letters, digits and single underscores, a letter first: my_cloud",
        )
    if name in taken:
        raise InputError(f"{name!r} is installed already", mend="give another name: route plugins lists them")
    top = Path(folder or distribution(name))
    files = {top / path: text for path, text in written(name, kind).items()}
    try:
        there = top.is_symlink() or (top.exists() and any(top.iterdir()))
        if there:
            raise Refused(f"{top} is there already and not empty", mend="give another FOLDER")
        top.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
    except OSError as e:
        raise InputError(f"{e.filename} cannot be written: {e.strerror}", mend="give another FOLDER") from e
    for path in files:
        cli.out.line(f"wrote {path}")
    cli.out.note(f"try it: pip install -e '{top}[test]' && pytest {top}")
    cli.out.done({"name": name, "kind": kind, "wrote": [str(path) for path in files]})
    return 0


def distribution(name: str) -> str:
    """The name of the distribution that holds the plugin `name`."""
    return f"route-{name.replace('_', '-')}"


def written(name: str, kind: str) -> dict[str, str]:
    """The files of a new plugin: path -> text."""
    from importlib.resources import files

    folder = files("compute_router") / "skeleton" / kind
    words = {
        "DISTRIBUTION": distribution(name),
        "CAMEL": "".join(part.capitalize() for part in name.split("_")),
        "NAME": name,
    }
    found = {}
    for path, source in (
        ("pyproject.toml", "pyproject.txt"),
        (f"route_{name}.py", "module.txt"),
        (f"test_route_{name}.py", "test.txt"),
        ("README.md", "readme.txt"),
    ):
        text = (folder / source).read_text(encoding="utf-8")
        for word, value in words.items():
            text = text.replace(word, value)
        found[path] = text
    return found
