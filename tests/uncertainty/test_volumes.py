from __future__ import annotations

import json

import numpy as np
import pytest

from nndiffseg.uncertainty import volume_statistics


def test_a_hand_worked_case():
    # 100, 200, 300 voxels of 0.5 x 1 x 2 = 1 mm^3: 0.1, 0.2, 0.3 ml; the percentiles lie a tenth of a gap from the ends
    statistics = volume_statistics({"anterior": [100, 200, 300]}, voxel_volume=0.5 * 1 * 2)
    assert set(statistics) == {"anterior"}
    result = statistics["anterior"]
    assert result["mean_ml"] == pytest.approx(0.2)
    assert result["sd_ml"] == pytest.approx(0.1)  # divisor N - 1
    assert result["interval_90_ml"] == pytest.approx([0.11, 0.29])
    assert result["samples"] == 3


def test_a_gaussian_spread_is_recovered():
    counts = np.random.default_rng(0).normal(5000, 200, size=20_000)
    result = volume_statistics({"lesion": counts}, voxel_volume=2.0)["lesion"]
    assert result["mean_ml"] == pytest.approx(10, rel=0.005)
    assert result["sd_ml"] == pytest.approx(0.4, rel=0.03)
    assert result["interval_90_ml"] == pytest.approx([10 - 1.645 * 0.4, 10 + 1.645 * 0.4], abs=0.02)


def test_one_sample_has_a_volume_but_no_spread():
    result = volume_statistics({"tumour": [40]}, voxel_volume=1000.0)["tumour"]
    assert result == {"mean_ml": 40.0, "sd_ml": None, "interval_90_ml": None, "samples": 1}


def test_absent_structures_have_volume_zero_and_everything_is_json():
    statistics = volume_statistics({"a": np.zeros(4, dtype=np.int64), "b": np.arange(4)}, voxel_volume=1.5)
    assert json.loads(json.dumps(statistics, allow_nan=False)) == statistics
    assert statistics["a"]["mean_ml"] == 0 and statistics["a"]["sd_ml"] == 0


@pytest.mark.parametrize(("counts", "volume"), [([], 1.0), ([1, 2], 0.0), ([[1, 2]], 1.0)])
def test_nonsense_is_refused(counts, volume):
    with pytest.raises(ValueError):
        volume_statistics({"a": counts}, voxel_volume=volume)
