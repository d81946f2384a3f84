"""In which fields two arms differ, by the classes of the schema, and which of them nobody saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from compute_router.compare.loaded import WARNED
from compute_router.compare.outcome import Difference, Role
from compute_router.compare.sight import Arm, Run
from compute_router.compare.varying import follows

__all__ = ["Matched", "match"]

MOST = 120
_encode = msgspec.json.Encoder(order="deterministic").encode


class Matched(NamedTuple):
    differences: tuple[Difference, ...]
    unobserved: Mapping[str, Sequence[str]]
    mixed: Mapping[str, Mapping[str, Sequence[str]]]


def match(base: Arm, candidate: Arm, varied: frozenset[str]) -> Matched:
    """How the counted runs of two arms differ. Those of class K are those of the comparability key; one
    whose source is not good enough counts as not observed."""
    arms = (base, candidate)
    if not base.counted or not candidate.counted:
        return Matched((), {}, {})
    classes = [_kinds_of(arm.counted) for arm in arms]
    unobserved: dict[str, list[str]] = {}
    mixed: dict[str, dict[str, Sequence[str]]] = {}
    found: list[tuple[str, str, Any, Any]] = []
    if len({key for each in classes for key in each}) > 1 or any(key[1] for each in classes for key in each):
        paths = sorted({path for each in classes for _, fields in each.values() for path in fields})
        for path in paths:
            values: list[dict[bytes, Any]] = []
            for arm, each in zip(arms, classes, strict=True):
                here: dict[bytes, Any] = {}
                for (_, bad), (runs, fields) in each.items():
                    told = fields.get(path)
                    if path in bad or _unseen(told):
                        unobserved.setdefault(path, []).extend(
                            run.loaded.ref or run.loaded.run_id for run in runs
                        )
                        told = {"unobserved": True}
                    here[_encode(told)] = told
                values.append(here)
                if len(here) > 1:
                    mixed.setdefault(path, {})[arm.name] = [_text(path, v) for v in here.values()]
            if path == "study.sha256" and any({"not_applicable": True} in v.values() for v in values):
                continue
            if set(values[0]) != set(values[1]) or path in unobserved:
                found.append((path, "K", list(values[0].values()), list(values[1].values())))
    for path in _not_alike(arms):
        values = [_warned(path, arm.counted) for arm in arms]
        if set(values[0]) != set(values[1]):
            cls = "V" if path.startswith("code.") else "W"
            found.append((path, cls, list(values[0].values()), list(values[1].values())))
    differing = {path for path, *_ in found}
    active = {path for path in differing if path in varied}
    # What follows may bring more with it: another surface has other hardware, which has other kernels.
    grown = True
    while grown:
        more = {path for path in differing - active if follows(path, active)}
        grown, active = bool(more), active | more
    differences = []
    for path, cls, left, right in found:
        if path in varied:
            role = Role.VARIED
        elif path in active:
            role = Role.FOLLOWS
        elif cls == "K":
            role = Role.REFUSES
        else:
            role = Role.VARIED if cls == "V" else Role.WARNS
        one, other = _apart(path, left, right)
        differences.append(Difference(field=path, cls=cls, base=one, candidate=other, role=role))
    hidden = {p: refs for p, refs in unobserved.items() if p in varied or p not in active}
    return Matched(tuple(differences), hidden, mixed)


def _not_alike(arms: Iterable[Arm]) -> Iterator[str]:
    """The fields of class W and V that are not the same in all counted runs."""
    rows = [run.loaded.warned for arm in arms for run in arm.counted]
    for path, column in zip(WARNED, zip(*rows, strict=True), strict=False):
        if column.count(column[0]) != len(column):
            yield path


def _kinds_of(runs: Iterable[Run]) -> dict[tuple[str, tuple[str, ...]], tuple[list[Run], Mapping[str, Any]]]:
    """The counted runs by their key, and by the fields whose source is not good enough."""
    found: dict[tuple[str, tuple[str, ...]], tuple[list[Run], Mapping[str, Any]]] = {}
    for run in runs:
        key = (run.loaded.key, run.loaded.weak)
        if key in found:
            found[key][0].append(run)
        else:
            found[key] = ([run], run.loaded.fields)
    return found


def _unseen(told: Any) -> bool:
    if isinstance(told, dict):
        return "unobserved" in told and not isinstance(told["unobserved"], dict) and len(told) == 1
    if isinstance(told, (list, tuple)):
        return any(
            isinstance(w, str) and w.startswith("unobserved: ")
            for row in told
            if isinstance(row, (list, tuple))
            for w in row
        )
    return False


def _warned(path: str, runs: Iterable[Run]) -> dict[Any, Any]:
    """The values that a field of class W has within an arm."""
    found: dict[Any, Any] = {}
    at = WARNED.index(path)
    for run in runs:
        told = run.loaded.warned[at]
        if told is None and path in run.loaded.inapplicable:
            told = {"not_applicable": True}
        if path == "volumes" and isinstance(told, (list, tuple)):
            told = sorted([str(v.role), ",".join(v.event or ()), v.committed is not False] for v in told)
        found[told if isinstance(told, (str, int)) else _encode(told)] = told
    return found


def _text(path: str, v: Any) -> str:
    """A value in a few words."""
    if v is None or (isinstance(v, dict) and set(v) == {"unobserved"}):
        return "unobserved"
    if isinstance(v, dict) and set(v) == {"not_applicable"}:
        return "not applicable"
    if path == "cache" and isinstance(v, (list, tuple)):
        rows = (f"{kind} {state} -> {verdict}" for kind, state, verdict in map(_three, v))
        return _short(", ".join(rows) or "none")
    if path == "storage" and isinstance(v, (list, tuple)):
        return _short(", ".join(f"{row[0]} on {row[1]}" for row in v) or "none")
    if isinstance(v, str):
        return v[:12] if len(v) >= 40 and all(c in "0123456789abcdef" for c in v) else _short(v or "empty")
    if isinstance(v, bool):
        return "yes" if v else "no"
    if isinstance(v, (list, tuple)):
        return _short(" ".join(_text("", item) for item in v) or "none")
    if isinstance(v, dict):
        return _short(", ".join(f"{name} {_text('', item)}" for name, item in sorted(v.items())) or "none")
    return _short(str(v))


def _three(row: Any) -> tuple[str, str, str]:
    told = (
        [("unobserved" if str(w).startswith("unobserved") else str(w)) for w in row]
        if isinstance(row, (list, tuple))
        else []
    )
    return tuple((told + ["?"] * 3)[:3])  # type: ignore[return-value]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MOST else text[: MOST - 3] + "..."


def _apart(path: str, left: Sequence[Any], right: Sequence[Any]) -> tuple[str, str]:
    """Both sides in words; of maps only the names in which they differ."""
    if len(left) == len(right) == 1 and all(isinstance(v, dict) for v in (left[0], right[0])):
        one, other = left[0], right[0]
        odd = {"unobserved", "not_applicable"}
        if not (set(one) & odd or set(other) & odd):
            names = sorted(n for n in {*one, *other} if one.get(n) != other.get(n))
            texts = [
                _short(", ".join(f"{n} {_text('', v[n]) if n in v else 'not set'}" for n in names))
                for v in (one, other)
            ]
            return texts[0], texts[1]
    return tuple(_short(" / ".join(sorted({_text(path, v) for v in side}))) for side in (left, right))  # type: ignore[return-value]
