"""The volume scale makes spread and error of volumes agree, and trusts few groups of cases less than many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from nndiffseg.calibration import volumes as volume_scale
from nndiffseg.calibration.shrinkage import STEP, candidates, map_log_scale
from nndiffseg.calibration.tables import CaseTable
from nndiffseg.calibration.volumes import (
    LARGEST,
    SMALLEST,
    fit_volume_scale,
    stretched,
    structure_voxels,
)


def table(case: str, sampled: np.ndarray, true: np.ndarray) -> CaseTable:
    """Volumes alone."""
    return CaseTable(case, np.zeros((0, 0)), np.zeros(0), sampled, true, np.zeros(0), np.zeros(0))


def ratio_of(tables: list[CaseTable], scale: float) -> float:
    """Mean distance of two stretched volumes over that of a volume and the true one, geometric mean over structures."""
    ratios = []
    for k in range(len(tables[0].true_ml)):
        spread = error = 0.0
        for t in tables:
            volumes, (true,) = stretched(t.sampled_ml[k], scale), t.true_ml[k]
            apart = np.abs(volumes[:, None] - volumes)
            spread += apart.sum() / (len(volumes) * (len(volumes) - 1))
            error += np.abs(volumes - true).mean()
        ratios.append(np.log(spread / error))
    return float(np.exp(np.mean(ratios)))


def normal_cases(rng: np.random.Generator, cases: int, sd: float, samples: int = 16, means=(50.0,)) -> list[CaseTable]:
    """Volumes y ~ N(mean, (mean / 50)^2) of a case, samples ~ N(mean, (sd mean / 50)^2): the right scale is 1 / sd."""
    m = np.array(means)[:, None]
    return [
        table(
            str(i), m * (1 + sd / 50 * rng.standard_normal((len(m), samples))), m * (1 + rng.standard_normal((len(m), 1)) / 50)
        )
        for i in range(cases)
    ]


def joined(*structures: list[CaseTable]) -> list[CaseTable]:
    """Cases with all of these structures."""
    return [
        table(parts[0].case, np.concatenate([p.sampled_ml for p in parts]), np.concatenate([p.true_ml for p in parts]))
        for parts in zip(*structures, strict=True)
    ]


def around(mean: float, sd: float, true: float, case: int) -> CaseTable:
    """Sixteen samples at the quantiles of a normal distribution."""
    return table(str(case), mean + sd * norm.ppf((np.arange(16) + 0.5) / 16)[None], np.array([[true]]))


@pytest.mark.parametrize("sd", [0.5, 1.0, 1.6])
@pytest.mark.parametrize("samples", [2, 16])
def test_many_cases_give_the_right_scale_with_any_number_of_samples(sd, samples):
    """With N samples the mean has an error of its own, sd / sqrt(N), and stretching does not touch it: with two samples r obeys
    (1 / 2 + r^2 / 2) sd^2 + 1 = r^2 sd^2 2, for the differences of normal variables are normal."""
    n = samples
    wanted = np.sqrt((1 + sd**2 / n) / (sd**2 * (1 + 1 / n)))
    assert fit_volume_scale(normal_cases(np.random.default_rng(0), 4000, sd, n)) == pytest.approx(wanted, rel=0.05)


def test_the_fitted_scale_makes_spread_and_error_equal_on_other_cases():
    rng = np.random.default_rng(1)
    fitted = fit_volume_scale(normal_cases(rng, 500, 1.6, means=(50.0, 3.0)))
    others = normal_cases(rng, 2000, 1.6, means=(50.0, 3.0))
    assert ratio_of(others, 1.0) == pytest.approx(1.6 * np.sqrt(2 / (1 + 1.6**2)), rel=0.05)
    assert ratio_of(others, fitted) == pytest.approx(1.0, abs=0.05)


def test_several_annotations_count_as_their_mean_error():
    one = normal_cases(np.random.default_rng(3), 20, 1.5)
    twice = [table(t.case, t.sampled_ml, t.true_ml.repeat(2, 1)) for t in one]
    assert fit_volume_scale(twice) == fit_volume_scale(one)


def test_structures_count_alike_whatever_their_size():
    """The small structure varies four times too much, the large one is calibrated: the scale lies half-way."""
    rng = np.random.default_rng(2)
    large, small = normal_cases(rng, 4000, 1.0, means=(500.0,)), normal_cases(rng, 4000, 4.0, means=(5.0,))
    both = fit_volume_scale(joined(large, small))
    assert fit_volume_scale(small) + 0.1 < both < fit_volume_scale(large) - 0.1
    assert fit_volume_scale(joined(small, large)) == both


def test_few_cases_are_shrunk_towards_one_and_siblings_more():
    cases = normal_cases(np.random.default_rng(4), 200, 2.0)
    # Eight cases that say the same as two hundred do, alone and as four pairs of siblings.
    alike = [around(10.0, 1.0, 10.6, i) for i in range(8)]
    pairs = {str(i): f"pair {i // 2}" for i in range(8)}
    alone, paired = fit_volume_scale(alike), fit_volume_scale(alike, pairs)
    assert fit_volume_scale(cases) < 0.75
    assert fit_volume_scale(alike[:2]) > fit_volume_scale(alike[:4]) == paired > alone
    assert fit_volume_scale(alike, dict.fromkeys(pairs, "one person")) == 1.0


def test_the_scale_is_the_map_estimate_of_a_plain_computation():
    """Three unlike pairs of skewed samples, so that how far the groups differ at r = 1 decides how far r is drawn to 1."""
    rng = np.random.default_rng(8)
    true = [10.2, 10.4, 11.0, 13.5, 12.0, 10.5]
    cases = [table(str(i), 9 + rng.exponential(size=(1, 8)), np.array([[t]])) for i, t in enumerate(true)]
    without = np.log([ratio_of(cases[:i] + cases[i + 2 :], 1.0) for i in (0, 2, 4)])
    log_r = candidates(SMALLEST, LARGEST)
    ratios = np.log([ratio_of(cases, r) for r in np.exp(log_r)])
    wanted = np.exp(map_log_scale(log_r, ratios, without, volume_scale.PRIOR_SD))
    assert fit_volume_scale(cases, {str(i): f"pair {i // 2}" for i in range(6)}) == pytest.approx(wanted, rel=1e-9)
    assert abs(np.log(wanted)) > 5 * STEP


def test_a_case_with_one_sample_is_left_out():
    cases = normal_cases(np.random.default_rng(9), 8, 2.0)
    assert fit_volume_scale([*cases, *normal_cases(np.random.default_rng(9), 1, 2.0, samples=1)]) == fit_volume_scale(cases)


def test_two_groups_are_enough_to_fit():
    pair = [around(10.0, 1.0, 10.2, i) for i in range(2)]
    assert fit_volume_scale(pair) < 1 - STEP


def test_calibrated_cases_leave_volumes_nearly_alone():
    rng = np.random.default_rng(5)
    logs = [np.log(fit_volume_scale(normal_cases(rng, 8, 1.0))) for _ in range(100)]
    assert abs(np.mean(logs)) < 0.05 and np.std(logs) < 0.25


def test_the_scale_stays_within_its_bounds():
    far, near = [around(10.0, 0.01, 20.0, i) for i in range(300)], [around(10.0, 5.0, 10.8, i) for i in range(300)]
    assert np.log(fit_volume_scale(far)) == pytest.approx(np.log(LARGEST), abs=STEP)
    assert np.log(fit_volume_scale(near)) == pytest.approx(np.log(SMALLEST), abs=STEP)


@pytest.mark.parametrize(
    "tables",
    [
        [],
        normal_cases(np.random.default_rng(0), 1, 2.0),
        normal_cases(np.random.default_rng(0), 9, 2.0, samples=1),
        [table(str(i), np.zeros((1, 4)), np.zeros((1, 1))) for i in range(5)],
    ],
    ids=["none", "one case", "one sample", "nothing there"],
)
def test_where_nothing_can_be_fitted_volumes_stay(tables):
    assert fit_volume_scale(tables) == 1.0


def test_a_structure_that_a_single_case_has_does_not_change_the_scale():
    cases = normal_cases(np.random.default_rng(6), 50, 2.0)
    rare = [table(t.case, (i == 7) * t.sampled_ml, (i == 7) * t.true_ml) for i, t in enumerate(cases)]
    assert fit_volume_scale(joined(cases, rare)) == fit_volume_scale(cases)


def test_voxels_of_labels_and_regions_are_counted():
    labels = np.array([[[0, 1, 2], [2, 2, 0]], [[0, 0, 0], [0, 0, 1]]], np.uint8)  # two samples of 2 x 3 voxels
    assert structure_voxels(labels, [(1,), (2,), (1, 2), (7,)]).tolist() == [[1, 1], [3, 0], [4, 1], [0, 0]]


def test_the_prior_keeps_what_cases_do_not_tell(monkeypatch):
    cases = normal_cases(np.random.default_rng(7), 8, 2.0)
    usual = fit_volume_scale(cases)
    monkeypatch.setattr(volume_scale, "PRIOR_SD", 1e-3)
    assert usual < fit_volume_scale(cases) == 1.0


def test_volumes_are_stretched_around_the_mean_of_their_structure():
    volumes = np.array([[1.0, 2.0, 6.0], [10.0, 20.0, 30.0]])
    np.testing.assert_allclose(stretched(volumes, 2.0), [[-1.0, 1.0, 9.0], [0.0, 20.0, 40.0]])
    np.testing.assert_allclose(stretched(volumes, [[2.0], [0.5]]), [[-1.0, 1.0, 9.0], [15.0, 20.0, 25.0]])


def test_voxels_of_a_structure_are_those_of_its_labels():
    labels = np.array([[[0, 1], [2, 5]], [[0, 0], [0, 0]], [[1, 1], [2, 2]]])  # three samples; no structure has label 5
    assert structure_voxels(labels, [(1,), (1, 2), (3,)]).tolist() == [[1, 0, 2], [2, 0, 4], [0, 0, 0]]
