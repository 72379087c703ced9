"""LDSeg's method object: its options, networks and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from nndiffseg.data.schema import CONFIG, Count, Share, Switch, Weight
from nndiffseg.methods.ldseg.latent import ldseg_latent
from nndiffseg.methods.ldseg.network import LDSeg, OffsetCosine
from nndiffseg.methods.ldseg.parts import ImageEncoder, LabelDecoder, NearestImage, NearestLabel
from nndiffseg.methods.protocol import Batch, Losses, Method, MethodOptions, SegmentationLoss
from nndiffseg.nn.denoiser import Denoiser
from nndiffseg.nn.label_encoder import LabelEncoder

#: residual blocks of the denoiser at each level before and after the coarser levels, and at the deepest level
DENOISER_BLOCKS = (2, 2)
#: most channels of the label decoder; the published one has 64
MAX_CHANNELS = 64


@dataclass(frozen=True, config=CONFIG)
class LDSegOptions(MethodOptions):
    """Options of LDSeg.

    Attributes:
        latent: ``planned``, or ``paper`` for the published one.
        learned_label_encoder, learned_image_encoder: False for nearest-neighbour down-sampling in its place (table V).
        dice_weight: weight of Dice, relative to the cross-entropy's 1.
        noise_weight: weight of the noise's squared error.
        deterministic_share: share of the items that train the deterministic answer.
        recycling: share of the items that noise the network's own prediction; 0 as published.
        latent_weight: weight of those items' squared error of x0.
        steps: of the sampler.
    """

    latent: Literal["planned", "paper"] = "planned"
    learned_label_encoder: Switch = True
    learned_image_encoder: Switch = True
    dice_weight: Weight = 2.0
    noise_weight: Weight = 1.0
    deterministic_share: Share = 0.25
    recycling: Share = 0.5
    latent_weight: Weight = 1.0
    steps: Count = 15


class LDSegMethod(Method):
    """Label encoder, image encoder, denoiser and label decoder; see :mod:`nndiffseg.trainers.nnDiffSegTrainerLDSeg`."""

    name = "ldseg"
    options_class = LDSegOptions
    samplers = ("ddim", "ancestral", "dpmpp_2m")
    steps_while_training = 5

    def network(self) -> LDSeg:
        plan, options = self.plan, self.options
        sizes = ldseg_latent(plan, options.latent)
        widths = [min(MAX_CHANNELS, c) for c in plan.features[: sizes.stage + 1]]
        dim, heads, down = len(sizes.stride), plan.heads.number, plan.strides[: sizes.stage]
        channels = sizes.channels if options.learned_label_encoder else heads
        label_encoder: nn.Module = NearestLabel(sizes.stride)
        if options.learned_label_encoder:
            label_encoder = LabelEncoder(dim, heads, down, sizes.encoder_channels, channels)
        image_encoder: ImageEncoder | NearestImage = NearestImage(sizes.stride, plan.input_channels)
        if options.learned_image_encoder:
            encoder = plan.unet().encoder
            assert isinstance(encoder, nn.Module)
            image_encoder = ImageEncoder(dim, encoder, plan.strides, sizes.stage, sizes.image_channels, plan.patch)
        denoiser = Denoiser(
            dim, channels, 0, sizes.denoiser_channels, sizes.denoiser_strides, OffsetCosine(), blocks=DENOISER_BLOCKS
        )
        decoder = LabelDecoder(dim, channels, heads, down, widths)
        return LDSeg(label_encoder, image_encoder, denoiser, decoder, sizes.stride, channels, self.samplers[0], options.steps)

    def losses(self, segmentation: Callable[..., SegmentationLoss]) -> LDSegLosses:
        return LDSegLosses(segmentation(dice=self.options.dice_weight), self.options)


class LDSegLosses(Losses):
    """CE and Dice on the decoded denoised latent, and the squared error of the noise; of x0 for recycled items."""

    def __init__(self, segmentation: SegmentationLoss, options: LDSegOptions):
        super().__init__()
        self.segmentation, self.options = segmentation, options

    def forward(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        options = self.options
        out = network(
            batch.image,
            batch.onehot,
            deterministic_share=options.deterministic_share,
            recycling=options.recycling,
            generator=batch.generator("noise"),
        )
        noise = (out.estimate - out.noise).square().flatten(1).mean(1) * ~out.recycled
        latent = (out.x0 - out.latent.detach()).square().flatten(1).mean(1) * out.recycled
        return {
            "segmentation": self.segmentation.full(out.logits.float(), batch.targets[0]),
            "noise": options.noise_weight * noise.mean(),
            "latent": options.latent_weight * latent.mean(),
        }
