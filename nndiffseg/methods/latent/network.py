"""The composed model: image network, label encoder, denoiser and label decoder in one module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nndiffseg.diffusion.items import ItemGenerator, uniform
from nndiffseg.diffusion.noise.source import NoiseSource, patch_noise
from nndiffseg.diffusion.samplers import Sampler, sampler_of
from nndiffseg.diffusion.schedules import Cosine, add_noise, normal_like, timesteps
from nndiffseg.methods.latent.label_decoder import LabelDecoder
from nndiffseg.methods.settings import DiffusionSettings
from nndiffseg.nn.denoiser import Denoiser
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.image_network import ImageNetwork
from nndiffseg.nn.label_encoder import LabelEncoder
from nndiffseg.nn.layers import ChannelNorm, conv, pointwise


class TrainingOutput(NamedTuple):
    """One training pass; M = 2 samples.

    Attributes:
        logits: deterministic logits, full resolution first, ``(B, heads, *patch / stride_s)`` each.
        reconstruction: logits decoded from the (jittered) true latent ``(B, heads, *patch)``.
        z0: true latent, detached ``(B, C_z, *latent)``.
        prior: latent of the deterministic segmentation, detached, of the same shape.
        x0: denoised latents ``(M, B, C_z, *latent)``.
        samples: logits decoded from ``x0`` ``(M, B, heads, *patch)``.
        pure: which items were denoised from pure noise, t = 1, bool ``(B,)``.
    """

    logits: list[Tensor]
    reconstruction: Tensor
    z0: Tensor
    prior: Tensor
    x0: Tensor
    samples: Tensor
    pure: Tensor


class LatentDiffusionSegmenter(nn.Module):
    """Implements :class:`nndiffseg.nn.sample_network.SampleNetwork`.

    ``network.eval()(image)`` returns the deterministic logits ``(B, heads, *patch)``, so nnU-Net's own predictor runs
    on it. In training ``network(image, onehot, generator=g)`` returns a :class:`TrainingOutput`; everything that
    trains goes through ``forward`` because DistributedDataParallel exposes nothing else.
    """

    def __init__(
        self,
        unet: nn.Module,
        strides: Sequence[Sequence[int]],
        heads: Heads,
        settings: DiffusionSettings,
        *,
        frozen: bool = False,
    ):
        """``strides[s]`` leads from stage s to stage s + 1 of the image network, up to the latent stage at least.

        With ``frozen`` the image network is never trained.
        """
        super().__init__()
        self.settings, self.heads, self.frozen = settings, heads, frozen
        self.schedule = Cosine()
        depth = settings.latent_stage
        to_latent = [tuple(int(v) for v in s) for s in strides[:depth]]
        dim = len(to_latent[0])
        self.stride = tuple(int(v) for v in settings.latent_stride)
        cumulative = [tuple([1] * dim)]
        for s in to_latent:
            cumulative.append(tuple(a * b for a, b in zip(cumulative[-1], s, strict=True)))
        if cumulative[-1] != self.stride:
            raise ValueError(f"latent_stride {self.stride} is not the image network's stride {cumulative[-1]}")
        #: logits, condition of the denoiser, latent of the deterministic segmentation, one guide per decoder stage
        self.map_strides = (cumulative[0], cumulative[-1], cumulative[-1], *cumulative)

        xi_channels = len(settings.noise_scales) * settings.noise_channels
        self.image_network = ImageNetwork(unet).requires_grad_(not frozen)
        self.label_encoder = LabelEncoder(dim, heads.number, to_latent, settings.encoder_channels, settings.latent_channels)
        self.denoiser = Denoiser(
            dim,
            settings.latent_channels,
            xi_channels,
            settings.denoiser_channels,
            settings.denoiser_strides,
            self.schedule,
        )
        self.label_decoder = LabelDecoder(dim, heads.number, to_latent, settings.decoder_channels, settings.latent_channels)
        features = self.image_network.channels
        self.to_condition = conv(dim, features[depth], settings.denoiser_channels[0], 1)
        self.prior_to_condition = conv(dim, settings.latent_channels, settings.denoiser_channels[0])
        self.to_guides = nn.ModuleList(conv(dim, features[s], c, 1) for s, c in enumerate(settings.decoder_channels))
        # Features of a clear edge are large. Unbounded they would outweigh the latent in the decoder's pointwise finest
        # stage, and samples could not move a boundary that the image shows well (docs/lab/volumes.md).
        self.guide_norm = ChannelNorm(settings.decoder_channels[0])
        self.halo = self.label_decoder.halo
        self.default_sampler, self.default_steps = "ancestral", settings.steps

    # ---- training -------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> LatentDiffusionSegmenter:
        """A frozen image network stays in evaluation mode: norms and dropout do what they do in a prediction."""
        super().train(mode)
        if self.frozen:
            self.image_network.eval()
        return self

    def forward(
        self,
        image: Tensor,
        onehot: Tensor | None = None,
        *,
        deep_supervision: bool = False,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> Tensor | list[Tensor] | TrainingOutput:
        """image ``(B, C_in, *patch)``; onehot ``(B, heads, *patch)`` of the true label switches to training.

        ``generator`` draws times and choices, ``seed`` is that of the samples' noise.
        """
        if onehot is None:
            logits = self.image_network(image, deep_supervision).logits
            return logits if deep_supervision else logits[0]
        out = self.image_network(image, deep_supervision)
        guides = self._guides(out.features)
        condition, prior = self._condition(out.features, out.logits[0])
        z0 = self.label_encoder(onehot)
        reconstruction = self._reconstruct(z0, guides, generator)
        z0 = z0.detach()
        x0, t = self._denoise_training(z0, condition, prior, generator, seed)
        samples = self.decode(x0.flatten(0, 1), guides)
        return TrainingOutput(
            out.logits,
            reconstruction,
            z0,
            prior,
            x0,
            samples.unflatten(0, x0.shape[:2]),
            t == 1,
        )

    def _reconstruct(self, z0: Tensor, guides: list[Tensor], generator: torch.Generator | None) -> Tensor:
        """Decodes the true latent, jittered, without its guides half of the time: the latent must carry the label."""
        view = (-1, *[1] * (z0.ndim - 1))
        keep = (uniform(len(z0), generator) < 0.5).to(z0).view(view)
        jitter = uniform(len(z0), generator).to(z0).view(view) * 0.3
        z = z0 + jitter * normal_like(z0, generator)
        return self.decode(z, [g * keep.to(g.dtype) for g in guides])

    def _denoise_training(
        self, z0: Tensor, condition: Tensor, prior: Tensor, generator: torch.Generator | None, seed: int
    ) -> tuple[Tensor, Tensor]:
        """z0 ``(B, C_z, *latent)`` -> denoised ``(2, B, C_z, *latent)`` at random times, and these times ``(B,)``."""
        batch, settings = len(z0), self.settings
        items = generator.part.items if isinstance(generator, ItemGenerator) else range(batch)
        noise = patch_noise(seed, items, range(2), z0.shape[2:], z0.device)
        t = uniform(batch, generator)
        # Pure noise half of the time: that is where sampling starts, and where all the spread has to come from.
        t = torch.where(uniform(batch, generator) < 0.5, torch.ones(()), t).to(z0)
        # Streams as in a first sampling step: 0 for z_t, which both samples share, then one for each scale of xi.
        z_t = add_noise(self.schedule, z0, noise(0, settings.latent_channels)[:batch].to(z0), t)
        condition, prior, z_t = (m.repeat(2, *[1] * (m.ndim - 1)) for m in (condition, prior, z_t))
        return self.denoiser(z_t, t.repeat(2), condition, prior, self._xi(noise, 0)).unflatten(0, (2, batch)), t

    def _xi(self, noise: NoiseSource, step: int) -> Tensor:
        """The denoiser's own noise in a step ``(N, scales * C_xi, *grid)``: a stream for each scale."""
        first, scales = 1 + step * (len(self.settings.noise_scales) + 1), self.settings.noise_scales
        return torch.cat([noise(first + i, self.settings.noise_channels, s) for i, s in enumerate(scales)], 1)

    # ---- prediction -----------------------------------------------------------------------------------------------

    def _guides(self, features: list[Tensor]) -> list[Tensor]:
        guides = [pointwise(project, f) for project, f in zip(self.to_guides, features, strict=False)]
        return [self.guide_norm(guides[0]), *guides[1:]]

    def _condition(self, features: list[Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
        """What the denoiser knows of the image: features on the latent grid, and the latent of the deterministic answer.

        Samples start from that answer and learn how the label may differ from it (compare arXiv 2210.17408). It is an
        input like the image: no gradient reaches the head or the label encoder through it.
        """
        with torch.no_grad():
            prior = self.label_encoder(self.heads.probabilities(logits.detach()), update=False)
        condition = self.to_condition(features[self.settings.latent_stage])
        return condition + self.prior_to_condition(prior), prior

    def encode(self, image: Tensor) -> list[Tensor]:
        """image ``(B, C_in, *patch)`` -> logits, condition, prior latent, guides at the strides ``map_strides``."""
        out = self.image_network(image)
        return [out.logits[0], *self._condition(out.features, out.logits[0]), *self._guides(out.features)]

    def sample(
        self, maps: list[Tensor], noise: NoiseSource, *, sampler: str | Sampler | None = None, steps: int | None = None
    ) -> Tensor:
        """maps of one volume -> latents ``(N, C_z, *grid)``; ``noise`` fixes N and all randomness."""
        channels, streams = self.settings.latent_channels, len(self.settings.noise_scales) + 1
        condition, prior = maps[1], maps[2]
        # Streams: 0 for the starting noise, then per step one for each scale of xi and one for the sampler's own noise.
        return sampler_of(sampler or self.default_sampler)(
            lambda z, t, step: self.denoiser(z, t, condition, prior, self._xi(noise, step)),
            noise(0, channels),
            timesteps(steps or self.default_steps),
            schedule=self.schedule,
            step_noise=lambda i, z: noise((i + 1) * streams, channels),
        )

    def decode(self, latent: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """latents ``(N, C_z, *slab)``; ``maps`` of G images as from :meth:`encode`, or the guides alone -> logits.

        Latent i belongs to image i mod G.
        """
        guides = list(maps)[-len(self.to_guides) :]
        return self.label_decoder(latent, guides)
