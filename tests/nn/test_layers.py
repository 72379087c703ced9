"""Normalisation, up-sampling and blocks of voxels against their definitions."""

from __future__ import annotations

import pytest
import torch

from nndiffseg.nn.layers import ChannelNorm, ResidualBlock, conv, join_blocks, pointwise, split_blocks, upsample


def test_channel_norm_acts_on_each_voxel_alone():
    norm = ChannelNorm(4)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(norm(x)[..., 2:3, 2:3], norm(x[..., 2:3, 2:3]))
    torch.testing.assert_close(norm(x).square().mean(1), torch.ones(1, 5, 5), rtol=1e-3, atol=1e-3)


def test_residual_block_starts_as_the_identity():
    x, e = torch.randn(2, 6, 4, 4, 4), torch.randn(2, 10)
    assert torch.equal(ResidualBlock(3, 6, 10)(x, e), x)


def test_upsampling_repeats_cells_by_whole_factors():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    expected = x.repeat_interleave(2, 2).repeat_interleave(3, 3)
    assert torch.equal(upsample(x, (2, 3)), expected)
    with torch.no_grad():  # another path on the CPU
        assert torch.equal(upsample(x, (2, 3)), expected)
        assert upsample(x, (1, 1)) is x


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 3)])
def test_blocks_hold_the_voxels_of_their_cell(stride):
    grid = (2, 3, 4)[: len(stride)]
    x = torch.arange(float(torch.tensor([n * s for n, s in zip(grid, stride, strict=True)]).prod()) * 2)
    x = x.view(1, 2, *(n * s for n, s in zip(grid, stride, strict=True)))
    blocks = split_blocks(x, stride)
    assert blocks.shape == (1, int(torch.tensor(stride).prod()), 2, *grid)
    cell = [1] * len(stride)  # voxels of this cell, in the order of the axes
    window = tuple(slice(c * s, (c + 1) * s) for c, s in zip(cell, stride, strict=True))
    torch.testing.assert_close(blocks[(0, slice(None), 1, *cell)], x[(0, 1, *window)].flatten())
    torch.testing.assert_close(join_blocks(blocks, stride), x)


@pytest.mark.parametrize("dim", [2, 3])
def test_a_pointwise_convolution_is_one_product(dim):
    torch.manual_seed(0)
    module, x = conv(dim, 5, 3, 1), torch.randn(2, 5, *(4, 3, 6)[:dim])
    torch.testing.assert_close(pointwise(module, x), module(x))
