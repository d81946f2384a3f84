"""`route compare`: which of two things is faster, or why that cannot be said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import verb
from compute_router.cli.arms import answer, comparison_options
from compute_router.cli.call import Cli
from compute_router.errors import ExitCode

if TYPE_CHECKING:
    from compute_router.compare.outcome import Comparison, Contrast, Estimate, Refusal

__all__ = ["compare"]

_STYLES = {"+": "green", "-": "red", "=": "cyan", "~": "yellow", "x": "red", "?": "yellow"}
FAILING = ("slower", "inconclusive")
MOST_DIFFERENCES = 12
MOST_RUNS = 40
MOST_TEXT = 36
"""Characters of a value that differs; `--all` shows the whole of it."""
TIME = "WHERE THE TIME WENT"


@verb()
@comparison_options
@click.option("--markdown", is_flag=True, help="Print Markdown for a pull request.")
@click.option("--runs/--no-runs", default=None, help="List runs and where their time went.")
@click.option("--all", "-a", "every", is_flag=True, help="Every difference, whole, and every run.")
@click.option(
    "--fail-on",
    type=click.Choice(FAILING),
    multiple=True,
    help="Exit 1 if a candidate is slower, or if no verdict is possible. May be given twice.",
)
@click.pass_obj
def compare(
    cli: Cli, /, markdown: bool, runs: bool | None, every: bool, fail_on: tuple[str, ...], **options: Any
) -> int:
    """Tell which of two things is faster, or refuse with the reason.

    REF is a receipt's file, a folder of receipts, a run, or a study. Two of them are compared with
    each other, the first is the base; `A B C vs D E F` compares two groups; a study compares its arms.

    Exits 65 if nothing can be compared.
    """
    found = answer(cli, **options)
    if markdown and not cli.out.as_json:
        from compute_router.compare.markdown import markdown as text

        cli.out.text(text(found))
    else:
        _show(cli, found, runs, every)
    return _end(cli, found, fail_on)


def _end(cli: Cli, found: Comparison, fail_on: Sequence[str]) -> int:
    """The exit code, and the document with `--json`."""
    import msgspec

    from compute_router.compare.outcome import Result, Verdict

    data = msgspec.to_builtins(found)
    refused = next((r for c in found.contrasts if c.result is Result.REFUSED for r in c.refusals), None)
    stands = next((r for r in found.refusals if not r.waived), None) or refused
    if found.refused:
        what, mend = (f"{stands.number} {stands.code}: {stands.what}", stands.mend) if stands else ("", "")
        # Printed already, for people: the lines above are the refusal.
        if cli.out.as_json:
            cli.out.failed(stands.code if stands else "REFUSED", what, mend=mend, data=data)
        return int(ExitCode.REFUSED)
    bad = ""
    for contrast in found.contrasts:
        withheld = contrast.verdict in (None, Verdict.INCONCLUSIVE)
        if "slower" in fail_on and contrast.verdict is Verdict.SLOWER:
            bad = f"{contrast.candidate} is slower than {contrast.base}"
        elif "inconclusive" in fail_on and withheld:
            bad = f"there is no verdict on {contrast.candidate} against {contrast.base}"
        if bad:
            cli.out.failed("VERDICT", bad, mend="this is what --fail-on asks for", data=data)
            return int(ExitCode.VERDICT)
    cli.out.done(data)
    return 0


# What people see


def _show(cli: Cli, found: Comparison, runs: bool | None, every: bool) -> None:
    if cli.out.as_json:
        return
    from compute_router.compare import wording

    for refusal in found.refusals:
        _refusal(cli, refusal)
    for waiver in found.waivers:
        used = "" if waiver.used else " (it was not needed)"
        cli.out.line(f"WAIVED {waiver.rule}{used}: {waiver.because}", style="yellow")
    for number, contrast in enumerate(found.contrasts):
        if number:
            cli.out.line()
        _contrast(cli, found, contrast, every)
    estimates = [c.primary for c in found.contrasts if c.primary is not None and c.primary.ratio]
    if estimates:
        _forest(cli, found)
    if runs or (runs is None and len(found.points) <= MOST_RUNS):
        _runs(cli, found, every)
    for note in found.notes:
        cli.out.line(f"note: {note}")
    if told := wording.study_of(found):
        cli.out.line(f"study: {told}")


def _refusal(cli: Cli, refusal: Refusal) -> None:
    if refusal.waived:
        cli.out.line(f"  waived {refusal.number} {refusal.code}: {refusal.what}", style="yellow")
        return
    cli.out.marked(False, f"{refusal.number} {refusal.code}: {refusal.what}")
    if refusal.why:
        cli.out.below(refusal.why)
    if refusal.mend:
        cli.out.below(f"mend: {refusal.mend}")


def _contrast(cli: Cli, found: Comparison, contrast: Contrast, every: bool) -> None:
    from compute_router.compare import wording
    from compute_router.compare.outcome import Result

    out = cli.out
    standing = f"  ({contrast.standing.value})" if contrast.standing and contrast.verdict else ""
    out.line(f"{contrast.candidate} against {contrast.base}: {wording.heading(contrast)}{standing}",
             style=_STYLES[wording.mark(contrast)])  # fmt: skip
    if contrast.sentence:
        out.paragraph(contrast.sentence)
    if contrast.label:
        out.line(f"({contrast.label})")
    for refusal in contrast.refusals:
        _refusal(cli, refusal)
    if contrast.result is not Result.REFUSED:
        out.line()
        if contrast.primary is not None:
            out.pairs(_figures(contrast, contrast.primary))
        if contrast.others:
            out.line()
            out.pairs([_beside(estimate) for estimate in contrast.others])
    _rest(cli, contrast, every)


def _beside(e: Estimate) -> tuple[str, str]:
    """What is said of a metric beside the primary one."""
    from compute_router.compare import wording

    p = e.p if e.p_adjusted is None else e.p_adjusted
    tested = f", {wording.chance(p)}" if p is not None else ""
    values = f"{wording.figure(e.base, e.metric)} -> {wording.figure(e.candidate, e.metric)}"
    said = f"{wording.interval_of(e)}{tested}, {wording.word(e.metric, e.verdict)}"
    return _clipped(e.metric.name, 32), f"{values}: {said}"


def _figures(contrast: Contrast, e: Estimate) -> list[tuple[str, str]]:
    """What is said of the metric that decides."""
    from compute_router.compare import wording

    metric = e.metric
    more = "more is better" if metric.higher_is_better else "less is better"
    count = "blocks" if e.paired else "runs of each arm"
    rows = [("metric", f"{metric.name}{f', {metric.unit}' if metric.unit else ''}; {more}")]
    for name, value, span, n in (
        (contrast.base, e.base, e.base_range, e.n_base),
        (contrast.candidate, e.candidate, e.candidate_range, e.n_candidate),
    ):
        told = f" ({wording.number(span[0])} to {wording.number(span[1])})" if span and n > 1 else ""
        runs = "run" if n == 1 else "runs"
        rows.append((_clipped(name), f"{wording.figure(value, metric)}{told}, {n} {runs}"))
    if e.ratio is not None:
        beyond = "beyond the margin of" if e.beyond else "margin"
        rows.append(("ratio", f"{wording.interval_of(e)}, {beyond} {wording.percent(e.margin)}"))
    if e.shift is not None:
        exact = f" ({wording.between(e.shift_interval)})" if e.shift_interval else ""
        rows.append(("shift", f"Hodges-Lehmann {wording.times(e.shift)}{exact}"))
    if e.p is not None:
        by_holm = e.p_adjusted is not None and e.p_adjusted != e.p
        adjusted = f", {wording.chance(e.p_adjusted)} by Holm" if by_holm else ""
        rows.append(("test", f"{wording.chance(e.p)}{adjusted}: {e.test}"))
    if e.needed is not None:
        rows.append(("needed", f"{e.needed} {count} would tell a difference of the margin"))
    rows += [("note", note) for note in e.notes]
    return rows


def _rest(cli: Cli, contrast: Contrast, every: bool) -> None:
    from compute_router.compare import wording

    rows: list[tuple[str, str]] = []
    success = contrast.success
    if success and (success.base, success.candidate) != (success.base_of, success.candidate_of):
        told = f"{contrast.base} {success.base}/{success.base_of}, "
        told += f"{contrast.candidate} {success.candidate}/{success.candidate_of}"
        rows.append(("succeeded", told + (f", {wording.chance(success.p)}" if success.p is not None else "")))
    if contrast.order:
        rows.append(("order", contrast.order))
    cli.out.pairs(rows)

    def cells(*texts: str) -> list[str]:
        return list(texts) if every else [_clipped(text, MOST_TEXT) for text in texts]

    differences = wording.differing(contrast)
    if differences:
        shown = differences if every else differences[:MOST_DIFFERENCES]
        cli.out.line()
        cli.out.table(
            ["FIELD", _clipped(contrast.base).upper(), _clipped(contrast.candidate).upper(), "ROLE"],
            [[d.field, *cells(d.base, d.candidate), wording.ROLES[d.role]] for d in shown],
        )
        if len(shown) < len(differences):
            cli.out.line(f"and {len(differences) - len(shown)} more (--all)")
    if contrast.cannot:
        cli.out.line()
    for sentence in contrast.cannot:
        cli.out.paragraph(f"cannot be concluded: {sentence}")


def _forest(cli: Cli, found: Comparison) -> None:
    """The intervals of all contrasts on one axis; better is always to the right."""
    from compute_router.cli.drawing import Row, forest
    from compute_router.compare import wording

    rows = []
    for contrast in found.contrasts:
        e = contrast.primary
        if e is None or not e.ratio:
            continue
        ratio, span = e.ratio, e.interval
        if not e.metric.higher_is_better:
            ratio, span = 1 / ratio, (1 / span[1], 1 / span[0]) if span and span[0] > 0 else None
        low, high = span or (None, None)
        rows.append(Row(_clipped(contrast.candidate), ratio, low, high, wording.interval_of(e)))
    lines = forest(rows, found.margin, ascii_only=not _unicode())
    if lines:
        cli.out.line()
    for line in lines:
        cli.out.line(line)


def _runs(cli: Cli, found: Comparison, every: bool) -> None:
    """A line for each run; what is the same for all of them is said once, below."""
    from compute_router.cli.drawing import bar, legend
    from compute_router.cli.words import duration, short_id
    from compute_router.compare import wording

    if not found.points:
        return
    primary = next((c.primary for c in found.contrasts if c.primary is not None), None)
    name = primary.metric.name if primary else found.metric
    short = short_id if cli.out.terminal else str
    points = found.points if every else found.points[:MOST_RUNS]
    columns = {
        "RUN": [short(p.run_id) for p in points],
        "ARM": [_clipped(p.arm) for p in points],
        (name or "figure").upper(): [wording.number(p.figures.get(name)) for p in points],
        "START": [p.startup for p in points],
        "CACHE": [p.cache or "-" for p in points],
        "TOOK": [duration(sum(p.timing.values())) if p.timing else "-" for p in points],
    }
    alike = []
    for column in ("START", "CACHE"):
        if len(set(columns[column])) == 1:
            alike.append(f"{column.lower()} {columns.pop(column)[0]}")
    longest = max((sum(p.timing.values()) for p in points), default=0)
    taken = sum(max(map(len, [head, *cells])) + 2 for head, cells in columns.items())
    room = cli.out.columns - taken if cli.out.terminal else 30
    apart = room < len(TIME)
    bars = [
        bar(p.timing, longest, min(max(room, len(TIME)), 36)) if p.counted else f"not counted: {p.why}"
        for p in points
    ]
    cli.out.line()
    _table(cli, columns if apart else {**columns, TIME: bars})
    if apart:
        cli.out.line()
        _table(cli, {"RUN": columns["RUN"], "ARM": columns["ARM"], "TOOK": columns["TOOK"], TIME: bars})
    if len(points) < len(found.points):
        cli.out.line(f"and {len(found.points) - len(points)} more (--all)")
    if longest:
        cli.out.line(f"({legend()})")
    if alike:
        cli.out.line(f"all of them: {'; '.join(alike)}")


def _clipped(name: str, most: int = 24) -> str:
    """A name that leaves room for what stands beside it, safe to print."""
    from compute_router.cli.words import one_line

    name = one_line(name)
    return name if len(name) <= most else name[: most - 1] + "…"


def _table(cli: Cli, columns: dict[str, list[str]]) -> None:
    cli.out.table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def _unicode() -> bool:
    import sys

    try:
        "─●├┤│·".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
