"""nnU-Net's ignore label in training: which voxels have a label, what stands in for the others, and means without them.

Nothing may be learnt from an ignored voxel. But a label encoder and a label-space diffusion need whole patches, so the
network's own deterministic segmentation of the image stands there, without a gradient: it is a label map like any other, and
it holds nothing that an annotator drew. Every loss is a mean over annotated voxels; a cell of a coarser grid counts by its
share of them (docs/design.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nndiffseg.nn.heads import Heads
from nndiffseg.nn.ranks import sum_over_ranks

#: Weights below this are none. Its inverse is far from the largest number, so that gradients of nothing are 0, not NaN.
SMALLEST = 1e-12


def annotated_voxels(target: Tensor, heads: Heads) -> Tensor:
    """Where a target of nnU-Net's loader has a label, bool ``(B, 1, *patch)``.

    Args:
        target: label numbers ``(B, 1, *patch)``, of which the ignore label is the one after the last; with regions masks
            ``(B, regions + 1, *patch)``, of which the last one is the ignore label's.
        heads: of the network.
    """
    return ~target[:, heads.number :].bool() if heads.regions else target != heads.number


def completed(onehot: Tensor, annotated: Tensor, logits: Tensor, heads: Heads) -> Tensor:
    """The label, and the segmentation of ``logits`` where there is none; float ``(B, heads, *patch)``, no gradient.

    Args:
        onehot: float ``(B, heads, *patch)``; ignored voxels may hold anything.
        annotated: bool ``(B, 1, *patch)``.
        logits: ``(B, heads, *patch)``.
        heads: what the channels mean.
    """
    segmentation = heads.hard(heads.probabilities(logits.detach()))
    return torch.where(annotated, onehot, segmentation.to(onehot))


def shares(annotated: Tensor, grid: Sequence[int]) -> Tensor:
    """Share of annotated voxels in every cell: bool ``(B, 1, *patch)`` -> float ``(B, 1, *grid)``; patches hold whole cells."""
    stride = [n // cells for n, cells in zip(annotated.shape[2:], grid, strict=True)]
    weights = annotated.float()
    return weights if math.prod(stride) == 1 else (F.avg_pool2d if weights.ndim == 4 else F.avg_pool3d)(weights, stride)


def item_means(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over channels and cells of each item.

    Args:
        values: ``(B, C, *grid)``.
        weights: of the cells ``(B, 1, *grid)``; None where all count alike.

    Returns:
        ``(B,)``; 0, with gradients of 0, for an item without any weight.
    """
    if weights is None:
        return values.flatten(1).mean(1)
    return _ratio((values * weights).flatten(1).sum(1), values.shape[1] * weights.flatten(1).sum(1))


def mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the batch's channels and cells; see :func:`item_means`."""
    return values.mean() if weights is None else mean_over_ranks(values, weights)


def mean_over_ranks(values: Tensor, weights: Tensor) -> Tensor:
    """The same over the items of all processes: how many voxels count is not known to each."""
    return _ratio(sum_over_ranks((values * weights).sum()), values.shape[1] * sum_over_ranks(weights.sum()))


def _ratio(total: Tensor, weight: Tensor) -> Tensor:
    return total / weight.clamp_min(SMALLEST)
