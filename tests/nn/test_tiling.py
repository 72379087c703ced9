"""Tiles: aligned starts, weights that sum to one, maps blended at their own resolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

from nndiffseg.nn import tiling
from nndiffseg.nn.tiling import Frame, blending_weights, common_multiple, encode_tiled, tile_starts


@pytest.mark.parametrize("step_size", [0.25, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("size", [32, 36, 40, 64, 100, 128])
def test_tiles_cover_the_frame_at_whole_cells(size, step_size):
    starts = tile_starts(size, 32, step_size, 4)
    covered = np.zeros(size, bool)
    for start in starts:
        assert start % 4 == 0
        covered[start : start + 32] = True
    assert covered.all() and starts[0] == 0 and starts[-1] == size - 32
    assert len(starts) == len(compute_steps_for_sliding_window((size,), (32,), step_size)[0])


def test_weights_sum_to_one_and_are_nnunets_gaussian():
    starts = tile_starts(100, 32, 0.5, 4)
    weights, total = blending_weights(100, 32, starts), np.zeros(100)
    for start, w in zip(starts, weights, strict=True):
        total[start : start + 32] += w
    np.testing.assert_allclose(total, 1)
    gaussian = compute_gaussian((33,), sigma_scale=1 / 8, dtype=torch.float64, device=torch.device("cpu")).numpy()
    ours = np.exp(-0.5 * ((np.arange(33) + 0.5 - 16.5) / (33 / 8)) ** 2)
    np.testing.assert_allclose(gaussian, ours, atol=2e-4)


def test_frame_does_not_depend_on_the_tiles_and_centres_the_image():
    frame = Frame.around((10, 30, 50), (16, 16, 16), (2, 4, 4))
    assert frame.padded == (16, 32, 52) and frame.lower == (3, 1, 1)
    padded = frame.pad(torch.ones(1, 1, 10, 30, 50))
    assert padded.shape[2:] == (16, 32, 52) and padded.sum() == 10 * 30 * 50 and padded[0, 0, 3, 1, 1] == 1


class Identity:
    """Maps that are the image's own block means: blending must give back the block means of the whole image."""

    stride, halo = (2, 4, 4), 0
    map_strides = ((1, 1, 1), (2, 4, 4), (1, 2, 2), (4, 8, 8))

    def encode(self, image):
        return [torch.nn.functional.avg_pool3d(image, s, s) for s in self.map_strides]


@pytest.mark.parametrize("step_size", [0.4, 0.5, 1.0])
def test_every_map_is_blended_at_its_own_resolution(step_size):
    network = Identity()
    assert common_multiple(network) == (4, 8, 8)
    image = torch.randn(2, 3, 24, 48, 40)
    maps = encode_tiled(network, image, (8, 16, 16), step_size, torch.device("cpu"), precision="float32")
    for m, expected in zip(maps, network.encode(image), strict=True):
        torch.testing.assert_close(m, expected, atol=1e-5, rtol=0)


def test_large_guides_are_summed_in_half_precision_and_nothing_else(monkeypatch):
    monkeypatch.setattr(tiling, "HALF_PRECISION_ABOVE_BYTES", 1)
    network, image = Identity(), torch.randn(1, 1, 16, 32, 32)
    maps = encode_tiled(network, image, (8, 16, 16), 0.5, torch.device("cpu"), precision="float32")
    assert [m.dtype for m in maps] == [torch.float32, torch.float32, torch.float16, torch.float32]
    torch.testing.assert_close(maps[2].float(), network.encode(image)[2], atol=5e-3, rtol=0)
