"""Noise with a correlation length: linear interpolation of independent nodes, unit variance at every cell.

A coherent error of a boundary (all of it a little further out) is one number for a whole structure. A network that
sees only independent noise at each cell would have to average thousands of cells to make such a number, and amplify
the mean. Noise that is already smooth at several scales spares it that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: cells between two nodes: the same along all axes, or one number for each
Scale = int | Sequence[int]


def per_axis(scale: Scale, axes: int) -> tuple[int, ...]:
    """The scale of each axis."""
    return (scale,) * axes if isinstance(scale, int) else tuple(scale)


def node_shape(shape: Sequence[int], scale: Scale, origin: Sequence[int] | None = None) -> tuple[int, ...]:
    """Number of nodes that cover ``shape`` cells from ``origin`` when nodes lie ``scale`` cells apart."""
    start, scales = origin or (0,) * len(shape), per_axis(scale, len(shape))
    return tuple((o + n - 1) // s - o // s + 2 for n, s, o in zip(shape, scales, start, strict=True))


def interpolate_nodes(nodes: Tensor, shape: Sequence[int], scale: Scale, origin: Sequence[int] | None = None) -> Tensor:
    """Interpolates standard normal ``nodes`` to cells.

    Args:
        nodes: independent standard normal values ``(..., *node_shape)``; node i of an axis lies at cell
            ``scale * (origin // scale + i)``.
        shape: number of cells along each axis.
        scale: cells between two nodes, of all axes or of each; 1 leaves an axis as it is.
        origin: global coordinate of the first cell.

    Returns:
        ``(..., *shape)``. The weights (1 - f, f) of an axis are divided by their Euclidean norm, so every cell has
        unit variance.
    """
    start = origin or (0,) * len(shape)
    dim = len(shape)
    for axis, (n, s, o) in enumerate(zip(shape, per_axis(scale, dim), start, strict=True)):
        cell = torch.arange(o, o + n, device=nodes.device)
        low = cell // s - o // s
        f = (cell % s).to(nodes.dtype) / s
        norm = torch.sqrt(f**2 + (1 - f) ** 2)
        view = [1] * dim
        view[axis] = n
        at = nodes.ndim - dim + axis
        nodes = nodes.index_select(at, low) * ((1 - f) / norm).view(view) + nodes.index_select(at, low + 1) * (f / norm).view(
            view
        )
    return nodes
