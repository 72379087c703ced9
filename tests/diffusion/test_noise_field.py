"""Coherent noise: windows agree, and it is as good as any Gaussian noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from nndiffseg.diffusion.noise.field import NoiseField


@pytest.mark.parametrize("scale", [1, 3, 8])
@pytest.mark.parametrize(("origin", "shape"), [((0, 0, 0), (3, 4, 5)), ((5, 2, 7), (6, 9, 4)), ((1, 3, 2), (1, 1, 1))])
def test_any_window_equals_the_same_window_of_a_larger_draw(scale, origin, shape):
    field = NoiseField(7, "case", 3)
    whole = field.draw(2, 5, (12, 14, 13), scale=scale)
    window = field.draw(2, 5, shape, origin, scale=scale)
    expected = whole[(slice(None), *(slice(o, o + n) for o, n in zip(origin, shape, strict=True)))]
    assert torch.equal(window, expected)


def test_fewer_channels_are_the_first_channels():
    field = NoiseField(0, "case", 0)
    assert torch.equal(field.draw(0, 3, (8, 8)), field.draw(0, 6, (8, 8))[:3])


def test_every_part_of_the_key_matters():
    reference = NoiseField(0, "case", 0).draw(0, 2, (8, 8))
    others = [
        NoiseField(1, "case", 0).draw(0, 2, (8, 8)),
        NoiseField(0, "case_b", 0).draw(0, 2, (8, 8)),
        NoiseField(0, "case", 1).draw(0, 2, (8, 8)),
        NoiseField(0, "case", 0).draw(1, 2, (8, 8)),
        NoiseField(0, "case", 0).draw(0, 2, (8, 8), (0, 1)),
    ]
    assert torch.equal(reference, NoiseField(0, "case", 0).draw(0, 2, (8, 8)))
    assert all(not torch.isclose(reference, other).any() for other in others[:4])
    assert not torch.equal(reference, others[4])


def test_values_do_not_change_between_versions():
    # A published result must stay reproducible: these numbers are part of the contract.
    noise = NoiseField(0, "case", 0).draw(0, 2, (2, 2))
    expected = torch.tensor([0.77839, 0.073624, -1.3357, -1.173077, -1.255308, -1.610518, -0.035791, 1.092243])
    torch.testing.assert_close(noise.ravel(), expected, atol=2e-6, rtol=0)


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """(samples, streams, channels, z, y, x), about a million values."""
    return np.stack(
        [np.stack([NoiseField(11, "brain", n).draw(s, 4, (32, 32, 32)).numpy() for s in range(2)]) for n in range(4)]
    ).astype(np.float64)


def test_values_are_standard_normal(large):
    values = large.ravel()
    n = len(values)
    # Five standard errors of each statistic of n independent standard normals.
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(stats.skew(values)) < 5 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(values)) < 5 * np.sqrt(24 / n)
    assert stats.kstest(values, "norm").pvalue > 1e-4
    assert 4.2 < np.abs(values).max() < 6.7


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(a * b)) * np.sqrt(a.size)  # a standard normal if a and b are independent


@pytest.mark.parametrize("axis", range(6))
def test_neighbours_along_every_axis_are_independent(large, axis):
    """Axes: sample, stream, channel (a Box-Muller pair shares a word), and space."""
    a, b = np.take(large, range(large.shape[axis] - 1), axis), np.take(large, range(1, large.shape[axis]), axis)
    assert abs(_correlation(a, b)) < 5
    assert abs(_correlation((a**2 - 1) / np.sqrt(2), (b**2 - 1) / np.sqrt(2))) < 5


def test_diagonal_neighbours_and_the_plane_average_are_independent(large):
    assert abs(_correlation(large[..., 1:, 1:], large[..., :-1, :-1])) < 5
    rows = large.mean(-1) * np.sqrt(large.shape[-1])  # standard normal if the values of a row are independent
    assert stats.kstest(rows.ravel(), "norm").pvalue > 1e-4


def test_spectrum_is_white(large):
    power = np.abs(np.fft.fftn(large, axes=(-3, -2, -1), norm="ortho")) ** 2
    per_frequency = power.mean((0, 1, 2))  # mean of 32 squared magnitudes with expectation 1
    assert abs(per_frequency.mean() - 1) < 0.01
    assert per_frequency.max() < 3.5


def test_interpolated_noise_has_unit_variance_at_every_cell():
    fields = torch.stack([NoiseField(0, "case", n).draw(0, 4, (9, 9), scale=4) for n in range(2000)])
    variance = fields.var((0, 1))
    assert (variance - 1).abs().max() < 5 * (2 / 8000) ** 0.5


def test_channels_of_interpolated_and_plain_noise_differ():
    field = NoiseField(0, "case", 0)
    plain, smooth = field.draw(0, 2, (16, 16)), field.draw(0, 2, (16, 16), scale=4)
    assert abs(float((plain * smooth).mean())) < 0.25
    roughness = [float(x.diff(dim=-1).square().mean()) for x in (plain, smooth)]
    assert roughness[1] < 0.3 * roughness[0]
