"""Reads a workload: a script's `[tool.route]` table as text, a command, a ready-made one, a file of cases.

A script is compiled to find syntax errors and is never imported or run. Values come, the first
that has one winning, from flags and `--set`, the profile named by `--profile`, the script, the
nearest `route.toml`, the user's `config.toml`, and the defaults.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compute_router.errors import InputError, NotFound, WorkloadError
from compute_router.reading import script as scripts
from compute_router.reading.build import Loaded, Recipe, build, verify
from compute_router.reading.cases import load_cases
from compute_router.reading.layers import Layer, set_layer, shown_path
from compute_router.reading.place import git_root, inside
from compute_router.reading.values import near
from compute_router.workload import Entry, Kind

if TYPE_CHECKING:
    from compute_router.config import Config

__all__ = ["Loaded", "load", "load_cases", "load_command", "load_ready", "load_script", "verify"]

_READY = re.compile(r"([a-z][\w-]*):([\w.-]+)")


def load(
    target: str | None,
    *,
    args: Sequence[str] = (),
    sets: Sequence[str] = (),
    profile: str | None = None,
    config: Config | None = None,
    kinds: Mapping[str, Kind],
    cwd: Path | None = None,
) -> Loaded:
    """The workload that `target` means: a script, a ready-made one (`bench:matmul`), or, with no
    target, the command `args`.

    `sets` are the values of the `--set` flags, `profile` that of `--profile`, `kinds` the
    registry's; `config` is read from `cwd` (default: where the user stands) if not given.
    Raises `WorkloadError` with file and line, `ConfigError`, or `NotFound`.
    """
    if target is None:
        return load_command(args, sets=sets, profile=profile, config=config, kinds=kinds, cwd=cwd)
    if (
        _READY.fullmatch(target)
        and not target.endswith(".py")
        and not os.path.lexists((cwd or Path()) / target)
    ):
        return load_ready(target, args=args, sets=sets, profile=profile, config=config, kinds=kinds, cwd=cwd)
    return load_script(target, args=args, sets=sets, profile=profile, config=config, kinds=kinds, cwd=cwd)


def load_script(
    path: str | Path,
    *,
    args: Sequence[str] = (),
    sets: Sequence[str] = (),
    profile: str | None = None,
    config: Config | None = None,
    kinds: Mapping[str, Kind],
    cwd: Path | None = None,
) -> Loaded:
    """The workload of a Python script. `args`, unless empty, take the place of its own `args`.

    What ships is the git work tree the script lies in, else its folder; the work starts where
    the user stands, if that is inside.
    """
    stand = _stand(cwd)
    found = scripts.read(
        stand / path, shown_path(stand / path, stand), ready=_ready_names(kinds), given=str(path)
    )
    folder = Path(os.path.realpath(found.path.parent))
    root = git_root(folder) or folder
    # A link that leads out of what ships would lead nowhere there, so its target is run instead.
    real = Path(os.path.realpath(found.path))
    here = folder / found.path.name
    if here.is_symlink() and not inside(real, root):
        here, root = real, git_root(real.parent) or real.parent
    entry = Entry(
        root=str(root),
        script=here.relative_to(root).as_posix(),
        cwd=stand.relative_to(root).as_posix() if inside(stand, root) else ".",
        sha256=found.sha256,
    )
    return _build(found, entry, args, sets, profile, config, kinds, stand)


def load_ready(
    target: str,
    *,
    args: Sequence[str] = (),
    sets: Sequence[str] = (),
    profile: str | None = None,
    config: Config | None = None,
    kinds: Mapping[str, Kind],
    cwd: Path | None = None,
) -> Loaded:
    """A ready-made workload by name, `kind:name`. Its script's folder ships. Raises `NotFound`."""
    kind, _, name = target.partition(":")
    known = _ready_names(kinds)
    if kind not in kinds:
        raise NotFound(f"there is no kind {kind!r}, nor a file {target!r}", mend=near(target, known))
    if name not in kinds[kind].ready:
        raise NotFound(f"there is no ready-made workload {target!r}", mend=near(target, known))
    stand = _stand(cwd)
    path = Path(os.path.realpath(kinds[kind].ready[name]))
    found = scripts.read(path, shown_path(path, stand), ready=known, given=target)
    entry = Entry(root=str(path.parent), script=path.name, ready=target, sha256=found.sha256)
    default = Layer("default", {"name": target, "kind": kind})
    return _build(found, entry, args, sets, profile, config, kinds, stand, lowest=default)


def load_command(
    argv: Sequence[str],
    *,
    sets: Sequence[str] = (),
    profile: str | None = None,
    config: Config | None = None,
    kinds: Mapping[str, Kind],
    cwd: Path | None = None,
) -> Loaded:
    """The workload of a plain command, started where the user stands.

    A program that is named with a folder must be there; a bare name is looked up on the machine
    the work runs on.
    """
    if not argv or not argv[0]:
        raise InputError(
            "there is nothing to run", mend="route run SCRIPT.py, or route run -- PROGRAM ARGUMENTS"
        )
    if any("\0" in word for word in argv):
        raise WorkloadError("an argument holds a NUL character", mend="take it out")
    stand = _stand(cwd)
    root = git_root(stand) or stand
    program, sha256 = argv[0], None
    if "/" in program:
        path = Path(os.path.abspath(stand / program))
        if inside(Path(os.path.realpath(path.parent)), root) or not os.path.isabs(program):
            sha256 = scripts.program(path, program, root)
            program = os.path.join(
                ".", os.path.relpath(os.path.realpath(path.parent) + "/" + path.name, stand)
            )
    entry = Entry(
        root=str(root), argv=(program, *argv[1:]), cwd=stand.relative_to(root).as_posix(), sha256=sha256
    )
    found = scripts.Script(
        path=stand, name=scripts.as_name(os.path.basename(argv[0])), layer=None, sha256=sha256
    )
    return _build(found, entry, (), sets, profile, config, kinds, stand)


def _build(
    found: scripts.Script,
    entry: Entry,
    args: Sequence[str],
    sets: Sequence[str],
    profile: str | None,
    config: Config | None,
    kinds: Mapping[str, Kind],
    stand: Path,
    lowest: Layer | None = None,
) -> Loaded:
    if config is None:
        from compute_router.config import load_config

        config = load_config(stand)
    if any("\0" in word for word in args):
        raise WorkloadError("an argument holds a NUL character", mend="take it out")
    layers = [lowest] if lowest else []
    layers += config.layers
    layers += [found.layer] if found.layer else []
    layers += config.profile(profile) if profile is not None else []
    layers += [Layer("after --", {"args": list(args)})] if args else []
    layers += [set_layer(sets).checked()] if sets else []
    return build(
        Recipe(
            layers=tuple(layers),
            entry=entry,
            name=found.name,
            kinds=kinds,
            extra=found.extra,
            extra_origins=found.extra_origins,
            warnings=found.warnings,
        )
    )


def _stand(cwd: Path | None) -> Path:
    """Where the user stands, without links: what ships is named by real paths."""
    try:
        return Path(os.path.realpath(cwd or os.getcwd()))
    except OSError as e:
        raise InputError(
            f"the current folder cannot be used: {e.strerror}", mend="cd to one that exists"
        ) from None


def _ready_names(kinds: Mapping[str, Kind]) -> list[str]:
    return sorted(f"{kind}:{name}" for kind in kinds for name in kinds[kind].ready)
