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

#: s of an untrained network, and the least s: a cell may be surer than any training can tell
FIRST_DEVIATION, LEAST_DEVIATION = 0.5, 0.05


class _Level(nn.ModuleList):
    """Residual blocks in a row, all with the same time embedding."""

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            h = block(h, embedding)
        return h


class Denoiser(nn.Module):
    """A U-Net whose work lies mostly below the latent grid.

    It corrects what is known without it. Around a first guess, the prior m, let z0 be normal with deviation s; then z0 given
    z_t is normal too, and the network output F is scaled accordingly,

        x0 = m + alpha s^2 / tau^2 (z_t - alpha m) - sigma / tau F,    tau^2 = alpha^2 s^2 + sigma^2:

    the preconditioning of Karras et al. (arXiv 2206.00364, eq. 7 and appendix B.6) for a variance-preserving z_t, with the
    data's deviation from the prior in place of that from 0, and without the factor s of F, which brought nothing. With s = 1
    and m = 0 it is v-prediction (Salimans & Ho 2022, eq. 7 and appendix D).

    Most cells are far surer than s = 1: the noise of z_t then passes into their x0 by alpha sigma, and a network that
    normalises its channels hardly learns to remove it. Whether a learned s makes better samples depends on the dataset
    (docs/lab/sampling.md), so it is off by default.

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
        learned_deviation: bool = False,
    ):
        """``channels[0]`` lies on the latent grid, ``strides[i]`` leads from level i to i + 1.

        ``blocks[0]`` residual blocks run before and after the coarser levels at every level but the deepest, which
        has ``blocks[1]``. ``learned_deviation`` estimates s from the condition; without it s = 1.
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
        self.to_deviation: nn.Module | None = None
        if learned_deviation:
            self.to_deviation = zero(conv(dim, channels[0], 1, 1))
            nn.init.constant_(self.to_deviation.bias, deviation_bias(FIRST_DEVIATION))  # type: ignore[arg-type]

    def deviation(self, condition: Tensor) -> Tensor:
        """s, how far z0 is expected to lie from the prior: ``(N, C_0, *grid)`` -> ``(N, 1, *grid)``, a value for all channels.

        Trained by its own score (:func:`nndiffseg.methods.latent.scores.deviation_score`): the condition is an input, and no
        gradient reaches it.
        """
        if self.to_deviation is None:
            return condition.new_ones((len(condition), 1, *condition.shape[2:]), dtype=torch.float32)
        return LEAST_DEVIATION + F.softplus(self.to_deviation(condition.detach()).float())

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
        prior, variance = prior.float(), self.deviation(condition).detach().square()
        tau2 = alpha**2 * variance + sigma**2
        return prior + alpha * variance / tau2 * (z - alpha * prior) - sigma / tau2.sqrt() * correction


def _bounded(xi: Tensor) -> Tensor:
    """Standard normal to uniform noise of unit variance, ``sqrt(3) (2 Phi(xi) - 1)``.

    Noise with a long correlation length shifts the input of a whole structure at once. Its normal tails are too rare in
    training to be learnt and would make a few samples in a hundred fail altogether; a uniform variable has no tails.
    """
    return math.sqrt(3) * torch.erf(xi / math.sqrt(2))


def deviation_bias(deviation: float) -> float:
    """The bias with which :meth:`Denoiser.deviation` is ``deviation`` everywhere, while its weights are zero."""
    return math.log(math.expm1(deviation - LEAST_DEVIATION))
