"""What ships: the files below one folder, each named by its digest, and what git says about them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compute_router.errors import InputError
from compute_router.gitfacts import Git, Listing, NoGit, list_git
from compute_router.hashes import Hashes
from compute_router.ignoring import Ignoring
from compute_router.records import Record, digest, plain

__all__ = ["MOST_BYTES", "MOST_FILES", "FileEntry", "LinkEntry", "Snapshot", "take"]

MOST_FILES = 20_000
MOST_BYTES = 1 << 30
MOST_PATH = 1024
"""Bytes in one path; the folder it is laid out in takes some of what a file system allows."""
CHUNK = 1 << 18
_MEND = "name what need not ship in .routeignore (it is written like .gitignore)"


class FileEntry(Record, frozen=True, kw_only=True):
    """One regular file: `path` below the root with `/` between its parts, `bytes` long; `mode` is
    0o755 for what may be executed by its owner, else 0o644."""

    path: str
    sha256: str
    bytes: int
    mode: int


class LinkEntry(Record, frozen=True, kw_only=True):
    """One symbolic link whose target `link` is relative and stays inside the root."""

    path: str
    link: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The content-addressed tree below `root`, as it was when it was taken.

    `entries` are sorted by path; `tree_sha256` is the digest of their canonical list, so two
    trees are the same exactly if it is equal. `skipped` names the topmost path of everything
    that does not ship, with the reason. `git` is None outside a work tree; `note` then says why
    git could not be asked, where it should have been.
    """

    root: Path
    entries: tuple[FileEntry | LinkEntry, ...]
    tree_sha256: str
    skipped: tuple[tuple[str, str], ...] = ()
    git: Git | None = None
    note: str = ""
    total_bytes: int = 0
    sources: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict, repr=False)
    """sha256 -> a path below root that held it, and its size."""

    @property
    def files(self) -> Iterator[FileEntry]:
        """The entries that are regular files."""
        return (entry for entry in self.entries if isinstance(entry, FileEntry))

    def facts(self) -> dict[str, Any]:
        """What a receipt keeps of it, as plain JSON data; at most 200 of the skipped paths."""
        return {
            "tree_sha256": self.tree_sha256,
            "files": len(self.entries),
            "bytes": self.total_bytes,
            "skipped": [list(pair) for pair in self.skipped[:200]],
            "skipped_count": len(self.skipped),
            "git": None if self.git is None else plain(self.git),
            "note": self.note,
        }

    def chunks(self, sha256: str, offset: int = 0) -> Iterator[tuple[int, bytes, bool]]:
        """The bytes from `offset` on as (offset, piece, last).

        The whole file is hashed on the way and the last piece is only given out if the digest
        still is `sha256`: `InputError` names a file that changed since. An empty file is one
        empty piece.
        """
        path, size = self.sources[sha256]
        number = self._open(path)
        try:
            seen, at = hashlib.sha256(), 0
            held: tuple[int, bytes] | None = None
            # One byte more than it had tells of one that grew; most files are one piece.
            while at <= size and (piece := os.read(number, min(CHUNK, size - at + 1))):
                seen.update(piece)
                if held is not None:
                    yield held[0], held[1], False
                    held = None
                if at + len(piece) > offset:
                    cut = max(0, offset - at)
                    held = (at + cut, piece[cut:])
                at += len(piece)
        finally:
            os.close(number)
        if at != size or seen.hexdigest() != sha256:
            raise self._changed(path)
        place, piece = held or (at, b"")
        yield place, piece, True

    def _open(self, path: str) -> int:
        try:
            number = os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            raise InputError(f"{path} cannot be read any more: {e.strerror}", mend="run it again") from e
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise self._changed(path)
        return number

    def lay_out(self, folder: Path) -> None:
        """Write the tree into `folder`, which is made; for a backend that hands on a folder.

        Every file is verified by its digest: `InputError` names one that changed since, and what
        was written until then stands there still.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for entry in self.entries:
            path = folder / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(entry, LinkEntry):
                path.symlink_to(entry.link)
                continue
            with open(path, "wb") as file:
                for _, piece, _ in self.chunks(entry.sha256):
                    file.write(piece)
            path.chmod(entry.mode)

    def _changed(self, path: str) -> InputError:
        return InputError(
            f"{path} changed while it was being shipped", mend="run it again once nothing writes to it"
        )


def take(
    root: Path, *, only: Sequence[Path] | None = None, home: Path | None = None, keep: bool = True
) -> Snapshot:
    """Take a snapshot of what lies below `root`.

    `only` are the files the work cannot do without (the script): they ship whatever an ignore
    rule says, and they are all that ships where `root` is `/`, a home folder or the folder for
    temporary files, which never ship whole. Names in `only` that are absolute or no file below
    `root` are passed over.

    With `home` (the router's own folder) files that were read before and are unchanged are not read
    again, and with `keep` what was read is remembered there.

    Raises `InputError` if `root` is no folder, or holds more than `MOST_FILES` files or
    `MOST_BYTES` bytes. Reads only; may be repeated.
    """
    root = Path(os.path.realpath(root))
    if not root.is_dir():
        raise InputError(f"{root} is no folder", mend="name a folder that exists")
    wanted = [name for path in only or () if (name := _below(root, path))]
    why = _never_whole(root)
    taking = _Taking(root, None if home is None else Hashes(home, root))
    git: Git | None = None
    if why:
        listing = Listing(note=f"{root} is {why}: only {', '.join(wanted) or 'nothing'} ships")
        taking.skip(".", f"{why} never ships whole")
    else:
        try:
            listing = list_git(root) or walk(root)
        except NoGit as e:
            listing = walk(root)
            listing.note = f"git could not be asked: {e}"
    if len(listing.paths) > MOST_FILES:
        raise taking.too_much(f"more than {MOST_FILES:,} files", listing.paths)
    for path, reason in listing.skipped:
        taking.skip(path, reason)
    for path in listing.paths:
        name = path.rpartition("/")[2]
        if name == ".env" or name.startswith(".env."):
            taking.skip(path, "a .env file may hold secrets; `secrets` in the workload gives them to it")
        else:
            taking.add(path)
    for path in wanted:
        taking.add(path, follow=True)
    if taking.hashes is not None and keep:
        taking.hashes.save()
    entries = tuple(taking.entries[path] for path in sorted(taking.entries))
    if listing.changes is not None:
        git = listing.changes.facts({entry.path: entry for entry in entries})
    return Snapshot(
        root=root,
        entries=entries,
        tree_sha256=digest([plain(entry) for entry in entries]),
        skipped=tuple(sorted(taking.skipped.items())),
        git=git,
        note=listing.note,
        total_bytes=taking.bytes,
        sources=taking.sources,
    )


def _never_whole(root: Path) -> str:
    """Why this folder must not ship whole; empty if it may."""
    if root == Path(root.anchor):
        return "the root of the file system"
    home = Path(os.path.realpath(os.path.expanduser("~")))
    if root == home or root in home.parents:
        return "a home folder" if root == home else "a folder of home folders"
    temporary = filter(None, (os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm"))
    if str(root) in {os.path.realpath(folder) for folder in temporary}:
        return "the folder for temporary files"
    return ""


def _below(root: Path, path: Path) -> str:
    """`path` as a clean relative name if it is a regular file below `root`, else empty."""
    name = os.path.normpath(path)
    if os.path.isabs(name) or name in ("..", ".") or name.startswith("../"):
        return ""
    try:
        return name if stat.S_ISREG(os.stat(root / name).st_mode) else ""
    except (OSError, ValueError):
        return ""


class _Taking:
    """A snapshot in the making: looks at one path at a time, hashes it or says why not."""

    def __init__(self, root: Path, hashes: Hashes | None) -> None:
        self.root = root
        self.hashes = hashes
        self.base = str(root)
        self.entries: dict[str, FileEntry | LinkEntry] = {}
        self.sources: dict[str, tuple[str, int]] = {}
        self.skipped: dict[str, str] = {}
        self.bytes = 0
        self._real: set[str] = set()

    def skip(self, path: str, why: str) -> None:
        # A name that is no text is shown with its odd bytes as escapes.
        shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        self.skipped.setdefault(shown, why)

    def add(self, path: str, *, follow: bool = False) -> None:
        """Take the file or link at `path`; a path that is gone by now is no entry."""
        if path in self.entries:
            return None
        try:
            if len(path.encode()) > MOST_PATH:
                return self.skip(path, f"its path is longer than {MOST_PATH:,} bytes")
        except UnicodeEncodeError:
            return self.skip(path, "its name is not UTF-8 text")
        try:
            if not follow and (through := self._through(path)):
                return self.skip(through, "git knows a folder here, but it is a link now")
            if not follow and os.path.islink(where := f"{self.base}/{path}"):
                return self._link(path, os.readlink(where))
            self._file(path, follow=follow)
        except FileNotFoundError:
            return None
        except OSError as e:
            return self.skip(path, f"cannot be read: {e.strerror}")
        if self.bytes > MOST_BYTES:
            raise self.too_much(f"more than {MOST_BYTES >> 30} GiB", list(self.entries))
        return None

    def _through(self, path: str) -> str:
        """The folder above `path` that is a link, which is never followed; else empty."""
        folder = path.rpartition("/")[0]
        if not folder or folder in self._real:
            return ""
        if through := self._through(folder):
            return through
        if os.path.islink(f"{self.base}/{folder}"):
            return folder
        self._real.add(folder)
        return ""

    def _link(self, path: str, target: str) -> None:
        try:
            target.encode()
        except UnicodeEncodeError:
            return self.skip(path, "its target's name is not UTF-8 text")
        inside = os.path.normpath(os.path.join(os.path.dirname(path), target))
        real = os.path.realpath(f"{self.base}/{path}")
        if os.path.isabs(target) or inside == ".." or inside.startswith("../"):
            return self.skip(path, f"a link that leads outside: {target}")
        if real != self.base and not real.startswith(self.base + "/"):
            return self.skip(path, f"a link that leads outside: {target}")
        self.entries[path] = LinkEntry(path=path, link=target)
        return None

    def _file(self, path: str, *, follow: bool) -> None:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        where = f"{self.base}/{path}"
        # Looked at before it is opened: opening a device can do things, and a FIFO could hang.
        before = os.stat(where) if follow else os.lstat(where)
        if not stat.S_ISREG(before.st_mode):
            if not stat.S_ISDIR(before.st_mode):
                self.skip(path, _special(before.st_mode))
            return None
        if self.hashes is not None and (known := self.hashes.of(path, before)):
            return self._entry(path, known, before.st_size, before.st_mode)
        handle = os.open(where, flags)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                return self.skip(path, "changed while it was looked at")
            if self.bytes + found.st_size > MOST_BYTES:
                self.bytes += found.st_size
                return None
            seen, size = hashlib.sha256(), 0
            while piece := os.read(handle, CHUNK):
                seen.update(piece)
                size += len(piece)
            if self.hashes is not None:
                self.hashes.add(path, found, os.fstat(handle), seen.hexdigest())
        finally:
            os.close(handle)
        return self._entry(path, seen.hexdigest(), size, found.st_mode)

    def _entry(self, path: str, sha256: str, size: int, bits: int) -> None:
        mode = 0o755 if bits & stat.S_IXUSR else 0o644
        self.entries[path] = FileEntry(path=path, sha256=sha256, bytes=size, mode=mode)
        self.sources.setdefault(sha256, (path, size))
        self.bytes += size

    def too_much(self, what: str, paths: Sequence[str]) -> InputError:
        """The error that names the topmost thing that weighs most: that is what to leave out."""
        weight: dict[str, list[int]] = {}
        for path in paths:
            tally = weight.setdefault(path.partition("/")[0], [0, 0])
            entry = self.entries.get(path)
            tally[0] += 1
            tally[1] += entry.bytes if isinstance(entry, FileEntry) else 0
        top, (files, size) = max(weight.items(), key=lambda item: (item[1][1], item[1][0]))
        return InputError(
            f"{self.root} holds {what}; most of it is {top} ({files:,} files seen, {size >> 20:,} MiB)",
            mend=_MEND,
        )


def walk(root: Path) -> Listing:
    """Every path below `root` that no ignore rule names, without asking git. Ends early once there
    are more than may ship."""
    ignoring = Ignoring(root, (".gitignore", ".routeignore"))
    paths: list[str] = []
    skipped: list[tuple[str, str]] = []
    folders = [""]
    while folders and len(paths) <= MOST_FILES:
        folder = folders.pop()
        try:
            with os.scandir(f"{root}/{folder}") as found:
                items = sorted(found, key=lambda item: item.name)
        except OSError as e:
            skipped.append((folder.rstrip("/") or ".", f"cannot be read: {e.strerror}"))
            continue
        ignoring.enter(folder, {item.name for item in items})
        for item in items:
            name = folder + item.name
            is_folder = item.is_dir(follow_symlinks=False)
            above = folder.rstrip("/")
            if above and (why := ignoring.why(above, is_folder=True)):
                skipped.append((above, why))  # known only once the folder was looked into
                break
            if why := ignoring.why(name, is_folder=is_folder):
                skipped.append((name, why))
            elif is_folder:
                folders.append(name + "/")
            else:
                paths.append(name)
    return Listing(paths=paths, skipped=skipped)


def _special(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"
