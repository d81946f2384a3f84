"""Which paths do not ship: the names nobody wants shipped, and what ignore files say."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathspec

__all__ = ["NEVER", "Ignoring"]

NEVER = frozenset(
    {
        ".DS_Store",
        ".eggs",
        ".git",
        ".hg",
        ".hypothesis",
        ".ipynb_checkpoints",
        ".mypy_cache",
        ".nox",
        ".pytest_cache",
        ".ruff_cache",
        ".svn",
        ".tox",
        ".venv",
        "__pycache__",
        "node_modules",
        "venv",
    }
)
"""Names that are left out wherever they stand, unless a `.routeignore` takes them back with `!name`."""


class Ignoring:
    """Answers for one tree whether a path ships.

    `names` are the ignore files that count, weakest first. As in git the last matching line
    decides, deeper files are stronger, and nothing comes back below a folder that is left out.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._root = root
        self._names = names
        self._specs: dict[str, list[tuple[str, pathspec.GitIgnoreSpec]]] = {}
        self._memo: dict[str, str] = {}
        self._marked: dict[str, str] = {}
        homes = os.environ.get("ROUTE_HOME")
        self._home = os.path.realpath(homes) if homes else None
        self.takes_back = False
        """Whether any ignore file has a line that begins with `!`."""

    def enter(self, folder: str, names: Collection[str]) -> None:
        """Read the ignore files of `folder` ("" or ending in "/"), which holds `names`."""
        if folder and "pyvenv.cfg" in names:
            self._marked[folder.rstrip("/")] = "a Python environment"
        if folder and "index.sqlite" in names and "runs" in names:
            self._marked[folder.rstrip("/")] = "the router's own folder"
        for name in self._names:
            if name in names:
                self._read(folder, name)

    def _read(self, folder: str, name: str) -> None:
        try:
            with open(self._root / folder / name, encoding="utf-8", errors="surrogateescape") as file:
                lines = [line.rstrip("\n") for line in file]
        except OSError:
            return  # the walk says so itself when it comes to the file
        import pathspec

        good: list[str] = []
        for line in lines:
            try:
                pathspec.GitIgnoreSpec.from_lines([line])
            except ValueError:
                continue  # git passes over lines it cannot read, too
            good.append(line)
        self.takes_back = self.takes_back or any(line.startswith("!") for line in good)
        self._specs.setdefault(folder, []).append((name, pathspec.GitIgnoreSpec.from_lines(good)))

    def why(self, path: str, *, is_folder: bool) -> str:
        """Why `path` does not ship, as far as its own name goes; empty if it does."""
        name = path.rpartition("/")[2]
        verdict, source = self._said(path, is_folder=is_folder) if self._specs else (None, "")
        if verdict is not None:
            return f"named in {source}" if verdict else ""
        if is_folder and path in self._marked:
            return self._marked[path]
        if name in NEVER or (name.endswith(".egg-info") and is_folder):
            return "left out by default"
        if is_folder and self._home == f"{self._root}/{path}":
            return "the router's own folder"
        return ""

    def _said(self, path: str, *, is_folder: bool) -> tuple[bool | None, str]:
        folder = path.rpartition("/")[0]
        while True:
            base = folder + "/" if folder else ""
            for name, spec in reversed(self._specs.get(base, ())):
                verdict = spec.check_file(path[len(base) :] + ("/" if is_folder else "")).include
                if verdict is not None:
                    return verdict, base + name
            if not folder:
                return None, ""
            folder = folder.rpartition("/")[0]

    def taken_back(self, path: str) -> bool:
        """Whether an ignore file takes `path`, or a folder above it, back with `!`."""
        return any(self._said(above, is_folder=above != path)[0] is False for above in (*_above(path), path))

    def topmost(self, path: str) -> tuple[str, str]:
        """For a file: the topmost of its folders, or itself, that does not ship, and why; else ("", "")."""
        for folder in _above(path):
            if folder not in self._memo:
                self._memo[folder] = self.why(folder, is_folder=True)
            if why := self._memo[folder]:
                return folder, why
        why = self.why(path, is_folder=False)
        return (path, why) if why else ("", "")


def _above(path: str) -> Iterator[str]:
    """The folders above `path`, topmost first."""
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)
