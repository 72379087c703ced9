"""MedSegDiff-V2's method object: its options, networks and losses."""

from __future__ import annotations

from collections.abc import Callable

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from nndiffseg.data.schema import CONFIG, Count, Share, Switch, Weight
from nndiffseg.methods.medsegdiff.network import MedSegDiff, diffusion_channels
from nndiffseg.methods.protocol import Batch, Losses, Method, MethodOptions, SegmentationLoss


@dataclass(frozen=True, config=CONFIG)
class MedSegDiffOptions(MethodOptions):
    """Options of MedSegDiff-V2.

    Attributes:
        uncertain_attention: False for the ablation that adds the anchor to the diffusion encoder's features.
        ss_former: False for the ablation that adds the deepest embeddings.
        ce_weight: weight of the cross-entropy in the anchor loss, relative to nnU-Net's.
        recycling: share of the items that noise the network's own prediction; 0 as published.
        steps: of the sampler.
    """

    uncertain_attention: Switch = True
    ss_former: Switch = True
    ce_weight: Weight = 1.0
    recycling: Share = 0.0
    steps: Count = 20


class MedSegDiffV2(Method):
    """Condition and diffusion model; see :mod:`nndiffseg.trainers.nnDiffSegTrainerMedSegDiffV2`."""

    name = "medsegdiff"
    head = "condition_model.unet"
    options_class = MedSegDiffOptions
    samplers = ("dpmpp_2m", "ddim", "ancestral")
    steps_while_training = 5

    def network(self) -> MedSegDiff:
        plan, options = self.plan, self.options
        return MedSegDiff(
            plan.unet(),
            plan.strides,
            diffusion_channels(plan.features),
            plan.heads,
            plan.patch,
            uncertain_attention=options.uncertain_attention,
            ss_former=options.ss_former,
            sampler=self.samplers[0],
            steps=options.steps,
        )

    def losses(self, segmentation: Callable[..., SegmentationLoss]) -> MedSegDiffLosses:
        return MedSegDiffLosses(segmentation(ce=self.options.ce_weight), self.options.recycling)


class MedSegDiffLosses(Losses):
    """The anchor loss of the condition model, and the squared error of x0."""

    def __init__(self, segmentation: SegmentationLoss, recycling: float):
        super().__init__()
        self.segmentation, self.recycling = segmentation, recycling

    def forward(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        out = network(
            batch.image,
            batch.onehot,
            deep_supervision=True,
            recycling=self.recycling,
            generator=batch.generator("noise"),
        )
        return {
            "anchor": self.segmentation.deep([logits.float() for logits in out.logits], batch.targets),
            "denoising": (out.estimate - out.x0).square().mean(),
        }
