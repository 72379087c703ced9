"""LDSeg: four networks trained together diffuse a label in a latent space (Zaman et al., arXiv 2407.12952)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nndiffseg.diffusion.items import uniform
from nndiffseg.diffusion.noise.source import NoiseSource
from nndiffseg.diffusion.samplers import Sampler, sampler_of
from nndiffseg.diffusion.schedules import Schedule, add_noise, normal_like, timesteps, training_times
from nndiffseg.methods.ldseg.parts import ImageEncoder, LabelDecoder, NearestImage
from nndiffseg.nn.denoiser import Denoiser
from nndiffseg.nn.layers import conv


@dataclass(frozen=True)
class OffsetCosine(Schedule):
    """The published cosine schedule: alpha^2 = f(t) / f(0), f(t) = cos^2(pi / 2 (t + s) / (1 + s)).

    Nichol and Dhariwal, arXiv 2102.09672, eq. 17. They also clip beta, because alpha(1) = 0; no formula here divides by
    alpha.

    Attributes:
        offset: s.
    """

    offset: float = 0.008

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle(1 - t)) / math.cos(self._angle(self.offset))  # exactly 0 at t = 1

    def sigma(self, t: Tensor) -> Tensor:
        # cos^2(b) - cos^2(a) = sin(a - b) sin(a + b), without cancellation near t = 0
        square = torch.sin(self._angle(t)) * torch.sin(self._angle(t + 2 * self.offset))
        return square.clamp_min(0).sqrt() / math.cos(self._angle(self.offset))

    def _angle(self, t):
        return 0.5 * math.pi * t / (1 + self.offset)


class LDSegOutput(NamedTuple):
    """One training pass.

    Attributes:
        logits: of the decoded denoised latent ``(B, heads, *patch)``.
        noise: that was added ``(B, C_z, *latent)``.
        estimate: of that noise ``(B, C_z, *latent)``.
        latent: the true one ``(B, C_z, *latent)``.
        x0: the estimate of it ``(B, C_z, *latent)``.
        recycled: items whose own prediction was noised instead of the true latent, bool ``(B,)``; in two-step training
            also those that see no noise, which no other loss reaches.
    """

    logits: Tensor
    noise: Tensor
    estimate: Tensor
    latent: Tensor
    x0: Tensor
    recycled: Tensor


class LDSeg(nn.Module):
    """Implements :class:`nndiffseg.nn.sample_network.SampleNetwork`.

    The denoiser's raw output F gives both estimates without a division by alpha: ``x0 = alpha z - sigma F`` and
    ``eps = sigma z + alpha F`` (Salimans & Ho, arXiv 2202.00512, appendix D). They obey ``z = alpha x0 + sigma eps``
    at every t, t = 1 included, where no x0 follows from a predicted noise alone.

    ``network.eval()(image)`` returns the deterministic logits ``(B, heads, *patch)``: the decoded one-step estimate at
    t = 1 with the noise at its mean, zero. In training ``network(image, onehot, generator=g)`` returns a
    :class:`LDSegOutput`.
    """

    def __init__(
        self,
        label_encoder: nn.Module,
        image_encoder: ImageEncoder | NearestImage,
        denoiser: Denoiser,
        label_decoder: LabelDecoder,
        stride: tuple[int, ...],
        latent_channels: int,
        sampler: str = "ddim",
        steps: int = 15,
    ):
        super().__init__()
        dim = len(stride)
        self.label_encoder, self.image_encoder = label_encoder, image_encoder
        self.denoiser, self.label_decoder = denoiser, label_decoder
        # Noisy latent and image latent enter the denoiser concatenated. A convolution of a concatenation is a sum, of
        # which this is the image's part, computed once for all samples and steps.
        width = denoiser.stem.out_channels
        self.to_denoiser = conv(dim, image_encoder.channels, int(width), bias=False)  # type: ignore[arg-type]
        self.schedule, self.latent_channels = denoiser.schedule, latent_channels
        self.stride, self.map_strides = stride, ((1,) * dim, stride)
        self.halo = label_decoder.halo
        self.default_sampler, self.default_steps = sampler, steps

    # ---- training -------------------------------------------------------------------------------------------------

    def forward(
        self,
        image: Tensor,
        onehot: Tensor | None = None,
        *,
        deterministic_share: float = 0.0,
        recycling: float = 0.0,
        decoded: str = "x0",
        end_to_end: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor | LDSegOutput:
        """Logits, or one training pass.

        Args:
            image: ``(B, C_in, *patch)``.
            onehot: true label ``(B, heads, *patch)``; switches to training.
            deterministic_share: share of the items that see what the deterministic answer sees: t = 1 and no noise.
            recycling: share of the items whose own prediction is noised instead of the true latent.
            decoded: ``x0`` or ``difference``, see :class:`~nndiffseg.methods.ldseg.method.LDSegOptions`.
            end_to_end: False decodes the true latent and noises it without its gradient.
            generator: source of all noise, times and choices.
        """
        if onehot is None:
            return self.encode(image)[0]
        condition = self.to_denoiser(self.image_encoder(image))
        z0 = self.label_encoder(onehot)
        t, noise = training_times(len(z0), generator).to(z0), normal_like(z0, generator)
        recycled, quiet = (_items(z0, share, generator) for share in (recycling, deterministic_share))
        t = torch.where(quiet, 1.0, t)
        noise = noise * ~_per_item(quiet, z0)
        source = z0 if end_to_end else z0.detach()
        if recycling > 0:
            own = self._own_prediction(z0.detach(), condition.detach(), generator)
            source = torch.where(_per_item(recycled, z0), own, source)
        z = add_noise(self.schedule, source, noise, t)
        x0 = self._denoise(z, t, condition)
        estimate = self.noise_estimate(z, x0, t)
        if not end_to_end:
            return LDSegOutput(self.label_decoder(z0), noise, estimate, z0, x0, recycled | quiet)
        return LDSegOutput(self.label_decoder(x0 if decoded == "x0" else z - estimate), noise, estimate, z0, x0, recycled)

    @torch.no_grad()
    def _own_prediction(self, z0: Tensor, condition: Tensor, generator: torch.Generator | None) -> Tensor:
        """x0 as a sampler first sees it, from noise alone: nothing of the true latent leaks into it."""
        return self._denoise(normal_like(z0, generator), z0.new_ones(len(z0)), condition)

    def noise_estimate(self, z: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """eps = (z - alpha x0) / sigma for z, x0 ``(B, C_z, *latent)`` and t ``(B,)`` above 0."""
        t = _per_item(t, z)
        return (z - self.schedule.alpha(t) * x0) / self.schedule.sigma(t)

    def _denoise(self, z: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """z_t ``(N, C_z, *grid)``, t ``(N,)``, condition of 1 or N images -> x0 ``(N, C_z, *grid)``."""
        return self.denoiser(z, t, condition, prior=torch.zeros_like(z))

    # ---- prediction -----------------------------------------------------------------------------------------------

    def encode(self, image: Tensor) -> list[Tensor]:
        """image ``(B, C_in, *patch)`` -> deterministic logits, image latent."""
        latent = self.image_encoder(image)
        z = latent.new_zeros(len(latent), self.latent_channels, *latent.shape[2:], dtype=torch.float32)
        x0 = self._denoise(z, z.new_ones(len(z)), self.to_denoiser(latent))
        return [self.label_decoder(x0), latent]

    def sample(
        self, maps: list[Tensor], noise: NoiseSource, *, sampler: str | Sampler | None = None, steps: int | None = None
    ) -> Tensor:
        """maps of one volume -> latents ``(N, C_z, *grid)``. Stream 0 starts; step i of a stochastic sampler has 1 + i."""
        condition = self.to_denoiser(maps[1])
        return sampler_of(sampler or self.default_sampler)(
            lambda z, t, _: self._denoise(z, t, condition),
            noise(0, self.latent_channels),
            timesteps(steps or self.default_steps),
            schedule=self.schedule,
            step_noise=lambda i, z: noise(1 + i, self.latent_channels),
        )

    def decode(self, latent: Tensor, maps: list[Tensor]) -> Tensor:
        """latents ``(N, C_z, *slab)`` -> logits ``(N, heads, *slab * stride)``; there are no skips to read from maps."""
        return self.label_decoder(latent)


def _per_item(values: Tensor, like: Tensor) -> Tensor:  # (B,) -> (B, 1, *1)
    return values.view(-1, *[1] * (like.ndim - 1))


def _items(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Chooses a share of the items of a batch at random, bool ``(B,)``."""
    return (uniform(len(x), generator) < share).to(x.device)
