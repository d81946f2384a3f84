"""Where the time went, by monotonic clocks, and the state in which the start found its place."""

from __future__ import annotations

from .. import machine
from .facts import LATER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .facts import Look, Observed

    Json = Dict[str, Any]

_SPANS = """submit_us image_us boot_us bootstrap_us import_us compile_us first_step_us warmup_us eval_us
checkpoint_us data_wait_us idle_us"""


def before(look: Look) -> Json:
    """What tells later in which state the start found this machine."""
    return {}


def startup(o: Observed, look: Look) -> Json:
    return {"class": o.seen(None, LATER)}


def timing(o: Observed, look: Look) -> Json:
    started, executed, record, facts = look.started, look.executed, look.record, look.facts
    asked = dict(started.get("asked") or {}, boot_id=started.get("boot_id"))
    never = "the work was never executed"
    seen = record.get("exit_code") is not None or record.get("signal") is not None
    return {
        "stage_in_us": o.seen(look.committed.get("stage_us"), "the run was not committed by this supervisor"),
        "queue_us": o.seen(_between(asked, started), "it never started"),
        "spawn_us": o.seen(_between(started, executed), never),
        "run_us": o.seen(
            _between(executed, record) if seen else None, "nobody saw its end" if executed else never
        ),
        "collect_us": o.seen(facts.get("collect_us")),
        "cpu_us": o.seen(facts.get("cpu_us"), "whoever waited for the work is gone"),
        **{name: o.seen(None, LATER) for name in _SPANS.split()},
    }


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
    return [dict(row, seq=number) for number, row in enumerate(found, 1)]


def clock(o: Observed, look: Look) -> Json:
    return {
        "boot_id": o.seen(look.started.get("boot_id") or machine.boot_id()),
        "offset_us": o.seen(None, "the client measures this"),
    }
