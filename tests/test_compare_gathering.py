"""Proves how receipts are sorted into arms: by what they are given as, by their study, by a field."""

from __future__ import annotations

import planted
import pytest

from compute_router.compare.gathering import gather
from compute_router.compare.loading import load
from compute_router.errors import InputError


def test_two_receipts_are_an_arm_each_in_the_order_given() -> None:
    specs = planted.study()[:2]
    for spec in specs:
        spec.study = None
    one, other = (spec.loaded() for spec in specs)
    assert [arm.runs for arm in gather([other, one]).arms] == [(other,), (one,)]


def test_a_receipt_given_twice_counts_once() -> None:
    loaded = [spec.loaded() for spec in planted.study()]
    again = load(planted.study()[0].data(), ref="copy.json")
    found = gather([*loaded, again])
    assert sum(len(arm.runs) for arm in found.arms) == 12
    assert "copy.json was given before" in found.notes[0]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_receipts_that_make_no_two_arms_are_told_what_to_say(count: int) -> None:
    specs = planted.study()[:count]
    for spec in specs:
        spec.study = None
    with pytest.raises(InputError) as caught:
        gather([spec.loaded() for spec in specs])
    assert caught.value.mend


def test_arms_by_a_field() -> None:
    specs = planted.study()
    for spec in specs:
        spec.study = None
        spec.backend = "here" if spec.arm == "base" else "there"
    found = gather([spec.loaded() for spec in specs], by="backend")
    assert [(arm.name, len(arm.runs)) for arm in found.arms] == [("here", 6), ("there", 6)]
    with pytest.raises(InputError, match="makes one arm"):
        gather([spec.loaded() for spec in specs], by="surface")
    with pytest.raises(InputError, match="no field"):
        gather([spec.loaded() for spec in specs], by="bakend")
