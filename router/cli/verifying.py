"""`route receipt verify`: receipts in whatever carries them, their signatures, and the store's chain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import Verb
from compute_router.cli.call import Cli
from compute_router.cli.options import RUN
from compute_router.errors import ExitCode, InputError, NotFound

if TYPE_CHECKING:
    from compute_router.receipt.opening import Examined

__all__ = ["place", "verify"]


def place(cli: Cli, ref: str) -> Path:
    """Where the receipt that `ref` names lies: a file, a folder with one, or a run. No store is needed
    for the first two."""
    path = Path(ref)
    if path.is_file() or (path / "receipt.json").is_file():
        return path
    if path.suffix in (".json", ".zip", ".intoto") or "/" in ref:
        what = f"there is no receipt in {ref}" if path.is_dir() else f"there is no file {ref}"
        raise NotFound(what, mend="route receipt list shows the receipts there are")
    run = cli.folder(ref)
    if not run.file("receipt").is_file():
        raise NotFound(f"run {run.id} has no receipt yet", mend=f"route collect {run.id}")
    return run.file("receipt")


@click.command(cls=Verb)
@click.argument("refs", nargs=-1, type=RUN, metavar="RECEIPT...")
@click.option(
    "--allowed-signers", metavar="FILE", help="Check signatures: who may sign, as in ssh-keygen(1)."
)
@click.option("--signer", metavar="IDENTITY", help="They must be signed by IDENTITY, as that file names it.")
@click.option("--revoked", metavar="FILE", help="Keys that do not count: public keys, or a KRL.")
@click.option("--require-signature", is_flag=True, help="A receipt without a signature is not good.")
@click.pass_obj
def verify(
    cli: Cli,
    refs: tuple[str, ...],
    allowed_signers: str | None,
    signer: str | None,
    revoked: str | None,
    require_signature: bool,
) -> int:
    """Check that receipts are whole and unchanged. Needs no network, no configuration and no store.

    RECEIPT is a file, a folder with one, a bundle, or a run. Exits 65 if
    one is not good. A good digest proves that nothing changed since, not who wrote it: that takes
    a signature and --allowed-signers.
    """
    if not refs:
        raise InputError("there is nothing to verify", mend="name receipts")
    signers = _Signers(allowed_signers, signer, revoked, require_signature)
    found: list[dict[str, Any]] = []
    for ref in refs:
        found.append(_one(cli, place(cli, ref), signers))
    bad = sum(not each["ok"] for each in found)
    if bad:
        what = f"{bad} of {len(refs)} receipts are not good"
        cli.out.failed("RECEIPT_INVALID", what, mend="route collect brings a lost one back", data=found)
        return int(ExitCode.REFUSED)
    cli.out.done(found)
    return 0


class _Signers:
    """What was asked about signatures."""

    def __init__(self, allowed: str | None, signer: str | None, revoked: str | None, required: bool) -> None:
        if allowed is None and (signer or revoked or required):
            raise InputError(
                "who may sign is not known",
                mend="--allowed-signers FILE, each line: IDENTITY KEYTYPE KEY (see ssh-keygen(1))",
            )
        self.signer, self.required = signer, required
        self.allowed, self.revoked = _file(allowed), _file(revoked)

    def judged(self, examined: Examined) -> tuple[str, str]:
        """(what is wrong, what to tell) of the signature of a receipt; each may be empty."""
        from compute_router.receipt.signing import checked

        signed = bool(examined.opened.signatures)
        if self.allowed is None:
            return "", "signed; --allowed-signers FILE tells whether by one who may" if signed else ""
        if not signed and not self.required:
            return "", "not signed"
        answer = checked(examined.opened, self.allowed, self.signer, revoked=self.revoked)
        return ("", f"signed by {answer.signer}") if answer.ok else (f"SIGNATURE: {answer.why}", "")


def _file(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"there is no file {path}", mend="name a file that is there")
    try:
        path.open("rb").close()
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}", mend="check its permissions") from e
    return path


def _one(cli: Cli, path: Path, signers: _Signers) -> dict[str, Any]:
    """Judge one receipt, tell of it, and return its part of the document."""
    from compute_router.receipt.opening import examine

    examined = examine(path)
    problems = [str(problem) for problem in examined.problems]
    wrong, told = signers.judged(examined) if examined.opened.data else ("", "")
    problems += [wrong] if wrong and wrong not in problems else []
    cli.out.line(f"{path}: {'whole and unchanged' if not problems else 'NOT GOOD'}")
    for line in (*problems, *examined.notes, told):
        if line:
            cli.out.line(f"  {line}")
    return {
        "path": str(path),
        "ok": not problems,
        "problems": problems,
        "notes": examined.notes,
        "signature": told or None,
    }
