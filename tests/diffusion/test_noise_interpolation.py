"""Interpolated noise: unit variance everywhere, the asked correlation length, windows agree."""

from __future__ import annotations

import pytest
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


def test_a_cell_is_the_normalised_mean_of_the_nodes_around_it():
    """Nodes lie at cells 0, 4, 8, ...; weights (1 - f, f) over their Euclidean norm."""
    a, b, c = 3.0, -1.0, 2.0
    cells = interpolate_nodes(torch.tensor([a, b, c]), (6,), 4, (2,))
    expected = [
        (a / 2 + b / 2) / 0.5**0.5,
        (a / 4 + 3 * b / 4) / (10 / 16) ** 0.5,
        b,
        (3 * b / 4 + c / 4) / (10 / 16) ** 0.5,
        (b / 2 + c / 2) / 0.5**0.5,
        (b / 4 + 3 * c / 4) / (10 / 16) ** 0.5,
    ]
    torch.testing.assert_close(cells, torch.tensor(expected))


def test_axes_are_interpolated_one_after_the_other():
    nodes = torch.randn(3, *node_shape((7, 10), 4, (5, 1)))
    rows = torch.stack([interpolate_nodes(n, (7,), 4, (5,)) for n in nodes.transpose(1, 2).flatten(0, 1)])
    rows = rows.unflatten(0, (3, -1)).transpose(1, 2)
    expected = torch.stack([interpolate_nodes(r, (10,), 4, (1,)) for r in rows.flatten(0, 1)]).unflatten(0, (3, -1))
    torch.testing.assert_close(interpolate_nodes(nodes, (7, 10), 4, (5, 1)), expected)


@pytest.mark.parametrize(("cells", "origin", "nodes"), [(8, 0, 3), (9, 0, 4), (1, 0, 2), (8, 3, 4), (8, 4, 3), (2, 7, 3)])
def test_there_are_as_many_nodes_as_the_cells_need(cells, origin, nodes):
    """The node at or before the first cell, and the one after the last."""
    assert node_shape((cells, 1), 4, (origin, 0)) == (nodes, 2)
    if origin == 0:
        assert node_shape((cells,), 4) == (nodes,)


def test_precision_and_device_of_the_nodes_are_kept():
    nodes = torch.zeros(2, 4, 4, dtype=torch.float64)
    assert interpolate_nodes(nodes, (5, 5), 4).dtype == torch.float64
    assert interpolate_nodes(nodes.half(), (5, 5), 4).dtype == torch.float16
    assert interpolate_nodes(nodes.to("meta"), (5, 5), 4).device.type == "meta"


@pytest.mark.parametrize("call", [node_shape, lambda *a: interpolate_nodes(torch.zeros(4, 4), *a)])
def test_shape_and_origin_have_the_same_axes(call):
    with pytest.raises(ValueError):
        call((5, 5), 4, (0,))
