"""What git says about a folder: the files that belong to it, the commit, and what differs from it."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from compute_router.ignoring import Ignoring
from compute_router.records import Record, digest, plain

__all__ = ["Changes", "Git", "Listing", "NoGit", "changes", "list_git"]

DEADLINE = 30.0
# Neither the user's configuration nor the repository's may change what is read or start a program.
_GIT = (
    *("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"),
    *("-c", "status.relativePaths=false", "-c", "core.quotePath=false", "-c", "log.showSignature=false"),
)


class Git(Record, frozen=True, kw_only=True):
    """The state of a work tree. `commit` is None before the first one, `branch` when detached.

    `diff_sha256` is the digest of what differs from the commit below the root, untracked content
    included: the canonical list of `[path, what stands there now]`, None for what was removed.
    It is None for a clean tree. `message` is the first line of the commit's message.
    """

    commit: str | None
    branch: str | None
    dirty: bool
    diff_sha256: str | None
    message: str


@dataclasses.dataclass
class Changes:
    """What `git status` told: the commit and the paths, below the root, that differ from it."""

    commit: str | None
    branch: str | None
    message: str
    paths: dict[str, str]
    """path -> git's own mark for a submodule that differs, else empty."""

    def facts(self, entries: Mapping[str, Record]) -> Git:
        """The record, with the content of changed files as it stands in the snapshot."""
        now: list[object] = []
        for path, mark in sorted(self.paths.items()):
            below = [plain(entries[p]) for p in sorted(entries) if p.startswith(path + "/")] if mark else []
            entry = entries.get(path)
            now.append([_shown(path), mark, below] if mark else [_shown(path), entry and plain(entry)])
        return Git(
            commit=self.commit,
            branch=self.branch,
            dirty=bool(now),
            diff_sha256=digest(now) if now else None,
            message=self.message,
        )


@dataclasses.dataclass
class Listing:
    """The paths that ship and those that do not, with why; `note` is one more thing worth saying."""

    paths: list[str] = dataclasses.field(default_factory=list)
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    changes: Changes | None = None
    note: str = ""


class NoGit(Exception):
    """git is missing, refuses, or hangs; the text is its reason."""


def list_git(root: Path) -> Listing | None:
    """The files of a git work tree below `root`: tracked ones and untracked ones it does not ignore.

    None where no repository stands above `root`, or where it ignores `root` itself. Raises
    `NoGit` if git is missing or fails.
    """
    top = next((folder for folder in (root, *root.parents) if os.path.lexists(folder / ".git")), None)
    return None if top is None else _list(root, top)


def changes(folder: Path, *, deadline: float = DEADLINE) -> tuple[Path, Changes] | None:
    """The work tree that `folder` lies in and what differs there from its commit; nothing is listed
    that ships. None where no repository stands above. Raises `NoGit` as `list_git` does."""
    top = next((at for at in (folder, *folder.parents) if os.path.lexists(at / ".git")), None)
    if top is None:
        return None
    status, log = _ask(
        top,
        ("status", "--porcelain=v2", "--branch", "-z", "-uall", "--no-renames"),
        ("log", "-1", "--format=%s"),
        deadline=deadline,
    )
    if status[0]:
        lines = status[2].strip().splitlines() or [f"it ended with {status[0]}"]
        raise NoGit(lines[-1][:300])
    found = Changes(commit=None, branch=None, message=log[1].partition("\n")[0], paths={})
    _read_status(status[1], "", found)
    return top, found


def _list(root: Path, top: Path) -> Listing | None:
    status, tracked, log = _ask(
        root,
        ("status", "--porcelain=v2", "--branch", "-z", "-uall", "--no-renames", "--ignored=matching", "."),
        ("ls-files", "-z", "-c"),
        ("log", "-1", "--format=%s"),
    )
    # `log` fails before the first commit; what really ails git shows in the others.
    for code, _, error in (status, tracked):
        if code:
            lines = error.strip().splitlines() or [f"it ended with {code}"]
            raise NoGit(next((line for line in lines if line.startswith("fatal: ")), lines[-1])[:300])
    prefix = "" if root == top else f"{root.relative_to(top)}/"
    changes = Changes(commit=None, branch=None, message=log[1].partition("\n")[0], paths={})
    untracked, ignored = _read_status(status[1], prefix, changes)
    if ("" in ignored or prefix.rstrip("/") in ignored) and not tracked[1]:
        return None
    ignoring = Ignoring(root, (".routeignore",))
    found = [*dict.fromkeys(filter(None, tracked[1].split("\0"))), *untracked]
    _enter(ignoring, root, found)
    if ignoring.takes_back and ignored:
        found += _taken_back(root, ignoring)
    listing, base = Listing(changes=changes), str(root)
    skipped: dict[str, str] = {}
    for path in found:
        at, why = ignoring.topmost(path)
        if why:
            skipped.setdefault(at, why)
        elif path.endswith("/") or _is_folder(f"{base}/{path}"):
            _nested(root, path.rstrip("/"), listing, ignoring, skipped)
        else:
            listing.paths.append(path)
    shipped = {path.partition("/")[0] for path in listing.paths} if ignoring.takes_back else set()
    for path in ignored:
        name = path.rstrip("/")
        if not ignoring.takes_back or not _any_below(name, path, listing.paths, shipped):
            skipped.setdefault(name, "ignored by git")
    listing.skipped += sorted(skipped.items())
    return listing


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _any_below(name: str, path: str, paths: list[str], tops: set[str]) -> bool:
    if name.partition("/")[0] not in tops:
        return False
    return any(p == name or (path.endswith("/") and p.startswith(path)) for p in paths)


def _enter(ignoring: Ignoring, root: Path, found: list[str]) -> None:
    names: dict[str, set[str]] = {}
    for path in found:
        folder, _, name = path.rpartition("/")
        if name in (".routeignore", "pyvenv.cfg", "index.sqlite"):
            names.setdefault(folder + "/" if folder else "", set()).add(name)
    # The root's own counts even when git ignores it.
    if os.path.lexists(root / ".routeignore"):
        names.setdefault("", set()).add(".routeignore")
    for folder in sorted(names):
        if "index.sqlite" in names[folder] and os.path.isdir(root / folder / "runs"):
            names[folder].add("runs")
        ignoring.enter(folder, names[folder])


def _taken_back(root: Path, ignoring: Ignoring) -> list[str]:
    """Files that git ignores and a `.routeignore` takes back with `!`."""
    [(code, out, _)] = _ask(root, ("ls-files", "-z", "-o", "-i", "--exclude-standard"))
    return [] if code else [path for path in filter(None, out.split("\0")) if ignoring.taken_back(path)]


def _nested(root: Path, path: str, listing: Listing, ignoring: Ignoring, skipped: dict[str, str]) -> None:
    """A submodule, or a repository inside the repository: its files ship as they stand."""
    inner = list_git(root / path) if os.path.lexists(root / path / ".git") else None
    if inner is None:
        skipped.setdefault(path, "a submodule that is not checked out")
        return
    for name in inner.paths:
        at, why = ignoring.topmost(f"{path}/{name}")
        if why:
            skipped.setdefault(at, why)
        else:
            listing.paths.append(f"{path}/{name}")
    listing.skipped += [(f"{path}/{name}", why) for name, why in inner.skipped]
    listing.note = "; ".join(
        filter(None, [listing.note, f"{path} is a git repository of its own", inner.note])
    )


def _read_status(text: str, prefix: str, changes: Changes) -> tuple[list[str], list[str]]:
    """Fill `changes` from `git status --porcelain=v2 -z`; returns the untracked and the ignored paths."""
    untracked: list[str] = []
    ignored: list[str] = []
    for item in text.split("\0"):
        kind, _, rest = item.partition(" ")
        if kind == "#":
            name, _, value = rest.partition(" ")
            if name == "branch.oid":
                changes.commit = None if value == "(initial)" else value
            elif name == "branch.head":
                changes.branch = None if value == "(detached)" else value
        elif kind in ("1", "u"):
            fields = rest.split(" ", 7 if kind == "1" else 9)
            path, sub = fields[-1], fields[1]
            if path.startswith(prefix):
                changes.paths[path[len(prefix) :]] = "" if sub == "N..." else f"{sub} {fields[6]}"
        elif kind in ("?", "!") and (rest.startswith(prefix) or prefix.startswith(rest)):
            # A folder above the root that is untracked or ignored as a whole stands for the root.
            name = rest[len(prefix) :]
            (untracked if kind == "?" else ignored).append(name)
            if kind == "?":
                changes.paths[name.rstrip("/")] = "untracked" if name.endswith("/") else ""
    return untracked, ignored


def _shown(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _ask(root: Path, *commands: tuple[str, ...], deadline: float = DEADLINE) -> list[tuple[int, str, str]]:
    """Run several git commands side by side: (exit status, output, error output) of each."""
    environ = {
        name: value
        for name, value in os.environ.items()
        # A hook's or an outer command's GIT_DIR would send git elsewhere.
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG")
    }
    environ |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    started: list[subprocess.Popen[bytes]] = []
    answers: list[tuple[int, str, str]] = []
    try:
        for command in commands:
            started.append(
                subprocess.Popen(
                    (*_GIT, *command),
                    cwd=root,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        for process in started:
            out, error = process.communicate(timeout=deadline)
            answers.append((process.returncode, os.fsdecode(out), os.fsdecode(error)))
    except OSError as e:
        raise NoGit("it is not installed" if isinstance(e, FileNotFoundError) else str(e.strerror)) from e
    except subprocess.TimeoutExpired as e:
        raise NoGit(f"it did not answer within {deadline:.0f} s") from e
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return answers
