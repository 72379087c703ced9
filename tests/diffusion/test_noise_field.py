"""Coherent noise: windows agree, and it is as good as any Gaussian noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from nndiffseg.diffusion.noise import field as field_module
from nndiffseg.diffusion.noise.field import NoiseField, draw_samples


@pytest.mark.parametrize("scale", [1, 2, 3, 8])
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
    smooth = NoiseField(0, "case", 0).draw(0, 2, (2, 2), (3, 3), scale=4)
    expected = torch.tensor([-1.835727, -1.456349, -2.092653, -1.838643, 0.808723, 0.426851, 0.814854, 0.39636])
    torch.testing.assert_close(smooth.ravel(), expected, atol=2e-6, rtol=0)
    vector = NoiseField(0, "case", 0).vector(0, 5)
    torch.testing.assert_close(vector, torch.tensor([0.500931, -0.402371, -0.18713, -1.209758, 0.676983]), atol=2e-6, rtol=0)


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


@pytest.mark.parametrize("scale", [2, 4])
def test_interpolated_noise_of_every_stream_and_scale_is_its_own(scale):
    field = NoiseField(0, "case", 0)
    drawn = [field.draw(stream, 1, (64, 64), scale=scale) for stream in (0, 1)]
    drawn.append(field.draw(0, 1, (64, 64), (scale, scale), scale=2 * scale))
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert abs(float((a * b).mean())) < 0.35  # 5 standard errors with a node every 4 cells


def test_several_samples_are_drawn_as_each_alone():
    fields = [NoiseField(0, "case", i) for i in range(3)]
    for scale in (1, 4):
        together = draw_samples(fields, 2, 3, (4, 5), (1, 2), scale)
        assert torch.equal(together, torch.stack([f.draw(2, 3, (4, 5), (1, 2), scale) for f in fields]))
    assert torch.equal(draw_samples(fields, 2, 3, (4, 5)), draw_samples(fields, 2, 3, (4, 5), (0, 0), 1))


def test_a_vector_is_standard_normal_and_independent_of_every_draw():
    fields = [NoiseField(5, "case", i) for i in range(2000)]
    vectors = torch.stack([f.vector(0, 3) for f in fields]).double()
    assert stats.kstest(vectors.flatten().numpy(), "norm").pvalue > 1e-3
    torch.testing.assert_close(torch.cov(vectors.T), torch.eye(3).double(), atol=0.15, rtol=0)
    cells = torch.stack([f.draw(0, 3, (3,)) for f in fields[:500]]).double().flatten(1)
    for row in cells.T:
        assert abs(_correlation(vectors[:500, 0].numpy(), row.numpy())) < 5


def test_vectors_depend_on_their_stream_and_begin_alike_whatever_their_length():
    field = NoiseField(0, "case", 0)
    long = field.vector(1, 7)
    assert long.shape == (7,) and len(long.unique()) == 7
    for n in range(1, 7):
        assert torch.equal(field.vector(1, n), long[:n])
    assert not torch.isclose(field.vector(2, 7), long).any()


def test_noise_is_drawn_on_the_asked_device():
    field = NoiseField(0, "case", 0)
    for noise in (field.draw(0, 2, (3, 3), device="meta"), field.draw(0, 2, (3, 3), scale=2, device="meta")):
        assert noise.device.type == "meta" and noise.shape == (2, 3, 3)
    assert field.vector(0, 3, "meta").device.type == "meta"


@pytest.mark.parametrize("scale", [1, 2])
def test_shape_and_origin_have_the_same_axes(scale):
    with pytest.raises(ValueError):
        NoiseField(0, "case", 0).draw(0, 1, (3, 3), (0,), scale)


def test_an_odd_number_of_channels_hashes_no_channel_in_vain(monkeypatch):
    """Two channels share a word, so three need two of them."""
    drawn = []
    hashed = field_module._hash_grid
    monkeypatch.setattr(field_module, "_hash_grid", lambda keys, *rest: drawn.append(len(keys)) or hashed(keys, *rest))
    for channels in (1, 2, 3, 4):
        NoiseField(0, "case", 0).draw(0, channels, (2,))
    assert drawn == [1, 1, 2, 2]


def test_the_smallest_scale_interpolates_as_well():
    x = NoiseField(0, "case", 0).draw(0, 1, (9,), scale=2)[0]
    torch.testing.assert_close(x[1::2], (x[:-1:2] + x[2::2]) / 2**0.5)
