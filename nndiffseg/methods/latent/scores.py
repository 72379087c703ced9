"""Proper scores that train a sampler: their expectation is least when samples follow the data's distribution.

A *kernel score* of a forecast P and an observation y is ``E d(X, y) - 1/2 E d(X, X')`` with X, X' ~ P independent and
d a distance of negative type (Gneiting & Raftery 2007, JASA 102:359, section 5). The first term asks for accuracy, the
second for spread. Two samples per image estimate it without bias. Where P is the observation's own distribution, the
mean *error* d(X, y) and the mean *spread* d(X, X') are equal: :mod:`nndiffseg.methods.latent.spread_control` holds a training
to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nndiffseg.nn.annotated import SMALLEST, item_means


class KernelDistances(NamedTuple):
    """Distances of two samples and an observation, for every scale and item of the batch.

    Attributes:
        error: d(X, y), mean over both samples ``(scales, B)``.
        spread: d(X, X') ``(scales, B)``.
    """

    error: Tensor
    spread: Tensor

    def score(self, spread_weight: Tensor | float = 1.0) -> Tensor:
        """``E d(X, y) - lambda / 2 E d(X, X')``, mean over scales and items; lambda = 1 (of each scale) makes it proper."""
        return (self.error.mean(1) - spread_weight * self.spread.mean(1) / 2).mean()


def energy_distances(
    x: Tensor, y: Tensor, scales: Sequence[int], eps: float = 1e-6, weights: Tensor | None = None
) -> KernelDistances:
    """Euclidean distances of channel vectors, at several resolutions: the score is the energy score.

    The score of block averages is a proper score of the averages' distribution: coarse scales see coherent errors,
    which a score of single voxels cannot tell from independent ones.

    Args:
        x: two samples ``(2, B, C, *spatial)``.
        y: observation ``(B, C, *spatial)``.
        scales: edge lengths of the blocks; 0 is the whole grid.
        weights: of the cells ``(B, 1, *spatial)``: averages of blocks are weighted, and blocks count by their mean weight; an
            item without any weight has distances of 0. None where all count alike.
    """
    pairs = torch.stack([x[0] - y, x[1] - y, x[0] - x[1]]).float().flatten(0, 1)  # (3 B, C, *spatial)
    means = []
    if weights is not None:
        weights = weights.float().repeat(3, *[1] * (weights.ndim - 1))  # (3 B, 1, *spatial)
        pairs = pairs * weights
    for scale in scales:
        pooled, weight = _block_mean(pairs, scale), None
        if weights is not None:
            weight = _block_mean(weights, scale)
            pooled = pooled / weight.clamp_min(SMALLEST)
        # eps keeps the gradient of the norm finite where a difference vanishes.
        norms = (pooled.square().sum(1, keepdim=True) + eps**2).sqrt()  # (3 B, 1, *blocks)
        means.append(item_means(norms, weight).unflatten(0, (3, -1)))
    first, second, between = torch.stack(means, 1)
    return KernelDistances((first + second) / 2, between)


def _block_mean(x: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return x
    if scale == 0:
        return x.flatten(2).mean(2, keepdim=True)
    kernel = [min(scale, n) for n in x.shape[2:]]
    return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, kernel, ceil_mode=True, count_include_pad=False)


def jaccard_distances(x: Tensor, y: Tensor, eps: float = 1.0, weights: Tensor | None = None) -> KernelDistances:
    """d = 1 - sum(min) / sum(max): the score is the squared generalised energy distance of one observation.

    The min-max similarity is a positive definite kernel (Ioffe 2010, ICDM, section 2), so d is of negative type. On
    hard masks d is 1 - IoU.

    Args:
        x: two samples' probabilities of the foreground ``(2, B, C, *spatial)``.
        y: observed foreground ``(B, C, *spatial)`` in [0, 1].
        eps: voxels added to numerator and denominator, so that d = 0 when both are empty.
        weights: of the voxels ``(B, 1, *spatial)``; None where all count alike.
    """
    if weights is not None:
        x, y = x * weights, y * weights

    def d(a: Tensor, b: Tensor) -> Tensor:
        # min and max from |a - b| alone: one pass over the voxels less.
        both, apart = (a + b).flatten(2).sum(2), (a - b).abs().flatten(2).sum(2)
        return (apart / ((both + apart) / 2 + eps)).mean(1)

    return KernelDistances(((d(x[0], y) + d(x[1], y)) / 2)[None], d(x[0], x[1])[None])
