"""Reads a receipt out of whatever carries it: a file, a run's folder, a bundle, an in-toto statement.

Nothing is extracted and no link is followed inside a bundle; what is read is bounded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from compute_router.receipt.facts import at_path, misfit, value
from compute_router.receipt.verifying import MOST_BYTES, MOST_VALUES, Problem, judge
from compute_router.records import encode

__all__ = [
    "PAYLOAD_TYPE",
    "PREDICATE",
    "RECEIPT",
    "SIGNATURE",
    "STATEMENT",
    "SUMS",
    "Examined",
    "Opened",
    "examine",
    "listing",
    "opened",
    "pae",
    "statement",
    "sums",
]

RECEIPT = "receipt.json"
SIGNATURE = "receipt.json.sig"
SUMS = "SHA256SUMS"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:compute-router:route.receipt/1"
"""The type of the predicate: a name, not an address."""
PAYLOAD_TYPE = "application/vnd.in-toto+json"

MOST_SIGNATURE = 64 << 10
MOST_SIGNATURES = 16
_MOST_READ = 16 << 20
_PIECE = 1 << 20


class Opened(NamedTuple):
    """A receipt and what came with it.

    `form` is `receipt`, `folder`, `bundle`, `statement` or `envelope`; `data` the receipt's bytes,
    empty where there is none; `signed` what the `signatures` (each as ssh-keygen writes it) are
    over; `problems` what is wrong with the carrier, `folder` where the receipt lies.
    """

    form: str
    data: bytes
    signed: bytes = b""
    signatures: tuple[bytes, ...] = ()
    problems: tuple[Problem, ...] = ()
    folder: Path | None = None


class Examined(NamedTuple):
    """What `examine` found: `problems` empty if all is well, `notes` what could not be judged."""

    opened: Opened
    problems: list[Problem]
    notes: list[str]


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """The bytes that a signature of a DSSE envelope is over (its pre-authentication encoding)."""
    kind = payload_type.encode()
    return b" ".join((b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload))


def examine(path: Path | str) -> Examined:
    """Verify a receipt in whatever carries it, and the carrier. Never raises for what is in it."""
    found = opened(path)
    if not found.data:
        return Examined(found, list(found.problems), [])
    source: bytes | Path = found.data
    if found.form in ("receipt", "folder") and found.folder is not None:
        # The artifacts beside it count as well.
        source = found.folder / RECEIPT if found.form == "folder" else Path(path)
    judged = judge(source)
    return Examined(found, [*found.problems, *judged.problems], judged.notes)


def opened(path: Path | str) -> Opened:
    """The receipt that `path` holds: a file, a folder with one, a bundle, a statement, an envelope.

    Never raises; `problems` says why there is none.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _folder(path)
        if not path.is_file():
            return _none("UNREADABLE", f"there is no file {path}")
        with open(path, "rb") as f:
            start = f.read(4)
            f.seek(0)
            if start[:2] == b"PK":
                return _bundle(f)
            data = f.read(2 * MOST_BYTES + 1)
    except (OSError, ValueError) as e:
        return _none("UNREADABLE", f"{path} cannot be read: {e}")
    if len(data) > 2 * MOST_BYTES:
        return _none("TOO_LARGE", f"it is larger than {2 * MOST_BYTES >> 20} MiB")
    # A receipt's own bytes begin with the first of its names; only what does not is looked into.
    if b'"payloadType"' in data[:MOST_SIGNATURE] or b'"_type"' in data[:MOST_SIGNATURE]:
        carried = _carried(data)
        if carried is not None:
            return carried
    try:
        signatures = _beside(path)
    except (OSError, ValueError) as e:
        return Opened("receipt", data, data, (), (Problem("SIGNATURE", "", str(e)),), path.parent)
    return Opened("receipt", data, data, signatures, (), path.parent)


def _none(code: str, what: str, form: str = "receipt") -> Opened:
    return Opened(form, b"", problems=(Problem(code, "", what),))


def _beside(path: Path) -> tuple[bytes, ...]:
    """The signature that lies beside a receipt."""
    file = path.with_name(path.name + ".sig")
    if not os.path.lexists(file):
        return ()
    if not file.is_file():
        raise ValueError(f"{file.name} is no regular file")
    with open(file, "rb") as f:
        data = f.read(MOST_SIGNATURE + 1)
    if len(data) > MOST_SIGNATURE:
        raise ValueError(f"{file.name} is larger than {MOST_SIGNATURE >> 10} KiB")
    return (data,)


# A bundle: packed, or a folder it was unpacked to


def _folder(folder: Path) -> Opened:
    found = opened(folder / RECEIPT)
    if not os.path.lexists(folder / SUMS) or not found.data:
        return found._replace(form="folder", folder=folder)
    inner = folder / "artifacts"
    names = [p.name for p in folder.iterdir() if p != inner or inner.is_symlink()]
    if inner.is_dir() and not inner.is_symlink():
        names += [f"artifacts/{p.name}" for p in inner.iterdir()]

    def pieces(name: str) -> Iterator[bytes]:
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise ValueError("is no regular file")
        with open(folder / name, "rb") as f:
            while piece := f.read(_PIECE):
                yield piece

    problems = (*found.problems, *_contents(found, names, pieces))
    return found._replace(form="bundle", problems=problems, folder=folder)


class _Bounded(io.BufferedIOBase):
    """A file of which no read takes much: an archive may claim any size for its own directory."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = _MOST_READ
        if size > _MOST_READ:
            raise ValueError(f"it claims a directory of {size} bytes")
        return self._raw.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def seekable(self) -> bool:
        return True


def _bundle(file: BinaryIO) -> Opened:
    try:
        with zipfile.ZipFile(_Bounded(file)) as packed:
            members = packed.infolist()
            for member in members:
                if why := _unfit(member):
                    return _none("BUNDLE", f"{member.filename[:200]!r} {why}", "bundle")
            names = [member.filename for member in members]
            if RECEIPT not in names:
                return _none("BUNDLE", f"it holds no {RECEIPT}", "bundle")

            def pieces(name: str) -> Iterator[bytes]:
                with packed.open(name) as f:
                    while piece := f.read(_PIECE):
                        yield piece

            data = _whole(pieces(RECEIPT), MOST_BYTES, RECEIPT)
            found = Opened("bundle", data, data)
            if SIGNATURE in names:
                found = found._replace(signatures=(_whole(pieces(SIGNATURE), MOST_SIGNATURE, SIGNATURE),))
            return found._replace(problems=tuple(_contents(found, names, pieces)))
    # The library raises a dozen sorts of errors for archives that are none.
    except Exception as e:
        return _none("BUNDLE", f"it is no whole archive: {str(e)[:200] or type(e).__name__}", "bundle")


def _unfit(member: zipfile.ZipInfo) -> str:
    """Why a member may not be read; empty if it may."""
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in another way than stored or deflated"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is no regular file"
    return ""


def _whole(pieces: Iterator[bytes], most: int, name: str) -> bytes:
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > most:
            raise ValueError(f"{name} is larger than {most} bytes")
    return bytes(data)


def listing(data: bytes, signatures: Sequence[bytes], artifacts: Iterable[str]) -> dict[str, str]:
    """What a bundle holds, by name: the sha256 of each member but `SUMS`. `artifacts` are digests."""
    found = {RECEIPT: hashlib.sha256(data).hexdigest()}
    if signatures:
        found[SIGNATURE] = hashlib.sha256(signatures[0]).hexdigest()
    return {**found, **{f"artifacts/{sha256}": sha256 for sha256 in artifacts}}


def sums(members: Mapping[str, str]) -> bytes:
    """`SHA256SUMS`, as `sha256sum --check` reads it."""
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(members.items())).encode()


def _contents(
    found: Opened, names: Sequence[str], pieces: Callable[[str], Iterator[bytes]]
) -> Iterator[Problem]:
    """Whether a bundle holds what its receipt names, unchanged, and nothing else."""
    artifacts = _artifacts(found.data)
    if artifacts is None:
        return  # the receipt itself is not good, which is told of it
    sizes = {item["sha256"]: item["bytes"] for item in artifacts}
    want = listing(found.data, found.signatures, sizes)
    counts = Counter(names)
    odd = [name for name, n in counts.items() if n > 1 or (name not in want and name != SUMS)]
    for name in sorted(odd)[:10]:
        yield Problem("BUNDLE", name[:200], "is no part of it, or stands there twice")
    for name, sha256 in want.items():
        if name not in counts:
            paths = [item["path"] for item in artifacts if item["sha256"] == sha256]
            yield Problem("ARTIFACT", (paths or [name])[0][:200], "is not in the bundle")
        elif name.startswith("artifacts/") and not _is(pieces(name), sha256, sizes[sha256]):
            yield Problem("ARTIFACT", name, "is not the file that the run left")
    try:
        if SUMS not in counts or _whole(pieces(SUMS), _MOST_READ, SUMS) != sums(want):
            yield Problem("BUNDLE", SUMS, "does not list what the bundle holds")
    except (OSError, ValueError) as e:
        yield Problem("BUNDLE", SUMS, str(e))


def _artifacts(data: bytes) -> list[dict[str, Any]] | None:
    """The artifacts a receipt names; None if it cannot be read or names them wrongly."""
    if judge(data).problems:
        return None
    listed = value(json.loads(data).get("context"), "artifacts")
    found = listed if isinstance(listed, list) else []
    good = all(
        isinstance(item, dict)
        and misfit("hex", item.get("sha256")) == misfit("int", item.get("bytes")) == ""
        and isinstance(item.get("path"), str)
        for item in found
    )
    return found if good else None


def _is(pieces: Iterator[bytes], sha256: str, size: int) -> bool:
    made, left = hashlib.sha256(), size
    try:
        for piece in pieces:
            left -= len(piece)
            if left < 0:
                return False
            made.update(piece)
    except Exception:
        return False
    return left == 0 and made.hexdigest() == sha256


# in-toto


def _carried(data: bytes) -> Opened | None:
    """The receipt inside a statement or an envelope; None if `data` is neither."""
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        return _none("TOO_LARGE", f"it has more than {MOST_VALUES} values")
    try:
        outer = json.loads(data, object_pairs_hook=_once)
        if not isinstance(outer, dict) or "schema" in outer:
            return None
        if "payloadType" not in outer:
            return _statement(outer, "statement", b"", ())
        if outer["payloadType"] != PAYLOAD_TYPE:
            return _none("ENVELOPE", f"it carries no {PAYLOAD_TYPE}", "envelope")
        payload = _decoded(outer.get("payload"), 2 * MOST_BYTES)
        listed = outer.get("signatures")
        if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_SIGNATURES:
            return _none("ENVELOPE", f"it has not from 1 to {MOST_SIGNATURES} signatures", "envelope")
        signatures = tuple(_decoded(at_path(item, "sig"), MOST_SIGNATURE) for item in listed)
        if sum(payload.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
            return _none("TOO_LARGE", f"it has more than {MOST_VALUES} values", "envelope")
        inner = json.loads(payload, object_pairs_hook=_once)
        return _statement(inner, "envelope", pae(payload), signatures)
    except (ValueError, RecursionError) as e:
        return _none("STATEMENT", f"it cannot be read: {str(e)[:200]}")


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) != len(items):
        raise ValueError("a name stands there twice")
    return found


def _decoded(text: Any, most: int) -> bytes:
    if not isinstance(text, str) or len(text) > most * 2:
        raise ValueError("what should be base64 is none")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as e:
        raise ValueError("what should be base64 is none") from e


def statement(receipt: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    """The in-toto statement about a receipt whose file is `data`, and about what its run left."""
    listed = value(receipt.get("context"), "artifacts")
    subject = [{"name": RECEIPT, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}]
    for item in listed if isinstance(listed, list) else []:
        subject.append({"name": item["path"], "digest": {"sha256": item["sha256"]}})
    return {"_type": STATEMENT, "subject": subject, "predicateType": PREDICATE, "predicate": dict(receipt)}


def _statement(found: Any, form: str, signed: bytes, signatures: tuple[bytes, ...]) -> Opened:
    predicate = found.get("predicate") if isinstance(found, dict) else None
    if not isinstance(predicate, dict) or found.get("_type") != STATEMENT:
        return _none("STATEMENT", f"it is no {STATEMENT}", form)
    if found.get("predicateType") != PREDICATE:
        return _none("STATEMENT", f"its predicate is no {PREDICATE}", form)
    data = encode(predicate)
    problems: tuple[Problem, ...] = ()
    if _artifacts(data) is not None and found != statement(predicate, data):
        problems = (Problem("STATEMENT", "subject", "is not what the receipt names"),)
    return Opened(form, data, signed or data, signatures, problems)
