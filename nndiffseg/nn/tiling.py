"""Runs the heavy image network over tiles and blends each of its maps at the map's own resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nndiffseg.nn.precision import autocast_for
from nndiffseg.nn.sample_network import SampleNetwork

#: Maps finer than the noise grid (guides of the label decoder) are stored in half precision above this size.
HALF_PRECISION_ABOVE_BYTES = 2**30


def common_multiple(network: SampleNetwork) -> tuple[int, ...]:
    """Along each axis, the smallest number of voxels that is a whole number of cells of the noise grid and all maps."""
    return tuple(math.lcm(*axis) for axis in zip(network.stride, *network.map_strides, strict=True))


@dataclass(frozen=True)
class Frame:
    """The zero-padded frame in which one image is predicted; its corner is the origin of the noise's coordinates.

    It depends on the image's shape, the patch and the network's strides only, never on the step between tiles.

    Attributes:
        shape: the image ``(*spatial)``.
        padded: the frame ``(*spatial)``, at least one patch and a whole number of cells.
        lower: voxels added before the image along each axis; centred, as nnU-Net pads.
    """

    shape: tuple[int, ...]
    padded: tuple[int, ...]
    lower: tuple[int, ...]

    @classmethod
    def around(cls, shape: Sequence[int], patch: Sequence[int], multiple: Sequence[int]) -> Frame:
        """The smallest frame around an image of this shape."""
        padded = tuple(math.ceil(max(n, p) / m) * m for n, p, m in zip(shape, patch, multiple, strict=True))
        return cls(tuple(shape), padded, tuple((f - n) // 2 for f, n in zip(padded, shape, strict=True)))

    def pad(self, image: Tensor) -> Tensor:
        """``(B, C, *shape)`` -> ``(B, C, *padded)``."""
        amounts: list[int] = []
        for n, f, low in zip(self.shape[::-1], self.padded[::-1], self.lower[::-1], strict=True):
            amounts += [low, f - n - low]
        return F.pad(image, amounts)


def tile_starts(size: int, patch: int, step_size: float, multiple: int) -> list[int]:
    """First voxels of the tiles along one axis.

    nnU-Net's evenly spaced tiles, moved down to a whole number of cells so that coarse maps of all tiles align.

    Args:
        size, patch: voxels of frame and patch, both multiples of ``multiple``.
        step_size: largest step as a fraction of the patch, in (0, 1].
        multiple: see :func:`common_multiple`.
    """
    count = math.ceil((size - patch) / (patch * step_size)) + 1
    if count == 1:
        return [0]
    step = (size - patch) / (count - 1)
    return sorted({round(i * step) // multiple * multiple for i in range(count)})


def blending_weights(size: int, patch: int, starts: Sequence[int]) -> np.ndarray:
    """Weights of the tiles along one axis, ``(tiles, patch)``, which sum to 1 at every voxel.

    Gaussian with nnU-Net's width, patch / 8. A product of Gaussians along the axes is a Gaussian of the distance, and
    tiles form a grid, so normalising along each axis normalises the whole: no map of summed weights is needed, and no
    division at the end.
    """
    position = np.arange(patch) + 0.5
    gaussian = np.exp(-0.5 * ((position - patch / 2) / (patch / 8)) ** 2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + patch] += gaussian
    return np.stack([gaussian / total[start : start + patch] for start in starts])


def _cell_weights(weights: np.ndarray, stride: int) -> np.ndarray:
    """Mean weight in each cell, ``(tiles, patch / stride)``; sums over tiles stay 1."""
    return weights.reshape(len(weights), -1, stride).mean(-1)


def _outer(vectors: Sequence[np.ndarray], device: torch.device) -> Tensor:
    weight = np.ones(())
    for vector in vectors:
        weight = weight[..., None] * vector
    return torch.from_numpy(weight.astype(np.float32)).to(device)


def encode_tiled(
    network: SampleNetwork,
    image: Tensor,
    patch: Sequence[int],
    step_size: float,
    device: torch.device,
    *,
    store: torch.device | None = None,
    precision: str | None = None,
    on_tile: Callable[[], None] | None = None,
    more: Callable[[tuple[slice, ...]], Tensor] | None = None,
) -> list[Tensor]:
    """The network's maps of a whole image.

    Sums are float32, except that guides which would fill more than ``HALF_PRECISION_ABOVE_BYTES`` are summed in
    float16: at most a handful of weighted terms meet in a voxel, so the error (1e-3 relative) stays below that of the
    bfloat16 in which the network ran, and the guides at full resolution dominate the memory of a large CT. Logits and
    everything on the noise grid or coarser stay float32.

    Args:
        network: see :class:`~nndiffseg.nn.sample_network.SampleNetwork`.
        image: ``(B, C, *frame)``; the tiles of all B images run as one batch.
        patch: voxels of a tile.
        step_size: see :func:`tile_starts`.
        device: where the network runs.
        store: where the maps are kept, by default ``device``.
        precision: see :func:`~nndiffseg.nn.precision.autocast_for`.
        on_tile: called after each tile.
        more: further channels of a window, ``(B, L, *patch)`` on ``device``, that are made of each tile when it is its turn.

    Returns:
        Maps ``(B, C_i, *frame / map_strides[i])`` on ``store``.
    """
    frame, store = tuple(image.shape[2:]), store or device
    starts = [tile_starts(n, p, step_size, m) for n, p, m in zip(frame, patch, common_multiple(network), strict=True)]
    axis_weights = [blending_weights(n, p, s) for n, p, s in zip(frame, patch, starts, strict=True)]
    map_weights = [[_cell_weights(w, s) for w, s in zip(axis_weights, strides, strict=True)] for strides in network.map_strides]
    sums: list[Tensor] = []
    for tile in product(*(range(len(s)) for s in starts)):
        corner = [s[i] for s, i in zip(starts, tile, strict=True)]
        window = (slice(None), slice(None), *(slice(c, c + p) for c, p in zip(corner, patch, strict=True)))
        pixels = image[window].to(device)
        if more is not None:
            pixels = torch.cat([pixels, more(window)], 1)
        with autocast_for(device, precision):
            maps = network.encode(pixels)
        if not sums:
            sums = [_empty_sum(m, frame, i, network, store) for i, m in enumerate(maps)]
        for i, strides in enumerate(network.map_strides):
            weight = _outer([w[j] for w, j in zip(map_weights[i], tile, strict=True)], device)
            cells = (
                slice(None),
                slice(None),
                *(slice(c // s, (c + p) // s) for c, p, s in zip(corner, patch, strides, strict=True)),
            )
            sums[i][cells] += (maps[i].float() * weight).to(store, sums[i].dtype)
        if on_tile is not None:
            on_tile()
    return sums


def _empty_sum(tile_map: Tensor, frame: tuple[int, ...], index: int, network: SampleNetwork, store: torch.device) -> Tensor:
    strides = network.map_strides[index]
    shape = (*tile_map.shape[:2], *(n // s for n, s in zip(frame, strides, strict=True)))
    finer = any(s < n for s, n in zip(strides, network.stride, strict=True))
    half = index > 0 and finer and 4 * math.prod(shape) > HALF_PRECISION_ABOVE_BYTES
    return torch.zeros(shape, dtype=torch.float16 if half else torch.float32, device=store)
