"""Isotonic regression: over-confidence is repaired, channels keep their meaning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from nndiffseg.calibration.isotonic import fit_isotonic, probability_histogram


def over_confident(n: int = 20_000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of one channel, and draws whose log-odds are half as large ``(1, n)``."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 3, n)
    y = rng.random(n) < 1 / (1 + np.exp(-z / 2))
    return torch.from_numpy(1 / (1 + np.exp(-z)))[None].float(), torch.from_numpy(y)[None].float()


def test_the_map_is_that_of_the_voxels_themselves():
    p, y = over_confident()
    found = fit_isotonic([probability_histogram(p, y)], regions=True)(p)
    direct = IsotonicRegression(y_min=0, y_max=1).fit(p[0].numpy(), y[0].numpy()).predict(p[0].numpy())
    assert np.abs(found[0].numpy() - direct).mean() < 0.005
    fresh, truth = over_confident(seed=1)
    mapped = fit_isotonic([probability_histogram(p, y)], regions=True)(fresh)
    assert ((mapped - truth) ** 2).mean() < ((fresh - truth) ** 2).mean() - 0.005


def test_cases_count_by_their_voxels():
    p, y = over_confident()
    halves = [probability_histogram(p[:, :5000], y[:, :5000]), probability_histogram(p[:, 5000:], y[:, 5000:])]
    one = fit_isotonic([probability_histogram(p, y)], regions=True)(p)
    torch.testing.assert_close(fit_isotonic(halves, regions=True)(p), one)


@pytest.mark.parametrize("regions", [False, True])
def test_labels_sum_to_one_and_regions_need_not(regions):
    p, y = over_confident()
    both, truth = torch.cat([p, 1 - p]), torch.cat([y, y])  # the second channel is true as often as the first
    total = fit_isotonic([probability_histogram(both, truth)], regions)(both).sum(0)
    assert bool(((total - 1).abs() < 1e-5).all()) is not regions


def test_without_cases_probabilities_stay():
    p, _ = over_confident(10)
    assert fit_isotonic([], regions=False)(p) is p
