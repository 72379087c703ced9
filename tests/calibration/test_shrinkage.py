"""Few groups of cases are trusted less than many, and two that agree by chance are not believed."""

from __future__ import annotations

import numpy as np
import pytest

from nndiffseg.calibration.shrinkage import STEP, TOLERANCE, candidates, map_log_scale, standard_error

LOG_SCALES = candidates(0.25, 4.0)
PRIOR_SD = 0.2


def found(ratios: list[float]) -> float:
    """Log scale for groups of equal weight with these ratios of spread and error, which are proportional to the scale."""
    each = np.array(ratios)
    without = np.log((each.sum() - each) / (len(each) - 1))
    return map_log_scale(LOG_SCALES, LOG_SCALES + np.log(each.mean()), without, PRIOR_SD)


def test_two_groups_are_trusted_less_than_their_difference_says():
    """The same difference between groups counts less with many of them, and Student's distribution widens that of two.

    Closed form for two groups: leaving one out gives log ratios -log 0.6 and -log 0.8, so the jackknife's variance of a single
    group is log(0.8 / 0.6)^2 / 2, and of four more groups 0.25^2; 68 % of Student's distribution with five degrees of freedom
    lie within 1.110.
    """
    pair = [1 / 0.6, 1 / 0.8]
    of_one = (4 * 0.25**2 + np.log(0.8 / 0.6) ** 2 / 2) / 5
    wanted = -np.log(np.mean(pair)) / (1 + (1.110**2 * of_one / 2 + TOLERANCE**2) / PRIOR_SD**2)
    assert found(pair) == pytest.approx(wanted, abs=STEP)
    assert found(pair * 10) < found(pair) < 0


def test_two_groups_that_agree_by_chance_are_not_believed():
    few, many = np.exp(found([0.8] * 2)), np.exp(found([0.8] * 200))
    assert 1.1 < few < 1.17 < 1.24 < many


def test_agreeing_cases_have_a_tolerance_left_that_keeps_the_prior_alive():
    """A prior as wide as the tolerance takes half of what very many groups say with one voice."""
    assert map_log_scale(LOG_SCALES, LOG_SCALES + 0.4, np.full(2000, 0.4), TOLERANCE) == pytest.approx(-0.2, abs=STEP)


def test_the_standard_error_is_that_of_the_mean_where_many_groups_tell():
    x = np.random.default_rng(0).normal(0.3, 0.7, 5000)
    without = (x.sum() - x) / (len(x) - 1)
    assert standard_error(without) == pytest.approx(x.std(ddof=1) / len(x) ** 0.5, rel=1e-3)


def test_candidates_hold_the_bounds_and_one():
    assert LOG_SCALES[[0, -1]] == pytest.approx(np.log([0.25, 4.0])) and 0 in LOG_SCALES
    assert (np.diff(LOG_SCALES) <= STEP + 1e-9).all()
