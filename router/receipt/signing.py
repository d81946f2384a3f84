"""Signs receipts and checks signatures by `ssh-keygen -Y`: detached, over the receipt's own bytes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from compute_router.durable import write_file
from compute_router.errors import InputError, NotFound, Refused
from compute_router.receipt.opening import RECEIPT, Opened, examine, opened

__all__ = ["NAMESPACE", "Signed", "check", "checked", "fingerprint", "sign", "signature"]

NAMESPACE = "route-receipt@v1"
"""What such a signature is for: one made for git or for files does not count, nor the reverse."""

_INSTALL = "install OpenSSH (the package openssh-client)"
_PATIENCE = 60
_MOST_SIGNERS = 16
_FINGERPRINT = re.compile(r"\bSHA256:[A-Za-z0-9+/]+")


class Signed(NamedTuple):
    """Whether a receipt is signed by somebody who may sign, by whom, and why not (one line)."""

    ok: bool
    signer: str = ""
    why: str = ""


def check(
    path: Path | str,
    allowed_signers: Path | str,
    signer: str | None = None,
    *,
    revoked: Path | str | None = None,
) -> Signed:
    """Whether what lies at `path` carries a signature that the file `allowed_signers` allows now.

    `path` is whatever `opening.opened` reads. `signer` is the identity it must be of (default: any
    that the file names for the key), `revoked` a file of keys or a KRL that never count. Validity is
    judged as of now: a signature does not tell when it was made. Says nothing about whether the
    receipt is good: `verify` does. Never raises.
    """
    return checked(opened(path), allowed_signers, signer, revoked=revoked)


def checked(
    found: Opened,
    allowed_signers: Path | str,
    signer: str | None = None,
    *,
    revoked: Path | str | None = None,
) -> Signed:
    """`check` of a receipt that was opened already."""
    if not found.data or any(problem.code == "SIGNATURE" for problem in found.problems):
        return Signed(False, why=str(found.problems[0]))
    if not found.signatures:
        return Signed(False, why=f"it is not signed: {_nowhere(found.form)}")
    program = shutil.which("ssh-keygen")
    if program is None:
        return Signed(False, why=f"ssh-keygen is not here to check its signature; {_INSTALL}")
    answers: list[Signed] = []
    try:
        for each in found.signatures:
            with tempfile.TemporaryDirectory(prefix="route-") as folder:
                file = Path(folder, "sig")
                file.write_bytes(each)
                look = _Look(program, found.signed, file, Path(allowed_signers), revoked)
                answers.append(look.judged(signer))
            if answers[-1].ok:
                return answers[-1]
    except (OSError, subprocess.TimeoutExpired) as e:
        return Signed(False, why=f"its signature cannot be checked: {e}")
    return answers[0]


def _nowhere(form: str) -> str:
    names = {"statement": "a plain statement carries no signature", "bundle": "the bundle holds none"}
    return names.get(form, f"there is no {RECEIPT}.sig beside it")


class _Look:
    """One signature, looked at by ssh-keygen."""

    def __init__(
        self, program: str, data: bytes, file: Path, allowed: Path, revoked: Path | str | None
    ) -> None:
        self._program, self._data, self._file, self._allowed = program, data, file, allowed
        self._revoked = revoked

    def ask(self, verb: str, *args: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._program, "-Y", verb, "-n", NAMESPACE, "-s", str(self._file), *args],
            input=self._data,
            capture_output=True,
            timeout=_PATIENCE,
            start_new_session=True,
        )

    def judged(self, signer: str | None) -> Signed:
        # First whether it is a signature of these bytes at all, then whether the key may sign.
        made = self.ask("check-novalidate")
        if made.returncode:
            return Signed(False, why=_unmade(made.stderr))
        key = _FINGERPRINT.search(made.stdout.decode(errors="replace"))
        allowed = ("-f", str(self._allowed))
        asked = self.ask("find-principals", *allowed)
        told = asked.stdout.decode(errors="replace").splitlines() if not asked.returncode else []
        # The file may allow a signer by a pattern, so who is asked for is asked about all the same.
        answer = asked
        for name in [signer] if signer else told[:_MOST_SIGNERS]:
            answer = self.ask("verify", *allowed, "-I", name)
            if answer.returncode == 0:
                if self._revoked is not None:
                    again = self.ask("verify", *allowed, "-I", name, "-r", str(self._revoked))
                    if again.returncode:
                        return Signed(False, name, f"its key {_named(key)} is revoked")
                return Signed(True, name)
        return Signed(False, signer or "", self._disallowed(answer.stderr, _named(key), signer, told))

    def _disallowed(self, stderr: bytes, key: str, signer: str | None, told: Sequence[str]) -> str:
        said = _lines(stderr)
        # What ssh-keygen says of a line of the file names the file as it was given.
        start = f"{self._allowed}:"
        for line in said:
            if line.startswith(start):
                return f"its key {key} is not allowed: {line.removeprefix(start).partition(': ')[2][:200]}"
        if signer:
            others = f"; it allows {', '.join(told[:3])}" if told else ""
            return f"its key {key} is not one that {self._allowed} allows for {signer}{others}"
        return f"its key {key} is not one that {self._allowed} allows"


def _named(key: re.Match[str] | None) -> str:
    return key[0] if key else "(unknown)"


def _lines(stderr: bytes) -> list[str]:
    found = stderr.decode(errors="replace").splitlines()
    return [line.strip() for line in found if line.strip(" @")]


def _unmade(stderr: bytes) -> str:
    text = stderr.decode(errors="replace")
    if "namespace does not match" in text:
        return f"its signature was made for another use than {NAMESPACE}"
    if "incorrect signature" in text:
        return "its signature is that of something else: other bytes were signed"
    if "parse signature" in text or "sshsig" in text:
        return "its signature is none that ssh-keygen can read"
    return f"its signature is not good: {' '.join(_lines(stderr)[-1:])[:200]}".rstrip(": ")


def sign(path: Path | str, key: Path | str, *, prompting: bool, replace: bool = False) -> Path:
    """Sign the receipt in the file or folder `path`; returns the signature's file, beside the receipt.

    `key` as `signature` says. A signature that is there already stays unless `replace`. Raises
    `InputError` for a file that cannot be read or written, `Refused` for a receipt that is not
    good, an existing signature, or no signature from ssh-keygen; then nothing was written.
    """
    found = examine(path)
    if found.problems:
        raise Refused(
            f"{path} is not signed, for it is not good: {found.problems[0]}",
            mend=f"route receipt verify {path}",
        )
    path = Path(path) / RECEIPT if found.opened.form == "folder" else Path(path)
    if found.opened.form not in ("receipt", "folder"):
        raise InputError(
            f"{path} is no receipt's own file but a {found.opened.form}",
            mend="sign the receipt itself, then export it again",
        )
    beside = path.with_name(path.name + ".sig")
    if os.path.lexists(beside) and not replace:
        raise Refused(f"{beside} is there already", mend="--replace signs again in its place")
    made = signature(found.opened.data, key, prompting=prompting)
    try:
        write_file(path.parent, beside.name, made)
    except OSError as e:
        raise InputError(
            f"{beside} cannot be written: {e.strerror}", mend="sign a copy in a folder with room of your own"
        ) from e
    return beside


def signature(data: bytes, key: Path | str, *, prompting: bool) -> bytes:
    """The signature of `data` by `key`, as ssh-keygen writes it.

    `key` is a private key's file, or a public one whose private key an SSH agent holds. With
    `prompting` a passphrase is asked for on the terminal, by ssh-keygen itself; without it, it is a
    refusal. Raises `InputError`, `Refused`.
    """
    key = Path(key).expanduser()
    if key.is_dir():
        raise InputError(f"{key} is a folder, not a key", mend="name the key's file")
    if not key.exists():
        raise NotFound(f"there is no key {key}", mend="ssh-keygen -t ed25519 makes one")
    program = shutil.which("ssh-keygen")
    if program is None:
        raise Refused("ssh-keygen is not here to sign with", mend=_INSTALL)
    try:
        answer = subprocess.run(
            [program, "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE],
            input=data,
            capture_output=True,
            timeout=None if prompting else _PATIENCE,
            # Away from the terminal, so that it fails in place of asking where nobody answers.
            start_new_session=not prompting,
        )
    except subprocess.TimeoutExpired as e:
        raise Refused(
            f"ssh-keygen did not sign within {_PATIENCE} s", mend="see what the SSH agent waits for"
        ) from e
    except OSError as e:
        raise Refused(f"{program} cannot be started: {e.strerror}", mend=_INSTALL) from e
    if answer.returncode or b"BEGIN SSH SIGNATURE" not in answer.stdout:
        what, mend = _unsigned(answer.stderr.decode(errors="replace"), key, prompting)
        raise Refused(what, mend=mend)
    return answer.stdout


def fingerprint(data: bytes, made: bytes) -> str:
    """The fingerprint of the key that made the signature `made` of `data`. Raises `Refused` for none."""
    with tempfile.TemporaryDirectory(prefix="route-") as folder:
        file = Path(folder, "sig")
        file.write_bytes(made)
        look = _Look(shutil.which("ssh-keygen") or "ssh-keygen", data, file, Path(os.devnull), None)
        found = _FINGERPRINT.search(look.ask("check-novalidate").stdout.decode(errors="replace"))
    if found is None:
        raise Refused("ssh-keygen does not know its own signature again", mend=_INSTALL)
    return found[0]


def _unsigned(said: str, key: Path, prompting: bool) -> tuple[str, str]:
    """Why ssh-keygen did not sign, and what to do."""
    if "passphrase" in said and not prompting:
        return (
            f"{key} has a passphrase, and there is no terminal to ask for it",
            f"ssh-add {key}, then sign again with {key}.pub; or sign on a terminal",
        )
    if "passphrase" in said:
        return f"that is not the passphrase of {key}", "try again"
    if "are too open" in said:
        return f"{key} can be read by others, so ssh-keygen does not use it", f"chmod 600 {key}"
    if "No private key found" in said or "agent refused" in said:
        return f"no SSH agent signs with {key}", "ssh-add the private key, or name its file"
    if "Permission denied" in said:
        return f"{key} cannot be read", "check its permissions"
    if "load public key" in said:
        return f"{key} is no SSH key", "ssh-keygen -t ed25519 makes one"
    return f"ssh-keygen did not sign: {' '.join(_lines(said.encode())[-1:])[:200]}".rstrip(": "), ""
