"""LDSeg's image encoder and label decoder, and the replacements of its encoder ablation (arXiv 2407.12952)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiffseg.nn.layers import ChannelNorm, ResidualBlock, conv, transposed, upsample, zero
from nndiffseg.nn.whitening import RunningWhitening

#: as published
ATTENTION_HEADS, GROUPS = 8, 4
#: channels of the published image encoder's stages, full resolution first
IMAGE_WIDTHS = (16, 32, 64, 64, 32)
#: Attention over more cells of a patch than this would cost more than the convolutions around it.
MAX_ATTENTION_CELLS = 4096


class Attention(nn.Module):
    """Residual multi-head self-attention over all cells of a patch (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.heads = math.gcd(ATTENTION_HEADS, channels)
        self.norm = _group_norm(channels)
        self.qkv, self.out = conv(dim, channels, 3 * channels, 1), zero(conv(dim, channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *grid)
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        # Contiguous, or PyTorch falls back from its fused kernel to one that writes out all pairs of cells.
        h = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())  # (B, heads, cells, C / heads)
        return x + self.out(h.transpose(-1, -2).reshape(x.shape))


class GroupNormBlock(nn.Module):
    """``x + conv(act(norm(conv(act(norm(x))))))`` with norms over the patch."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.norm1, self.norm2 = _group_norm(channels), _group_norm(channels)
        self.conv1, self.conv2 = conv(dim, channels, channels), zero(conv(dim, channels, channels))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *grid)
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


class PublishedEncoder(nn.Module):
    """Stages of the published image encoder, for :class:`ImageEncoder`: a convolution, then strided ones with a block each."""

    stem = None

    def __init__(self, dim: int, channels_in: int, strides: Sequence[Sequence[int]]):
        """``strides[s]`` leads from stage s to s + 1; stages beyond the published five are as wide as the last."""
        super().__init__()
        self.output_channels = [IMAGE_WIDTHS[min(s, len(IMAGE_WIDTHS) - 1)] for s in range(len(strides) + 1)]
        stages = [conv(dim, channels_in, self.output_channels[0])]
        for stride, before, width in zip(strides, self.output_channels, self.output_channels[1:], strict=False):
            stages.append(nn.Sequential(conv(dim, before, width, 3, stride), GroupNormBlock(dim, width)))
        self.stages = nn.ModuleList(stages)


class ImageEncoder(nn.Module):
    """Image patch -> image latent on the latent grid.

    The plan's encoder goes down to its deepest stage; the features come back up to the latent's stage. A published
    latent lies 16-fold deep, where an encoder sees most of the image; on the shallower grid of a planned latent it would
    see a few voxels. Attention follows the two deepest stages and the result, wherever a patch has few enough cells.
    Since the encoder always runs on one patch, its norms and its attention always span one patch.

    Attributes:
        channels: of the image latent.
    """

    def __init__(
        self, dim: int, encoder: Any, strides: Sequence[Sequence[int]], stage: int, channels: int, patch: Sequence[int]
    ):
        """``encoder`` as dynamic_network_architectures builds it; ``strides[s]`` leads from stage s to stage s + 1."""
        super().__init__()
        self.stem, self.stages = getattr(encoder, "stem", None), encoder.stages
        self.latent_stage, self.channels = stage, channels
        self.strides = [tuple(s) for s in strides]
        widths, deepest = [int(c) for c in encoder.output_channels], len(strides)
        cells = [math.prod(patch)]
        for stride in self.strides:
            cells.append(cells[-1] // math.prod(stride))

        def attention(s: int) -> nn.Module:
            return Attention(dim, widths[s]) if cells[s] <= MAX_ATTENTION_CELLS else nn.Identity()

        above = range(deepest - 1, stage - 1, -1)
        self.attention = nn.ModuleList(attention(s) if s >= deepest - 1 else nn.Identity() for s in range(deepest + 1))
        self.reduce = nn.ModuleList(conv(dim, widths[s + 1], widths[s], 1) for s in above)
        self.merge = nn.ModuleList(GroupNormBlock(dim, widths[s]) for s in above)
        self.last = attention(stage)
        self.norm = _group_norm(widths[stage])
        self.head = conv(dim, widths[stage], channels, 1)
        self.whiten = RunningWhitening(channels)

    def forward(self, image: Tensor) -> Tensor:  # (B, C_in, *patch) -> (B, channels, *latent)
        h, features = image if self.stem is None else self.stem(image), []
        for stage, attention in zip(self.stages, self.attention, strict=True):
            h = attention(stage(h))
            features.append(h)
        above = range(len(features) - 2, self.latent_stage - 1, -1)
        for s, reduce, merge in zip(above, self.reduce, self.merge, strict=True):
            h = merge(upsample(reduce(h), self.strides[s]) + features[s])
        return self.whiten(self.head(F.silu(self.norm(self.last(h)))))


class LabelDecoder(nn.Module):
    """Latent -> logits, without skips: all that is known of the image must pass through the latent.

    Norms act on each voxel alone, so that a slab decodes as the whole volume does.
    """

    def __init__(self, dim: int, latent_channels: int, heads: int, strides: Sequence[Sequence[int]], channels: Sequence[int]):
        """``strides[s]`` leads from stage s to stage s + 1; ``channels[s]`` are those of stage s."""
        super().__init__()
        self.strides = [tuple(s) for s in strides]
        self.stem = conv(dim, latent_channels, channels[-1])
        self.up = nn.ModuleList(transposed(dim, channels[s + 1], channels[s], stride) for s, stride in enumerate(self.strides))
        self.blocks = nn.ModuleList(ResidualBlock(dim, c) for c in channels)
        self.norm = ChannelNorm(channels[0])
        self.head = conv(dim, channels[0], heads, 1)

    @property
    def halo(self) -> int:
        """Latent cells that influence a cell's block, on each side: two voxels of each stage, three on the latent grid."""
        reach = 0
        for strides in zip(*self.strides, strict=True):  # along one axis, full resolution first
            voxels = 2
            for stride in strides:
                voxels = -(-voxels // stride) + 2
            reach = max(reach, voxels + 1)
        return reach

    def forward(self, latent: Tensor) -> Tensor:  # (N, C_z, *latent) -> (N, heads, *voxels)
        h = self.blocks[-1](self.stem(latent))
        for s in range(len(self.strides) - 1, -1, -1):
            h = self.blocks[s](self.up[s](h))
        return self.head(F.silu(self.norm(h)))


class NearestLabel(nn.Module):
    """Table V: the label at the middle of each cell instead of a label encoder, one channel per head in [-1, 1]."""

    def __init__(self, stride: Sequence[int]):
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, onehot: Tensor) -> Tensor:  # (B, heads, *patch) -> (B, heads, *latent)
        return 2 * nearest(onehot, self.stride) - 1


class NearestImage(nn.Module):
    """Table V: the image at the middle of each cell instead of an image encoder."""

    def __init__(self, stride: Sequence[int], channels: int):
        super().__init__()
        self.stride, self.channels = tuple(stride), channels

    def forward(self, image: Tensor) -> Tensor:  # (B, C_in, *patch) -> (B, C_in, *latent)
        return nearest(image, self.stride)


def nearest(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The voxel at the middle of each cell, ``(B, C, *spatial)`` -> ``(B, C, *spatial / stride)``."""
    for axis, s in enumerate(stride, start=2):
        x = x.index_select(axis, torch.arange(s // 2, x.shape[axis], s, device=x.device))
    return x
