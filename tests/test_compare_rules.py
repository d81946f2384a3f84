"""Proves each rule of a comparison: it fires on what it is about, has a mend, and may be waived or not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import planted
import pytest
import test_compare_confounders as confounders
import test_compare_surfaces as surfaces
from planted import Study, candidates, compared, study

from compute_router.backend import State
from compute_router.compare import refusals
from compute_router.compare.comparing import compare
from compute_router.compare.gathering import Gathered, Group, gather
from compute_router.compare.loaded import Loaded
from compute_router.compare.loading import Unread, load
from compute_router.compare.outcome import Comparison, Contrast, Result, Role, Standing, Verdict
from compute_router.compare.varying import ALIASES, FOLLOWERS, paths_of
from compute_router.errors import InputError
from compute_router.receipt.building import receipt_id
from compute_router.receipt.schema import BY_PATH
from compute_router.records import encode

TOP = Path(__file__).resolve().parent.parent


def only(found: Comparison) -> Contrast:
    (contrast,) = found.contrasts
    return contrast


def codes(contrast: Contrast) -> set[str]:
    return {r.code for r in contrast.refusals}


def free(specs: Study) -> Study:
    return confounders.no_study(specs)


def edited(spec: planted.Spec, name: str, v: object) -> Loaded:
    """A receipt whose primary figure is another, consistently hashed."""
    receipt = spec.receipt()
    for row in receipt["context"]["metrics"]["values"]["v"]:
        if row["name"] == "tok_s_global":
            row[name] = v
    from compute_router.receipt.evidence import comparability

    receipt["comparability"] = comparability(receipt)
    receipt["receipt_id"] = receipt_id(receipt)
    one = load(encode(receipt), ref=f"{spec.arm}-{spec.number}")
    assert isinstance(one, Loaded), one
    return one


def arms(specs: Study, candidate: list[Loaded]) -> Gathered:
    base = [spec.loaded() for spec in specs if spec.arm == "base"]
    return Gathered(
        arms=(Group(name="base", runs=tuple(base)), Group(name="candidate", runs=tuple(candidate)))
    )


# Rules that need more than an edit of a study


def test_metric_definition() -> None:
    specs = study()
    found = only(
        compare(arms(specs, [edited(s, "definition_id", "tok_s_per_device/1") for s in candidates(specs)]))
    )
    assert found.result is Result.REFUSED
    assert "METRIC_DEFINITION" in codes(found)
    assert "tok_s_per_device/1" in next(r.what for r in found.refusals if r.code == "METRIC_DEFINITION")


def test_no_direction() -> None:
    specs = study()
    given = arms(specs, [edited(s, "higher_is_better", None) for s in candidates(specs)])
    found = only(compare(given))
    assert found.verdict is None
    assert "NO_DIRECTION" in codes(found)


@pytest.mark.parametrize(
    ("runs", "standing"), [(1, Standing.ANECDOTE), (3, Standing.EXPLORATORY), (5, Standing.EXPLORATORY)]
)
def test_too_few_runs(runs: int, standing: Standing) -> None:
    found = only(compared(study(blocks=runs)))
    assert codes(found) == {"TOO_FEW_RUNS"}
    assert found.result is Result.CONTROLLED
    assert found.verdict is None
    assert found.standing is standing
    assert found.primary is not None, "values are shown all the same"
    assert found.primary.ratio is not None


def test_hash_mismatch_and_unreadable_receipt() -> None:
    whole = encode(study()[0].receipt())
    bad = load(whole.replace(b'"kind":"train"', b'"kind":"trail"', 1), ref="changed")
    other = load(b"{}", ref="other")
    assert isinstance(bad, Unread)
    assert isinstance(other, Unread)
    good = [spec.loaded() for spec in study()]
    for unread, code in ((bad, "HASH_MISMATCH"), (other, "UNREADABLE_RECEIPT")):
        found = compare(gather([*good, unread]))
        (told,) = found.refusals
        assert found.refused
        assert not found.contrasts
        assert told.code == code
        assert unread.ref in told.what


def test_signature_required() -> None:
    specs = study()
    found = only(compared(specs, signed=lambda one: "it is not signed" if one.signatures == b"[]" else ""))
    assert codes(found) == {"SIGNATURE_REQUIRED"}
    assert found.result is Result.REFUSED
    assert codes(only(compared(specs, signed=lambda one: ""))) == set()


def test_same_seed_repeated() -> None:
    specs = study()
    for spec in candidates(specs):
        spec.seed = 7
    rate = only(compared(specs))
    assert codes(rate) == set()
    assert rate.primary
    assert any("seed 7" in note for note in rate.primary.notes)
    assert "SAME_SEED_REPEATED" in codes(only(compared(specs, metric="loss_last")))


def test_same_run() -> None:
    good = [spec.loaded() for spec in free(study())]
    found = only(compare(gather(good, good)))
    assert found.result is Result.REFUSED
    assert "SAME_RUN" in codes(found)
    assert not next(r for r in found.refusals if r.code == "SAME_RUN").waivable


def test_no_figure() -> None:
    specs = study()
    for spec in candidates(specs):
        spec.measured |= {"metrics.loss_last": None}
    found = only(compared(specs, metric="loss_last"))
    assert found.result is Result.REFUSED
    assert "NO_FIGURE" in codes(found)


def test_figure_missing() -> None:
    specs = study()
    candidates(specs)[0].measured["metrics.loss_last"] = None
    found = only(compared(specs, metric="loss_last"))
    assert codes(found) == {"FIGURE_MISSING"}
    assert found.result is Result.REFUSED


@pytest.mark.parametrize("value", ["0", "-1.5"])
def test_bad_value(value: str) -> None:
    specs = study()
    candidates(specs)[0].measured["metrics.loss_last"] = value
    found = only(compared(specs, metric="loss_last"))
    assert found.result is Result.REFUSED
    assert codes(found) == {"BAD_VALUE"}


def test_no_runs() -> None:
    specs = study()
    for spec in candidates(specs):
        spec.state = State.FAILED
    found = only(compared(specs))
    assert found.result is Result.REFUSED
    assert "NO_RUNS" in codes(found)
    assert found.success
    assert (found.success.candidate, found.success.candidate_of) == (0, 6)


def test_surface_metric() -> None:
    found = surfaces.contrast(surfaces.serverless, ("surface",), metric="tok_s_global")
    assert "SURFACE_METRIC" in codes(found)


def test_every_rule_has_a_test() -> None:
    tested = {code for _, code in confounders.CONFOUNDERS.values()}
    here = " ".join(name for name in globals() if name.startswith("test_")).upper()
    for rule in refusals.RULES:
        assert rule.code in tested or rule.code in here, f"no test makes {rule.number} {rule.code} fire"


def test_numbers_and_codes_are_unique_and_in_order() -> None:
    assert [rule.number for rule in refusals.RULES] == [f"R{n:02}" for n in range(1, len(refusals.RULES) + 1)]
    assert len({rule.code for rule in refusals.RULES}) == len(refusals.RULES)
    for rule in refusals.RULES:
        assert rule.effect in ("refuses", "withholds")
        assert rule.why
        assert rule.mend
        assert rule.fires


# Waivers


def test_a_waiver_is_printed_and_caps_the_standing() -> None:
    specs = confounders.CONFOUNDERS["cold cache"][0](study())
    found = compared(specs, allow={"cold_vs_warm": "only the shape of the loss matters", "R13": "no GPU"})
    contrast = only(found)
    (told,) = contrast.refusals
    assert told.waived
    assert told.because == "only the shape of the loss matters"
    assert contrast.verdict is not None
    assert contrast.standing is Standing.EXPLORATORY
    assert "waived: COLD_VS_WARM" in contrast.label
    assert "COLD_VS_WARM" in contrast.sentence
    assert {(w.rule, w.used) for w in found.waivers} == {
        ("COLD_VS_WARM", True),
        ("MISSING_PEAK_MEMORY", False),
    }
    assert any("MISSING_PEAK_MEMORY was not needed" in note for note in found.notes)


@pytest.mark.parametrize("rule", [r.code for r in refusals.RULES if not r.waivable])
def test_what_makes_arithmetic_meaningless_is_never_waived(rule: str) -> None:
    with pytest.raises(InputError, match="cannot be waived"):
        compared(study(), allow={rule: "because"})


@pytest.mark.parametrize(("name", "because"), [("COLD_VS_WRM", "x"), ("R99", "x"), ("R03", "  ")])
def test_a_waiver_that_is_none_is_told(name: str, because: str) -> None:
    with pytest.raises(InputError) as caught:
        compared(study(), allow={name: because})
    assert caught.value.mend


@pytest.mark.parametrize("name", confounders.CONFOUNDERS)
def test_every_waivable_rule_gives_an_exploratory_answer_when_waived(name: str) -> None:
    plant, _ = confounders.CONFOUNDERS[name]
    specs = plant(study(effect=1.1))
    vary = ("code",) if name == "not interleaved" else ()
    stands = {r.code: r for r in only(compared(specs, vary=vary)).refusals}
    if not all(r.waivable for r in stands.values()):
        return
    found = only(compared(specs, vary=vary, allow=dict.fromkeys(stands, "to see what happens")))
    assert all(r.waived for r in found.refusals)
    assert found.result is not Result.REFUSED
    assert found.verdict is not None
    assert found.standing in (Standing.EXPLORATORY, Standing.ANECDOTE)


# Variables


def test_aliases_and_followers_name_fields_of_the_schema() -> None:
    for variable in ALIASES:
        found = paths_of((variable.name,))
        assert found, variable
        assert all(path in BY_PATH for path in found)
    for parent, patterns in FOLLOWERS.items():
        assert parent in BY_PATH
        for pattern in patterns:
            assert any(
                path == pattern or (pattern.endswith(".") and path.startswith(pattern)) for path in BY_PATH
            )


@pytest.mark.parametrize(
    ("name", "near"), [("hardwear", "hardware"), ("env.stak", "env.stack"), ("zzz", "code")]
)
def test_a_variable_that_is_none_is_told_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        compared(free(study()), vary=(name,))
    assert near in caught.value.mend


@pytest.mark.parametrize("name", ["kind", "purpose", "metrics.primary", "study", "metrics"])
def test_the_question_is_no_variable(name: str) -> None:
    with pytest.raises(InputError, match="cannot be the variable"):
        compared(free(study()), vary=(name,))


def test_two_factors_are_a_joint_effect_and_carriers_are_none() -> None:
    specs = study(vary=("code", "stack"))
    specs = confounders.CONFOUNDERS["other torch"][0](specs)
    found = only(compared(specs))
    assert found.result is Result.CONTROLLED
    assert found.label == "", "the script carries what else is changed, and is no factor beside it"
    specs = study(vary=("stack", "environment"))
    for spec in specs:
        spec.entry = "entry"
    specs = confounders.CONFOUNDERS["other torch"][0](specs)
    specs = confounders.CONFOUNDERS["variable of the environment"][0](specs)
    found = only(compared(specs))
    assert found.label.startswith("joint effect only (")
    assert "changed together" in " ".join(found.cannot)


def test_what_is_declared_after_the_study_caps_the_standing() -> None:
    specs = confounders.CONFOUNDERS["other torch"][0](study())
    found = compared(specs, vary=("stack",))
    assert only(found).standing is Standing.EXPLORATORY
    assert "after the study was made" in " ".join(found.notes)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"margin": 0.1}, "the margin was declared after"),
        ({"olympic": True}, "slowest runs was declared after"),
    ],
)
def test_what_a_study_fixed_is_not_chosen_again_for_a_claim(chosen: dict[str, Any], said: str) -> None:
    assert only(compared(study(blocks=10))).standing is Standing.CLAIM
    found = only(compared(study(blocks=10), **chosen))
    assert found.standing is Standing.EXPLORATORY
    assert said in " ".join(found.cannot)
    # The same margin as the study's is no choice.
    assert only(compared(study(blocks=10), margin=0.02)).standing is Standing.CLAIM


def test_a_metric_picked_by_the_reader_caps_the_standing() -> None:
    assert only(compared(study(), metric="wall")).standing is Standing.EXPLORATORY
    assert only(compared(study(), metric="tok_s_global")).standing is Standing.CLAIM
    with pytest.raises(InputError, match="no run has it") as caught:
        compared(study(), metric="tok_s")
    assert "tok_s_global" in caught.value.mend


def test_differences_that_warn_are_listed_and_do_not_refuse() -> None:
    specs = confounders.other_machine(study())
    found = only(compared(specs))
    roles = {d.field: d.role for d in found.differences}
    assert roles["hw.observed.driver"] is Role.WARNS
    assert roles["hw.observed.uuid"] is Role.WARNS
    assert "hw.observed.driver" in " ".join(found.cannot)


def test_failures_and_seeding_runs_are_told_and_not_dropped() -> None:
    specs = study()
    candidates(specs)[0].state = State.FAILED
    candidates(specs)[1].seeding = True
    found = compared(specs)
    assert [(arm.given, arm.succeeded, arm.counted) for arm in found.arms] == [(6, 6, 6), (6, 5, 4)]
    assert {p.why for p in found.points if not p.counted} == {
        "failed",
        "made to fill a cache (`route warm`): never evidence",
    }
    assert any("seeding" in note for note in found.notes)
    told = only(found)
    assert told.success
    assert (told.success.candidate, told.success.candidate_of) == (4, 5)
    assert told.primary
    assert any("without a partner" in note for note in told.primary.notes)


def test_a_try_that_never_executed_counts_for_nothing_beside_the_one_that_did() -> None:
    specs = study()
    again = copy.deepcopy(candidates(specs)[2])
    again.number, again.state, again.reason, again.unmeasured = 900, State.LOST, "never_executed", True
    found = compared([*specs, again])
    assert only(found).verdict is Verdict.FASTER
    assert only(found).success == only(compared(specs)).success
    assert any("never executed" in note for note in found.notes)
    gone = [spec for spec in specs if spec is not candidates(specs)[2]]
    assert "STUDY_INCOMPLETE" in codes(only(compared([*gone, again])))


def test_parts_of_the_time_line_add_up_to_the_whole() -> None:
    for point in compared(study()).points:
        assert sum(point.timing.values()) == round(point.figures["wall"] * 1e6)


def test_the_table_of_the_documentation_is_made_from_the_rules() -> None:
    assert refusals.table() in (TOP / "docs" / "comparing.md").read_text()


def test_an_answer_is_json() -> None:
    import msgspec

    made = json.loads(msgspec.json.encode(compared(study())))
    assert made["schema"] == "route.comparison/1"
    assert made["contrasts"][0]["verdict"] == Verdict.FASTER
