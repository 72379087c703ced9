from __future__ import annotations

import json

import numpy as np
import pytest

from nndiffseg.uncertainty.volumes import crps, error_bars, volume_statistics


def test_a_hand_worked_case():
    # 100, 200, 300 voxels of 0.5 x 1 x 2 = 1 mm^3: 0.1, 0.2, 0.3 ml; the percentiles lie a tenth of a gap from the ends
    statistics = volume_statistics({"anterior": [100, 200, 300]}, voxel_volume=0.5 * 1 * 2)
    assert set(statistics) == {"anterior"}
    result = statistics["anterior"]
    assert result["mean_ml"] == pytest.approx(0.2)
    assert result["sd_ml"] == pytest.approx(0.1)  # divisor N - 1
    assert result["interval_90_ml"] == pytest.approx([0.11, 0.29])
    assert result["calibrated_sd_ml"] == pytest.approx(0.1)  # without a scale
    assert result["calibrated_interval_90_ml"] == pytest.approx([0.1, 0.3])
    assert result["samples"] == 3


def test_a_gaussian_spread_is_recovered():
    counts = np.random.default_rng(0).normal(5000, 200, size=20_000)
    result = volume_statistics({"lesion": counts}, voxel_volume=2.0)["lesion"]
    assert result["mean_ml"] == pytest.approx(10, rel=0.005)
    assert result["sd_ml"] == pytest.approx(0.4, rel=0.03)
    assert result["interval_90_ml"] == pytest.approx([10 - 1.645 * 0.4, 10 + 1.645 * 0.4], abs=0.02)


@pytest.mark.parametrize("samples", [2, 16, 19, 24])
def test_the_calibrated_interval_holds_a_further_draw_as_often_as_so_many_samples_can(samples):
    draws = np.random.default_rng(1).lognormal(size=(20_000, samples + 1))
    low, high = np.quantile(draws[:, :-1], [0.05, 0.95], axis=1, method="weibull")
    covered = ((low <= draws[:, -1]) & (draws[:, -1] <= high)).mean()
    assert covered == pytest.approx(min(0.9, (samples - 1) / (samples + 1)), abs=0.01)
    interval = volume_statistics({"a": draws[0, :-1]}, 1000.0)["a"]["calibrated_interval_90_ml"]
    assert interval == pytest.approx([low[0], high[0]])


def test_volumes_are_stretched_around_the_mean_of_each_fold():
    counts = [8.0, 100.0, 12.0, 140.0]  # the first fold drew 8 and 12, the second one 100 and 140
    found = volume_statistics({"a": counts}, 1000.0, scales=((2.0,), (0.5,)))["a"]
    stretched = np.array([6.0, 110.0, 14.0, 130.0])
    assert found["mean_ml"] == pytest.approx(65.0) and found["sd_ml"] == pytest.approx(np.std(counts, ddof=1))
    assert found["calibrated_sd_ml"] == pytest.approx(stretched.std(ddof=1))
    assert found["calibrated_interval_90_ml"] == pytest.approx([6.0, 130.0])


def test_no_interval_reaches_below_zero():
    found = volume_statistics({"a": [0, 0, 0, 4]}, 1000.0, scales=(3.0,))["a"]
    assert found["mean_ml"] == 1.0 and found["calibrated_interval_90_ml"][0] == 0.0


def test_one_sample_has_a_volume_but_no_spread():
    result = volume_statistics({"tumour": [40]}, voxel_volume=1000.0)["tumour"]
    assert result == {
        "mean_ml": 40.0,
        "sd_ml": None,
        "interval_90_ml": None,
        "calibrated_sd_ml": None,
        "calibrated_interval_90_ml": None,
        "interval_promised": False,
        "samples": 1,
    }


def test_a_conformal_interval_is_mean_plus_minus_q_sd_never_below_0_and_promised():
    drawn = [100, 200, 300]  # 0.2 +- 0.1 ml
    found = volume_statistics(
        {"a": drawn, "b": drawn, "c": drawn, "d": [200] * 3}, 1.0, quantiles={"a": 0.5, "b": 3.0, "d": 2.0}
    )
    assert found["a"]["calibrated_interval_90_ml"] == pytest.approx([0.15, 0.25]) and found["a"]["interval_promised"]
    assert found["b"]["calibrated_interval_90_ml"] == pytest.approx([0, 0.5])
    assert found["c"]["calibrated_interval_90_ml"] == pytest.approx([0.1, 0.3]) and not found["c"]["interval_promised"]
    assert found["d"]["calibrated_interval_90_ml"] == pytest.approx([0.12, 0.28])  # equal samples: 20 % of the mean


def test_absent_structures_have_volume_zero_and_everything_is_json():
    statistics = volume_statistics({"a": np.zeros(4, dtype=np.int64), "b": np.arange(4)}, voxel_volume=1.5)
    assert json.loads(json.dumps(statistics, allow_nan=False)) == statistics
    assert statistics["a"]["mean_ml"] == 0 and statistics["a"]["sd_ml"] == 0


@pytest.mark.parametrize(("counts", "volume"), [([], 1.0), ([1, 2], 0.0), ([[1, 2]], 1.0)])
def test_nonsense_is_refused(counts, volume):
    with pytest.raises(ValueError):
        volume_statistics({"a": counts}, voxel_volume=volume)


def test_error_bars_are_the_calibrated_ones_where_there_are_some():
    assert error_bars({"sd_ml": 1.0, "interval_90_ml": [2.0, 3.0]}) == (None, None)
    assert error_bars({"sd_ml": 1.0, "calibrated_sd_ml": 4.0, "calibrated_interval_90_ml": [0.0, 9.0]}) == (4.0, [0.0, 9.0])


def test_crps_of_hand_worked_cases():
    assert crps([1, 3], [2]) == pytest.approx(1 - 2 / 2)
    assert crps([5, 5, 5], [2]) == 3  # the absolute error of a certain answer
    assert crps([1, 3], [2, 6]) == pytest.approx((crps([1, 3], [2]) + crps([1, 3], [6])) / 2)
    assert crps([1.0], [1.0]) is None


def test_crps_does_not_depend_on_the_number_of_samples():
    rng = np.random.default_rng(0)
    few = np.mean([crps(rng.normal(0, 1, 2), [0.5]) for _ in range(20000)])
    assert few == pytest.approx(crps(rng.normal(0, 1, 2000), [0.5]), abs=0.02)


@pytest.mark.seconds
def test_crps_follows_from_that_of_torchmetrics_which_counts_self_pairs():
    regression = pytest.importorskip("torchmetrics.regression", reason="needs torchmetrics, of the extra oracle")
    import torch

    x = np.random.default_rng(1).gamma(3, 2, 9)

    def theirs(y: float) -> float:
        metric = regression.ContinuousRankedProbabilityScore()
        return float(metric(torch.from_numpy(x)[None], torch.tensor([y], dtype=torch.float64)))

    # Against a draw of their own the samples score half of their mean distance, self-pairs included.
    half_spread = np.mean([theirs(y) for y in x])
    for y in (0.5, 6.0, 40.0):
        assert crps(x, [y]) == pytest.approx(theirs(y) - half_spread / 8, rel=1e-5)


@pytest.mark.seconds
def test_crps_follows_from_that_of_crepes_for_the_empirical_distribution():
    base = pytest.importorskip("crepes.base", reason="needs crepes, of the extra oracle")
    x = np.sort(np.random.default_rng(2).gamma(3, 2, 9))

    def theirs(y: float) -> float:
        return float(base.calculate_crps(x[None], x, np.ones(1), np.array([y])))

    half_spread = np.mean([theirs(y) for y in x])
    for y in (0.5, 6.0, 40.0):
        assert crps(x, [y]) == pytest.approx(theirs(y) - half_spread / 8, rel=1e-6)
