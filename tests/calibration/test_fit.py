"""A calibration is fitted from tables, and cross-fitted without the group that it is used on."""

from __future__ import annotations

import numpy as np
import pytest

from nndiffseg.calibration import Calibration, CaseTable, cross_fit, cross_fitted, fit
from nndiffseg.calibration.fusion import WEIGHTS

#: the same likelihood at every temperature
FLAT = np.zeros((len(WEIGHTS), 1, 33))
#: the same confidence under every weight
SURE = np.ones((len(WEIGHTS), 1))


def table(case: str, best: float) -> CaseTable:
    """A case whose Dice is best with this fusion weight, by far."""
    dice = 1 - np.abs(WEIGHTS - best)[:, None] * 10
    return CaseTable(
        case, dice, np.zeros(len(WEIGHTS)), np.array([[1.0, 1.2]]), np.array([[1.1]]), FLAT, np.ones((len(WEIGHTS), 1))
    )


def test_no_case_has_a_part_in_its_own_calibration():
    """Two cases want the weight 0 and one wants 1: without itself the odd one gets 0, the others see a tie of 0 and 1."""
    cases = [table("a", 0.0), table("b", 0.0), table("odd", 1.0)]
    assert fit(cases[:2]).fusion_weight == 0.0
    assert cross_fit(cases)["odd"].fusion_weight == 0.0
    for case, calibration in cross_fit(cases).items():
        assert calibration == fit([t for t in cases if t.case != case])


def test_a_group_is_left_out_as_a_whole():
    cases = [table("left", 1.0), table("right", 1.0), table("other", 0.0), table("another", 0.0)]
    groups = {"left": "person", "right": "person"}
    crossed = cross_fit(cases, groups)
    assert crossed["left"].fusion_weight == crossed["right"].fusion_weight == 0.0
    assert crossed["left"].groups == 2 and crossed["other"].groups == 2


def test_every_case_of_many_groups_is_fitted_without_itself():
    """With more groups than parts several are left out at once, each among them."""
    rng = np.random.default_rng(0)
    cases = [table(f"c{i:02d}", float(rng.choice([0.0, 1.0]))) for i in range(37)]
    calls = []
    crossed = cross_fit(cases)
    for case in cases:
        flipped = [table(t.case, 1 - round(float(WEIGHTS[t.dice[:, 0].argmax()]))) if t is case else t for t in cases]
        calls.append(cross_fit(flipped)[case.case] == crossed[case.case])
    assert all(calls), "a case's own table changed its calibration"
    assert {c.groups for c in crossed.values()} <= {33, 34}


def test_a_single_group_gets_the_defaults_and_no_table_too():
    assert cross_fit([table("a", 1.0), table("b", 1.0)], {"a": "x", "b": "x"}) == {
        "a": Calibration(),
        "b": Calibration(),
    }
    assert fit([], folds=("0",)) == Calibration(folds=("0",))


def test_the_record_says_how_many_groups_and_which_folds():
    calibration = fit([table("a", 0.3), table("b", 0.3), table("c", 0.3)], {"a": "x", "b": "x"}, ("2",))
    assert (calibration.groups, calibration.folds) == (2, ("2",)) and calibration.fusion_weight == pytest.approx(0.3)


def test_groups_and_folds_reach_every_number_of_every_part():
    """Far too wide samples of twelve cases: as cases of one group they say nothing about the volumes of another."""
    rng, flat = np.random.default_rng(0), (np.ones((len(WEIGHTS), 1)), np.zeros(len(WEIGHTS)))
    names = [f"case_{i:02d}" for i in range(12)]
    wide = [
        CaseTable(
            c, *flat, 10 + 3 * rng.standard_normal((1, 16)), 10 + rng.standard_normal((1, 1)), FLAT, np.ones((len(WEIGHTS), 1))
        )
        for c in names
    ]
    assert fit(wide).volume_scale < 0.8
    assert fit(wide, dict.fromkeys(names, "person")).volume_scale == 1.0
    assert {c.folds for c in cross_fit(wide, folds=("4",)).values()} == {("4",)}


@pytest.mark.parametrize("number", [1, 2, 7, 25])
def test_a_case_is_fitted_on_all_cases_of_other_parts_and_none_of_its_group(number):
    cases = [f"c{i}" for i in range(2 * number)]
    groups = {c: f"g{i // 2}" for i, c in enumerate(cases)}
    seen = cross_fitted(cases, groups, set)
    for case, others in seen.items():
        assert not any(groups[o] == groups[case] for o in others)
        assert len(others) >= len(cases) - 2 * -(-number // 10)  # at most a tenth is left out beside it
