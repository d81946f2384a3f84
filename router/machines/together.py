"""What the states of a group's members mean for the run: one pure function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from compute_router.backend import Node, State, Status

__all__ = ["Member", "together"]

_BEGUN = {State.RUNNING, State.ORPHANED}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One look at one machine of a group: `first` is the rank that it saw fail first (see
    docs/protocol.md), `offset_us` its clock minus ours."""

    name: str
    status: Status
    first: Mapping[str, Any] | None = None
    devices: tuple[str, ...] = ()
    offset_us: int = 0

    @property
    def unstarted(self) -> bool:
        return self.status.state is State.COMMITTED

    @property
    def over(self) -> bool:
        return self.status.state.final

    @property
    def bad(self) -> bool:
        return self.over and self.status.state is not State.SUCCEEDED


def together(members: Sequence[Member]) -> Status:
    """The status of the run. `members` stand in rank order; where an earlier attempt is the last one that
    was made on a machine, the newest has not started there. Rows are tried from the top:

    | members | the run is |
    |---|---|
    | all have ended | final: `succeeded` if all did, else the state of the member that failed first |
    | some have ended, the others never started | final: as above; `failed` if those that ended did so well |
    | one cannot be seen | `unknown`, and says which |
    | one is orphaned | `orphaned` |
    | one has ended badly, others have not yet | `running`: they are being ended |
    | one waits | `waiting` |
    | none has started | `committed`, or `starting` if one is about to (`held` if all are held) |
    | some have started or ended, others have not yet started | `starting` |
    | all run, or run and have ended well | `running` |

    Failed first is, in this order: who was not ended by the group itself, or had a rank that failed before
    that; whose first rank did not only lose a peer; who has the earliest time, each by its own clock put
    right.
    """
    nodes = tuple(_node(rank, member) for rank, member in enumerate(members))
    return msgspec.structs.replace(_together(members), nodes=nodes)


def _node(rank: int, member: Member) -> Node:
    status = member.status
    return Node(
        rank=rank,
        name=member.name,
        state=status.state.value,
        reason=status.reason,
        detail=status.detail,
        last=status.last.value if status.last is not None else None,
        since_us=status.since_us,
        position=status.position,
        devices=member.devices,
    )


def _together(members: Sequence[Member]) -> Status:
    attempt = max(m.status.attempt for m in members)
    not_yet = Status(state=State.COMMITTED, attempt=attempt)
    members = [
        dataclasses.replace(m, status=not_yet, first=None) if m.over and m.status.attempt < attempt else m
        for m in members
    ]
    if any(m.over for m in members) and all(m.over or m.unstarted for m in members):
        return _final(members, attempt)
    unseen = [m for m in members if m.status.state is State.UNKNOWN]
    if unseen:
        one = unseen[0]
        since = [m.status.since_us for m in unseen if m.status.since_us is not None]
        seen = [m.status.last or m.status.state for m in members if m.status.last or m not in unseen]
        return Status(
            state=State.UNKNOWN,
            attempt=attempt,
            detail=f"{_names(unseen)} cannot be seen: {one.status.detail}"[:500],
            last=seen[0] if seen else None,
            since_us=min(since) if since else None,
            started_us=_started(members),
        )
    for state in (State.ORPHANED, State.WAITING):
        if found := [m for m in members if m.status.state is state]:
            one = found[0]
            return _live(members, attempt, state, one.status.reason, f"{one.name}: {one.status.detail}")
    if ended := [m for m in members if m.bad]:
        left = _names([m for m in members if not m.over])
        return _live(members, attempt, State.RUNNING, "", f"{ended[0].name} has failed, {left} will end")
    begun = [m for m in members if m.over or m.status.state in _BEGUN]
    if len(begun) == len(members):
        return _live(members, attempt, State.RUNNING)
    if begun:
        missing = _names([m for m in members if m not in begun])
        return _live(members, attempt, State.STARTING, "", f"{missing} has not started yet")
    if all(m.unstarted for m in members):
        told = next((m for m in members if m.status.reason), members[0])
        return _live(members, attempt, State.COMMITTED, told.status.reason, told.status.detail)
    held = all(m.status.reason == "held" for m in members)
    one = next(m for m in members if not m.unstarted)
    return _live(members, attempt, State.STARTING, "held" if held else "", one.status.detail if held else "")


def _names(members: Sequence[Member]) -> str:
    return " and ".join(m.name for m in members)


def _ours(member: Member, us: int | None) -> int | None:
    return None if us is None else us - member.offset_us


def _started(members: Sequence[Member]) -> int | None:
    """When the first work began, by the clock of node 0, which the run's other times are by."""
    times = [t for m in members if (t := _ours(m, m.status.started_us)) is not None]
    return min(times) + members[0].offset_us if times else None


def _live(
    members: Sequence[Member], attempt: int, state: State, reason: str = "", detail: str = ""
) -> Status:
    position = max((m.status.position or 0 for m in members), default=0)
    return Status(
        state=state,
        attempt=attempt,
        reason=reason,
        detail=detail,
        started_us=_started(members),
        position=position or None,
    )


def _final(members: Sequence[Member], attempt: int) -> Status:
    ended = [t for m in members if (t := _ours(m, m.status.ended_us)) is not None]
    last = max(ended) + members[0].offset_us if ended else None
    bad = sorted((m for m in members if m.bad), key=_order)
    if not bad and (never := [m for m in members if m.unstarted]):
        return Status(
            state=State.FAILED,
            attempt=attempt,
            reason="group",
            detail=f"{_names(never)} never started",
            started_us=_started(members),
            ended_us=last,
        )
    if not bad:
        return Status(
            state=State.SUCCEEDED, attempt=attempt, exit_code=0, started_us=_started(members), ended_us=last
        )
    one = bad[0]
    status = one.status
    detail = f"{one.name}: {status.detail or status.reason}"
    if one.first is not None and status.state is State.FAILED and not _only_ended(one):
        what = str(one.first.get("what") or "it said nothing")
        detail = f"rank {one.first.get('rank')} on {one.name} failed first: {what}"
        if status.reason in ("oom_host", "oom_gpu"):
            detail += f"; {status.detail}"
    reason = status.reason
    if reason == "never_executed" and any(m.status.started_us is not None for m in members):
        # That reason allows another attempt of the run, and this one was executed, if not everywhere.
        reason = "group"
    return Status(
        state=status.state,
        attempt=attempt,
        reason=reason,
        detail=detail[:600],
        exit_code=status.exit_code,
        signal=status.signal,
        started_us=_started(members),
        ended_us=last,
    )


def _order(member: Member) -> tuple[bool, bool, int]:
    first = member.first or {}
    at, follows = first.get("at_us"), first.get("follows")
    when = _ours(member, at if type(at) is int else member.status.ended_us)
    return _only_ended(member), follows is True, when or 0


def _only_ended(member: Member) -> bool:
    """Whether it was ended because of the others alone. One that was while its launcher was still clearing
    up may have had a rank that failed before them."""
    first = member.first or {}
    own = first.get("follows") is False and type(first.get("at_us")) is int
    return member.status.reason == "group" and not own
