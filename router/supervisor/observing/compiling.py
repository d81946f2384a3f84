"""What was compiled: the posture, programs, recompiles inside the steady window."""

from __future__ import annotations

from .facts import LATER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from .facts import Look, Observed

    Json = Dict[str, Any]


def block(o: Observed, look: Look) -> Json:
    return {"posture": o.seen(None, LATER)}
