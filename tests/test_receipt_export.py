"""Proves that an exported receipt is whole, is read back, is what others' tools read, and that hostile
archives and envelopes are told in one line."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Route
from receipt_samples import made, measurements

from compute_router.receipt.exporting import bundle, good
from compute_router.receipt.opening import PREDICATE, STATEMENT, examine
from compute_router.receipt.signing import check
from compute_router.records import encode

FILES = {"outputs/a.txt": b"hi", "outputs/deep/b.bin": bytes(range(256)) * 9000, "outputs/same.txt": b"hi"}
needs_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")


@pytest.fixture
def results(folder: Path) -> Path:
    """A folder as that of a run: a receipt, its artifacts, and what must not leave it."""
    place = folder / "results"
    items = []
    for name, data in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        items.append({"path": name, "bytes": len(data), "sha256": sha256, "role": "output"})
    (place / "receipt.json").write_bytes(encode(made(measurements(artifacts=items))))
    (place / "log").write_text("token=hunter2-in-the-log\n")
    (place / "outputs" / "skipped.txt").write_text("held back\n")
    return place


def packed(results: Path) -> bytes:
    into = io.BytesIO()
    bundle(good(results), into)
    return into.getvalue()


def told(path: Path) -> list[str]:
    return [str(problem) for problem in examine(path).problems]


def test_a_bundle_holds_what_the_receipt_names_and_no_more(
    results: Path, folder: Path, route: Route, tmp_path: Path
) -> None:
    out = route("receipt", "export", "results", "-o", "run.zip")
    assert (out.returncode, out.stderr) == (0, "")
    with zipfile.ZipFile(folder / "run.zip") as archive:
        names = archive.namelist()
        whole = b"".join(archive.read(name) for name in names)
        archive.extractall(tmp_path / "unpacked")
    digests = {hashlib.sha256(data).hexdigest() for data in FILES.values()}
    assert names == sorted(["SHA256SUMS", "receipt.json", *(f"artifacts/{d}" for d in digests)])
    for left_out in (b"hunter2", b"held back"):
        assert left_out not in whole
    assert told(folder / "run.zip") == told(tmp_path / "unpacked") == []
    sums = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "unpacked", capture_output=True
    )
    assert sums.returncode == 0, sums
    assert packed(tmp_path / "unpacked") == (folder / "run.zip").read_bytes(), "packed again, the same bytes"
    assert oct(stat.S_IMODE((folder / "run.zip").stat().st_mode) & 0o111) == "0o0"
    out = route("receipt", "show", "run.zip")
    assert (out.returncode, "exploratory" in out.stdout) == (0, True), out


def test_the_same_receipt_makes_the_same_bytes(results: Path, folder: Path) -> None:
    first = packed(results)
    for path in results.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    elsewhere = shutil.copytree(results, folder / "elsewhere")
    assert packed(elsewhere) == first


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda r: (r / "outputs/deep/b.bin").unlink(), "not beside the receipt"),
        (lambda r: (r / "outputs/a.txt").write_bytes(b"ho"), "not the file that the run left"),
        (lambda r: (r / "outputs/a.txt").write_bytes(b"hihi"), "not the file that the run left"),
        (lambda r: (r / "outputs").rename(r / "away"), "not beside the receipt"),
        (
            lambda r: ((r / "outputs").rename(r / "away"), (r / "outputs").symlink_to("away")),
            "not the regular file it was",
        ),
        (lambda r: (r / "receipt.json").write_bytes(b"{}"), "is not good"),
    ],
)
def test_what_is_not_whole_is_refused_and_leaves_nothing(
    results: Path, folder: Path, route: Route, spoil: Callable[[Path], Any], word: str
) -> None:
    spoil(results)
    out = route("receipt", "export", "results", "-o", "run.zip")
    assert (out.returncode, len(out.stderr.splitlines())) == (65, 2), out
    assert word in out.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["results"]


def test_an_artifact_with_a_secret_of_the_environment_stays(
    results: Path, folder: Path, route: Route
) -> None:
    data = b"x" * ((1 << 20) - 5) + b"s3cr3t-4nd-l0ng" + b"y" * 100
    place = results / "outputs" / "a.txt"
    place.write_bytes(data)
    item = {"path": "outputs/a.txt", "bytes": len(data), "role": "output"}
    item["sha256"] = hashlib.sha256(data).hexdigest()
    (results / "receipt.json").write_bytes(encode(made(measurements(artifacts=[item]))))
    out = route("receipt", "export", "results", "-o", "run.zip", env={"MY_API_KEY": "s3cr3t-4nd-l0ng"})
    assert (out.returncode, "MY_API_KEY" in out.stderr, "s3cr3t" in out.stderr) == (65, True, False), out
    assert not (folder / "run.zip").exists()


def again(data: bytes, change: Callable[[dict[str, bytes]], Any]) -> bytes:
    """A bundle like that of `data`, its members changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return into.getvalue()


def test_bundles_that_were_changed_or_are_hostile_are_told(results: Path, folder: Path) -> None:
    whole = packed(results)
    path = folder / "odd.zip"
    one = f"artifacts/{hashlib.sha256(b'hi').hexdigest()}"
    cases: list[tuple[bytes, str]] = [
        (again(whole, lambda m: m.pop(one)), "is not in the bundle"),
        (again(whole, lambda m: m.update({one: b"ho"})), "not the file that the run left"),
        (again(whole, lambda m: m.update({one: b"hi" * 50_000_000})), "not the file that the run left"),
        (again(whole, lambda m: m.update({"../evil": b""})), "is no part of it"),
        (again(whole, lambda m: m.update({"/etc/evil": b""})), "is no part of it"),
        (again(whole, lambda m: m.update({"log": b""})), "is no part of it"),
        (again(whole, lambda m: m.pop("SHA256SUMS")), "does not list"),
        (again(whole, lambda m: m.update({"SHA256SUMS": b""})), "does not list"),
        (again(whole, lambda m: m.pop("receipt.json")), "holds no receipt.json"),
        (again(whole, lambda m: m.update({"receipt.json": b"{}"})), "NO_RECEIPT"),
        (again(whole, lambda m: m.update({"receipt.json.sig": b"x" * 70_000})), "is larger than"),
        (whole[: len(whole) // 2], "no whole archive"),
        (b"PK\x05\x06" + b"\xff" * 18, "no whole archive"),
        (b"PK\x05\x06" + bytes(8) + b"\xff\xff\xff\x7f" + bytes(6), "no whole archive"),
        (b"PK", "no whole archive"),
    ]
    for index, (data, word) in enumerate(cases):
        path.write_bytes(data)
        assert any(word in line for line in told(path)), (index, told(path))
        assert len(told(path)) <= 12
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("receipt.json", b" " * (200 << 20))
    path.write_bytes(into.getvalue())
    assert any("is larger than" in line for line in told(path)), "a small archive that unpacks to much"
    link = zipfile.ZipInfo("receipt.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert any("no regular file" in line for line in told(path))
    assert sorted(p.name for p in folder.iterdir()) == ["odd.zip", "results"], "nothing was extracted"


def test_bytes_of_a_bundle_that_are_flipped_never_make_another_good_one(
    results: Path, folder: Path, seed: random.Random
) -> None:
    """What changes only how it is packed (a time, a name of the system) may pass; its contents may not."""
    whole, path = packed(results), folder / "odd.zip"
    for _ in range(150):
        spot = seed.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[spot] ^= 1 << seed.randrange(8)
        path.write_bytes(flipped)
        examined = examine(path)
        assert examined.problems or examined.opened.data == (results / "receipt.json").read_bytes()


# in-toto


def test_a_statement_is_what_in_toto_reads(results: Path, folder: Path, route: Route) -> None:
    parsing = pytest.importorskip("google.protobuf.json_format")
    kept = pytest.importorskip("in_toto_attestation.v1.statement")
    pb2 = pytest.importorskip("in_toto_attestation.v1.statement_pb2")
    out = route("receipt", "export", "results", "--format", "in-toto", "-o", "-")
    assert (out.returncode, out.stderr) == (0, "")
    read = kept.Statement.copy_from_pb(parsing.Parse(out.stdout, pb2.Statement()))
    read.validate()
    assert (read.pb.type, read.pb.predicate_type) == (STATEMENT, PREDICATE)
    subjects = {subject.name: subject.digest["sha256"] for subject in read.pb.subject}
    data = (results / "receipt.json").read_bytes()
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert subjects == {"receipt.json": hashlib.sha256(data).hexdigest(), **expected}
    (folder / "run.json").write_text(out.stdout)
    examined = examine(folder / "run.json")
    assert (examined.problems, examined.opened.form, examined.opened.data) == ([], "statement", data)


@pytest.fixture
def signed(results: Path, folder: Path, route: Route) -> Path:
    """An envelope signed by alice, whom `allowed` allows."""
    if not shutil.which("ssh-keygen"):
        pytest.skip("ssh-keygen is not installed")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "alice")], check=True)
    (folder / "allowed").write_text(f"alice {(folder / 'alice.pub').read_text()}")
    out = route(
        *("receipt", "export", "results", "--format", "in-toto", "-o", "run.intoto.json", "--key", "alice")
    )
    assert (out.returncode, out.stderr) == (0, ""), out
    return folder / "run.intoto.json"


def test_an_envelope_is_what_dsse_says_and_ssh_keygen_checks(signed: Path, folder: Path) -> None:
    dsse = pytest.importorskip("securesystemslib.dsse")
    outer = json.loads(signed.read_bytes())
    [entry] = outer["signatures"]
    payload = base64.b64decode(outer["payload"])
    theirs = dsse.Envelope(payload, outer["payloadType"], {}).pae()
    (folder / "sig").write_bytes(base64.b64decode(entry["sig"]))
    plain = subprocess.run(
        ["ssh-keygen", "-Y", "verify", "-f", "allowed", "-I", "alice", "-n", "route-receipt@v1", "-s", "sig"],
        cwd=folder,
        input=theirs,
        capture_output=True,
    )
    assert plain.returncode == 0, plain
    assert entry["keyid"].encode() in plain.stdout
    assert json.loads(payload)["_type"] == STATEMENT
    assert told(signed) == []
    assert check(signed, folder / "allowed") == (True, "alice", "")


def test_the_commands_that_check_an_envelope_by_hand_are_those_of_the_docs(
    signed: Path, folder: Path
) -> None:
    docs = (Path(__file__).parent.parent / "docs" / "receipts.md").read_text()
    block = docs.partition("### An envelope by hand")[2].partition("```sh\n")[2].partition("```")[0]
    script = block.replace("allowed_signers", "allowed").replace("alice@example.org", "alice")
    done = subprocess.run(["sh", "-ec", script], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, "Good" in done.stdout) == (0, True), done


def test_envelopes_and_statements_that_were_changed_are_told(signed: Path, folder: Path) -> None:
    outer = json.loads(signed.read_bytes())
    inner = json.loads(base64.b64decode(outer["payload"]))
    path = folder / "odd.json"

    def changed(**more: Any) -> list[str]:
        path.write_text(json.dumps({**inner, **more}))
        return told(path)

    def enveloped(**more: Any) -> str:
        path.write_text(json.dumps({**outer, **more}))
        return check(path, folder / "allowed").why

    assert changed() == []
    assert changed(subject=inner["subject"][:1]) == ["STATEMENT: subject: is not what the receipt names"]
    assert changed(more=1)
    assert "predicate" in changed(predicateType="https://example.org/other")[0]
    assert changed(predicate={**inner["predicate"], "created_us": 5})
    assert changed(predicate=[])
    assert "Statement" in changed(_type="https://in-toto.io/Statement/v0.1")[0]
    assert enveloped() == ""
    other = base64.b64encode(json.dumps(inner, indent=1).encode()).decode()
    assert "other bytes" in enveloped(payload=other), "the same statement in other bytes"
    assert enveloped(payloadType="text/plain")
    assert enveloped(signatures=[])
    assert enveloped(signatures=[{"sig": "!!"}])
    assert enveloped(signatures=[{"sig": "AAAA"}] * 1000)
    assert enveloped(signatures=[{"sig": "AAAA"}])
    assert enveloped(signatures=[{"sig": "AAAA"}, *outer["signatures"]]) == "", "one good one is enough"
    assert enveloped(payload="[" * 100_000)
    for bad in (b'{"payloadType":' + b"[" * 300_000, b'{"_type":NaN}', b'{"_type":1,"_type":2}'):
        path.write_bytes(bad)
        assert len(told(path)) == 1


@needs_keygen
def test_a_bundle_carries_the_signature(signed: Path, results: Path, folder: Path, route: Route) -> None:
    assert route("receipt", "sign", "results", "--key", "alice").returncode == 0
    assert route("receipt", "export", "results", "-o", "run.zip").returncode == 0
    args = ("receipt", "verify", "run.zip", "--allowed-signers", "allowed", "--require-signature")
    out = route(*args)
    assert (out.returncode, "signed by alice" in out.stdout) == (0, True), out
    out = route("receipt", "export", "results", "--format", "in-toto", "-o", "plain.json")
    assert (out.returncode, "does not carry" in out.stderr) == (0, True), out
    out = route("receipt", "verify", "plain.json", "--allowed-signers", "allowed", "--require-signature")
    assert (out.returncode, "carries no signature" in out.stdout) == (65, True), out


def test_where_to_write_is_looked_at_first(results: Path, folder: Path, route: Route) -> None:
    (folder / "there").write_text("mine")
    os.mkfifo(folder / "pipe")
    for args, word in (
        (["-o", "there"], "is there already"),
        (["-o", "."], "no regular file"),
        (["-o", "pipe", "--replace"], "no regular file"),
        (["-o", "/dev/null", "--replace"], "no regular file"),
        (["-o", "none/run.zip"], "cannot be written"),
        (["-o", "-", "--json"], "stdout cannot carry"),
        (["-o", "x", "--key", "k"], "own signature"),
        (["-o", "x", "--key", "nothing", "--format", "in-toto"], "there is no key"),
    ):
        out = route("receipt", "export", "results", *args)
        assert (out.returncode, word in out.stderr, len(out.stderr.splitlines())) == (64, True, 2), out
    assert (folder / "there").read_text() == "mine"
    assert Path("/dev/null").is_char_device()
    for name in ("receipt.json", "outputs/a.txt"):
        out = route("receipt", "export", "results", "-o", f"results/{name}", "--replace")
        assert (out.returncode, "to be exported" in out.stderr) == (64, True), out
    assert told(results) == []
    assert route("receipt", "export", "results", "-o", "there", "--replace").returncode == 0
    assert told(folder / "there") == []
