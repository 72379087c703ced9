"""The expected Dice: a line through validation cases, and an interval that holds for new ones."""

from __future__ import annotations

import numpy as np
import pytest

from nndiffseg.calibration.expected_dice import DiceMap, fit_dice_map


def names(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def test_a_line_is_found_and_the_interval_holds_nine_of_ten_new_cases():
    rng, held = np.random.default_rng(0), []
    for _ in range(300):
        x = rng.uniform(0.6, 0.95, 31)
        y = 0.2 + 0.7 * x + 0.03 * rng.standard_normal(31)
        fitted = fit_dice_map(x[:30], y[:30], names(30))
        low, high = fitted.interval(x[30])
        held.append(low <= y[30] <= high)
    assert 0.86 < np.mean(held) < 0.96
    assert fitted.intercept == pytest.approx(0.2, abs=0.1) and fitted.slope == pytest.approx(0.7, abs=0.15)


def test_expected_dice_and_interval_stay_between_0_and_1():
    fitted = DiceMap(0.5, 1.0, 0.4)
    assert fitted.expected(0.8) == 1 and fitted.interval(0.8) == [pytest.approx(0.9), 1]
    assert fitted.expected(0.2) == pytest.approx(0.7) and DiceMap(0.5, 1.0).interval(0.2) is None


def test_a_slope_that_points_the_wrong_way_is_flat():
    x = np.linspace(0.5, 0.9, 12)
    fitted = fit_dice_map(x, 1 - x, names(12))
    assert fitted.slope == 0 and fitted.expected(0.9) == pytest.approx((1 - x).mean())
    assert fit_dice_map(np.full(12, 0.7), np.linspace(0, 1, 12), names(12)).slope == 0


def test_few_groups_give_no_line_and_less_few_no_interval():
    x = np.linspace(0.5, 0.9, 40)
    assert fit_dice_map(x, x, [str(i % 4) for i in range(40)]) is None
    assert fit_dice_map(x, x, [str(i % 5) for i in range(40)]).margin is None
    assert fit_dice_map(x, x, [str(i % 9) for i in range(40)]).margin == pytest.approx(0, abs=1e-9)


def test_cases_without_a_number_are_left_out():
    x = np.linspace(0.5, 0.9, 20)
    y = x.copy()
    y[3], x[7] = np.nan, np.nan
    assert fit_dice_map(x, y, names(20)).slope == pytest.approx(1)


def test_a_residual_is_that_of_a_line_without_the_group():
    """One group far off the line: with itself in the fit its residual would be smaller."""
    x, y = np.linspace(0.5, 0.9, 9), np.full(9, 0.8)
    y[8] = 0.2
    fitted = fit_dice_map(x, y, names(9))
    assert fitted.margin == pytest.approx(0.6)
