"""The folder that ships: the git root of a script or command, without asking git."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["git_root", "inside"]


def git_root(start: Path) -> Path | None:
    """The nearest folder at or above `start` that holds `.git`; None outside a work tree.

    A work tree that is the whole home folder, or `/`, does not count: it is kept for dotfiles,
    and to ship it is never what is meant.
    """
    home = os.path.realpath(os.path.expanduser("~"))
    for folder in (start, *start.parents):
        if os.path.lexists(folder / ".git"):
            return None if str(folder) in (home, "/") else folder
    return None


def inside(path: Path, root: Path) -> bool:
    """Whether `path` is `root` or below it; both absolute and without links."""
    return path == root or root in path.parents
