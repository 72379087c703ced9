"""The flagship: nnU-Net's planned U-Net with a latent sampler of its label on top."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nndiffseg.data.folds import split_of
from nndiffseg.methods.latent.losses import LatentLosses
from nndiffseg.methods.latent.network import LatentDiffusionSegmenter
from nndiffseg.methods.latent.source import Source
from nndiffseg.methods.protocol import Method, SegmentationLoss


class LatentDiffusion(Method):
    """Image network, label encoder, denoiser and label decoder, trained together by proper scores.

    Its denoiser returns samples of p(z0 | z_t), not means, so the ancestral sampler is the only one that it has.
    """

    name = "latent"
    head = "image_network.unet"
    chooses_sampler = True

    def network(self) -> LatentDiffusionSegmenter:
        return LatentDiffusionSegmenter(self.plan.unet(), self.plan.strides, self.plan.heads, self.plan.settings)

    def losses(self, segmentation: Callable[..., SegmentationLoss]) -> LatentLosses:
        return LatentLosses(segmentation(), self.plan.heads)


class AttachedLatentDiffusion(LatentDiffusion):
    """The same on a finished nnU-Net: its network is frozen, and all that draws samples from it is trained."""

    name = "attached"

    def network(self) -> LatentDiffusionSegmenter:
        plan = self.plan
        return LatentDiffusionSegmenter(plan.unet(), plan.strides, plan.heads, plan.settings, frozen=True)

    def losses(self, segmentation: Callable[..., SegmentationLoss]) -> LatentLosses:
        return LatentLosses(segmentation(), self.plan.heads, frozen=True)

    def check_weights(self, network: Any, fold: int | str) -> None:
        """The image network must be the finished one that the plans record for this fold."""
        source = Source.from_configuration(self.plan.configuration.configuration)
        source.check(network.image_network.unet, split_of(fold))
