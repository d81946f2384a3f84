"""Sorts receipts into the arms of a comparison: by their study, as they were given, or by a field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from compute_router.compare.loaded import Loaded
from compute_router.compare.loading import Unread
from compute_router.errors import InputError

__all__ = ["Gathered", "Group", "gather"]


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The receipts of one arm, in the order of their runs."""

    name: str
    runs: tuple[Loaded, ...]


class Gathered(msgspec.Struct, frozen=True, kw_only=True):
    """Arms in order, the base first; beside them what was left out and what could not be read."""

    arms: tuple[Group, ...]
    unread: tuple[Unread, ...] = ()
    notes: tuple[str, ...] = ()
    extra: tuple[Loaded, ...] = ()
    """Receipts that belong to no arm of the study that the others make."""


def gather(
    base: Iterable[Loaded | Unread],
    candidate: Iterable[Loaded | Unread] | None = None,
    *,
    by: str | None = None,
    names: Sequence[str] = (),
) -> Gathered:
    """The arms that receipts make. Pure; the order in which they are given bears on nothing but the names
    of two lists.

    Two lists are two arms. Of one list: `by` a path of the schema, or a variable of `varying`, makes an arm
    of each value; else receipts of one study are sorted into its arms; else exactly two receipts are an arm
    each. `InputError`, with the mend, where none of this holds. A receipt given twice counts
    once, and so does a run with several receipts.
    """
    notes: list[str] = []
    unread: list[Unread] = []
    extra: list[Loaded] = []
    first = _once(base, notes, unread)
    if candidate is not None:
        second = _once(candidate, notes, unread)
        if by is not None:
            raise InputError(
                "two groups of receipts and --by at once", mend="give two groups, or one group and --by FIELD"
            )
        arms = [("base", first), ("candidate", second)]
        arms = [
            (names[i] if i < len(names) and names[i] else _common(runs, name), runs)
            for i, (name, runs) in enumerate(arms)
        ]
        if arms[0][0] == arms[1][0]:
            arms = [("base", first), ("candidate", second)]
    elif by is not None:
        arms = _by_field(first, by)
    else:
        arms, extra = _by_study(first)
        arms = arms or _two(first, unread)
    return Gathered(
        arms=tuple(Group(name=name, runs=tuple(runs)) for name, runs in arms),
        unread=tuple(unread),
        notes=tuple(notes),
        extra=tuple(extra),
    )


def _once(given: Iterable[Loaded | Unread], notes: list[str], unread: list[Unread]) -> list[Loaded]:
    """The receipts, each once, as they were given. A run that several clients have collected is one run."""
    found: dict[str, Loaded] = {}
    runs: dict[tuple[str, int], Loaded] = {}
    for one in given:
        if isinstance(one, Unread):
            unread.append(one)
        elif one.receipt_id in found:
            notes.append(f"{one.ref} was given before as {found[one.receipt_id].ref}; it counts once")
        elif (known := runs.setdefault((one.run_id, one.attempt), one)) is not one:
            notes.append(f"{one.ref} tells of the same run as {known.ref}; it counts once")
        else:
            found[one.receipt_id] = one
    return list(found.values())


def place(run: Loaded) -> tuple[Any, ...]:
    """The order of runs: as their study planned them, else by when they started."""
    index, started = run.value("study.index"), run.value("outcome.started_us")
    return (index if index is not None else 0, started or 0, run.run_id, run.attempt, run.receipt_id)


def _common(runs: Sequence[Loaded], otherwise: str) -> str:
    """The arm that all runs say they are of."""
    told = {run.value("study.arm") for run in runs}
    (one,) = told if len(told) == 1 else (None,)
    return one if isinstance(one, str) else otherwise


def study_of(run: Loaded) -> str | None:
    found = run.value("study.sha256")
    return found if isinstance(found, str) else None


def _by_study(runs: Sequence[Loaded]) -> tuple[list[tuple[str, list[Loaded]]], list[Loaded]]:
    """The arms of the study that receipts belong to, none if they belong to none; and the others. That they
    are of several studies is a rule's to say."""
    studies = {study_of(run) for run in runs} - {None}
    if not studies:
        return [], []
    planned: list[str] = next((arms for run in runs if (arms := run.value("study.arms"))), [])
    sorted_in: dict[str, list[Loaded]] = {name: [] for name in planned}
    outside = []
    for run in runs:
        arm = run.value("study.arm")
        if study_of(run) is None or not isinstance(arm, str):
            outside.append(run)
        else:
            sorted_in.setdefault(arm, []).append(run)
    return list(sorted_in.items()), outside


def _two(runs: Sequence[Loaded], unread: Sequence[Unread]) -> list[tuple[str, list[Loaded]]]:
    if len(runs) == 2:
        return [("base", [runs[0]]), ("candidate", [runs[1]])]
    if unread:
        one = unread[0]
        raise InputError(f"{one.ref}: {one.what}", mend=one.mend)
    if len(runs) < 2:
        raise InputError(
            f"{'one receipt' if runs else 'no receipt'} is nothing to compare",
            mend="name two receipts, or two groups: A B vs C D",
        )
    raise InputError(
        f"{len(runs)} receipts of no study: which of them are the base is not known",
        mend="put `vs` between the base and the other, or say --by FIELD (backend, hw.observed.sku, ...)",
    )


def _by_field(runs: Sequence[Loaded], by: str) -> list[tuple[str, list[Loaded]]]:
    """An arm for each value of a field; that of the earliest run is the base."""
    from compute_router.compare.varying import paths_of

    paths = paths_of((by,))
    arms: dict[str, list[Loaded]] = {}
    for run in sorted(runs, key=place):
        told = [(path, text) for path in paths if (text := shown_value(run, path))]
        if len(paths) == 1:
            name = told[0][1] if told else "unobserved"
        else:
            name = ", ".join(text for _, text in told) or "unobserved"
        arms.setdefault(name[:60], []).append(run)
    if len(arms) < 2:
        raise InputError(
            f"{by} is the same in all {len(runs)} receipts, which makes one arm",
            mend="name another field (--by), or put `vs` between two groups",
        )
    return list(arms.items())


def shown_value(run: Loaded, path: str) -> str:
    """The value of a field in a few words; nothing where it has none."""
    found = getattr(run, path, None) if path in ("kind", "purpose") else run.value(path)
    if found is None:
        return ""
    if isinstance(found, str):
        return found[:12] if re.fullmatch(r"[0-9a-f]{40,}", found) else found
    return msgspec.json.encode(found).decode(errors="replace")
