"""Cross-fits and temperatures: every number comes from the cases of other groups, and from nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax

from benchmarks.compare.fits import (
    LOG_TEMPERATURES,
    case_table,
    fit_temperature,
    likelihoods,
    tempered,
)
from benchmarks.compare.library import CasePrediction


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_probabilities_are_those_of_the_scaled_logits(temperature):
    z = np.random.default_rng(1).normal(0, 2, (4, 50))
    np.testing.assert_allclose(tempered(softmax(z, 0), temperature, False), softmax(z / temperature, 0), atol=1e-5)
    np.testing.assert_allclose(tempered(expit(z), temperature, True), expit(z / temperature), atol=1e-5)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_the_temperature_of_overconfident_probabilities_is_found(regions, temperature):
    rng = np.random.default_rng(2)
    z = rng.normal(0, 2, (3, 40000))
    if regions:
        y, p = (rng.random(z.shape) < expit(z)).astype(float), expit(temperature * z)
    else:
        drawn = (rng.random(z.shape[1]) > softmax(z, 0).cumsum(0)[:-1]).sum(0)
        y, p = np.eye(3)[drawn].T, softmax(temperature * z, 0)
    halves = [likelihoods(p[:, part], y[:, part], regions) for part in (slice(0, 20000), slice(20000, None))]
    assert fit_temperature(halves) == pytest.approx(temperature, rel=0.03)


def test_a_likelihood_is_that_of_the_tempered_probabilities():
    p, y = softmax(np.random.default_rng(3).normal(size=(3, 9)), 0), np.eye(3)[[0, 1, 2] * 3].T
    i = len(LOG_TEMPERATURES) // 3
    expected = -(y * np.log(tempered(p, float(np.exp(LOG_TEMPERATURES[i])), False))).sum()
    assert likelihoods(p, y, False)[i] == pytest.approx(expected)


def test_without_any_case_the_temperature_is_1():
    assert fit_temperature([]) == 1.0


def test_a_table_holds_volumes_in_ml_and_means_over_annotations(tiny_data):
    labels = np.zeros((2, 1, 10, 10), np.uint8)
    labels[0, 0, :5], labels[1, 0, :4] = 1, 1
    p = np.stack([labels[0] == k for k in range(3)]).astype(np.float32)
    table = case_table(tiny_data, "x", CasePrediction(p, p, labels, 0.0), labels[:1], (4.0, 2.0, 2.5))
    np.testing.assert_allclose(table.sampled_ml, [[1.0, 0.8], [0, 0]])  # 20 mm^3 a voxel
    np.testing.assert_allclose(table.true_ml, [[1.0], [0]])
    flat = case_table(tiny_data, "x", CasePrediction(p, p, labels, 0.0), labels[:1], (999.0, 1.0, 0.5))
    np.testing.assert_allclose(flat.true_ml, [[0.025], [0]])  # 1 mm thick
    np.testing.assert_allclose(table.dice[:, 0], 1)
    both = case_table(tiny_data, "x", CasePrediction(p, p, labels, 0.0), labels, (4.0, 2.0, 2.5))
    np.testing.assert_allclose(both.dice[:, 0], (1 + 2 * 40 / 90) / 2)
