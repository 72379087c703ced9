"""cDAL's generator: predicts a label map from a noisy one, an image and a random vector.

Hejrati et al., MICCAI 2024, arXiv 2502.06997. The backbone follows NCSN++ as DDGAN uses it (arXiv 2112.07804), at
sizes that come from the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiffseg.diffusion.schedules import Linear
from nndiffseg.methods.label_space import LabelSpaceNetwork
from nndiffseg.methods.protocol import MethodPlan
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.layers import TimeEmbedding, conv, upsample, zero

#: length of the random vector z
VECTOR = 100
#: width of the style that the mapping network makes of z, unless told, and of the time's embedding
STYLE = 64
#: smallest probability that a softmax head expresses
FLOOR = 1e-5


class Layout(NamedTuple):
    """Sizes of generator and discriminator, full resolution first.

    Attributes:
        channels: of the generator's levels.
        strides: from each level to the next.
        kernels: of each level's convolutions.
    """

    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]


def layout_of(plan: MethodPlan) -> Layout:
    """The stages of the planned image network: as wide in 2D, half as wide in 3D.

    The generator runs in every step of every sample, at full resolution, and in 3D twice the width costs up to four
    times as much. On slices it costs a third more per training step; in a single short trial on hippocampus slices (600
    iterations, one seed) the Dice rose by 1 (deterministic) and 3 points (mean of samples).
    """
    share = 1 if len(plan.patch) == 2 else 2
    channels = tuple(max(8, c // share // 4 * 4) for c in plan.features)
    kernels = tuple(tuple(int(v) for v in k) for k in plan.arguments["kernel_sizes"])
    return Layout(channels, tuple(plan.strides), kernels)


class MappingNetwork(nn.Module):
    """z to a style: pixel norm, then a perceptron (Karras et al., StyleGAN, arXiv 1812.04948)."""

    def __init__(self, vector: int = VECTOR, style: int = STYLE, layers: int = 3):
        super().__init__()
        widths = [vector, *[style] * layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, z: Tensor) -> Tensor:  # (N, V) -> (N, S)
        h = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)  # z = 0 stays 0
        for layer in self.layers:
            h = F.silu(layer(h))
        return h


class AdaptiveGroupNorm(nn.Module):
    """Group norm over the patch, whose scale and shift are linear in the style; at first 1 and 0."""

    def __init__(self, channels: int, style: int = STYLE):
        super().__init__()
        self.norm = nn.GroupNorm(min(32, channels // 4), channels, affine=False)
        self.affine = nn.Linear(style, 2 * channels)
        nn.init.normal_(self.affine.weight, std=0.02)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:  # (N, C, *spatial), (N, S)
        scale, shift = self.affine(style).view(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, 1)
        return self.norm(x) * (1 + scale) + shift


class GeneratorBlock(nn.Module):
    """Residual block: the style enters through both norms, the time between the convolutions."""

    def __init__(self, dim: int, c_in: int, c_out: int, kernel: Sequence[int], style: int = STYLE):
        super().__init__()
        self.norm1, self.norm2 = AdaptiveGroupNorm(c_in, style), AdaptiveGroupNorm(c_out, style)
        self.conv1, self.conv2 = conv(dim, c_in, c_out, kernel), zero(conv(dim, c_out, c_out, kernel))
        self.time = nn.Linear(STYLE, c_out)
        self.shortcut = conv(dim, c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, style: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, style)))
        h = h + self.time(time).view(len(x), -1, *[1] * (x.ndim - 2))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h, style)))


class SelfAttention(nn.Module):
    """Residual self-attention over the cells of the deepest level, one head of the level's width."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(min(32, channels // 4), channels)
        self.qkv, self.out = conv(dim, channels, 3 * channels, 1), zero(conv(dim, channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, *spatial)
        q, k, v = (m.flatten(2).transpose(1, 2) for m in self.qkv(self.norm(x)).chunk(3, 1))
        h = F.scaled_dot_product_attention(q, k, v)  # (N, cells, C)
        return x + self.out(h.transpose(1, 2).reshape(x.shape))


class ImageEncoder(nn.Module):
    """Residual convolutions at full resolution; the result is added to the generator's first features."""

    def __init__(self, dim: int, c_in: int, channels: int, kernel: Sequence[int], blocks: int = 2):
        super().__init__()
        self.stem = conv(dim, c_in, channels, kernel)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(min(32, channels // 4), channels),
                nn.SiLU(),
                conv(dim, channels, channels, kernel),
                nn.GroupNorm(min(32, channels // 4), channels),
                nn.SiLU(),
                zero(conv(dim, channels, channels, kernel)),
            )
            for _ in range(blocks)
        )

    def forward(self, image: Tensor) -> Tensor:  # (B, C_in, *patch) -> (B, C_0, *patch)
        h = self.stem(image)
        for block in self.blocks:
            h = h + block(h)
        return h


class CDALGenerator(LabelSpaceNetwork):
    """x0 = G(x_t, image, z, t), see :class:`nndiffseg.nn.sample_network.SampleNetwork`.

    ``network.eval()(image)`` returns the deterministic logits ``(B, heads, *patch)``: the generator at t = 1, where
    x_t holds nothing of the label, with noise and z at their means, zero. In training ``network(image, x_t, t, z)``
    returns x0 ``(B, heads, *patch)`` in (-1, 1).
    """

    vector_channels = VECTOR

    def __init__(
        self,
        channels_in: int,
        heads: Heads,
        patch: Sequence[int],
        layout: Layout,
        steps: int,
        *,
        mapping: tuple[int, int] = (3, STYLE),
        image_blocks: int = 2,
    ):
        """``mapping``: layers of the mapping network and their width; ``image_blocks`` of the image encoder."""
        super().__init__(heads, patch, Linear(), "ancestral", steps)
        channels, strides, kernels = layout
        dim, deepest = len(kernels[0]), len(channels) - 1
        self.strides = strides
        layers, style = mapping
        self.mapping, self.embed = MappingNetwork(style=style, layers=layers), TimeEmbedding(STYLE)
        self.image_encoder = ImageEncoder(dim, channels_in, channels[0], kernels[0], image_blocks)
        self.stem = conv(dim, heads.number, channels[0], kernels[0])
        self.down = nn.ModuleList(GeneratorBlock(dim, c, c, k, style) for c, k in zip(channels, kernels, strict=True))
        self.pool = nn.ModuleList(conv(dim, channels[i], channels[i + 1], s, s) for i, s in enumerate(strides))
        self.attention = SelfAttention(dim, channels[-1])
        self.middle = GeneratorBlock(dim, channels[-1], channels[-1], kernels[-1], style)
        self.merge = nn.ModuleList(conv(dim, channels[i + 1], channels[i], 1) for i in range(deepest))
        self.up = nn.ModuleList(GeneratorBlock(dim, 2 * channels[i], channels[i], kernels[i], style) for i in range(deepest))
        self.norm = AdaptiveGroupNorm(channels[0], style)
        self.head = conv(dim, channels[0], heads.number, kernels[0])

    def forward(self, image: Tensor, x: Tensor | None = None, t: Tensor | None = None, vector: Tensor | None = None) -> Tensor:
        """image ``(B, C_in, *patch)`` alone -> logits; with x_t, t ``(B,)`` and z ``(B, 100)`` -> x0."""
        if x is None or t is None:
            return self.deterministic(image)
        return self.denoise(x, t, self.condition(image), vector)

    def deterministic(self, image: Tensor) -> Tensor:
        batch = len(image)
        x = image.new_zeros(batch, self.heads.number, *image.shape[2:])
        x0 = self.denoise(x, image.new_ones(batch), self.condition(image), image.new_zeros(batch, VECTOR))
        return self.to_logits(x0)

    def condition(self, image: Tensor) -> Tensor:
        return self.image_encoder(image)

    def denoise(self, x: Tensor, t: Tensor, condition: Tensor, vector: Tensor | None) -> Tensor:
        assert vector is not None
        style, time = self.mapping(vector), F.silu(self.embed(t))
        h, skips = self.stem(x) + condition, []
        for i, block in enumerate(self.down):
            h = block(h, style, time)
            if i < len(self.pool):
                skips.append(h)
                h = self.pool[i](h)
        h = self.middle(self.attention(h), style, time)
        for i in range(len(self.pool) - 1, -1, -1):
            h = upsample(self.merge[i](h), self.strides[i])
            h = self.up[i](torch.cat([h, skips[i]], 1), style, time)
        return torch.tanh(self.head(F.silu(self.norm(h, style))).float())

    def to_logits(self, x0: Tensor) -> Tensor:
        """Reads (1 + x0) / 2 as a probability, which it is where x0 minimises the squared error: E x0 = 2 p - 1.

        Softmax heads: log p, so that the softmax gives p, normalised over the heads. Sigmoid heads: logit p. No
        temperature is left to choose, and averaging x0 over tiles averages probabilities.
        """
        p = ((1 + x0.float()) / 2).clamp(FLOOR, 1 - FLOOR)
        return self.heads.logits(p)
