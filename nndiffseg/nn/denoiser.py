"""Denoiser on the latent grid: conditioned on the image, around a first guess, optionally driven by auxiliary noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiffseg.diffusion.schedules import Schedule
from nndiffseg.nn.layers import (
    ChannelNorm,
    ResidualBlock,
    TimeEmbedding,
    conv,
    crop_to,
    pad_to_multiple,
    upsample,
    zero,
)


class _Level(nn.ModuleList):
    """Residual blocks in a row, all with the same time embedding."""

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            h = block(h, embedding)
        return h


class Denoiser(nn.Module):
    """A U-Net whose work lies mostly below the latent grid.

    It corrects what is known without it. Around a first guess, the prior m, let z0 be standard normal; then z0 given z_t is
    normal too, and the network output F is scaled accordingly,

        x0 = m + alpha (z_t - alpha m) - sigma F:

    v-prediction around the prior (Salimans & Ho 2022, arXiv 2202.00512, appendix D, where m = 0).

    At t = 1 the network predicts the difference between x0 and the prior, near t = 0 it hardly has to do anything.
    """

    def __init__(
        self,
        dim: int,
        latent_channels: int,
        noise_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        schedule: Schedule,
        embedding: int = 64,
        blocks: Sequence[int] = (1, 3),
    ):
        """``channels[0]`` lies on the latent grid, ``strides[i]`` leads from level i to i + 1.

        ``blocks[0]`` residual blocks run before and after the coarser levels at every level but the deepest, which
        has ``blocks[1]``.
        """
        super().__init__()
        self.schedule = schedule
        self.strides = [tuple(s) for s in strides]
        self.embed = TimeEmbedding(embedding)
        self.stem = conv(dim, latent_channels + noise_channels, channels[0])
        deepest = len(channels) - 1
        self.down = nn.ModuleList(
            _Level(ResidualBlock(dim, c, embedding) for _ in range(blocks[1 if i == deepest else 0]))
            for i, c in enumerate(channels)
        )
        self.pool = nn.ModuleList(conv(dim, channels[i], channels[i + 1], s, s) for i, s in enumerate(strides))
        self.merge = nn.ModuleList(conv(dim, channels[i + 1], channels[i], 1) for i in range(deepest))
        self.up = nn.ModuleList(_Level(ResidualBlock(dim, c, embedding) for _ in range(blocks[0])) for c in channels[:-1])
        self.norm = ChannelNorm(channels[0])
        # Zero: an untrained denoiser answers with the prior at t = 1, and spread grows from there.
        self.head = zero(conv(dim, channels[0], latent_channels))

    def forward(self, z: Tensor, t: Tensor, condition: Tensor, prior: Tensor, xi: Tensor | None = None) -> Tensor:
        """Denoises.

        Args:
            z: noisy latent ``(N, C_z, *grid)``.
            t: times ``(N,)``.
            condition: image features ``(1 or N, C_0, *grid)``.
            prior: latent of the deterministic segmentation ``(1 or N, C_z, *grid)``.
            xi: auxiliary noise ``(N, C_xi, *grid)``.

        Returns:
            x0 ``(N, C_z, *grid)`` float32.
        """
        embedding = self.embed(t)
        h = self.stem(z if xi is None else torch.cat([z, _bounded(xi)], 1)) + condition
        skips = []
        for i, level in enumerate(self.down):
            h = level(h, embedding)
            if i < len(self.pool):
                skips.append(h)
                h = self.pool[i](pad_to_multiple(h, self.strides[i]))
        for i in range(len(self.pool) - 1, -1, -1):
            h = crop_to(upsample(self.merge[i](h), self.strides[i]), skips[i].shape[2:]) + skips[i]
            h = self.up[i](h, embedding)
        correction = self.head(F.silu(self.norm(h))).float()
        view = (-1, *[1] * (z.ndim - 1))
        alpha, sigma = self.schedule.alpha(t).view(view), self.schedule.sigma(t).view(view)
        prior = prior.float()
        return prior + alpha * (z - alpha * prior) - sigma * correction


def _bounded(xi: Tensor) -> Tensor:
    """Standard normal to uniform noise of unit variance, ``sqrt(3) (2 Phi(xi) - 1)``.

    Noise with a long correlation length shifts the input of a whole structure at once. Its normal tails are too rare in
    training to be learnt and would make a few samples in a hundred fail altogether; a uniform variable has no tails.
    """
    return math.sqrt(3) * torch.erf(xi / math.sqrt(2))
