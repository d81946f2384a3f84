"""Proves signatures by the real ssh-keygen: who signed what, what does not count, and one line for each."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROUTE, Route
from receipt_samples import made, measurements
from store_samples import begin, receipt

from compute_router.receipt.signing import NAMESPACE, check, sign
from compute_router.records import encode
from compute_router.store import Store

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")


def keygen(*args: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ssh-keygen", *args], input=data, capture_output=True, timeout=60)


def make_key(path: Path, passphrase: str = "", kind: str = "ed25519") -> str:
    """A new key; returns its public half."""
    made = keygen("-q", "-t", kind, "-N", passphrase, "-f", str(path))
    assert made.returncode == 0, made.stderr
    return path.with_name(path.name + ".pub").read_text().strip()


@pytest.fixture
def key(folder: Path) -> Path:
    """A key of alice, whom the file `allowed` allows; beside it a receipt."""
    public = make_key(folder / "alice")
    (folder / "allowed").write_text(f"alice@example.org {public}\n")
    (folder / "receipt.json").write_bytes(encode(made(measurements())))
    return folder / "alice"


def why(folder: Path, allowed: str = "allowed", **more: Any) -> str:
    """What `check` says of the receipt in `folder`, and `ssh-keygen` would have to agree with."""
    answer = check(folder / "receipt.json", folder / allowed, **more)
    assert answer.ok is (answer.why == "")
    assert "\n" not in answer.why
    return answer.why


def test_a_signed_receipt_is_checked_by_plain_ssh_keygen(key: Path, folder: Path) -> None:
    """The very command of docs/receipts.md, without a line of ours."""
    path = sign(folder / "receipt.json", key, prompting=False)
    assert path.name == "receipt.json.sig"
    assert check(folder / "receipt.json", folder / "allowed").signer == "alice@example.org"
    command = (
        "ssh-keygen -Y verify -f allowed -I alice@example.org -n route-receipt@v1 "
        "-s receipt.json.sig < receipt.json"
    )
    docs = (Path(__file__).parent.parent / "docs" / "receipts.md").read_text()
    assert command in docs.replace("\\\n  ", "").replace("allowed_signers", "allowed")
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, "Good" in done.stdout) == (0, True), done


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_other_kinds_of_key_sign_as_well(folder: Path, kind: str) -> None:
    (folder / "receipt.json").write_bytes(encode(made(measurements())))
    (folder / "allowed").write_text(f"them {make_key(folder / 'key', kind=kind)}\n")
    sign(folder, folder / "key", prompting=False)
    assert why(folder) == ""


def test_what_does_not_count_is_told_in_one_line(key: Path, folder: Path) -> None:
    assert "it is not signed" in why(folder)
    path = sign(folder / "receipt.json", key, prompting=False)
    public = (folder / "alice.pub").read_text().strip()
    good = path.read_bytes()
    whole = (folder / "receipt.json").read_bytes()

    (folder / "receipt.json").write_bytes(encode(made(measurements(), created_us=5)))
    assert "something else" in why(folder), "the signature of another receipt"
    (folder / "receipt.json").write_bytes(whole)

    bob = make_key(folder / "bob")
    (folder / "others").write_text(f"bob {bob}\n")
    assert "is not one that" in why(folder, "others")
    assert "allows for bob" in why(folder, signer="bob")
    assert "alice@example.org" in why(folder, signer="bob"), "who may sign with it is told"
    for options, word in (
        ('valid-before="20200101"', "expired"),
        ('valid-after="20990101"', "not yet valid"),
        ('namespaces="git,file"', "not permitted"),
        ("nonsense", "not allowed"),
    ):
        (folder / "odd").write_text(f"alice@example.org {options} {public}\n")
        assert word in why(folder, "odd"), options
    (folder / "gone").write_text(public + "\n")
    assert "is revoked" in why(folder, revoked=folder / "gone")
    (folder / "gone").write_text(bob + "\n")
    assert why(folder, revoked=folder / "gone") == ""

    signed = keygen("-q", "-Y", "sign", "-f", str(key), "-n", "git", data=whole)
    path.write_bytes(signed.stdout)
    assert f"another use than {NAMESPACE}" in why(folder)
    for bad in (b"", b"hello", good[:-60], good.replace(b"U1NIU0lH", b"AAAAAAAA"), b"x" * 100_000):
        path.write_bytes(bad)
        assert why(folder)
    for spot in range(40, len(good) - 32, 7):
        if good[spot : spot + 1] != b"\n":
            path.write_bytes(good[:spot] + bytes([good[spot] ^ 1]) + good[spot + 1 :])
            assert why(folder), spot
    path.unlink()
    path.mkdir()
    assert "regular file" in why(folder)
    assert why(folder.parent), "a folder without a receipt"


def test_without_ssh_keygen_it_says_what_to_install(
    key: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, route: Route
) -> None:
    sign(folder / "receipt.json", key, prompting=False)
    monkeypatch.setenv("PATH", str(folder))
    assert "openssh-client" in why(folder)
    for args in (["sign", "--key", "alice", "--replace"], ["verify", "--allowed-signers", "allowed"]):
        out = route("receipt", *args, "receipt.json")
        assert out.returncode == 65
        assert "openssh-client" in out.stdout + out.stderr


@pytest.fixture
def ssh_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real ssh-agent of this test's own."""
    if not shutil.which("ssh-agent"):
        pytest.skip("ssh-agent is not installed")
    # A socket's path is short, and pytest's folders are not.
    where = Path(f"/tmp/route-{os.getpid()}-{os.urandom(3).hex()}")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(where)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
    yield
    process.terminate()
    process.wait(30)
    process.stdout.close()


@pytest.mark.usefixtures("ssh_agent")
def test_a_key_of_an_agent_signs_by_its_public_half(key: Path, folder: Path, route: Route) -> None:
    subprocess.run(["ssh-add", "-q", str(key)], check=True, timeout=30)
    key.unlink()
    out = route("receipt", "sign", "receipt.json", "--key", "alice.pub")
    assert (out.returncode, out.stderr) == (0, "")
    assert why(folder) == ""
    subprocess.run(["ssh-add", "-q", "-D"], check=True, timeout=30)
    out = route("receipt", "sign", "receipt.json", "--key", "alice.pub", "--replace")
    assert out.returncode == 65
    assert "no SSH agent signs with alice.pub" in out.stderr
    assert why(folder) == "", "what was there stays"


def test_bad_keys_are_one_line_and_leave_nothing(key: Path, folder: Path, route: Route) -> None:
    make_key(folder / "locked", passphrase="secret words")
    (folder / "text").write_text("no key\n")
    shutil.copy(key, folder / "open")
    (folder / "open").chmod(0o644)
    for name, code, word in (
        ("nothing", 64, "there is no key"),
        (".", 64, "folder"),
        ("text", 65, "no SSH key"),
        ("open", 65, "chmod 600"),
        ("locked", 65, "no terminal to ask"),
    ):
        out = route("receipt", "sign", "receipt.json", "--key", name, env={"SSH_AUTH_SOCK": None})
        assert (out.returncode, len(out.stderr.splitlines())) == (code, 2), out.stderr
        assert word in out.stderr
    assert not [p for p in folder.iterdir() if ".sig" in p.name]


def typed(folder: Path, answer: bytes) -> tuple[int, str]:
    """`route receipt sign` on a terminal of its own, `answer` typed at the passphrase."""
    pid, fd = pty.fork()
    if pid == 0:  # pragma: no cover
        os.chdir(folder)
        os.execvp(ROUTE[0], [*ROUTE, "receipt", "sign", "receipt.json", "--key", "locked", "--replace"])
    said = b""
    while b"passphrase" not in said:
        said += os.read(fd, 1000)
    os.write(fd, answer)
    while True:
        try:
            said += os.read(fd, 1000)
        except OSError:
            break
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode()


def test_a_passphrase_is_asked_for_on_the_terminal(
    key: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (folder / "allowed").write_text(f"carol {make_key(folder / 'locked', passphrase='secret words')}\n")
    code, said = typed(folder, b"\x03")
    assert (code, "interrupted" in said) == (130, True), said
    code, said = typed(folder, b"wrong\n")
    assert (code, "not the passphrase" in said) == (65, True), said
    assert not (folder / "receipt.json.sig").exists()
    code, said = typed(folder, b"secret words\n")
    assert code == 0, said
    assert "secret words" not in said
    assert why(folder) == ""


def test_the_command_line_signs_and_demands(key: Path, folder: Path, route: Route) -> None:
    allowed = ("--allowed-signers", "allowed")
    assert route("receipt", "verify", "receipt.json", *allowed).returncode == 0
    out = route("receipt", "verify", "receipt.json", *allowed, "--require-signature")
    assert (out.returncode, "it is not signed" in out.stdout) == (65, True)
    assert route("receipt", "sign", "receipt.json", "--key", "alice").returncode == 0
    out = route("receipt", "sign", "receipt.json", "--key", "alice")
    assert (out.returncode, "is there already" in out.stderr) == (65, True)
    out = route("receipt", "verify", "receipt.json", *allowed, "--require-signature", "--json")
    [one] = json.loads(out.stdout)["data"]
    assert (out.returncode, one["ok"], one["signature"]) == (0, True, "signed by alice@example.org")
    out = route("receipt", "verify", "receipt.json", *allowed, "--signer", "bob")
    assert (out.returncode, "SIGNATURE" in out.stdout) == (65, True)
    for args, word in (
        (["--require-signature"], "--allowed-signers FILE"),
        (["--signer", "bob"], "--allowed-signers FILE"),
        (["--allowed-signers", "nothing"], "there is no file nothing"),
        (["--allowed-signers", "."], "there is no file"),
    ):
        out = route("receipt", "verify", "receipt.json", *args)
        assert (out.returncode, word in out.stderr) == (64, True), out.stderr
    (folder / "receipt.json").write_bytes(b"{}")
    out = route("receipt", "sign", "receipt.json", "--key", "alice", "--replace")
    assert (out.returncode, "is not good" in out.stderr) == (65, True)


def test_what_cannot_be_written_is_one_line(key: Path, folder: Path, route: Route) -> None:
    (folder / "shut").mkdir()
    shutil.copy(folder / "receipt.json", folder / "shut")
    (folder / "shut").chmod(0o500)
    root = os.geteuid() == 0
    if root and subprocess.run(["chattr", "+i", str(folder / "shut")], capture_output=True).returncode:
        pytest.skip("root can write to any folder here")
    try:
        out = route("receipt", "sign", "shut", "--key", "alice")
    finally:
        if root:
            subprocess.run(["chattr", "-i", str(folder / "shut")])
        (folder / "shut").chmod(0o700)
    assert (out.returncode, len(out.stderr.splitlines())) == (64, 2), out.stderr
    assert "cannot be written" in out.stderr


def test_a_signature_stays_with_the_receipt_it_is_of(key: Path, folder: Path, tmp_path: Path) -> None:
    """A later attempt's receipt takes the name; that of the earlier one keeps its signature."""
    run = begin(Store(tmp_path / "home"))
    receipt(run)
    data = run.file("receipt").read_bytes()
    run.file("receipt").with_name("receipt.json.sig").write_bytes(b"of the first")
    receipt(run, attempt=2)
    assert (run.path / "receipt-1.json").read_bytes() == data
    assert (run.path / "receipt-1.json.sig").read_bytes() == b"of the first"
    assert not (run.path / "receipt.json.sig").exists()
