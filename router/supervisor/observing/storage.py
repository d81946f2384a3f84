"""Where the run and its volumes lie: the class of each storage, what was read and written, what is free."""

from __future__ import annotations

import os

from .. import closing, machine, work
from . import apart, mounted, transfer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from .facts import Look, Observed

    Json = Dict[str, Any]

NOWHERE = "nobody looked before the work began"
SECONDS = 2.0
"""What a file system of another computer or of a program may take to tell of one place."""
GONE = "whoever waited for the work is gone; others may have used the disk since"


def places(look: Look, table: mounted.Places) -> Dict[str, str]:
    """The folders that are told of, by role: where the run is kept, its checkpoints, its volumes,
    `work` where that is elsewhere, and `tmp`, where compilers work and what overflows first."""
    root = look.attempt.run.root
    found = {"root": root, "checkpoints": work.checkpoints(look.attempt, look.spec)}
    for role, name in sorted(look.spec.get("volumes", {}).items()):
        found[role] = work.volume(root, role, name)
    if look.spec.get("in_place"):
        found["work"] = look.spec["in_place"]["cwd"]
    # `TMPDIR` may be a secret only in jest, but then it is one.
    env = {k: v for k, v in look.env.items() if k not in look.spec.get("secrets", ())}
    temporary = (env.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    found["tmp"] = next((t for t in temporary if t and (table.far(t) or os.path.isdir(t))), "/tmp")
    return found


def before(look: Look) -> Json:
    """What is seen before user code: classes, free space, counters, what the volumes hold."""
    at, table = machine.now_us(), mounted.Places()
    counted: Dict[str, Optional[Json]] = {}
    roles: Json = {}
    for role, place in _seen(look, table).items():
        if place["mount"] not in counted:
            counted[place["mount"]] = transfer.counter(place)
        roles[role] = dict(place, count=counted[place["mount"]], at=at)
    return {"roles": roles, "volumes": _volumes(look), "boot_id": machine.boot_id()}


def _seen(look: Look, table: mounted.Places) -> Dict[str, Json]:
    """Every role that is there, with where it lies and what is free. One that fails or never answers costs
    what would have been seen of it, and no more than `SECONDS` for each mount."""
    found: Dict[str, Json] = {}
    silent: Dict[str, str] = {}
    for role, path in places(look, table).items():
        far = table.far(path)
        try:
            if far is None:
                place = _one(table, path)
            elif far.point in silent:
                raise apart.Failed(silent[far.point])
            else:
                place = apart.do(lambda path=path: {"of": _one(table, path)}, SECONDS)["of"]  # type: ignore[misc]
        except (OSError, apart.Failed) as e:
            if far is not None and far.point not in silent:
                silent[far.point] = str(e)
            why = "%s cannot be looked at: %s" % (path, getattr(e, "strerror", None) or e)
            place = dict(mounted.unseen(far, why), free=None, free_why=why)
        if place is not None:
            found[role] = dict(place, path=path, far=far is not None)
    return found


def _one(table: mounted.Places, path: str) -> Optional[Json]:
    """Where a folder lies and what is free there; None if there is none."""
    if not os.path.isdir(path):
        return None
    size, why = free(path)
    return dict(table.of(path), free=size, free_why=why)


def _volumes(look: Look) -> Json:
    declared = look.spec.get("volumes", {})
    if not declared:
        return {}
    from . import contents

    budget, root, found = contents.Budget(), look.attempt.run.root, {}
    for role, name in declared.items():
        try:
            found[role] = contents.before(work.volume(root, role, name), budget)
        except OSError:
            continue  # of a volume that nobody could look at nothing is claimed
    return found


def free(path: str, far: bool = False) -> Tuple[Optional[int], str]:
    """Bytes that are free at `path`, or why that is not told. One that is `far` may hang."""
    try:
        if far:
            told = apart.do(lambda: {"of": list(free(path))}, SECONDS)["of"]
            return told[0], told[1]
        disk = os.statvfs(path)
    except FileNotFoundError:
        return None, "it is gone"
    except (OSError, apart.Failed) as e:
        return None, "its file system does not tell: %s" % (getattr(e, "strerror", None) or e)
    return disk.f_bavail * disk.f_frsize, ""


def block(o: Observed, look: Look) -> List[Json]:
    """Where the run and its volumes lie: one item for each role."""
    seen = look.before.get("storage") or {}
    roles: Json = seen.get("roles") or {}
    if not roles:  # it was never that far, or the look failed: the class is still the same
        roles = {role: dict(place, at=None) for role, place in _now(look).items()}
    # The counters of a disk start anew with the machine.
    whole = bool(look.facts) and seen.get("boot_id") == machine.boot_id()
    least = _sampled(look)
    return [_item(o, role, place, roles, look, whole, least) for role, place in roles.items()]


def _sampled(look: Look) -> Optional[int]:
    """The least free disk that was sampled beside the work; the rest of the samples is not read."""
    pieces = closing.tail(look.attempt.at("samples.jsonl"), 8 << 20).split(b'"disk_free_bytes":')[1:]
    found = [piece.replace(b"}", b",").partition(b",")[0].strip() for piece in pieces]
    return min((int(number) for number in found if number.isdigit()), default=None)


def _now(look: Look) -> Json:
    seen = _seen(look, mounted.Places())
    # What is free now is not what was free at the start.
    return {
        role: {name: v for name, v in place.items() if name not in ("free", "free_why")}
        for role, place in seen.items()
        if role != "tmp"
    }


def _item(
    o: Observed, role: str, place: Json, roles: Json, look: Look, whole: bool, least: Optional[int]
) -> Json:
    at, why = place["at"], "there is no mount table here"
    count, no_count = None, GONE if "count" in place else NOWHERE
    if whole and "count" in place:
        count = transfer.of_group(look.facts.get("io"), place)
        if count is None:
            count, no_count = transfer.between(place["count"], transfer.counter(place))
    end, no_end = free(place["path"], bool(place.get("far")))
    # Only the disk of the run is sampled meanwhile.
    sampled = least if place["mount"] == roles.get("root", {}).get("mount") else None
    lowest = None if sampled is None else min(f for f in (sampled, end, place.get("free")) if f is not None)
    return {
        "role": role,
        "class": o.seen(place["class"], place["why"], at=at),
        "family": o.seen(place["family"], place["why"], at=at),
        "fs": o.seen(place["fs"], why, at=at),
        "mount": o.seen(place["mount"], why, at=at),
        "device": o.seen(place["device"], why, at=at),
        "backing": o.seen(place["backing"] or None, place["why"] or "no disk is behind it", at=at),
        "told": o.seen(place["why"] or place["told"], at=at),
        "options": o.seen(place["options"], at=at),
        "read_only": o.seen(place["read_only"], at=at),
        "bytes_read": o.seen(count and count["read"], no_count),
        "bytes_written": o.seen(count and count["written"], no_count),
        "bytes_scope": o.seen(count and count["scope"], no_count),
        "counter": o.seen(count and count["counter"], no_count),
        "free_bytes_start": o.seen(place.get("free"), place.get("free_why") or NOWHERE, at=at),
        "free_bytes_min": o.seen(lowest, "no sample of it was taken"),
        "free_bytes_end": o.seen(end, no_end),
    }


def volumes(o: Observed, look: Look) -> List[Json]:
    """What became of each volume. An event stands here only if it was seen to happen."""
    declared = look.started.get("volumes", [])
    if not declared:
        return []
    from . import contents

    seen = look.before.get("storage") or {}
    budget, found = contents.Budget(), []
    for volume in declared:
        role, path = volume["role"], volume["path"]
        first, place = (seen.get(part, {}).get(role) for part in ("volumes", "roles"))
        known = volume.get("events") or [volume["event"]]
        events = [o.seen(event, at=look.started["at_us"]) for event in known]
        item = {"name": volume["name"], "role": role, "event": events}
        if first and place and look.facts:
            last = contents.after(path, first, place, budget)
            events += [o.seen(event) for event in last["events"]]
            item["manifest_before"] = o.seen(first["digest"], first["why"], at=place["at"])
            item["manifest_after"] = o.seen(last["digest"], last["digest_why"])
            item["committed"] = o.seen(last["committed"], last["why"])
        else:
            why = GONE if first else NOWHERE
            for name in ("manifest_before", "manifest_after", "committed"):
                item[name] = o.seen(None, why)
        found.append(item)
    return found
