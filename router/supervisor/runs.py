"""Where everything of a run stands, and the exit record that makes it final."""

from __future__ import annotations

import os

from . import files, machine, names, wire
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

FINAL = frozenset(("succeeded", "failed", "cancelled", "timed_out", "preempted", "lost"))
RESERVE = 4096
NEEDED: Dict[str, Tuple[Tuple[str, type], ...]] = {
    "exit.json": (("state", str), ("attempt", int), ("reason", str), ("detail", str), ("ended_us", int)),
    "started.json": (("boot_id", str), ("waiter", dict), ("at_us", int), ("leases", list)),
    "exec.json": (("pid", int), ("start", int), ("at_us", int)),
    "done.json": (("measured_sha256", str), ("measured_bytes", int)),
}


class Run:
    """The folder of one run. Making one touches nothing."""

    def __init__(self, root: str, run_id: str) -> None:
        self.root, self.id = root, run_id
        self.path = os.path.join(root, "runs", run_id)
        self.work = os.path.join(self.path, "work")
        self.attempts = os.path.join(self.path, "attempts")

    @property
    def committed(self) -> bool:
        return os.path.exists(os.path.join(self.path, "spec.json"))

    def need(self) -> Run:
        """This run. Raises `Fault` NOT_COMMITTED if it is not here."""
        if not self.committed:
            raise Fault("NOT_COMMITTED", "run %s is not on this machine" % self.id, "commit it first")
        return self

    def spec(self) -> Dict[str, Any]:
        found = files.read_json(os.path.join(self.path, "spec.json"))
        if found is None:
            raise Fault("NOT_COMMITTED", "run %s is not on this machine" % self.id, "commit it first")
        return found

    def newest(self) -> Optional[Attempt]:
        """The newest attempt that has a folder."""
        found = max(files.numbered(self.attempts), default=0)
        return Attempt(self, found) if found else None


class Attempt:
    """The folder of one attempt. Making one touches nothing."""

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.number = run, number
        self.path = os.path.join(run.attempts, str(number))

    def at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def json(self, name: str) -> Optional[Dict[str, Any]]:
        """The record `name`, None if it is absent. Raises `Fault` DAMAGED if it is not what we write."""
        found = files.read_json(self.at(name))
        if found is not None:
            for key, kind in NEEDED.get(name, ()):
                if not isinstance(found.get(key), kind):
                    raise Fault("DAMAGED", "%s has no %s" % (self.at(name), key), "its file system lost it")
        return found

    def has(self, name: str) -> bool:
        return os.path.lexists(self.at(name))

    def reserve(self) -> None:
        """Keep 4 KiB on disk for the exit record: a full disk must not cost the outcome."""
        path = self.at("exit.reserve")
        try:
            if os.stat(path).st_size == RESERVE:
                return
        except FileNotFoundError:
            pass
        files.write(path, b"\0" * RESERVE, folder=False)

    def reserved(self) -> Optional[Dict[str, Any]]:
        """A complete exit record in the reserve, or None. What was cut off keeps its NULs and is none."""
        data = files.read(self.at("exit.reserve"))
        if not data or len(data) != RESERVE or b"\0" in data:
            return None
        try:
            found = wire.loads(data)
        except ValueError:
            return None
        return found if isinstance(found, dict) and found.get("state") in FINAL else None

    def finish(
        self,
        state: str,
        reason: str = "",
        detail: str = "",
        *,
        exit_code: Optional[int] = None,
        signal: Optional[int] = None,
        ended_us: Optional[int] = None,
        **more: Any,
    ) -> Dict[str, Any]:
        """Make the attempt final, unless it is; returns the record that stands.

        Only whoever holds `sup.lock` may call this. The record is written into the reserve, synced,
        and linked, so that it survives a full disk and is never seen half.
        """
        stands = self.json("exit.json")
        if stands is not None:
            return stands
        record = {
            "schema": "route.exit/1",
            "run_id": self.run.id,
            "attempt": self.number,
            "state": state,
            "reason": reason,
            "detail": detail[:600],
            "exit_code": exit_code,
            "signal": signal,
            "ended_us": machine.now_us() if ended_us is None else ended_us,
            "mono_us": machine.mono_us(),
            "boot_id": machine.boot_id(),
            **more,
        }
        return self.settle(record)

    def settle(self, record: Dict[str, Any]) -> Dict[str, Any]:
        data = wire.dumps(record)
        if len(data) > RESERVE - 1:
            data = wire.dumps(dict(record, detail=""))
        self.reserve()
        fd = os.open(self.at("exit.reserve"), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            files.write_all(fd, data.ljust(RESERVE - 1) + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(self.at("exit.reserve"), self.at("exit.json"))
        except FileExistsError:
            pass
        except OSError:
            # The record is complete in the reserve, and readers accept it there.
            return record
        files.sync_folder(self.path)
        return self.json("exit.json") or record


def run(root: str, request: Dict[str, Any]) -> Run:
    """The run that a request names."""
    return Run(root, names.run_id(request.get("run_id")))
