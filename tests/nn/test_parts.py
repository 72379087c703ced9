"""Whitening, noise and normalisation against their definitions."""

from __future__ import annotations

import pytest
import torch

from nndiffseg.diffusion.noise.interpolation import interpolate_nodes, node_shape
from nndiffseg.nn.layers import ChannelNorm, ResidualBlock, conv, join_blocks, pointwise, split_blocks, upsample
from nndiffseg.nn.whitening import RunningWhitening


def test_whitening_uses_the_same_statistics_in_training_and_at_test():
    torch.manual_seed(0)
    layer = RunningWhitening(3)
    for _ in range(200):
        layer(3 * torch.randn(4, 3, 6, 6) + 5)
    x = 3 * torch.randn(4, 3, 6, 6) + 5
    layer.eval()
    at_test = layer(x)
    layer.train()
    layer.momentum = 0.0
    layer.updates.fill_(10**9)
    torch.testing.assert_close(layer(x), at_test, rtol=1e-4, atol=1e-4)
    assert at_test.mean().abs() < 0.1 and (at_test.std() - 1).abs() < 0.1


def test_whitening_at_test_ignores_batch_and_image_size():
    layer = RunningWhitening(2).eval()
    layer.mean.copy_(torch.tensor([1.0, -2.0]))
    layer.var.copy_(torch.tensor([4.0, 0.25]))
    x = torch.randn(3, 2, 8, 8)
    torch.testing.assert_close(layer(x)[1:2, :, 2:5, :3], layer(x[1:2, :, 2:5, :3]))


def test_whitening_passes_no_gradient_to_the_scale():
    layer = RunningWhitening(1)
    x = torch.randn(64, 1, 4, 4)
    scale = torch.tensor(2.0, requires_grad=True)
    layer(scale * x).pow(4).mean().backward()
    assert scale.grad is not None and scale.grad.abs() < 1e-3, "else the encoder would grow without bound"


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


def test_noise_of_a_long_scale_is_correlated_over_that_scale_only():
    g = torch.Generator().manual_seed(0)
    x = interpolate_nodes(torch.randn(20000, *node_shape((17,), 4), generator=g), (17,), 4)
    c = (x[:, :1] * x).mean(0)
    assert c[1] > 0.7 and c[4].abs() < 0.05 and c[8].abs() < 0.05


def test_a_window_of_interpolated_noise_equals_the_window_of_the_whole():
    nodes = torch.randn(2, *node_shape((12, 9), 4))
    whole = interpolate_nodes(nodes, (12, 9), 4)
    part = interpolate_nodes(nodes[:, 1:, :], (7, 9), 4, (5, 0))
    torch.testing.assert_close(part, whole[:, 5:12])


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
