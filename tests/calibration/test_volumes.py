"""The volume scale makes spread and error of volumes agree, and trusts few groups of cases less than many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from nndiffseg.calibration import volumes as volume_scale
from nndiffseg.calibration.shrinkage import STEP
from nndiffseg.calibration.volumes import (
    LARGEST,
    SMALLEST,
    VolumeTable,
    fit_volume_scales,
    ratio_of,
    structure_voxels,
)
from nndiffseg.uncertainty.volumes import stretched


def normal_cases(rng: np.random.Generator, cases: int, sd: float, samples: int = 16, means=(50.0,)) -> list[VolumeTable]:
    """Volumes y ~ N(mean, (mean / 50)^2) of a case, samples ~ N(mean, (sd mean / 50)^2): the right scale is 1 / sd."""
    m = np.array(means)[:, None]
    return [
        VolumeTable(
            str(i), m * (1 + sd / 50 * rng.standard_normal((len(m), samples))), m * (1 + rng.standard_normal((len(m), 1)) / 50)
        )
        for i in range(cases)
    ]


def fit_volume_scale(*arguments) -> float:
    """The single structure's."""
    (scale,) = fit_volume_scales(*arguments)
    return scale


def joined(*structures: list[VolumeTable]) -> list[VolumeTable]:
    """Cases with all of these structures."""
    return [
        VolumeTable(parts[0].case, np.concatenate([p.sampled for p in parts]), np.concatenate([p.true for p in parts]))
        for parts in zip(*structures, strict=True)
    ]


def around(mean: float, sd: float, true: float, case: int) -> VolumeTable:
    """Sixteen samples at the quantiles of a normal distribution."""
    return VolumeTable(str(case), mean + sd * norm.ppf((np.arange(16) + 0.5) / 16)[None], np.array([[true]]))


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
    fitted = fit_volume_scales(normal_cases(rng, 500, 1.6, means=(50.0, 3.0)))
    others = normal_cases(rng, 2000, 1.6, means=(50.0, 3.0))
    assert ratio_of(others, (1.0,)) == pytest.approx(1.6 * np.sqrt(2 / (1 + 1.6**2)), rel=0.05)
    assert ratio_of(others, fitted) == pytest.approx(1.0, abs=0.05)


def test_many_cases_give_every_structure_its_own_scale_whatever_its_size():
    """The small structure varies four times too much, the large one is calibrated."""
    rng = np.random.default_rng(2)
    large, small = normal_cases(rng, 4000, 1.0, means=(500.0,)), normal_cases(rng, 4000, 4.0, means=(5.0,))
    fitted = fit_volume_scales(joined(large, small))
    assert fitted == pytest.approx((fit_volume_scale(large), fit_volume_scale(small)), rel=0.05)
    assert fit_volume_scales(joined(small, large)) == fitted[::-1]


def test_few_cases_keep_the_scales_of_structures_together():
    rng = np.random.default_rng(8)
    wide, right = normal_cases(rng, 200, 2.0), normal_cases(rng, 200, 1.0)
    many = np.log(fit_volume_scales(joined(wide, right)))
    few = [np.log(fit_volume_scales(joined(wide, right)[i : i + 8])) for i in range(0, 200, 8)]
    assert 0.5 < np.mean([b - a for a, b in few]) / (many[1] - many[0]) < 0.9


@pytest.mark.parametrize(("apart", "gain"), [(0.0, (0.8, 1.0)), (0.35, (1.15, 2.0))])
def test_own_scales_win_where_structures_differ_and_lose_little_where_they_do_not(apart, gain, monkeypatch):
    """Root mean square error of log r with eight cases, that of one scale for all / that of own ones."""

    def error() -> float:
        rng, errors = np.random.default_rng(11), []
        for _ in range(60):
            sds = np.exp(apart * rng.choice([-1, 1], 2))
            errors.append(np.log(fit_volume_scales(joined(*[normal_cases(rng, 8, sd) for sd in sds]))) + np.log(sds))
        return float(np.sqrt(np.mean(np.square(errors))))

    own = error()
    monkeypatch.setattr(volume_scale, "STRUCTURE_SD", 1e-9)
    assert gain[0] < error() / own < gain[1]


def test_what_structures_of_a_case_have_in_common_is_no_difference_between_them():
    """One varies twice as much as the other. Where they share each case's error, eight cases are enough to see it."""

    def difference(shared: bool, rng: np.random.Generator) -> float:
        one = normal_cases(rng, 8, 1.0)
        other = one if shared else normal_cases(rng, 8, 1.0)
        wide = [VolumeTable(t.case, stretched(t.sampled, 2.0), t.true) for t in other]
        return float(np.log(np.divide(*fit_volume_scales(joined(one, wide)))))

    rng = np.random.default_rng(9)
    together, independent = ([difference(shared, rng) for _ in range(50)] for shared in (True, False))
    assert np.std(together) < 0.5 * np.std(independent)
    assert 0.6 * np.log(2) < np.mean(together) < np.log(2)


def test_several_annotations_count_as_their_mean_error():
    one = normal_cases(np.random.default_rng(3), 20, 1.5)
    twice = [VolumeTable(t.case, t.sampled, t.true.repeat(2, 1)) for t in one]
    assert fit_volume_scale(twice) == fit_volume_scale(one)


def test_few_cases_are_shrunk_towards_one_and_siblings_more():
    cases = normal_cases(np.random.default_rng(4), 200, 2.0)
    # Eight cases that say the same as two hundred do, alone and as four pairs of siblings.
    alike = [around(10.0, 1.0, 10.6, i) for i in range(8)]
    pairs = {str(i): f"pair {i // 2}" for i in range(8)}
    alone, paired = fit_volume_scale(alike), fit_volume_scale(alike, pairs)
    assert fit_volume_scale(cases) < 0.75
    assert fit_volume_scale(alike[:2]) > fit_volume_scale(alike[:4]) == paired > alone
    assert fit_volume_scale(alike, dict.fromkeys(pairs, "one person")) == 1.0


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
        [VolumeTable(str(i), np.zeros((1, 4)), np.zeros((1, 1))) for i in range(5)],
    ],
    ids=["none", "one case", "one sample", "nothing there"],
)
def test_where_nothing_can_be_fitted_volumes_stay(tables):
    assert fit_volume_scales(tables) == (1.0,)


def test_a_structure_that_a_single_case_has_gets_the_common_scale_and_does_not_change_it():
    cases = normal_cases(np.random.default_rng(6), 50, 2.0)
    rare = [VolumeTable(t.case, (i == 7) * t.sampled, (i == 7) * t.true) for i, t in enumerate(cases)]
    assert fit_volume_scales(joined(cases, rare)) == (fit_volume_scale(cases),) * 2


def test_a_structure_of_few_cases_is_nearer_to_the_common_scale_than_one_of_many():
    rng = np.random.default_rng(10)
    cases, other = normal_cases(rng, 50, 1.0), normal_cases(rng, 50, 3.0)

    def own(number: int) -> float:
        some = [VolumeTable(t.case, (i < number) * t.sampled, (i < number) * t.true) for i, t in enumerate(other)]
        first, second = fit_volume_scales(joined(cases, some))
        return np.log(first / second)

    assert 0 < own(3) < own(10) < own(50)


def test_voxels_of_labels_and_regions_are_counted():
    labels = np.array([[[0, 1, 2], [2, 2, 0]], [[0, 0, 0], [0, 0, 1]]], np.uint8)  # two samples of 2 x 3 voxels
    assert structure_voxels(labels, [(1,), (2,), (1, 2), (7,)]).tolist() == [[1, 1], [3, 0], [4, 1], [0, 0]]


def test_the_prior_keeps_what_cases_do_not_tell(monkeypatch):
    cases = normal_cases(np.random.default_rng(7), 8, 2.0)
    usual = fit_volume_scale(cases)
    monkeypatch.setattr(volume_scale, "PRIOR_SD", 1e-3)
    assert usual < fit_volume_scale(cases) == 1.0
