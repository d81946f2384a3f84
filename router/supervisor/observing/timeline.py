"""Where the time went, by the machine's monotonic clock; in which state the start found its place."""

from __future__ import annotations

import os

from .. import files, machine, wire, work
from . import container
from .facts import LATER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from .facts import Look, Observed

    Json = Dict[str, Any]

STEPPED_US = 100_000
"""How far wall time and monotonic time may part within an attempt before the clock counts as stepped."""
UNTOLD = "the work reported no steps; report them with route_report.step"
BLIND = "nobody could look into the work: no Python of it was seen"


def before(look: Look) -> Json:
    """What tells later in which state the start found this machine."""
    found: Json = {"checkpoints": False}
    with os.scandir(work.checkpoints(look.attempt, look.spec)) as entries:
        found["checkpoints"] = any(not entry.name.startswith(".") for entry in entries)
    found["rebooted"] = _first_since_reboot(look)
    found["container"] = container.look(look.attempt)
    return found


def _first_since_reboot(look: Look) -> Optional[bool]:
    """Whether no run of this root was started since the machine booted, and one was before that; None where
    one boot is not told from another."""
    boot = machine.boot_id()
    if boot == "unknown":
        return None
    folder = os.path.join(look.attempt.run.root, "boots")
    mark = os.path.join(folder, boot)
    if os.path.exists(mark):
        return files.hint_json(mark).get("run_id") == look.attempt.run.id and look.attempt.number == 1
    os.makedirs(folder, 0o700, exist_ok=True)
    earlier = any(not name.startswith(".") for name in os.listdir(folder))
    first = {"run_id": look.attempt.run.id if earlier else None, "at_us": machine.now_us()}
    return files.create_once(mark, wire.dumps(first)) and earlier


def rebooted(root: str) -> bool:
    """Whether the next run of this root would be the first since the machine booted, and earlier boots
    had some."""
    try:
        boots = [name for name in os.listdir(os.path.join(root, "boots")) if not name.startswith(".")]
    except OSError:
        return False
    return bool(boots) and machine.boot_id() not in boots


def startup(o: Observed, look: Look) -> Json:
    """The class of the start, by what was seen before it and what the work says."""
    if not look.executed:
        return {"class": o.seen(None, "the work was never executed")}
    seen = look.before.get("timeline") or {}
    said = look.notes("resumed")
    if said:
        step = said[-1].get("step")
        if type(step) is int and step > 0:
            return {"class": o.seen("resumed_checkpoint", src="workload")}
    elif seen.get("checkpoints") and _may_resume(look):
        why = "checkpoints stood there, and the work did not say whether it went on from one"
        return {"class": o.seen(None, why + "; say so with route_report.resumed(N), 0 if not")}
    if "rebooted" not in seen:
        why = str(seen.get("error") or "nobody looked at the machine before the start")
        return {"class": o.seen(None, why)}
    if seen.get("container"):
        return {"class": o.seen(*container.judged(seen["container"]))}
    if seen["rebooted"] is None:
        return {"class": o.seen(None, "this machine does not tell one boot from another")}
    return {
        "class": o.seen("warm_machine_after_reboot" if seen["rebooted"] else "warm_machine_fresh_process")
    }


def _may_resume(look: Look) -> bool:
    """Whether the first step that was reported leaves it open that the work went on from a checkpoint."""
    found = look.reported
    first = found.first if found is not None else None
    return first is None or str(first.get("step")) not in ("0", "1")


def timing(o: Observed, look: Look) -> Json:
    from . import compiling

    started, executed, facts = look.started, look.executed, look.facts
    asked = dict(started.get("asked") or {}, boot_id=started.get("boot_id"))
    never = "the work was never executed"
    spans = Spans(look)
    return {
        "stage_in_us": o.seen(look.committed.get("stage_us"), "the run was not committed by this supervisor"),
        "queue_us": o.seen(_between(asked, started), "it never started"),
        "spawn_us": o.seen(_between(started, executed), never),
        "run_us": o.seen(spans.run_us, "nobody saw its end" if executed else never),
        "collect_us": o.seen(facts.get("collect_us")),
        "cpu_us": o.seen(facts.get("cpu_us"), "whoever waited for the work is gone"),
        "submit_us": o.seen(None, "the client measures this"),
        "image_us": o.seen(None, "the client measures this"),
        "compile_us": compiling.block(o, look).get("compile_us") or o.seen(None, LATER),
        "boot_us": o.seen(None, "this machine was up already"),
        **{name: o.seen(value, why, src) for name, (value, why, src) in spans.parts().items()},
    }


class Spans:
    """The parts of a run, in microseconds; each with why it is not known and who says so.

    bootstrap, import, warm-up, steady, and what of evaluations and checkpoints lies outside of steps
    follow one another and never overlap; idle is what is left. compile, first step and data wait
    lie within those.
    """

    def __init__(self, look: Look) -> None:
        self.look = look
        self.reported, self.inside = look.reported, look.inside
        record = look.record
        ended = record.get("exit_code") is not None or record.get("signal") is not None
        self.run_us = _between(look.executed, record) if ended else None
        self.begun: Optional[int] = look.executed.get("mono_us")
        self.first = self._first()

    def _first(self) -> Any:
        """The Python process that is the work: the first one, or under a launcher that of rank 0."""
        each = [p for p in self.inside.processes.values() if self.begun is None or p.mono_us >= self.begun]
        each.sort(key=lambda p: p.mono_us)
        if int(self.look.spec.get("launcher", {}).get("ranks", 1) or 1) > 1:
            each = [p for p in each if p.rank == 0] or each
        return each[0] if each else None

    def parts(self) -> Dict[str, Tuple[Optional[int], str, str]]:
        why = "the work was never executed" if self.begun is None else ""
        found = {
            "bootstrap_us": (self.bootstrap(), why or BLIND, "inside"),
            "import_us": (self.imports(), why or BLIND, "inside"),
            **self.steps(),
        }
        for name in ("eval", "checkpoint", "data_wait"):
            total = self.reported.spans.get(name) if self.reported is not None else None
            how = "the work did not time it; `with route_report.span(%r):` does" % name
            found[name + "_us"] = (total[1] if total else None, why or how, "workload")
        found["idle_us"] = self.idle({name: value for name, (value, _, _) in found.items()})
        return found

    def bootstrap(self) -> Optional[int]:
        """From the work's first instruction to the first line of its Python (of rank 0)."""
        return None if self.first is None or self.begun is None else int(self.first.mono_us - self.begun)

    def imports(self) -> Optional[int]:
        """How long the timed imports of that process took, each moment counted once."""
        if self.first is None:
            return None
        total = reach = 0
        for row in sorted(self.first.imports, key=lambda row: int(row["begin_us"])):
            total += max(0, row["end_us"] - max(reach, row["begin_us"]))
            reach = max(reach, row["end_us"])
        return total

    def steps(self) -> Dict[str, Tuple[Optional[int], str, str]]:
        found = self.reported
        why = wrong(self.look) or (UNTOLD if found is None or not found.steps else "")
        if found is None or why:
            return dict.fromkeys(("first_step_us", "warmup_us", "steady_us"), (None, why, "workload"))
        first, src = found.first_spent_us, "workload"
        if first is None:
            first, src = self._until_first(), "supervisor"
        counts_first = found.discarded and found.first_spent_us is None
        warm = found.discarded_us + (first or 0 if counts_first else 0)
        odd = "the first step has no time of its own, and its clock is not that of the work"
        return {
            "first_step_us": (first, odd, src),
            "warmup_us": (None if counts_first and first is None else warm, odd, "workload"),
            "steady_us": (
                found.spent_us if found.counted else None,
                found.lacking or "no step counts",
                "workload",
            ),
        }

    def _until_first(self) -> Optional[int]:
        """From the end of the imports before it, else the start of its Python, to the first step's end."""
        at = self.reported.first_us if self.reported is not None else None
        if at is None or self.begun is None:
            return None
        begin = self.begun if self.first is None else self.first.mono_us
        ends = [row["end_us"] for row in (self.first.imports if self.first else ()) if row["end_us"] <= at]
        begin = max([begin, *ends])
        return int(at - begin) if at >= begin else None

    def idle(self, parts: Dict[str, Optional[int]]) -> Tuple[Optional[int], str, str]:
        """What of the run none of the parts accounts for."""
        told = [parts[n] for n in ("bootstrap_us", "import_us", "warmup_us", "steady_us")]
        if self.run_us is None or None in told:
            return None, "other parts of the run are not known", "supervisor"
        between = (
            sum(each[1] - each[2] for name, each in self.reported.spans.items() if name != "data_wait")
            if self.reported
            else 0
        )
        rest = self.run_us - sum(value or 0 for value in told) - between
        why = "the parts that were reported add up to more than the run"
        return (rest, why, "supervisor") if rest >= 0 else (None, why, "supervisor")


def wrong(look: Look) -> str:
    """Why nothing that is made of the reported steps holds; empty if nothing speaks against them."""
    found = look.reported
    if found is None or found.wrong:
        return found.wrong if found is not None else ""
    begun, over = look.executed.get("mono_us"), look.record.get("mono_us")
    run_us = _between(look.executed, look.record)
    if run_us is None or type(begun) is not int or type(over) is not int:
        return ""
    if found.spent_us + found.discarded_us > run_us:
        return "the times of its steps add up to more than the run took"
    window = found.window_mono_us
    if window and not (begun <= window[1] <= over):
        return "the work's clock is not that of the machine: its steps ended before or after the run"
    return ""


def _between(begin: Json, end: Json) -> Optional[int]:
    """Microseconds between two records of one boot, by the monotonic clock."""
    if "mono_us" in begin and "mono_us" in end and begin.get("boot_id") == end.get("boot_id"):
        return max(0, int(end["mono_us"]) - int(begin["mono_us"]))
    return None


def lifecycle(look: Look) -> List[Json]:
    started, executed, record, committed = look.started, look.executed, look.record, look.committed
    found = list(look.facts.get("events") or [])
    if not found:
        for event, row in (("leased", started), ("exec", executed)):
            if row:
                found.append(
                    {"event": event, "t_us": row["at_us"], "mono_us": row["mono_us"], "actor": "supervisor"}
                )
        found.append(
            {
                "event": record.get("state"),
                "t_us": record.get("ended_us"),
                "mono_us": record.get("mono_us"),
                "actor": "supervisor",
            }
        )
    if committed:
        first = {"event": "committed", "t_us": committed.get("at_us"), "mono_us": committed.get("mono_us")}
        found.insert(0, dict(first, actor="supervisor"))
    if abs(stepped(look) or 0) > STEPPED_US:
        last = {"t_us": record.get("ended_us"), "mono_us": record.get("mono_us"), "actor": "supervisor"}
        found.append(dict(last, event="clock_stepped"))
    return [dict(row, seq=number) for number, row in enumerate(found, 1)]


def stepped(look: Look) -> Optional[int]:
    """By how much wall time gained on monotonic time between start and end: a step of the clock, or a sleep
    of the machine. Microseconds; None if both ends were not seen in one boot."""
    started, record = look.started, look.record
    elapsed = _between(started, record)
    if elapsed is None or type(record.get("ended_us")) is not int or type(started.get("at_us")) is not int:
        return None
    return int(record["ended_us"] - started["at_us"] - elapsed)


def clock(o: Observed, look: Look) -> Json:
    gained = stepped(look)
    if gained is not None and abs(gained) <= STEPPED_US:
        gained = 0
    return {
        "boot_id": o.seen(look.started.get("boot_id") or machine.boot_id()),
        "stepped_us": o.seen(gained, "its start and its end were not both seen in one boot"),
        "offset_us": o.seen(None, "the client measures this"),
    }
