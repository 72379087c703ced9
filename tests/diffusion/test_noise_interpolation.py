"""Interpolated noise: unit variance everywhere, the asked correlation length, windows agree."""

from __future__ import annotations

import torch

from nndiffseg.diffusion.noise.interpolation import interpolate_nodes, node_shape


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
