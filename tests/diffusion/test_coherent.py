"""The coherent sampler: exact marginals whatever the coherence, and its two limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from nndiffseg.diffusion.coherent import LENGTHS, components, lengths_in_words, mixed, node_distances, perturbation
from nndiffseg.diffusion.noise.field import NoiseField

SHAPE, SPACING = (3, 6, 7), (2.0, 1.0, 1.0)


def fields(number: int, seed: int = 0) -> list[NoiseField]:
    return [NoiseField(seed, "case", n) for n in range(number)]


def normals(number: int, weights: list[float], heads: int = 3, **options) -> torch.Tensor:
    which = [i for i, w in enumerate(weights) if w > 0]
    parts = components(fields(number), heads, SHAPE, SPACING, 1.0, which=which, **options)
    return mixed(parts, [weights[i] for i in which])


@pytest.mark.parametrize("weights", [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0.25, 0.25, 0.25, 0.25]])
def test_every_voxels_marginal_is_its_probability(weights):
    """4000 samples: five standard errors at each of 126 voxels, for labels and for regions."""
    number, g = 4000, torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, *SHAPE, generator=g)
    noise = normals(number, weights)
    drawn = torch.nn.functional.one_hot((logits + perturbation(noise, False)).argmax(1), 3).float().mean(0)  # (*SHAPE, 3)
    p = logits.softmax(0).movedim(0, -1)
    assert ((drawn - p).abs() < 5 * (p * (1 - p) / number).sqrt() + 1e-3).all()
    drawn, p = ((logits + perturbation(noise, True)) > 0).float().mean(0), logits.sigmoid()
    assert ((drawn - p).abs() < 5 * (p * (1 - p) / number).sqrt() + 1e-3).all()


def test_a_perturbation_is_a_standard_gumbel_or_logistic_variable():
    normal = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    assert stats.kstest(perturbation(normal, False).numpy(), "gumbel_r").pvalue > 1e-3
    assert stats.kstest(perturbation(normal, True).numpy(), "logistic").pvalue > 1e-3
    extreme = torch.tensor([-6.6, 6.6])
    assert perturbation(extreme, False).isfinite().all() and perturbation(extreme, True).isfinite().all()


def test_one_infinite_length_gives_level_sets_of_the_map():
    """Two labels: each sample is {p > u} for one u, so of two samples one contains the other."""
    logits = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    masks = (logits + perturbation(normals(40, [0, 0, 0, 1], heads=2), False)).argmax(1).bool()
    p = logits.softmax(0)[1]
    for mask in masks:
        if 0 < mask.sum() < mask.numel():
            assert p[mask].min() > p[~mask].max()
    assert len({int(m.sum()) for m in masks}) > 10


def test_length_zero_draws_voxels_independently():
    noise = normals(4000, [1, 0, 0, 0], heads=1)[:, 0]
    along = [(noise.narrow(a, 0, noise.shape[a] - 1) * noise.narrow(a, 1, noise.shape[a] - 1)).mean().item() for a in (1, 2, 3)]
    assert np.abs(along).max() < 0.02


def test_longer_lengths_are_coherent_further():
    def at_distance(index: int, steps: int) -> float:
        weights = [0.0] * len(LENGTHS)
        weights[index] = 1.0
        noise = normals(2000, weights, heads=1)[:, 0].expand(-1, *SHAPE)
        return float((noise[:, :, :, 0] * noise[:, :, :, steps]).mean())

    found = [at_distance(i, 3) for i in range(len(LENGTHS))]
    assert abs(found[0]) < 0.1 and found[0] < found[1] < found[2] < found[3] == pytest.approx(1, abs=0.1)


def test_mixtures_keep_unit_variance():
    noise = normals(4000, [0.25, 0, 0.25, 0.5], heads=1)
    assert noise.var(0).sub(1).abs().max() < 0.15 and noise.mean(0).abs().max() < 0.1


def test_any_window_equals_the_same_window_of_the_whole():
    parts = components(fields(2), 3, SHAPE, SPACING, 1.0)
    window = components(fields(2), 3, (2, 3, 4), SPACING, 1.0, origin=(1, 2, 3))
    for whole, part in zip(parts, window, strict=True):
        expected = whole if whole.shape[2:] == (1, 1, 1) else whole[:, :, 1:3, 2:5, 3:7]
        assert torch.equal(part, expected)


def test_lengths_are_measured_in_mm_so_thick_slices_are_less_alike():
    assert node_distances(16, (4.0, 1.0, 0.5), 0.5) == (2, 8, 16)
    assert node_distances(4, (999.0, 1.0, 1.0), 1.0) == (1, 4, 4) and node_distances(0, (1, 1), 1.0) == (1, 1)
    noise = components(fields(3000), 1, (4, 8), (8.0, 1.0), 1.0, which=[1])[0][:, 0]
    across, along = (noise[:, 0] * noise[:, 1]).mean(), (noise[:, :, 0] * noise[:, :, 1]).mean()
    assert abs(float(across)) < 0.05 and float(along) > 0.5


def test_the_volume_wide_numbers_of_a_case_are_spread_evenly_and_each_is_standard_normal():
    """Of sixteen samples each sixteenth of the distribution holds about one; over cases each sample is standard normal."""
    one = torch.stack([f.spread_vector(7, 1) for f in fields(16)])[:, 0]
    counts = np.histogram(torch.special.ndtr(one).numpy(), bins=8, range=(0, 1))[0]
    assert counts.min() >= 1 and counts.max() <= 3
    over_cases = np.stack([NoiseField(3, f"c{i}", 5).spread_vector(7, 2).numpy() for i in range(3000)])
    assert all(stats.kstest(column, "norm").pvalue > 1e-3 for column in over_cases.T)
    assert abs(np.corrcoef(over_cases.T)[0, 1]) < 0.08
    first = NoiseField(3, "c", 0)
    assert torch.equal(first.spread_vector(7, 3), NoiseField(3, "c", 0).spread_vector(7, 3))
    others = [NoiseField(4, "c", 0), NoiseField(3, "d", 0), NoiseField(3, "c", 1)]
    assert all(not torch.isclose(first.spread_vector(7, 3), o.spread_vector(7, 3)).any() for o in others)
    assert not torch.isclose(first.spread_vector(7, 3), first.spread_vector(8, 3)).any()


def test_weights_are_told_in_words():
    assert lengths_in_words([0.25, 0, 0, 0.75]) == "0: 0.25, inf: 0.75" and math.isinf(LENGTHS[-1])
