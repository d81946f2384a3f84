"""The software of a run: versions, variables, the environment it was given."""

from __future__ import annotations

from .facts import LATER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from .facts import Look, Observed

    Json = Dict[str, Any]


def before(look: Look) -> Json:
    """What is seen before user code: the installed stack, allow-listed variables."""
    return {}


def block(o: Observed, look: Look) -> Json:
    return {"stack": {"python": o.seen(None, LATER), "torch": o.seen(None, LATER)}}
