"""Temperatures: the probabilities of scaled logits, and the temperature of over-confident ones is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from nndiffseg.calibration import temperature as module
from nndiffseg.calibration.fusion import WEIGHTS
from nndiffseg.calibration.temperature import LOG_TEMPERATURES, fit_temperature, fused_curves, likelihood_curves, tempered
from nndiffseg.nn.heads import Heads


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_probabilities_are_those_of_the_scaled_logits(temperature, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 28)  # several parts
    z = np.random.default_rng(1).normal(0, 2, (4, 5, 10))
    found = tempered(torch.from_numpy(softmax(z, 0)), [temperature], Heads(4))
    np.testing.assert_allclose(found, softmax(z / temperature, 0), atol=1e-5)
    each = np.array([temperature, 1.0, 2.0, 0.7])
    found = tempered(torch.from_numpy(expit(z)), each.tolist(), Heads(4, True))
    np.testing.assert_allclose(found, expit(z / each[:, None, None]), atol=1e-5)


def test_the_temperature_1_changes_no_bit():
    p = torch.rand(3, 7)
    assert torch.equal(tempered(p.clone(), [1.0], Heads(3)), p)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_the_temperature_of_overconfident_labels_is_found(temperature):
    rng = np.random.default_rng(2)
    z = rng.normal(0, 2, (3, 40000))
    drawn = (rng.random(z.shape[1]) > softmax(z, 0).cumsum(0)[:-1]).sum(0)
    y, p = torch.from_numpy(np.eye(3)[drawn].T), torch.from_numpy(softmax(temperature * z, 0))
    halves = [likelihood_curves(p[:, part], y[:, part], Heads(3)) for part in (slice(0, 20000), slice(20000, None))]
    assert fit_temperature(halves) == (pytest.approx(temperature, rel=0.03),)


def test_every_region_gets_the_temperature_that_it_needs():
    rng, needed = np.random.default_rng(3), np.array([0.7, 2.0])
    z = rng.normal(0, 2, (2, 40000))
    y, p = torch.from_numpy((rng.random(z.shape) < expit(z)).astype(float)), torch.from_numpy(expit(needed[:, None] * z))
    assert fit_temperature([likelihood_curves(p, y, Heads(2, True))]) == pytest.approx(tuple(needed), rel=0.04)


def test_a_likelihood_is_that_of_the_tempered_probabilities():
    p, y = softmax(np.random.default_rng(3).normal(size=(3, 9)), 0), np.eye(3)[[0, 1, 2] * 3].T
    i = len(LOG_TEMPERATURES) // 3
    scaled = tempered(torch.from_numpy(p.copy()), [float(np.exp(LOG_TEMPERATURES[i]))], Heads(3)).numpy()
    curves = likelihood_curves(torch.from_numpy(p), torch.from_numpy(y), Heads(3))
    assert curves[0, i] == pytest.approx(-(y * np.log(scaled)).sum() / 9)


def test_every_fusion_weight_has_the_curve_of_its_mixture():
    d, s = (torch.rand(3, 50).softmax(0) for _ in range(2))
    y = torch.eye(3)[torch.randint(0, 3, (50,))].T
    curves = fused_curves(d, s, y, Heads(3))
    assert curves.shape == (len(WEIGHTS), 1, len(LOG_TEMPERATURES))
    np.testing.assert_allclose(curves[3], likelihood_curves(0.3 * d + 0.7 * s, y, Heads(3)), atol=1e-6)


def test_many_voxels_are_thinned_out_evenly(monkeypatch):
    p, y = torch.rand(2, 1000).softmax(0), torch.eye(2)[torch.randint(0, 2, (1000,))].T
    monkeypatch.setattr(module, "VOXELS", 250)
    np.testing.assert_allclose(likelihood_curves(p, y, Heads(2)), likelihood_curves(p[:, ::4], y[:, ::4], Heads(2)))


def test_without_any_case_or_voxel_the_temperature_is_1():
    assert fit_temperature([]) == (1.0,)
    empty = likelihood_curves(torch.zeros(2, 0), torch.zeros(2, 0), Heads(2, True))
    assert fit_temperature([empty]) == (1.0, 1.0)
