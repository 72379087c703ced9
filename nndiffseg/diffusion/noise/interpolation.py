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


def correlated_noise(
    batch: int,
    channels: int,
    shape: Sequence[int],
    scale: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Training-time noise ``(batch, channels, *shape)`` with nodes ``scale`` cells apart at a random offset."""
    if scale == 1:
        return torch.randn(batch, channels, *shape, generator=generator).to(device)
    # A training patch is a random window of a volume, so the nodes must not sit at fixed places in it.
    origin = torch.randint(0, scale, (len(shape),), generator=generator).tolist()
    nodes = torch.randn(batch, channels, *node_shape(shape, scale, origin), generator=generator)
    return interpolate_nodes(nodes, shape, scale, origin).to(device)


class PatchNoise:
    """Training-time :class:`nndiffseg.nn.sample_network.NoiseSource`: one independent field per item of a batch."""

    def __init__(
        self, batch: int, shape: Sequence[int], generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ):
        """``shape`` is that of the noise grid."""
        self.batch, self.shape, self.generator, self.device = batch, tuple(shape), generator, device

    def __call__(self, stream: int, channels: int, scale: int = 1) -> Tensor:
        return correlated_noise(self.batch, channels, self.shape, scale, generator=self.generator, device=self.device)

    def vector(self, stream: int, channels: int) -> Tensor:
        return torch.randn(self.batch, channels, generator=self.generator).to(self.device)
