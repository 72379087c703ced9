"""Noise with a correlation length: linear interpolation of independent nodes, unit variance at every cell.

A coherent error of a boundary (all of it a little further out) is one number for a whole structure. A network that
sees only independent noise at each cell would have to average thousands of cells to make such a number, and amplify
the mean. Noise that is already smooth at several scales spares it that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def node_shape(shape: Sequence[int], scale: int, origin: Sequence[int] | None = None) -> tuple[int, ...]:
    """Number of nodes that cover ``shape`` cells from ``origin`` when nodes lie ``scale`` cells apart."""
    start = origin or (0,) * len(shape)
    return tuple((o + n - 1) // scale - o // scale + 2 for n, o in zip(shape, start, strict=True))


def interpolate_nodes(nodes: Tensor, shape: Sequence[int], scale: int, origin: Sequence[int] | None = None) -> Tensor:
    """Interpolates standard normal ``nodes`` to cells.

    Args:
        nodes: independent standard normal values ``(..., *node_shape)``; node i of an axis lies at cell
            ``scale * (origin // scale + i)``.
        shape: number of cells along each axis.
        scale: cells between two nodes.
        origin: global coordinate of the first cell.

    Returns:
        ``(..., *shape)``. The weights (1 - f, f) of an axis are divided by their Euclidean norm, so every cell has
        unit variance.
    """
    start = origin or (0,) * len(shape)
    dim = len(shape)
    for axis, (n, o) in enumerate(zip(shape, start, strict=True)):
        cell = torch.arange(o, o + n, device=nodes.device)
        low = cell // scale - o // scale
        f = (cell % scale).to(nodes.dtype) / scale
        norm = torch.sqrt(f**2 + (1 - f) ** 2)
        view = [1] * dim
        view[axis] = n
        at = nodes.ndim - dim + axis
        nodes = nodes.index_select(at, low) * ((1 - f) / norm).view(view) + nodes.index_select(at, low + 1) * (f / norm).view(
            view
        )
    return nodes
