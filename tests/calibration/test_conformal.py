"""Conformal quantiles: the textbook's rule, and the promised coverage with groups."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nndiffseg.calibration.conformal import FEWEST_GROUPS, conformal_quantile


@pytest.mark.parametrize("n", [9, 10, 19, 42, 100])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_with_one_case_in_each_group_it_is_the_order_statistic_of_the_textbook(n, level):
    scores = np.random.default_rng(n).random(n)
    k = math.ceil((n + 1) * level - 1e-9)
    assert conformal_quantile(scores, [str(i) for i in range(n)], level) == np.sort(scores)[k - 1]


def test_below_nine_groups_no_interval_is_promised():
    assert FEWEST_GROUPS == 9
    assert conformal_quantile(np.ones(8), [str(i) for i in range(8)]) is None
    assert conformal_quantile(np.ones(9), [str(i) for i in range(9)]) == 1
    assert conformal_quantile(np.ones(40), [str(i % 8) for i in range(40)]) is None
    assert conformal_quantile([], []) is None


def test_scores_without_a_number_are_left_out_and_infinite_ones_count():
    names = [str(i) for i in range(20)]
    scores = np.arange(20.0)
    assert conformal_quantile(np.where(scores < 5, np.nan, scores), names) == 19  # ceil(16 * 0.9) = 15th of 15
    assert conformal_quantile(np.where(scores > 15, np.inf, scores), names) is None


def test_the_promise_holds_for_cases_of_new_groups_however_many_cases_a_group_has():
    """Groups of one to ten cases with a common offset; cases as units would promise too much."""
    rng = np.random.default_rng(0)

    def draw(groups: int) -> tuple[np.ndarray, list[str]]:
        sizes = rng.integers(1, 11, groups)
        scores = [np.abs(rng.standard_normal() + 0.3 * rng.standard_normal(n)) for n in sizes]
        return np.concatenate(scores), [str(g) for g, n in enumerate(sizes) for _ in range(n)]

    held = []
    for _ in range(1500):
        quantile = conformal_quantile(*draw(12))
        held.append(abs(rng.standard_normal() + 0.3 * rng.standard_normal()) <= quantile)
    assert 0.88 < np.mean(held) < 0.97
