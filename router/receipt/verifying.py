"""Checks a receipt offline: is it whole, is it unchanged, does it say what a receipt must say."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from compute_router.receipt.across import broken, nodes_of, observe_all
from compute_router.receipt.building import receipt_id
from compute_router.receipt.evidence import comparability, evidence
from compute_router.receipt.facts import Fact, at_path, leaves, misfit, missing, value
from compute_router.receipt.schema import BY_PATH, RULES, SCHEMA, SOURCES, TABLE, SchemaField
from compute_router.records import canonical

__all__ = ["MOST_BYTES", "Judged", "Problem", "judge", "verify"]

MOST_BYTES = 64 << 20
MOST_VALUES = 1_000_000
"""More values than this no receipt has: its measured block has at most 16 MiB. They bound the memory."""
MOST_PROBLEMS = 100


class Problem(NamedTuple):
    """One thing wrong: a stable code, where (a dotted path, may be empty), and what, in words."""

    code: str
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.code}: {self.path}: {self.what}" if self.path else f"{self.code}: {self.what}"


class Judged(NamedTuple):
    """What is wrong with a receipt, and what of it could not be judged; it is good if nothing is wrong."""

    problems: list[Problem]
    notes: list[str]


def verify(source: bytes | Path | str) -> list[Problem]:
    """What is wrong with a receipt; empty if nothing is. At most `MOST_PROBLEMS`. Never raises.

    Reads bytes or a file, needs no network, no configuration and no plugin. Of a file in a run's
    folder the artifacts beside it are checked as well, as far as they are there. A good receipt
    is unchanged since it was made; that says nothing about who made it.
    """
    return judge(source).problems


def judge(source: bytes | Path | str) -> Judged:
    """As `verify`, and in sentences what could not be judged: what another version's rules made of it."""
    folder = None
    if not isinstance(source, (bytes, bytearray)):
        path = Path(source)
        try:
            if path.is_dir():
                path = path / "receipt.json"
            if not path.is_file():
                return Judged([Problem("UNREADABLE", "", f"there is no file {path}")], [])
            with open(path, "rb") as f:
                source = f.read(MOST_BYTES + 1)
            folder = path.parent
        except (OSError, ValueError) as e:
            return Judged([Problem("UNREADABLE", "", f"{path} cannot be read: {e}")], [])
    found: list[Problem] = []
    notes: list[str] = []
    try:
        for problem in _problems(bytes(source), folder, notes):
            found.append(problem)
            if len(found) >= MOST_PROBLEMS:
                found.append(Problem("MORE", "", "and more; only the first are listed"))
                break
    # The one promise of this function: whatever the bytes are, the answer is a list.
    except Exception as e:
        found.append(Problem("UNREADABLE", "", f"it cannot be judged ({type(e).__name__})"))
    return Judged(found, notes)


def _problems(data: bytes, folder: Path | None, notes: list[str]) -> Iterator[Problem]:
    if len(data) > MOST_BYTES:
        yield Problem("TOO_LARGE", "", f"it is larger than {MOST_BYTES >> 20} MiB")
        return
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        yield Problem("TOO_LARGE", "", f"it has more than {MOST_VALUES} values")
        return
    try:
        receipt = json.loads(data)
    except RecursionError:
        yield Problem("NOT_JSON", "", "it is nested too deeply")
        return
    except ValueError as e:
        yield Problem("NOT_JSON", "", f"it is no JSON: {str(e)[:200]}")
        return
    schema = receipt.get("schema") if isinstance(receipt, dict) else None
    if not isinstance(schema, str) or not schema.startswith("route.receipt/"):
        yield Problem("NO_RECEIPT", "schema", "it is no receipt")
        return
    major = schema.partition("/")[2]
    if major.isdecimal() and len(major) < 9 and int(major) > 1:
        yield Problem("NEWER_SCHEMA", "schema", f"it is a {schema}; this version reads {SCHEMA}: upgrade")
        return
    if schema != SCHEMA:
        yield Problem("NO_RECEIPT", "schema", f"{schema[:80]!r} is no schema of a receipt")
        return
    try:
        whole = canonical(receipt)
    except (ValueError, RecursionError) as e:
        yield Problem("NOT_CANONICAL", "", f"it has no canonical form: {str(e)[:200]}")
        return
    if data not in (whole, whole + b"\n"):
        # Of two values of one name one reader takes the first, another the last.
        if twice := _twice(data):
            yield Problem("DUPLICATE_KEY", twice[:200], "stands there twice")
        yield Problem("NOT_CANONICAL", "", "its bytes are not those of its canonical form")
    if receipt.get("receipt_id") != receipt_id(receipt):
        yield Problem("HASH_MISMATCH", "receipt_id", "the content is not what its id stands for")
    if receipt.get("signatures") != []:
        # No digest covers it, so nothing may stand there: a signature is a file beside the receipt.
        yield Problem("TYPE", "signatures", "is not empty; a signature stands in receipt.json.sig")
    yield from _digests(receipt)
    for path, what in broken(receipt):
        yield Problem("HASH_MISMATCH", path, what)
    rules = receipt.get("rules")
    if type(rules) is int and rules > RULES:
        notes.append(
            f"its fields were made by rules {rules}, this version knows {RULES}: its bytes are whole, "
            "what they say cannot be judged here; upgrade"
        )
        yield from _key(receipt)
    else:
        if type(rules) is int and rules < RULES:
            notes.append(f"made by rules {rules}: what they derived is not made again by rules {RULES}")
        yield from _shape(receipt)
        yield from _consistent(receipt)
    if folder is not None:
        yield from _artifacts(receipt, folder)


def _twice(data: bytes) -> str:
    """A name that an object of `data` has twice; empty if none has."""
    found: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> None:
        names: set[str] = set()
        for name, _ in items:
            if name in names:
                found.append(name)
            names.add(name)

    json.loads(data, object_pairs_hook=pairs)
    return found[0] if found else ""


def _digests(receipt: dict[str, Any]) -> Iterator[Problem]:
    block, told = receipt.get("measured"), receipt.get("measured_sha256")
    if block is None:
        if told is not None:
            yield Problem("HASH_MISMATCH", "measured_sha256", "it stands for a block that is not there")
    elif hashlib.sha256(canonical(block)).hexdigest() != told:
        yield Problem("HASH_MISMATCH", "measured_sha256", "the measured block is not what it stands for")
    elif not isinstance(block, dict):
        yield Problem("TYPE", "measured", "is no object")
    else:
        for name in ("run_id", "attempt"):
            if block.get(name) != receipt.get(name):
                yield Problem("INCONSISTENT", f"measured.{name}", "is that of another run")


# The schema, field by field

_TOP = {field.path: field for field in TABLE if field.block == "receipt"}
_NULLABLE = ("measured", "measured_sha256", "chain")


def _shape(receipt: dict[str, Any]) -> Iterator[Problem]:
    for name in receipt:
        if name not in _TOP:
            yield Problem("UNKNOWN_FIELD", str(name)[:200], "is no field of a receipt")
    for name, field in _TOP.items():
        if name not in receipt:
            yield Problem("MISSING_FIELD", name, "is missing")
        elif not (receipt[name] is None and name in _NULLABLE) and (why := misfit(field.type, receipt[name])):
            yield Problem("TYPE", name, why)
    yield from _envelope(receipt)
    context = receipt.get("context")
    if not isinstance(context, dict):
        yield Problem("TYPE", "context", "is no object")
        return
    there, rules = dict(leaves(context)), receipt.get("rules")
    older = type(rules) is int and rules < RULES
    for path in there:
        if path not in BY_PATH:
            yield Problem("UNKNOWN_FIELD", f"context.{path[:200]}", "is no field of a receipt")
    for field in TABLE:
        if field.block != "receipt":
            if field.path not in there:
                if type(rules) is int and rules <= field.since:
                    continue  # made before there was such a field
                yield Problem("MISSING_FIELD", f"context.{field.path}", "is missing")
            elif why := _misfact(field, there[field.path], older):
                yield Problem("TYPE", f"context.{field.path}", why)


def _misfact(field: SchemaField, fact: Any, older: bool) -> str:
    """Why `fact` is no fact of this field; empty if it is one. `older` rules knew fewer parts of items
    and other sources."""
    if not isinstance(fact, dict):
        return "is no fact {v, src, at} or {v, why}"
    if fact.get("v") is None:
        why = fact.get("why")
        if set(fact) != {"v", "why"} or not isinstance(why, str):
            return "has no value and no reason why"
        word = why.partition(":")[0]
        return "" if word in ("unobserved", "not_applicable") else f"has the unknown reason {word[:40]!r}"
    if set(fact) != {"v", "src", "at"}:
        return "has not exactly v, src and at"
    if misfit("int", fact["at"]):
        return "has a time that is no integer from 0 below 2^53"
    source = fact["src"].partition(":")[0] if isinstance(fact["src"], str) else ""
    if source not in SOURCES:
        return f"has the unknown source {source[:40]!r}"
    if source not in field.sources and not older:
        return f"has the source {source!r}, which is not good enough: {', '.join(field.sources)}"
    return misfit(field.type, fact["v"], partly=older)


def _envelope(receipt: dict[str, Any]) -> Iterator[Problem]:
    chain = receipt.get("chain")
    if chain is not None:
        if not isinstance(chain, dict) or set(chain) != {"store_id", "prev", "seq"}:
            yield Problem("TYPE", "chain", "has not exactly store_id, prev and seq")
        elif misfit("int", chain["seq"]) or chain["seq"] < 1:
            yield Problem("TYPE", "chain.seq", "is no integer from 1")
        elif (chain["prev"] is None) != (chain["seq"] == 1):
            yield Problem(
                "INCONSISTENT", "chain.prev", "only the first receipt of a store has none before it"
            )
        elif misfit("hex", chain["store_id"]) or (chain["prev"] is not None and misfit("hex", chain["prev"])):
            yield Problem("TYPE", "chain", "names no digests")
    if type(receipt.get("attempt")) is int and receipt["attempt"] < 1:
        yield Problem("TYPE", "attempt", "is no integer from 1")
    reasons = receipt.get("evidence_reasons")
    names = {"code", "class", "sentence"}
    if not isinstance(reasons, list) or any(not isinstance(r, dict) or set(r) != names for r in reasons):
        yield Problem("TYPE", "evidence_reasons", "is no list of {code, class, sentence}")


# Whether its parts agree


def _consistent(receipt: dict[str, Any]) -> Iterator[Problem]:
    context = receipt.get("context")
    if not isinstance(context, dict):
        return
    state, code, number = (value(context, f"outcome.{n}") for n in ("state", "exit_code", "signal"))
    if state == "succeeded" and (code not in (0, None) or number is not None):
        yield Problem("INCONSISTENT", "context.outcome", f"succeeded with exit code {code}, signal {number}")
    if state == "failed" and code == 0:
        yield Problem("INCONSISTENT", "context.outcome", "failed with exit code 0")
    if code is not None and number is not None:
        yield Problem("INCONSISTENT", "context.outcome", "has both an exit code and a signal")
    yield from _key(receipt)
    fields = at_path(receipt, "comparability.fields")
    if receipt.get("rules") != RULES:
        return
    # From here on what the rules of this version say is made again and compared.
    if isinstance(fields, dict):
        again = comparability(receipt)["fields"]
        for path in sorted({*map(str, fields), *again}):
            if fields.get(path) != again.get(path):
                yield Problem("INCONSISTENT", f"comparability.fields.{path}", "is not what the field says")
    if (receipt.get("evidence_class"), receipt.get("evidence_reasons")) != evidence(receipt):
        yield Problem("INCONSISTENT", "evidence_class", "is not what the rules make of the receipt")
    yield from _observed(receipt, context)


def _key(receipt: dict[str, Any]) -> Iterator[Problem]:
    block = receipt.get("comparability")
    fields = block.get("fields") if isinstance(block, dict) else None
    if not isinstance(fields, dict) or set(block) != {"key", "fields"}:  # type: ignore[arg-type]
        yield Problem("TYPE", "comparability", "has not exactly key and fields")
    elif hashlib.sha256(canonical(fields)).hexdigest() != block["key"]:  # type: ignore[index]
        yield Problem("HASH_MISMATCH", "comparability.key", "it does not stand for its fields")


def _observed(receipt: dict[str, Any], context: dict[str, Any]) -> Iterator[Problem]:
    """The facts read from the measured block, read again."""
    measured, at = receipt.get("measured"), receipt.get("created_us")
    cpu = value(context, "hw.requested.class") == "cpu"
    again = observe_all(
        measured if isinstance(measured, Mapping) else None,
        nodes_of(context),
        at=at if type(at) is int else 0,
        cpu=cpu,
    )
    for field in TABLE:
        if field.block != "measured":
            continue
        fact: Fact | None = at_path(context, field.path)
        source = str(at_path(fact, "src")).partition(":")[0]
        by_rule = missing(fact) == "not_applicable" or source in ("requested", "derived")
        if not by_rule and fact != at_path(again, field.path):
            yield Problem("INCONSISTENT", f"context.{field.path}", "is not what the measured block says")


def _artifacts(receipt: dict[str, Any], folder: Path) -> Iterator[Problem]:
    """The files the run left, as far as they lie beside the receipt."""
    listed = value(receipt.get("context"), "artifacts")
    if not isinstance(listed, list):
        return
    top = os.path.realpath(folder)
    for item in listed:
        path, want, size = (
            item.get(n) if isinstance(item, dict) else None for n in ("path", "sha256", "bytes")
        )
        if not isinstance(path, str) or not isinstance(want, str) or "\0" in path:
            continue
        parts = path.split("/")
        if path.startswith("/") or ".." in parts:
            yield Problem("ARTIFACT", path[:200], "lies outside the run's folder")
            continue
        file = os.path.join(top, *parts)
        if not os.path.lexists(file):
            continue
        if os.path.realpath(file) != file or not os.path.isfile(file):
            yield Problem("ARTIFACT", path[:200], "is not the regular file it was")
            continue
        if os.path.getsize(file) != size or _hashed(file) != want:
            yield Problem("ARTIFACT", path[:200], "is not the file that the run left")


def _hashed(path: str) -> str:
    made = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            made.update(piece)
    return made.hexdigest()
