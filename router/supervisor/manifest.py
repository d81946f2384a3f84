"""Lists what a run leaves behind, by digest; links and devices are named and never followed."""

from __future__ import annotations

import hashlib
import os
import stat

from . import files, inplace, logcap, masking, names
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Set, Tuple

    from .runs import Attempt
    from .scrub import Scrubber

    Json = Dict[str, Any]
    Below = Tuple[List[str], str]

MOST_FILES = 100_000
MOST_BYTES = 12 << 20
MOST_DEPTH = 100
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
RECORDS = (
    ("log", "log"),
    ("metrics.jsonl", "metrics"),
    ("samples.jsonl", "samples"),
    ("route-lock.txt", "lock"),
)


def open_below(base: str, parts: List[str], flags: int) -> int:
    """Open `parts` below the folder `base`, step by step: no link on the way is followed."""
    fd = os.open(base, FOLDER)
    try:
        for part in parts[:-1]:
            nearer = os.open(part, FOLDER, dir_fd=fd)
            os.close(fd)
            fd = nearer
        return os.open(parts[-1], flags, dir_fd=fd) if parts else os.dup(fd)
    finally:
        os.close(fd)


def hashed(fd: int, look: Optional[Scrubber] = None) -> Tuple[int, str, str]:
    """Size and sha256 of an open file, as it is read now, and the name of a secret that it holds."""
    made, size, held, rest = hashlib.sha256(), 0, "", b""
    while True:
        data = os.read(fd, 1 << 20)
        if not data:
            return size, made.hexdigest(), held
        made.update(data)
        size += len(data)
        if look is not None and not held:
            rest += data
            held = look.holds(rest)
            rest = rest[look.held(rest) :]


class Listing:
    """Walks folders and gathers `files` and `skipped`."""

    def __init__(self, attempt: Attempt, look: Optional[Scrubber] = None) -> None:
        self.attempt, self.look = attempt, look
        self.files: List[Json] = []
        self.skipped: List[Json] = []
        self.seen: Set[str] = set()
        self.full = False
        self.room = MOST_BYTES

    def skip(self, path: str, why: str) -> None:
        if self._fits(path):
            self.skipped.append({"path": self._clean(shown(path)), "why": self._clean(why)})

    def _clean(self, text: str) -> str:
        return self.look.replaced(text)[0] if self.look is not None else text

    def _fits(self, path: str) -> bool:
        """Whether there is room for one more entry; the whole list has to fit in one reply."""
        self.room -= len(path) * 2 + 200
        self.full = self.full or self.room < 0 or len(self.files) >= MOST_FILES
        return self.room >= 0

    def walk(self, base: str, parts: List[str], path: str, role: str) -> None:
        """List what stands at `parts` below `base`, under the name `path`."""
        try:
            fd = open_below(base, parts, FOLDER)
        except NotADirectoryError:
            return self.one(base, parts, path, role)
        except FileNotFoundError:
            return self.skip(path, "was not made")
        except OSError as e:
            # A link in place of a folder ends here too.
            return self.one(base, parts, path, role) if parts else self.skip(path, e.strerror or "unreadable")
        os.close(fd)
        stack = [(parts, path)]
        while stack:
            below, above = stack.pop()
            try:
                fd = open_below(base, below, FOLDER)
            except OSError as e:
                self.skip(above, e.strerror or "unreadable")
                continue
            try:
                self._folder(fd, below, above, role, stack)
            finally:
                os.close(fd)
        return None

    def _folder(self, fd: int, below: List[str], above: str, role: str, stack: List[Below]) -> None:
        try:
            found = sorted(os.listdir(fd), reverse=True)
        except OSError as e:
            return self.skip(above, e.strerror or "unreadable")
        for name in found:
            path = above + "/" + name
            try:
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
                if not stat.S_ISDIR(mode):
                    self._entry(name, fd, path, role, mode)
                elif len(below) >= MOST_DEPTH:
                    self.skip(path, "more than %d folders deep" % MOST_DEPTH)
                else:
                    stack.append(([*below, name], path))
            except OSError as e:
                self.skip(path, e.strerror or "unreadable")
        return None

    def one(self, base: str, parts: List[str], path: str, role: str) -> None:
        """List a single file."""
        try:
            fd = open_below(base, parts[:-1], FOLDER)
        except OSError as e:
            return self.skip(path, e.strerror or "unreadable")
        try:
            mode = os.stat(parts[-1], dir_fd=fd, follow_symlinks=False).st_mode
            self._entry(parts[-1], fd, path, role, mode)
        except FileNotFoundError:
            self.skip(path, "was not made")
        except OSError as e:
            self.skip(path, e.strerror or "unreadable")
        finally:
            os.close(fd)
        return None

    def _entry(self, name: str, folder: int, path: str, role: str, mode: int) -> None:
        if path in self.seen:
            return None
        self.seen.add(path)
        if stat.S_ISLNK(mode):
            return self.skip(path, "a link to %s" % shown(os.readlink(name, dir_fd=folder))[:300])
        if not stat.S_ISREG(mode):
            kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
            return self.skip(path, next((word for test, word in kinds if test(mode)), "a device"))
        if len(self.files) >= MOST_FILES or not self._fits(path):
            return self.skip(path, "more files than can be listed")
        if shown(path) != path or any(ord(c) < 32 for c in path):
            return self.skip(path, "its name is no plain text")
        if self._clean(path) != path:
            return self.skip(path, "its name holds the value of a secret")
        fd = os.open(name, FILE, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return self.skip(path, "changed while it was read")
            # Records are ours and were masked where they stand.
            size, digest, held = hashed(fd, self.look if role == "output" else None)
        finally:
            os.close(fd)
        if held:
            return self.skip(path, "holds the value of secret %s; it stays on its machine" % held)
        self.files.append({"path": path, "bytes": size, "sha256": digest, "role": role})
        return None


def shown(path: str) -> str:
    """A name as text that any JSON can hold: what is no UTF-8 is shown by escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def make(attempt: Attempt, spec: Json, look: Optional[Scrubber] = None) -> Json:
    """The manifest of a final attempt: `files` and `skipped`. Reads everything once.

    What `look` finds a secret in is not listed, so that it does not travel.
    """
    begin, end = logcap.hole(attempt)
    if end > begin or masking.told(attempt)[0] is False:
        keep(attempt, begin, end)
    found = Listing(attempt, look)
    for name, role in RECORDS:
        if attempt.has(stored(attempt, name)):
            found.one(attempt.path, [stored(attempt, name)], name, role)
    if attempt.has("outputs"):
        found.walk(attempt.path, ["outputs"], "outputs", "output")
    if attempt.has("ranks"):
        found.walk(attempt.path, ["ranks"], "ranks", "error")
    base, top, role = attempt.run.work, "work", "output"
    place_of = inplace.of(spec)
    if place_of:
        # Listed by digest and left where they are, unless their user wants them kept with the run.
        base = place_of["cwd"]
        top, role = (top, role) if place_of.get("keep") else ("in_place", "in_place")
    for output in spec.get("outputs", []):
        parts = names.parts(output)
        found.walk(base, parts, "/".join([top, *parts]), role)
    return {
        "schema": "route.manifest/1",
        "files": found.files,
        "skipped": found.skipped,
        "truncated": found.full,
    }


def stored(attempt: Attempt, name: str) -> str:
    """The file in which a record stands; of a capped log the kept parts have a file of their own."""
    return "log.kept" if name == "log" and attempt.has("log.kept") else name


def keep(attempt: Attempt, begin: int, end: int) -> None:
    """Join head and tail of a capped log into one file, with a line that says what is missing; and so
    the part of a log that was looked through for secrets, where the rest was not."""
    if attempt.has("log.kept") or not attempt.has("log"):
        return
    source = os.open(attempt.at("log"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    part = attempt.at(".log.kept.%d" % os.getpid())
    try:
        sink = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            size = os.fstat(source).st_size
            clean = masking.end_of(attempt, size)
            _copy(source, sink, 0, min(begin, clean))
            if end > begin:
                files.write_all(
                    sink, b"\n[route: %d bytes from offset %d on were not kept]\n" % (end - begin, begin)
                )
            _copy(source, sink, end, clean)
            if clean < size:
                files.write_all(
                    sink, b"\n[route: %d more bytes may hold secrets and stay there]\n" % (size - clean)
                )
            os.fsync(sink)
        finally:
            os.close(sink)
    finally:
        os.close(source)
    os.rename(part, attempt.at("log.kept"))


def _copy(source: int, sink: int, begin: int, end: int) -> None:
    while begin < end:
        data = os.pread(source, min(1 << 20, end - begin), begin)
        if not data:
            return
        files.write_all(sink, data)
        begin += len(data)


def place(attempt: Attempt, path: Any) -> Tuple[str, List[str]]:
    """The folder and the parts that a path of the manifest stands for."""
    parts = names.parts(path)
    if parts == ["measured.json"] or (len(parts) == 1 and parts[0] in dict(RECORDS)):
        return attempt.path, [stored(attempt, parts[0])]
    if len(parts) > 1 and parts[0] in ("outputs", "ranks"):
        return attempt.path, parts
    if len(parts) > 1 and parts[0] in ("work", "in_place"):
        in_place = inplace.of(attempt.run.spec())
        return in_place["cwd"] if in_place else attempt.run.work, parts[1:]
    raise Fault("NO_FILE", "%.80r is not in the manifest" % (path,), "ask `manifest`")
