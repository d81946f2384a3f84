"""Observed fields, and what a probe is given to look at."""

from __future__ import annotations

import os

from .. import files, machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from ..runs import Attempt
    from . import inside, metrics, torchtrace

    Json = Dict[str, Any]

LATER = "the supervisor does not observe this yet"


def at_root(root: str, path: str) -> str:
    """`path` below another root than this machine's: a recorded one."""
    return path if root == "/" else root.rstrip("/") + path


class Observed:
    """Makes observed fields; `at` is when the block was made unless it is known better."""

    def __init__(self) -> None:
        self.at = machine.now_us()

    def seen(self, value: Any, why: str = "", src: str = "supervisor", at: Optional[int] = None) -> Json:
        if value is None:
            return {"v": None, "why": why or "could not be read"}
        return {"v": value, "src": src, "at": self.at if at is None else at}


class Look:
    """Everything that is known of one attempt, read when it is first asked for. Making one reads nothing.

    Before the work is executed only `attempt`, `spec` and `devices` (UUIDs of the leased ones) hold
    something; `before` is then being made, afterwards it is what the probes saw before user code.
    """

    def __init__(
        self,
        attempt: Attempt,
        spec: Json,
        *,
        devices: Optional[List[str]] = None,
        env: Optional[Dict[str, str]] = None,
        listed: Optional[Json] = None,
        facts: Optional[Json] = None,
    ) -> None:
        self.attempt, self.spec = attempt, spec
        self.started: Json = attempt.json("started.json") or {}
        self.executed: Json = attempt.json("exec.json") or {}
        self.record: Json = attempt.json("exit.json") or attempt.reserved() or {}
        self.before: Json = files.hint_json(attempt.at("before.json"))
        self.committed: Json = files.hint_json(os.path.join(attempt.run.path, "committed.json"))
        self.devices: List[str] = list(self.started.get("devices", ())) if devices is None else devices
        self.env: Dict[str, str] = env or {}
        """What the work sees, with secret values in it: known before the exec only, and never written."""
        self.listed: Json = listed or {"files": [], "skipped": []}
        self.facts: Json = facts or {}
        """What whoever waited for the work knows: peak memory, processor time, events."""
        self._summary: List[Optional[metrics.Summary]] = []
        self._inside: Optional[inside.Inside] = None
        self._traces: Optional[torchtrace.Traces] = None

    @property
    def plain(self) -> bool:
        """Whether no accelerator was asked for."""
        return bool(self.spec.get("devices", {}).get("family", "cpu") == "cpu")

    @property
    def reported(self) -> Optional[metrics.Summary]:
        """What the work said of itself; None if it said nothing."""
        from . import metrics  # what only the end needs is loaded while the work runs

        if not self._summary:
            discard = int(self.spec.get("metrics", {}).get("discard_steps", 1))
            self._summary.append(metrics.summarise(self.attempt.at("metrics.jsonl"), discard))
        return self._summary[0]

    @property
    def inside(self) -> inside.Inside:
        """What was seen from inside the Python processes of the work."""
        if self._inside is None:
            from . import inside

            self._inside = inside.read(self.attempt.at("inside.jsonl"))
        return self._inside

    @property
    def traces(self) -> torchtrace.Traces:
        """What torch traced of its compiling, where it was us who asked for that."""
        if self._traces is None:
            from . import torchtrace

            self._traces = torchtrace.read(torchtrace.folder(self.attempt))
        return self._traces

    @property
    def traced(self) -> bool:
        """Whether torch was told to trace into a folder of ours: then no trace means nothing compiled."""
        return bool(self.before.get("caches", {}).get("traced"))

    def notes(self, event: str) -> List[Json]:
        """What the work reported under this name, in order."""
        found = self.reported
        return [n for n in found.notes if n.get("event") == event] if found else []
