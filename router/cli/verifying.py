"""`route receipt verify`: receipts in whatever carries them, their signatures, and the store's chain."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import Verb
from compute_router.cli.call import Cli
from compute_router.cli.options import RUN
from compute_router.errors import ExitCode, InputError, NotFound

if TYPE_CHECKING:
    from compute_router.chaincheck import Head
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
@click.option("--store", is_flag=True, help="Verify all receipts of this store, and their chain.")
@click.option(
    "--head", "heads", multiple=True, metavar="SEQ:ID", help="A head of the chain, noted down earlier."
)
@click.pass_obj
def verify(
    cli: Cli,
    refs: tuple[str, ...],
    store: bool,
    heads: tuple[str, ...],
    allowed_signers: str | None,
    signer: str | None,
    revoked: str | None,
    require_signature: bool,
) -> int:
    """Check that receipts are whole and unchanged. Needs no network, no configuration and no store.

    RECEIPT is a file, a folder with one, a bundle, or a run. Exits 65 if
    one is not good. A good digest proves that nothing changed since, not who wrote it: that takes
    a signature and --allowed-signers.

    With --store it tells receipts that were deleted, exchanged or moved, and prints the head of the
    chain. Kept elsewhere and given as --head later, it shows whether what came before it was
    rewritten or cut off.
    """
    if not refs and not store:
        raise InputError("there is nothing to verify", mend="name receipts, or --store for all of them")
    if heads and not store:
        raise InputError("--head is about the chain of a store", mend="give --store as well")
    signers = _Signers(allowed_signers, signer, revoked, require_signature)
    found: list[dict[str, Any]] = []
    for ref in refs:
        found.append(_one(cli, place(cli, ref), signers))
    data: Any = found
    wrong: list[str] = []
    if store:
        told, wrong = _store(cli, heads, signers)
        found += told.pop("receipts")
        data = {"receipts": found, "store": told}
    bad = sum(not each["ok"] for each in found)
    if not bad and not wrong:
        cli.out.done(data)
        return 0
    what = f"{bad} of {len(found)} receipts are not good" if bad else "the chain is not good"
    only = all(line.startswith("SIGNATURE") for each in found for line in each["problems"])
    mend = "have them signed by a key that is allowed" if bad and only else _MEND
    cli.out.failed("RECEIPT_INVALID", what, mend=mend, data=data)
    return int(ExitCode.REFUSED)


_MEND = "get them again from where they were made; route collect brings a lost one back"


def _store(cli: Cli, heads: tuple[str, ...], signers: _Signers) -> tuple[dict[str, Any], list[str]]:
    """Verify this store: its part of the document, and what is wrong with its chain."""
    from compute_router.chaincheck import check
    from compute_router.home import default_home, fault

    home = default_home()
    asked = [_head(text) for text in heads]
    cli.out.busy("reading the chain")
    try:
        checked = check(home, asked)
    except OSError as e:
        raise fault(e, home, home, "read") from e
    if checked.store_id is None and not checked.receipts and not checked.problems:
        raise NotFound(f"there is no store at {home}", mend="set ROUTE_HOME to the store's folder")
    receipts = []
    for number, each in enumerate(checked.receipts):
        if number % 16 == 0:
            cli.out.busy(f"verifying receipt {number + 1} of {len(checked.receipts)}")
        receipts.append(_one(cli, each.path, signers, quiet=True))
    good = sum(each["ok"] for each in receipts)
    cli.out.line(f"store {checked.store_id}: {good} of {len(receipts)} receipts whole and unchanged")
    for link in checked.removed:
        cli.out.line(f"  receipt {link.seq} (run {link.run_id}) was removed on purpose")
    for problem in checked.problems:
        cli.out.line(f"  CHAIN: {problem}")
    whole = not checked.problems and good == len(receipts)
    for proof in checked.proofs if whole else ():
        cli.out.line(f"  receipts {proof.first} to {proof.last} are those of that head")
        if proof.why:
            cli.out.line(f"  what came before is not proven by it: {proof.why}")
    head = f"{checked.head.seq}:{checked.head.receipt_id}" if checked.head else None
    if head and not checked.problems:
        cli.out.line(f"head {head}")
    told = {
        "receipts": receipts,
        "store_id": checked.store_id,
        "head": head,
        "removed": [link._asdict() for link in checked.removed],
        "proofs": [proof._asdict() for proof in checked.proofs] if whole else [],
        "problems": list(checked.problems),
    }
    return told, list(checked.problems)


def _head(text: str) -> Head:
    """A head as `--store` prints it; or a receipt that left the store earlier, which is one."""
    from compute_router.chaincheck import Head
    from compute_router.receipt.opening import examine

    seq, _, receipt_id = text.partition(":")
    if seq.isascii() and seq.isdecimal() and len(seq) < 17 and re.fullmatch("[0-9a-f]{64}", receipt_id):
        return Head(int(seq), receipt_id)
    if Path(text).exists():
        examined = examine(text)
        data = {} if examined.problems else json.loads(examined.opened.data)
        if data.get("chain"):
            return Head(data["chain"]["seq"], data["receipt_id"])
        raise InputError(f"{text} is no good receipt with a place in a chain", mend="route receipt verify it")
    raise InputError(
        f"{text!r} is no head of a chain",
        mend="SEQ:ID as --store prints it, or a receipt that left the store",
    )


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


def _one(cli: Cli, path: Path, signers: _Signers, *, quiet: bool = False) -> dict[str, Any]:
    """Judge one receipt, tell of it (if `quiet` only of one that is not good), and return its part of
    the document."""
    from compute_router.receipt.opening import examine

    examined = examine(path)
    problems = [str(problem) for problem in examined.problems]
    wrong, told = signers.judged(examined) if examined.opened.data else ("", "")
    problems += [wrong] if wrong and wrong not in problems else []
    lines = () if quiet and not problems else (*problems, *examined.notes, told)
    if lines or not quiet:
        cli.out.line(f"{path}: {'whole and unchanged' if not problems else 'NOT GOOD'}")
    for line in lines:
        if line:
            cli.out.line(f"  {line}")
    return {
        "path": str(path),
        "ok": not problems,
        "problems": problems,
        "notes": examined.notes,
        "signature": told or None,
    }
