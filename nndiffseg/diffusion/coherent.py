"""Coherent perturbations of logits: samples of a segmentation whose marginals are exactly its probabilities.

Gumbel-max (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030): with independent standard Gumbel variables g_c,
``argmax_c (z_c + g_c)`` is distributed as softmax(z). That holds at every voxel, whatever the g_c of other voxels are, so they
may come from random fields as smooth as one likes. Here g_c = -log(-log Phi(n_c)) is the quantile transform of a standard
normal field n_c, and n_c mixes fields of a few correlation lengths:

    n_c(x) = sum_l sqrt(w_l) n_cl(x),    sum_l w_l = 1.

Length 0 alone draws every voxel independently. An infinite length alone draws one g_c for the whole volume, which thresholds
the map at one level for all voxels (its level sets); these numbers are spread evenly over the samples of a case, so that
few samples represent the distribution well. For regions, ``z + logit(Phi(n)) > 0`` has the probability sigmoid(z).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nndiffseg.diffusion.noise.field import NoiseField, draw_samples

#: correlation lengths, in edges of the finest voxels of the plans
LENGTHS = (0.0, 4.0, 16.0, math.inf)
#: number of the first length's draw, see :func:`~nndiffseg.diffusion.noise.field.draw_samples`
STREAM = 1000


def node_distances(length: float, spacing: Sequence[float], finest: float) -> tuple[int, ...]:
    """Cells between two nodes of a field of finite length, along each axis.

    Args:
        length: in units of ``finest``.
        spacing: of the grid along each axis, in mm.
        finest: edge of the finest voxels of the plans, in mm.
    """
    return tuple(max(1, round(length * finest / s)) for s in spacing)


def components(
    fields: Sequence[NoiseField],
    heads: int,
    shape: Sequence[int],
    spacing: Sequence[float],
    finest: float,
    *,
    which: Sequence[int] = range(len(LENGTHS)),
    origin: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The normal fields of some of :data:`LENGTHS`.

    Args:
        fields: one for each of N samples.
        heads: channels of the segmentation.
        shape, origin: window of the grid.
        spacing, finest: see :func:`node_distances`.
        which: indices of the lengths.
        device: where to draw.

    Returns:
        For each length ``(N, heads, *shape)``; with 1 in place of the spatial axes where the length is infinite.
    """
    drawn = []
    for i in which:
        if math.isinf(LENGTHS[i]):
            whole = torch.stack([f.spread_vector(STREAM + i, heads) for f in fields]).to(device)
            drawn.append(whole.view(*whole.shape, *[1] * len(shape)))
        else:
            scale = node_distances(LENGTHS[i], spacing, finest)
            drawn.append(draw_samples(fields, STREAM + i, heads, shape, origin, scale, device))
    return drawn


def mixed(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_l sqrt(w_l) n_l, of unit variance where the weights sum to 1; parts ``(N, heads, *spatial)`` broadcast."""
    terms = [part * math.sqrt(weight) for part, weight in zip(parts, weights, strict=True) if weight > 0]
    return sum(terms[1:], start=terms[0])


def perturbation(normal: Tensor, regions: bool) -> Tensor:
    """Standard normal -> standard Gumbel values; for regions standard logistic ones. Any shape."""
    log_below = torch.special.log_ndtr(normal)
    if regions:
        return log_below - torch.special.log_ndtr(-normal)
    return -(-log_below).log()


def lengths_in_words(weights: Sequence[float]) -> str:
    """Such as ``16: 0.25, inf: 0.75``."""
    return ", ".join(f"{length:g}: {w:.2g}" for length, w in zip(LENGTHS, weights, strict=True) if w > 0)
