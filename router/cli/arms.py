"""What `compare` and `report` are given: references to receipts, and how they are to be compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.call import Cli
from compute_router.cli.options import RUN
from compute_router.cli.words import short_id
from compute_router.errors import InputError, NotFound

if TYPE_CHECKING:
    from compute_router.compare.loaded import Loaded
    from compute_router.compare.loading import Unread
    from compute_router.compare.outcome import Comparison, Waiver

__all__ = ["AGAINST", "answer", "comparison_options", "receipts_of"]

AGAINST = "vs"
"""The word between two groups of references."""
MOST_FILES = 100_000

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("refs", nargs=-1, required=True, type=RUN, metavar="REF... [vs REF...]"),
    click.option("--by", metavar="FIELD", help="Make an arm of each value of this field of the receipts."),
    click.option("--vary", multiple=True, metavar="FIELD", help="What differs on purpose (repeatable)."),
    click.option("--metric", metavar="NAME", help="Judge by this metric (default: that of the workload)."),
    click.option("--margin", type=float, metavar="SHARE", help="Practical margin: 0.02 is 2% (default)."),
    click.option("--allow", multiple=True, metavar="RULE", help="Waive a rule (COLD_VS_WARM or R03)."),
    click.option("--because", multiple=True, metavar="TEXT", help="Why: for each --allow, or for all."),
    click.option("--olympic", is_flag=True, help="Leave out the best and the worst run of each arm."),
    click.option("--self", "itself", is_flag=True, help="Compare one arm with itself, half against half."),
    click.option(
        "--allowed-signers",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Refuse receipts that none of these signed (see ssh-keygen(1)).",
    ),
)


def comparison_options(f: Any) -> Any:
    """The arguments of everything that compares."""
    for option in reversed(_OPTIONS):
        f = option(f)
    return f


def answer(
    cli: Cli,
    *,
    refs: Sequence[str],
    by: str | None,
    vary: Sequence[str],
    metric: str | None,
    margin: float | None,
    allow: Sequence[str],
    because: Sequence[str],
    olympic: bool,
    itself: bool,
    allowed_signers: str | None,
) -> Comparison:
    """Read the receipts that were named and compare them; a waiver that was used is written down."""
    from compute_router.compare import compare, gather
    from compute_router.compare.gathering import Gathered, Group, study_of
    from compute_router.compare.loaded import Loaded

    waivers = _waivers(allow, because)
    if allowed_signers is not None and not os.path.isfile(allowed_signers):
        raise InputError(f"there is no file {allowed_signers}", mend="see ALLOWED SIGNERS in ssh-keygen(1)")
    # `latest` is another run tomorrow: from here on it is called by its id.
    refs = [
        cli.folder(ref).id if ref.startswith("latest") and not os.path.lexists(ref) else ref for ref in refs
    ]
    left, right = _parted(refs)
    if itself and right:
        raise InputError("--self compares an arm with itself", mend=f"leave out what stands behind {AGAINST}")
    if not right and by is None and len(left) == 2 and not itself:
        left, right = left[:1], left[1:]
    notes: list[str] = []
    files: dict[str, Path] = {}
    first = [_load(path, files) for ref in left for path in _named(cli, ref, notes)]
    second = [_load(path, files) for ref in right for path in _named(cli, ref, notes)] if right else None
    names = [_name(group) for group in (left, right)] if right else []
    whole = [one for one in first if isinstance(one, Loaded)]
    if itself and by is None and len(whole) == len(first) and not any(study_of(one) for one in whole):
        gathered = Gathered(arms=(Group(name=_name(left) or "all runs", runs=tuple(whole)),))
    else:
        gathered = gather(first, second, by=by, names=names)
    signed: Callable[[Loaded], str] | None = None
    if allowed_signers is not None:
        from compute_router.receipt.signing import check

        signers = allowed_signers

        def why_not(one: Loaded) -> str:
            found = check(files[one.ref], signers)
            return "" if found.ok else found.why

        signed = why_not
    how: dict[str, Any] = {"metric": metric, "margin": margin}
    if itself:
        from compute_router.compare.itself import self_check

        found = self_check(gathered, **how)
    else:
        found = compare(gathered, vary=vary, allow=waivers, olympic=olympic, signed=signed, **how)
    _record(cli, found)
    import msgspec

    return msgspec.structs.replace(found, notes=(*notes, *found.notes))


def _parted(refs: Sequence[str]) -> tuple[list[str], list[str]]:
    """The references before and behind `vs`."""
    if AGAINST not in refs:
        return list(refs), []
    at = list(refs).index(AGAINST)
    left, right = list(refs[:at]), list(refs[at + 1 :])
    if not left or not right or AGAINST in right:
        raise InputError(
            f"{AGAINST} stands between two groups",
            mend=f"route compare A B C {AGAINST} D E F; the base first",
        )
    return left, right


def _name(group: Sequence[str]) -> str:
    """What a group is called: by its one reference, if it has but one."""
    if len(group) != 1:
        return ""
    from compute_router.rows import is_run_id

    ref = group[0]
    if not os.path.lexists(ref):
        return short_id(ref) if is_run_id(ref) else ref
    path = Path(os.path.abspath(ref))
    return path.parent.name if path.name == "receipt.json" else path.name.removesuffix(".json")


def _load(path: Path, files: dict[str, Path]) -> Loaded | Unread:
    from compute_router.compare.loading import load

    ref = str(path)
    files[ref] = path
    return load(path, ref=ref)


def _named(cli: Cli, ref: str, notes: list[str]) -> list[Path]:
    """The receipts that `ref` names; of a study, what is missing is told."""
    from compute_router.home import default_home

    home = default_home()
    if os.path.lexists(ref) or not (home / "studies").is_dir():
        return receipts_of(cli, ref)
    from compute_router.studies import receipts

    try:
        standing = receipts(home, ref)
    except NotFound:
        try:
            return receipts_of(cli, ref)
        except NotFound as e:
            raise NotFound(e.what, mend=f"{e.mend}, `route study list` the studies") from e
    notes += [f"run {m.index} of study {ref} ({m.arm}) is missing: {m.why}" for m in standing.missing]
    extra = [path / "receipt.json" for path in standing.extra]
    return [*standing.receipts, *(path for path in extra if path.is_file())]


def _waivers(allow: Sequence[str], because: Sequence[str]) -> dict[str, str]:
    """Rule -> the reason for waiving it. A waiver without a reason is none."""
    if not allow:
        if because:
            raise InputError("--because stands without --allow", mend="name the rule: --allow RULE")
        return {}
    reasons = list(because) * (len(allow) if len(because) == 1 else 1)
    if len(reasons) != len(allow) or not all(reason.strip() for reason in reasons):
        raise InputError(
            f"{len(allow)} rules are waived and {len(because)} reasons given",
            mend='say why: --allow RULE --because "..." (one for each rule, or one for all)',
        )
    return dict(zip(allow, reasons, strict=True))


def receipts_of(cli: Cli, ref: str) -> list[Path]:
    """The files of receipts that `ref` names: a file, a folder of them, or a run.

    Raises `NotFound` if there is none.
    """
    path = Path(ref)
    if path.is_dir():
        found = _below(path)
        if not found:
            raise NotFound(f"there is no receipt in {path}", mend="route receipt list shows those there are")
        return found
    # Whatever else it is (a pipe, a device) is for the reader to refuse.
    if os.path.lexists(path):
        return [path]
    if path.suffix == ".json" or "/" in ref:
        raise NotFound(f"there is no file {ref}", mend="route receipt list shows the receipts there are")
    run = cli.folder(ref)
    if not (run.path / "receipt.json").is_file():
        raise NotFound(f"run {run.id} has no receipt yet", mend=f"route collect {run.id}")
    return [run.path / "receipt.json"]


def _below(folder: Path) -> list[Path]:
    """The receipts of a folder: its own, else every `receipt.json` below it and every JSON file in it."""
    own = folder / "receipt.json"
    if own.is_file():
        return [own]
    found = {path for path in folder.glob("*.json") if path.is_file()}
    for path in folder.rglob("receipt.json"):
        if path.is_file():
            found.add(path)
        if len(found) > MOST_FILES:
            what = f"{folder} holds more than {MOST_FILES:,} receipts"
            raise InputError(what, mend="name a smaller folder")
    return sorted(found)


def _record(cli: Cli, found: Comparison) -> None:
    """Write down every waiver that was used: who set which rule aside, why, and for which receipts."""
    used: list[Waiver] = [waiver for waiver in found.waivers if waiver.used]
    if not used:
        return
    import time

    from compute_router.home import default_home
    from compute_router.records import encode

    home = default_home()
    line = encode(
        {
            "schema": "route.waiver/1",
            "at_us": time.time_ns() // 1000,
            "waivers": [{"rule": w.rule, "because": w.because} for w in used],
            "receipts": sorted(p.receipt_id for p in found.points),
        }
    )
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One write: lines of several processes do not mix.
        handle = os.open(home / "waivers.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)
    except OSError as e:
        cli.out.warn(f"the waiver is not recorded: {home / 'waivers.jsonl'}: {e.strerror}")
