"""Proper scores that train a sampler: their expectation is least when samples follow the data's distribution.

A *kernel score* of a forecast P and an observation y is ``E d(X, y) - 1/2 E d(X, X')`` with X, X' ~ P independent and
d a distance of negative type (Gneiting & Raftery 2007, JASA 102:359, section 5). The first term asks for accuracy, the
second for spread. Two samples per image estimate it without bias.

Such scores hardly feel rare outliers: a share e of samples at distance D costs e^2 D, since what the first term charges
the second gives back. ``spread_weight`` (lambda) below 1 charges (1 - lambda) e D more. A forecast trained with it is
too narrow (for a Gaussian of unit deviation and the distance |x - y| it has lambda / sqrt(2 - lambda^2)), so it serves
for the first part of a training, in which the spread grows from below and outliers never form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def energy_score(x: Tensor, y: Tensor, scales: Sequence[int], spread_weight: float = 1.0, eps: float = 1e-6) -> Tensor:
    """Energy score with the Euclidean distance of channel vectors, at several resolutions.

    The score of block averages is a proper score of the averages' distribution: coarse scales see coherent errors,
    which a score of single voxels cannot tell from independent ones.

    Args:
        x: two samples ``(2, B, C, *spatial)``.
        y: observation ``(B, C, *spatial)``.
        scales: edge lengths of the blocks; 0 is the whole grid.
        spread_weight: lambda in ``E d(X, y) - lambda / 2 E d(X, X')``; 1 makes the score proper.

    Returns:
        Scalar: mean over scales and blocks.
    """
    pairs = torch.stack([x[0] - y, x[1] - y, x[0] - x[1]]).float().flatten(0, 1)  # (3 B, C, *spatial)
    terms = []
    for scale in scales:
        pooled = _block_mean(pairs, scale)
        # eps keeps the gradient of the norm finite where a difference vanishes.
        norm = (pooled.square().sum(1) + eps**2).sqrt().unflatten(0, (3, -1)).flatten(1).mean(1)
        terms.append((norm[0] + norm[1] - spread_weight * norm[2]) / 2)
    return torch.stack(terms).mean()


def _block_mean(x: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return x
    if scale == 0:
        return x.flatten(2).mean(2, keepdim=True)
    kernel = [min(scale, n) for n in x.shape[2:]]
    return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, kernel, ceil_mode=True, count_include_pad=False)


def jaccard_score(x: Tensor, y: Tensor, spread_weight: float = 1.0, eps: float = 1.0) -> Tensor:
    """Kernel score with d = 1 - sum(min) / sum(max), the squared generalised energy distance of one observation.

    The min-max similarity is a positive definite kernel (Ioffe 2010, ICDM, section 2), so d is of negative type. On
    hard masks d is 1 - IoU.

    Args:
        x: two samples' probabilities of the foreground ``(2, B, C, *spatial)``.
        y: observed foreground ``(B, C, *spatial)`` in [0, 1].
        spread_weight: as in :func:`energy_score`.
        eps: voxels added to numerator and denominator, so that d = 0 when both are empty.
    """
    def d(a: Tensor, b: Tensor) -> Tensor:
        # min and max from |a - b| alone: one pass over the voxels less.
        both, apart = (a + b).flatten(2).sum(2), (a - b).abs().flatten(2).sum(2)
        return (apart / ((both + apart) / 2 + eps)).mean()

    return (d(x[0], y) + d(x[1], y) - spread_weight * d(x[0], x[1])) / 2
