"""The score of volume intervals: what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.volume_floor import MISS, Volumes, score


def cases(true: list[float], sd: float = 1.0) -> dict[str, Volumes]:
    """One structure; samples of mean 10 and standard deviation ``sd``."""
    return {f"c{i}": Volumes(10 + sd * np.array([[-1.0, 0, 1]]), np.array([[y]])) for i, y in enumerate(true)}


def test_a_perfect_promise_has_its_width_and_a_miss_costs_twenty_times_its_distance():
    """Twenty volumes at distance 1 from the mean: q = 1 without floor, so that intervals are 9 to 11."""
    assert score(cases([11.0] * 10 + [9.0] * 10), {}, 0.01) == pytest.approx((2 / 10, 1.0))
    true = [11.0] * 100 + [9.0] * 99 + [15.0]
    found, held = score(cases(true), {}, 0.01)
    assert held == 0.995 and found == pytest.approx((2 + MISS * 4 / 200) / np.mean(true))


def test_a_floor_changes_nothing_where_all_deviations_are_above_it_or_all_below():
    volumes = cases(list(np.random.default_rng(0).normal(10, 1, 40)))
    expected = score(volumes, {}, 0.01)
    for floor in (0.05, 0.2, np.inf):
        assert score(volumes, {}, floor) == pytest.approx(expected)


def test_deviations_that_mean_nothing_are_worse_than_a_floor():
    rng = np.random.default_rng(1)
    spread = np.exp(rng.normal(-1, 1, 60))
    right = cases(list(rng.normal(10, 1, 60)))
    volumes = {n: Volumes(10 + s * (v.sampled - 10), v.true) for (n, v), s in zip(right.items(), spread, strict=True)}
    assert score(volumes, {}, 0.2)[0] < 0.8 * score(volumes, {}, 0.01)[0]
