"""Writes a receipt for others: a bundle with what its run left, or an in-toto statement about it.

What goes out is the receipt, its signature and the artifacts that it names by digest: nothing else of
the run's folder, so nothing that redaction left out of the receipt.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from compute_router.errors import InputError, Refused
from compute_router.receipt.facts import value
from compute_router.receipt.opening import (
    PAYLOAD_TYPE,
    RECEIPT,
    SIGNATURE,
    SUMS,
    Opened,
    examine,
    listing,
    pae,
    statement,
    sums,
)
from compute_router.receipt.redacting import ambient
from compute_router.receipt.signing import fingerprint, signature
from compute_router.records import canonical, encode
from compute_router.scrubbing import scrubber

__all__ = ["bundle", "good", "into_file", "sources", "statement_of"]

_PIECE = 1 << 20
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
"""The time of every member: the earliest that an archive can tell."""


def good(path: Path | str) -> Opened:
    """What lies at `path`, if all of it is good. Raises `Refused` otherwise."""
    found = examine(path)
    if found.problems:
        raise Refused(
            f"{path} is not exported, for it is not good: {found.problems[0]}",
            mend=f"route receipt verify {path}",
        )
    return found.opened


def statement_of(found: Opened, key: Path | str | None = None, *, prompting: bool = False) -> bytes:
    """The in-toto statement about a good receipt and its artifacts, as JSON.

    With `key` it is a DSSE envelope whose signature ssh-keygen made over its pre-authentication
    encoding, for which `signing.signature` says what it raises.
    """
    told = statement(json.loads(found.data), found.data)
    if key is None:
        return encode(told)
    payload = canonical(told)
    made = signature(pae(payload), key, prompting=prompting)
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": fingerprint(pae(payload), made), "sig": base64.b64encode(made).decode()},
        ],
    }
    return encode(envelope)


def bundle(found: Opened, into: BinaryIO) -> int:
    """Write a good receipt, its signature and its artifacts as a zip archive; returns how many artifacts.

    The same receipt makes the same bytes, whenever and wherever. `into` can be sought. Raises
    `Refused` if an artifact is missing, has changed, or holds a secret that this process knows.
    """
    artifacts = {item["sha256"]: item for item in _artifacts(found)}
    members = listing(found.data, found.signatures, artifacts)
    small = {RECEIPT: found.data, SUMS: sums(members)}
    if found.signatures:
        small[SIGNATURE] = found.signatures[0]
    # Stored, not packed: what packing makes of the same bytes differs from library to library.
    with zipfile.ZipFile(into, "w", zipfile.ZIP_STORED) as packed:
        for name in sorted({*members, SUMS}):
            if name in small:
                packed.writestr(_member(name, len(small[name])), small[name])
                continue
            item = artifacts[members[name]]
            with packed.open(_member(name, item["bytes"]), "w") as member:
                _copy(found, item, member)
    return len(artifacts)


def sources(found: Opened) -> list[Path]:
    """The files that a bundle is made of, as far as they are there: no export may be written over one."""
    if found.folder is None:
        return []
    names = (RECEIPT, SIGNATURE, SUMS)
    artifacts = [_lies_at(found, item) for item in _artifacts(found)]
    return [path for path in (*(found.folder / n for n in names), *artifacts) if path and path.is_file()]


def _artifacts(found: Opened) -> list[dict[str, Any]]:
    return value(json.loads(found.data).get("context"), "artifacts") or []


def _member(name: str, size: int) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name, _FIRST_DAY)
    made.create_system, made.external_attr, made.file_size = 3, 0o100644 << 16, size
    return made


def _copy(found: Opened, item: Mapping[str, Any], member: Any) -> None:
    """Copy one artifact from where the run left it, if it is still the one that the receipt names."""
    name = item["path"]
    path = _lies_at(found, item)
    if path is None:
        raise Refused(
            f"{name} is not beside the receipt, so a bundle would lack it",
            mend="route collect brings it back; --format in-toto carries digests alone",
        )
    made, size = hashlib.sha256(), 0
    look = scrubber(ambient(os.environ))
    before = b""
    with open(path, "rb") as f:
        while piece := f.read(_PIECE):
            size += len(piece)
            made.update(piece)
            member.write(piece)
            if look is not None and look.longest:
                # What stands across the border of two pieces is found in the second.
                if secret := look.holds(before + piece):
                    raise Refused(
                        f"{name} holds the value of {secret}, a secret of your environment",
                        mend="--format in-toto carries digests alone",
                    )
                before = (before + piece)[-look.longest :]
    if size != item["bytes"] or made.hexdigest() != item["sha256"]:
        raise Refused(
            f"{name} is not the file that the run left", mend="export from where it is as it was left"
        )


def _lies_at(found: Opened, item: Mapping[str, Any]) -> Path | None:
    """The file of an artifact: at its path, or by its digest in an unpacked bundle."""
    if found.folder is None:
        return None
    top = Path(os.path.realpath(found.folder))
    for name in (item["path"], f"artifacts/{item['sha256']}"):
        path = top / name
        # No link leads out of the folder, and none is followed within it.
        if path.is_file() and os.path.realpath(path) == str(path):
            return path
    return None


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    part = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def into_file(path: Path, write: Callable[[BinaryIO], Any]) -> Any:
    """Let `write` fill a file that is at `path` once it is whole; returns what it returns.

    Nothing is left behind if it raises. Raises `InputError` if it cannot be written.
    """
    try:
        with _beside(path) as part:
            with open(part, "xb") as f:
                told = write(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(part, path)
    except OSError as e:
        raise InputError(
            f"{path} cannot be written: {e.strerror or e}", mend="-o a file in a folder with room of your own"
        ) from e
    return told
