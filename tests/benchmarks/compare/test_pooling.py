"""Bootstrap intervals and pooled metrics against closed forms and against the library's own accumulators."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.compare.metrics import error_histogram, reliability
from benchmarks.compare.pooling import (
    Interval,
    interval,
    mean_of_columns,
    means,
    pooled_auroc,
    pooled_brier,
    pooled_ece,
    pooled_nll,
    resamples,
)
from nndiffseg.uncertainty import ReliabilityAccumulator


def paired_bootstrap(a: np.ndarray, b: np.ndarray, *, count: int = 2000, seed: int = 0) -> Interval:
    """Interval of mean(a) - mean(b), both of the same cases ``(cases,)``; cases where one is NaN are left out."""
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        return Interval(np.nan, np.nan, np.nan)
    return interval(means(resamples([str(i) for i in np.flatnonzero(both)], count, seed), (a - b)[both][:, None])[:, 0])


def test_the_interval_of_a_mean_has_the_width_of_the_central_limit_theorem():
    rng = np.random.default_rng(0)
    a = rng.normal(0.8, 0.1, 400)
    found = paired_bootstrap(a, np.zeros(400))
    standard_error = a.std() / 20
    assert found.value == pytest.approx(a.mean())
    assert found.low == pytest.approx(a.mean() - 1.96 * standard_error, abs=0.1 * standard_error)
    assert found.high == pytest.approx(a.mean() + 1.96 * standard_error, abs=0.1 * standard_error)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(1)
    hard = rng.normal(0.8, 0.1, 50)  # how hard a case is for both
    found = paired_bootstrap(hard + 0.01, hard)
    assert found.low == pytest.approx(0.01) and found.high == pytest.approx(0.01)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        x = rng.normal(0.02, 0.05, 40)
        found = paired_bootstrap(x, np.zeros(40), count=500, seed=seed)
        hits += found.low <= 0.02 <= found.high
    assert 180 <= hits <= 198  # 95 % of 200, less a little for the percentile method


def test_cases_that_one_side_lacks_are_left_out_of_the_pairs():
    a, b = np.array([0.5, np.nan, 0.7, 0.9]), np.array([0.4, 0.1, np.nan, 0.6])
    assert paired_bootstrap(a, b).value == pytest.approx((0.1 + 0.3) / 2)
    assert np.isnan(paired_bootstrap(a, np.full(4, np.nan)).value)


def test_means_leave_out_nan_and_weigh_by_how_often_a_case_is_drawn():
    values = np.array([[1.0, np.nan], [4.0, np.nan], [7.0, 2.0]])
    weights = np.array([[1.0, 1, 1], [2, 1, 0]])
    np.testing.assert_allclose(means(weights, values), [[4, 2], [2, np.nan]])


def test_resamples_begin_with_the_cases_themselves_and_draw_as_many():
    weights = resamples(list("abcdefg"), 100)
    assert (weights[0] == 1).all() and (weights.sum(1) == 7).all() and weights.shape == (101, 7)


def test_groups_are_drawn_whole():
    weights = resamples(["eye 2", "eye 1", "eye 2"], 400)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[1:, 0] + weights[1:, 1] == 2).all()
    # Two eyes of one person that agree tell as much as one: the interval is as wide as that of two cases.
    pair = interval(means(resamples(["a", "b"], 4000), np.array([[0.0], [1.0]]))[:, 0])
    eyes = interval(means(resamples(["a", "b", "a", "b"], 4000), np.array([[0.0], [1.0], [0.0], [1.0]]))[:, 0])
    assert eyes == pair == (0.5, 0.0, 1.0)


def test_an_interval_without_resamples_of_any_use_is_only_a_value():
    assert interval(np.array([0.5, np.nan]))[0] == 0.5
    assert np.isnan(interval(np.array([0.5, np.nan])).low)


def test_a_structure_that_no_case_has_leaves_the_mean_of_the_others():
    np.testing.assert_allclose(mean_of_columns(np.array([[0.4, np.nan], [0.2, 0.6], [np.nan, np.nan]])), [0.4, 0.4, np.nan])


@pytest.fixture
def two_cases():
    """Probabilities of two structures, how often annotators chose them, a region, uncertainty and errors."""
    rng = np.random.default_rng(3)
    cases = []
    for shape in ((6, 7, 8), (5, 5, 5)):
        p = rng.dirichlet((1, 1, 1), shape).transpose(3, 0, 1, 2)[1:]
        y = rng.integers(0, 4, (2, *shape)) / 3
        cases.append((p, y, rng.random(shape) < 0.6, rng.random(shape), [rng.random(shape) < 0.2 for _ in range(3)]))
    return cases


def test_pooled_metrics_are_those_of_one_accumulator_that_saw_all_cases(two_cases):
    counts = [reliability(p, y, region) for p, y, region, _, _ in two_cases]
    one = np.ones((1, 2))
    for k in range(2):
        reference = ReliabilityAccumulator(1, regions=True)
        for p, y, region, _, _ in two_cases:
            reference.add(p[k][None], y[k][None], region)
        summary = reference.summary()
        assert pooled_ece(one, counts)[0, k] == pytest.approx(summary["ece"])
        assert pooled_brier(one, counts)[0, k] == pytest.approx(summary["brier"])
        assert pooled_nll(one, counts)[0, k] == pytest.approx(summary["nll"])


def test_a_case_drawn_twice_counts_twice(two_cases):
    counts = [reliability(p, y, region) for p, y, region, _, _ in two_cases]
    errors = [error_histogram(u, wrong, region) for _, _, region, u, wrong in two_cases]
    pools = [(pool, counts) for pool in (pooled_ece, pooled_brier, pooled_nll)] + [(pooled_auroc, errors)]
    for pool, once in pools:
        doubled = [once[0], once[0], once[1]]
        np.testing.assert_allclose(pool(np.array([[2.0, 1]]), once), pool(np.ones((1, 3)), doubled))


def test_the_auroc_is_that_of_all_voxels_and_annotators(two_cases):
    counts = [error_histogram(u, errors, region) for _, _, region, u, errors in two_cases]
    u = np.concatenate([u[region] for _, _, region, u, errors in two_cases for _ in errors])
    wrong = np.concatenate([e[region] for _, _, region, _, errors in two_cases for e in errors])
    assert pooled_auroc(np.ones((1, 2)), counts)[0] == pytest.approx(roc_auc_score(wrong, u), abs=2e-3)


def test_a_case_without_a_region_adds_nothing(two_cases):
    counts = [reliability(p, y, region) for p, y, region, _, _ in two_cases]
    p, y, region, _, _ = two_cases[0]
    empty = reliability(p, y, np.zeros_like(region))
    np.testing.assert_allclose(pooled_nll(np.ones((1, 3)), [*counts, empty]), pooled_nll(np.ones((1, 2)), counts))
    assert np.isnan(pooled_ece(np.ones((1, 1)), [empty])).all()
