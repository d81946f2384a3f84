"""Brings a run onto the machine: blobs by content, then one rename that is the commit point."""

from __future__ import annotations

import errno
import hashlib
import os

from . import files, instead, machine, names, runs, shards, spares, spec, wire
from .arriving import Arriving
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Set, Tuple

    from .runs import Run

    Json = Dict[str, Any]


class Stage:
    """What one connection has brought so far. Nothing of it is live before `commit`."""

    def __init__(self, root: str, nonce: str) -> None:
        self.root, self.nonce = root, nonce
        self.folder = os.path.join(root, "stage")
        self.arriving = Arriving(root, nonce)
        self.began = machine.mono_us()
        self._last: List[Json] = []

    def prepare(self, request: Json) -> Json:
        run = runs.run(self.root, request)
        names.digest(request.get("spec_sha256"))
        self.began = machine.mono_us()
        data = files.read(os.path.join(run.path, "spec.json"))
        disk = os.statvfs(self.root)
        return {
            "committed": None if data is None else hashlib.sha256(data).hexdigest(),
            "want": self.arriving.want(request) if data is None else [],
            "free_bytes": disk.f_bavail * disk.f_frsize,
        }

    # Commit

    def commit(self, request: Json, body: bytes) -> Json:
        """Make the run live by one rename; the same run again is no error, another one is."""
        run = runs.run(self.root, request)
        found = spec.check(body, run.id)
        if self._stands(run, body, found):
            return {"already": True}
        self.arriving.check()
        entries, has = found.get("tree", []), self.arriving.has
        missing = [e["sha256"] for e in entries if "link" not in e and not has(e["sha256"], e["bytes"])]
        if missing:
            raise Fault(
                "BLOBS_MISSING", "%d blobs are not here" % len(missing), "send them", missing=missing[:1000]
            )
        made = os.path.join(self.folder, "%s.%s" % (run.id, self.nonce))
        _remove(made)
        try:
            os.mkdir(made, 0o700)
            os.mkdir(os.path.join(made, "attempts"), 0o700)
            self.arriving.settle(lambda: materialise(self.arriving, made, entries, spare=True))
            placed = shards.place(self.root, found)
            note = {
                "at_us": machine.now_us(),
                "mono_us": machine.mono_us(),
                "boot_id": machine.boot_id(),
                "stage_us": machine.mono_us() - self.began,
                "placed": placed,
            }
            files.write(os.path.join(made, "committed.json"), wire.dumps(note), folder=False)
            files.write(os.path.join(made, "spec.json"), body)
            try:
                os.rename(made, run.path)
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if self._stands(run, body, found):
                    return {"already": True}
                raise
            files.sync_folder(os.path.dirname(run.path))
        finally:
            _remove(made)
        self._last = entries
        return {"already": False}

    def _stands(self, run: Run, body: bytes, found: Json) -> bool:
        stands = files.read(os.path.join(run.path, "spec.json"))
        if stands is None:
            return False
        if stands != body and not instead.replace(run, stands, body, found):
            raise Fault(
                "CONFLICT",
                "run %s is already here with another specification" % run.id,
                "use another key, or the workload as it was",
                spec_sha256=hashlib.sha256(stands).hexdigest(),
            )
        return True

    def close(self) -> None:
        """Let go of what arrived; what is not whole stays, to be gone on with. A spare of the tree that was
        committed last is made now, when nobody waits for it."""
        if self._last and spares.worth(self._last):
            entries = self._last
            spares.make(
                self.root, self.nonce, entries, lambda made: materialise(self.arriving, made, entries)
            )
        self.arriving.close()


def _remove(path: str) -> None:
    if os.path.lexists(path):
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def materialise(arriving: Arriving, made: str, entries: List[Json], *, spare: bool = False) -> None:
    """Make `work/` below `made` from blobs. Copies, never links: the work may write into its files.

    With `spare` one that was made before may be taken and mended. It is not synced: after a reboot
    `renew` makes it again from the blobs, which are.
    """

    def lay(path: str, entry: Json) -> None:
        data = arriving.read(entry["sha256"])
        sink = os.open(path, files.NEW, (entry["mode"] & 0o777) | 0o600)
        try:
            if data is not None:
                files.write_all(sink, data)
            else:
                _copy(arriving.path(entry["sha256"]), sink)
        finally:
            os.close(sink)

    # Nothing else of this process makes files meanwhile, and so none needs a call of its own for its mode.
    before = os.umask(0)
    try:
        if not (spare and spares.take(arriving.root, made, entries, lay)):
            _lay_out(os.path.join(made, "work"), entries, lay)
    finally:
        os.umask(before)


def _lay_out(work: str, entries: List[Json], lay: Callable[[str, Json], None]) -> None:
    os.mkdir(work, 0o700)
    folders: Set[str] = {""}
    links: List[Tuple[str, str]] = []
    for entry in entries:
        parts = names.parts(entry["path"])
        path = "/".join(parts)
        above = path.rpartition("/")[0]
        if above not in folders:
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                if folder not in folders:
                    os.mkdir("%s/%s" % (work, folder), 0o755)
                    folders.add(folder)
        path = "%s/%s" % (work, path)
        if "link" in entry:
            links.append((path, entry["link"]))
        else:
            lay(path, entry)
    # Last, so that nothing above was ever written through one of them.
    for path, target in links:
        os.symlink(target, path)


def _copy(path: str, sink: int) -> None:
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        files.copy(source, sink)
    finally:
        os.close(source)


def renew(run: Run, found: Json) -> None:
    """Make `work/` again if the machine was started since the commit and nothing was executed yet."""
    note = files.hint_json(os.path.join(run.path, "committed.json"))
    if note.get("boot_id") == machine.boot_id():
        return
    for number in files.numbered(run.attempts):
        if os.path.exists(os.path.join(run.attempts, str(number), "exec.json")):
            return
    again = os.path.join(run.path, ".again")
    _remove(again)
    os.mkdir(again, 0o700)
    arriving = Arriving(run.root, os.urandom(16).hex())
    try:
        materialise(arriving, again, found.get("tree", []))
    finally:
        arriving.close()
    _remove(run.work)
    os.rename(os.path.join(again, "work"), run.work)
    _remove(again)
    files.write(os.path.join(run.path, "committed.json"), wire.dumps(dict(note, boot_id=machine.boot_id())))
