"""LDSeg's method object: its options, networks and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from nndiffseg.data.schema import CONFIG, Count, Share, Switch, Weight
from nndiffseg.methods.ldseg.latent import ldseg_latent
from nndiffseg.methods.ldseg.network import LDSeg, OffsetCosine
from nndiffseg.methods.ldseg.parts import ImageEncoder, LabelDecoder, NearestImage, NearestLabel, PublishedEncoder
from nndiffseg.methods.protocol import Batch, Losses, SegmentationLoss
from nndiffseg.methods.published import PublishedMethod, PublishedOptions
from nndiffseg.nn.annotated import item_means
from nndiffseg.nn.denoiser import Denoiser
from nndiffseg.nn.label_encoder import LabelEncoder

#: residual blocks of the denoiser at each level before and after the coarser levels, and at the deepest level
DENOISER_BLOCKS = (2, 2)
#: most channels of the label decoder; the published one has 64
MAX_CHANNELS = 64


@dataclass(frozen=True, config=CONFIG)
class LDSegOptions(PublishedOptions):
    """Options of LDSeg.

    Attributes:
        latent: ``planned``, or ``paper`` for the published one.
        image_encoder: ``planned``, nnU-Net's encoder, or ``paper`` for the published one.
        decoded: in training: the estimate of the latent, ``x0``, or as published the ``difference`` of z_t and the noise's.
        end_to_end: False for two-step training: encoder and decoder of the label learn from each other alone, and the
            denoiser and the image encoder in their latent, which their losses do not change.
        learned_label_encoder, learned_image_encoder: False for nearest-neighbour down-sampling in its place (table V).
        dice_weight: weight of Dice, relative to the cross-entropy's 1.
        noise_weight: weight of the noise's squared error.
        deterministic_share: share of the items that train the deterministic answer.
        recycling: share of the items that noise the network's own prediction; 0 as published.
        latent_weight: weight of those items' squared error of x0.
        steps: of the sampler.
    """

    paper: ClassVar[Mapping[str, Any]] = {
        "latent": "paper",
        "image_encoder": "paper",
        "decoded": "difference",
        "deterministic_share": 0.0,
        "recycling": 0.0,
        "weight_decay": 0.0,
        "gradient_clipping": False,
    }

    latent: Literal["planned", "paper"] = "planned"
    image_encoder: Literal["planned", "paper"] = "planned"
    decoded: Literal["x0", "difference"] = "x0"
    end_to_end: Switch = True
    learned_label_encoder: Switch = True
    learned_image_encoder: Switch = True
    dice_weight: Weight = 2.0
    noise_weight: Weight = 1.0
    deterministic_share: Share = 0.25
    recycling: Share = 0.5
    latent_weight: Weight = 1.0
    steps: Count = 15


class LDSegMethod(PublishedMethod):
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
            published = options.image_encoder == "paper"
            encoder = PublishedEncoder(dim, plan.input_channels, down) if published else plan.unet().encoder
            strides = down if published else plan.strides
            image_encoder = ImageEncoder(dim, encoder, strides, sizes.stage, sizes.image_channels, plan.patch)
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
            decoded=options.decoded,
            end_to_end=options.end_to_end,
            generator=batch.generator("noise"),
        )
        cells = batch.weights(out.latent.shape[2:])
        noise = item_means((out.estimate - out.noise).square(), cells) * ~out.recycled
        latent = item_means((out.x0 - out.latent.detach()).square(), cells) * out.recycled
        return {
            "segmentation": self.segmentation.full(out.logits.float(), batch.targets[0]),
            "noise": options.noise_weight * noise.mean(),
            "latent": options.latent_weight * latent.mean(),
        }
