"""Anchor condition with uncertain spatial attention, U-SA (MedSegDiff-V2, arXiv 2301.11798, section "Anchor Condition").

The condition model's last decoded feature says where the label probably is. It anchors the diffusion model, which is
otherwise free to wander, but it must not be taken literally: it is smoothed first, so that voxels near its boundary
count as possible too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiffseg.nn.layers import conv, zero

#: half width of the Gaussian kernel in voxels
RADIUS = 3
#: largest standard deviation in voxels: the kernel is cut at two of them or more
MAX_SIGMA = RADIUS / 2


class GaussianSmoothing(nn.Module):
    """Separable Gaussian with one learnt standard deviation per axis, in (0, ``MAX_SIGMA``) voxels, at first 1."""

    def __init__(self, dim: int):
        super().__init__()
        self.raw_sigma = nn.Parameter(torch.full((dim,), -math.log(MAX_SIGMA - 1)))  # the logit of 1 / MAX_SIGMA

    @property
    def sigma(self) -> Tensor:
        """Standard deviations ``(dim,)`` in voxels."""
        return MAX_SIGMA * self.raw_sigma.sigmoid()

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *spatial)
        for axis, sigma in enumerate(self.sigma):
            x = _smooth_axis(x, axis + 2, sigma)
        return x


def _smooth_axis(x: Tensor, axis: int, sigma: Tensor) -> Tensor:
    """Repeats the border, so that constants stay constant. Shifted sums: faster than a depthwise convolution on CPUs."""
    n, offset = x.shape[axis], torch.arange(-RADIUS, RADIUS + 1, device=x.device)
    kernel = (-0.5 * (offset / sigma.float()) ** 2).softmax(0).to(x.dtype)
    index = torch.arange(-RADIUS, n + RADIUS, device=x.device).clamp(0, n - 1)
    padded = x.index_select(axis, index)
    smooth = kernel[RADIUS] * x
    for i in range(RADIUS):  # the kernel is even
        pair = padded.narrow(axis, i, n) + padded.narrow(axis, 2 * RADIUS - i, n)
        smooth = smooth + kernel[i] * pair
    return smooth


class UncertainSpatialAttention(nn.Module):
    """``attention = sigmoid(conv1x1(max(gauss * f, f)))`` for each of the diffusion encoder's first levels.

    Args:
        dim: number of spatial axes.
        channels: of the anchor f; a sequence where each level has an anchor of its own.
        maps: number of attention maps. The paper has one, for its one structure; with several structures one map
            could not tell them apart.
        strides: cells of the anchor per cell of each level, along each axis.
        smoothing: False for plain spatial attention, the ablation: the anchor is f itself.
    """

    def __init__(
        self, dim: int, channels: int | Sequence[int], maps: int, strides: Sequence[Sequence[int]], smoothing: bool = True
    ):
        super().__init__()
        self.strides = [tuple(s) for s in strides]
        self.smooth = GaussianSmoothing(dim) if smoothing else nn.Identity()
        widths = [channels] * len(strides) if isinstance(channels, int) else channels
        # Zero: attention starts as 1/2 everywhere, the same for every image.
        self.to_logits = nn.ModuleList(zero(conv(dim, c, maps, 1)) for c in widths)

    def anchor(self, feature: Tensor) -> Tensor:
        """Voxel-wise maximum of the feature and its smoothed self ``(B, C, *spatial)``."""
        return torch.maximum(self.smooth(feature), feature)

    def forward(self, *features: Tensor) -> list[Tensor]:
        """Attention of each level ``(B, maps, *grid / stride)`` in (0, 1); features ``(B, C, *grid)``, one or one a level."""
        anchors = [self.anchor(feature) for feature in features]
        anchors = anchors * len(self.strides) if len(anchors) == 1 else anchors
        return [
            pool(project(anchor), s).sigmoid() for project, anchor, s in zip(self.to_logits, anchors, self.strides, strict=True)
        ]


def pool(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Block means: ``(B, C, *spatial)`` -> ``(B, C, *spatial / stride)``."""
    if all(s == 1 for s in stride):
        return x
    return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, tuple(stride))


def attend(features: Tensor, attention: Tensor) -> Tensor:
    """The residual form ``f' = f + attention f``; channel c is multiplied by map ``c mod maps``.

    Args:
        features: of the diffusion encoder ``(N, C, *grid)``.
        attention: ``(1 or N, maps, *grid)``.
    """
    repeats = math.ceil(features.shape[1] / attention.shape[1])
    attention = attention.repeat(1, repeats, *[1] * (attention.ndim - 2))[:, : features.shape[1]]
    return features + attention * features
