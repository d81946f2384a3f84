"""The rules that stand in the way of a verdict: what, why and how to mend it, as data; prints its table.

A rule `refuses` (the receipts answer different questions: nothing is compared) or `withholds` (they may be
shown beside each other, but no verdict is given). One that may be waived leaves an exploratory verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from compute_router.compare import finding, soundness
from compute_router.compare.outcome import Refusal, Waiver
from compute_router.compare.sight import Sight
from compute_router.errors import InputError

__all__ = ["BY_CODE", "RULES", "Rule", "found", "table", "waived"]


class Rule(NamedTuple):
    """Where `finds` gives a text, the rule fires; a text after a line end replaces `mend`."""

    number: str
    code: str
    effect: str
    """`refuses` or `withholds`."""
    waivable: bool
    finds: Callable[[Sight], str]
    fires: str
    """When, for the table of the documentation."""
    why: str
    mend: str


RULES: tuple[Rule, ...] = (
    Rule(
        *("R01", "KIND_MISMATCH", "refuses", False, finding.kinds),
        "kind or purpose is not the same in all runs",
        "these kinds and purposes answer different questions",
        "compare within one kind and purpose",
    ),
    Rule(
        *("R02", "HW_NOT_AS_REQUESTED", "refuses", True, finding.hardware),
        "the hardware is not what was asked for, and is not the variable",
        "what was to be measured is not what ran",
        "re-run with an exact class, or declare the hardware: --vary hardware",
    ),
    Rule(
        *("R03", "COLD_VS_WARM", "refuses", True, finding.cold),
        "cache states, cache verdicts or start classes differ; unless the purpose is `cold-start` and they"
        " are the variable, or they follow from another surface",
        "discarding step 0 does not cure this: compiling goes on behind it, and what was compiled may differ",
        "re-run warm (`route warm WORKLOAD`, then run it again), or use purpose cold-start",
    ),
    Rule(
        *("R04", "CONFOUNDED", "refuses", True, finding.confounded),
        "a field of class K differs that is not the variable and does not follow from it",
        "what made the difference cannot be told apart",
        "make them equal, or declare what was to vary",
    ),
    Rule(
        *("R05", "METRIC_DEFINITION", "refuses", False, finding.definition),
        "name, unit, definition or direction of the metric differ",
        "figures of different definitions are not figures of one thing",
        "report the same metric in both, from one version of the workload",
    ),
    Rule(
        *("R06", "KERNEL_NOT_PROVEN", "refuses", True, finding.kernel),
        "a kernel was asked for and another, or none, was seen dispatched",
        "a fast run without proof of its kernel shows nothing about that kernel",
        "report what was dispatched (`route_report.kernel`), and run again",
    ),
    Rule(
        *("R07", "TOO_FEW_RUNS", "withholds", True, finding.few),
        "fewer than 6 runs of an arm count (pairs, where runs are compared block by block)",
        "4 runs let the test speak, 6 give a finite interval",
        "run more of each arm, interleaved: `route study run STUDY.toml`",
    ),
    Rule(
        *("R08", "STUDY_INCOMPLETE", "refuses", True, finding.study),
        "receipts of planned runs are missing, others are there beside them, or two studies are mixed",
        "whoever may choose which runs count may choose the result",
        "finish it (`route study run STUDY.toml`), and give all of its receipts and no others",
    ),
    Rule(
        *("R09", "NOT_INTERLEAVED", "withholds", True, finding.order),
        "the runs of one arm lie before those of the other",
        "whatever drifted in the meantime cannot be told apart from the difference",
        "run them in turn: `route study run STUDY.toml`",
    ),
    Rule(
        *("R10", "UNSTABLE_WINDOW", "refuses", True, soundness.unstable),
        "recompiles, throttling, errors of the hardware or processes of others inside the steady window;"
        " only for figures of that window",
        "a window that holds something else does not measure the work alone",
        "re-run on a machine of its own, with shapes that do not change and clocks that hold",
    ),
    Rule(
        *("R11", "DIRTY_TREE", "refuses", True, soundness.dirty),
        "the tree was dirty, and what differed from the commit is not recorded",
        "which code ran is not known",
        "commit, and run again",
    ),
    Rule(
        *("R12", "EVAL_IN_WINDOW", "refuses", True, soundness.evaluated),
        "an evaluation or a checkpoint inside a step that counts; only for figures of the steady window",
        "the step times hold more than steps",
        "switch it off while measuring, or put it between steps",
    ),
    Rule(
        *("R13", "MISSING_PEAK_MEMORY", "refuses", True, soundness.memory),
        "throughput without a peak of memory beside it",
        "speed bought with memory is another trade, not a faster run",
        "report it (`route_report.memory`), and run again",
    ),
    Rule(
        *("R14", "PARTIAL_RECEIPT", "refuses", True, soundness.partial),
        "the work did not reach its end marker, or its machine left no measurements",
        "half a run is no run",
        "run it again to its end",
    ),
    Rule(
        *("R15", "HASH_MISMATCH", "refuses", False, finding.nothing),
        "the content of a file is not what its id stands for",
        "a changed receipt proves nothing",
        "bring the receipt again from the store it was made in",
    ),
    Rule(
        *("R16", "SIGNATURE_REQUIRED", "refuses", False, soundness.signature),
        "signatures are asked for, and one is missing or not good",
        "a digest shows that nothing changed, not who made it",
        "have it signed where it was made: `route receipt sign RECEIPT`",
    ),
    Rule(
        *("R17", "CPU_FALLBACK", "refuses", False, finding.fallback),
        "a run that asked for an accelerator ran on the CPU",
        "it did not measure what it was for",
        "see why the accelerator was not there (`route doctor`), and run again",
    ),
    Rule(
        *("R18", "VOLUME_NOT_COMMITTED", "refuses", True, soundness.uncommitted),
        "writes to a volume were not committed",
        "what the run left may not be there for whoever comes next, a warm cache above all",
        "run it again, and let it end before its place is let go",
    ),
    Rule(
        *("R19", "SAME_SEED_REPEATED", "refuses", True, soundness.seeds),
        "runs of an arm share a seed, and the metric is no rate and no time (for those it is noted)",
        "the same seed again is the same run again, not another one",
        "give each run a seed of its own",
    ),
    Rule(
        *("R20", "MIXED_ATTEMPTS", "refuses", True, soundness.attempts),
        "a run was started again, or went on from a checkpoint",
        "part of it happened in another start",
        'run it again in one piece (`on_interrupt = "stop"`)',
    ),
    Rule(
        *("R21", "MIXED_ARM", "refuses", True, finding.mixed),
        "a field of class K is not the same in all runs of one arm",
        "an arm of several things is no thing to compare",
        "sort the receipts into arms by that field (`--by`), or leave none of them mixed",
    ),
    Rule(
        *("R22", "UNOBSERVED_KEY", "refuses", True, finding.unobserved),
        "a field of class K was not seen, or by a source that is not good enough",
        "what nobody saw equals nothing, not even itself",
        "run it again where it can be seen",
    ),
    Rule(
        *("R23", "STEPS_DIFFER", "refuses", True, soundness.steps),
        "the steps that count differ by more than 10 %; only for figures of the steady window",
        "a longer window sees more of what happens seldom",
        "run the same number of steps",
    ),
    Rule(
        *("R24", "SAME_RUN", "refuses", False, finding.same),
        "one run stands in both arms",
        "a run held against itself shows nothing",
        "name each run in one arm only",
    ),
    Rule(
        *("R25", "NO_FIGURE", "refuses", False, soundness.no_figure),
        "no counted run of an arm has the metric",
        "there is nothing to compare",
        "report it (`route_report`), or name a metric that both have: --metric",
    ),
    Rule(
        *("R26", "FIGURE_MISSING", "refuses", True, soundness.figure_missing),
        "some counted runs of an arm do not have the metric",
        "leaving out the runs that say nothing is a choice of runs",
        "run them again",
    ),
    Rule(
        *("R27", "BAD_VALUE", "refuses", False, soundness.bad_value),
        "a figure is not greater than 0",
        "ratios need figures greater than 0",
        "name another metric: --metric",
    ),
    Rule(
        *("R28", "NO_RUNS", "refuses", False, finding.no_runs),
        "no run of an arm counts",
        "there is nothing to compare",
        "see why they failed (`route logs RUN`), and run again",
    ),
    Rule(
        *("R29", "SUCCESS_DIFFERS", "withholds", True, finding.success),
        "one arm succeeded less often, by more than one run",
        "the speed of those that survive is not the speed of the thing",
        "mend what fails first",
    ),
    Rule(
        *("R30", "UNREADABLE_RECEIPT", "refuses", False, finding.nothing),
        "a file that was given is no receipt that this version reads",
        "runs that are left out unseen may be those that matter",
        "bring it again, or leave it out on purpose",
    ),
    Rule(
        *("R31", "SURFACE_METRIC", "refuses", False, finding.surface_metric),
        "across surfaces, a figure of the steady window although start classes or caches differ",
        "the same step on a cold and on a warm start is not the same work",
        "compare time_to_first_trustworthy_result, wall or cost: --metric",
    ),
    Rule(
        *("R32", "NO_DIRECTION", "withholds", False, soundness.direction),
        "nobody said whether more of the metric is better",
        "which of two is the better one is not known",
        "say so in the workload: `[tool.route.metrics] higher_is_better`",
    ),
)
BY_CODE: Mapping[str, Rule] = {key: rule for rule in RULES for key in (rule.code, rule.number)}


def waived(allow: Mapping[str, str]) -> dict[str, str]:
    """Code -> reason, of what the user sets aside by code or number.

    `InputError` for a rule that is not there, may not be set aside, or is set aside without a reason.
    """
    made = {}
    for name, because in allow.items():
        rule = BY_CODE.get(name.strip().upper())
        if rule is None:
            import difflib

            near = difflib.get_close_matches(name.upper(), list(BY_CODE), 1, 0.4)
            raise InputError(
                f"--allow {name[:60]}: there is no such rule",
                mend=f"did you mean {near[0]}?" if near else "docs/comparing.md lists the rules",
            )
        if not rule.waivable:
            raise InputError(f"{rule.code} cannot be waived: {rule.why}", mend=rule.mend)
        if not because.strip():
            raise InputError(f"--allow {rule.code} without a reason", mend='say why: --because "..."')
        made[rule.code] = " ".join(because.split())
    return made


def found(sight: Sight, allow: Mapping[str, str]) -> list[Refusal]:
    """Every rule that fires, in order; waived ones too."""
    told = []
    for rule in RULES:
        text = rule.finds(sight)
        if text:
            told.append(refusal(rule, text, allow))
    return told


def refusal(rule: Rule, text: str, allow: Mapping[str, str]) -> Refusal:
    what, _, mend = text.partition("\n")
    return Refusal(
        code=rule.code,
        number=rule.number,
        what=what,
        why=rule.why,
        mend=mend or rule.mend,
        waivable=rule.waivable,
        waived=rule.code in allow,
        because=allow.get(rule.code, ""),
    )


def waivers(allow: Mapping[str, str], used: set[str]) -> tuple[Waiver, ...]:
    return tuple(Waiver(rule=code, because=because, used=code in used) for code, because in allow.items())


def table() -> str:
    """The rules as the Markdown of `docs/comparing.md`."""
    lines = ["| Rule | Fires when | Why | Mend | Effect | Waivable |", "|---" * 6 + "|"]
    for rule in RULES:
        name = f"{rule.number} `{rule.code}`"
        may = "yes" if rule.waivable else "no"
        lines.append(f"| {name} | {rule.fires} | {rule.why} | {rule.mend} | {rule.effect} | {may} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
