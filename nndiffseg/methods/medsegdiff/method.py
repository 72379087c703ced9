"""MedSegDiff-V2's method object: its options, networks and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from nndiffseg.data.schema import CONFIG, Count, Share, Switch, Weight
from nndiffseg.methods.medsegdiff.network import MedSegDiff, Parts, diffusion_channels
from nndiffseg.methods.protocol import Batch, Losses, SegmentationLoss
from nndiffseg.methods.published import PublishedMethod, PublishedOptions
from nndiffseg.nn.annotated import mean


@dataclass(frozen=True, config=CONFIG)
class MedSegDiffOptions(PublishedOptions):
    """Options of MedSegDiff-V2.

    Attributes:
        uncertain_attention: False for the ablation that adds the anchor to the diffusion encoder's features.
        smoothing: False for the ablation of U-SA to plain spatial attention.
        anchor_levels: the second level's anchor is the ``last`` decoded feature, pooled, or the decoder's ``own`` feature.
        anchor_maps: U-SA has a map for each of the ``heads``, or ``one``.
        anchor_detached: the denoising loss does not train the condition model through the anchor.
        ss_former: False for the ablation that adds the deepest embeddings.
        ss_former_roles: who asks whom: ``planned``, or as in the published ``figure``.
        ss_former_values: in the ``spectrum``, or as published in ``space``.
        band_pass: False for the ablation of the SS-Former's filter.
        ce_weight: weight of the cross-entropy in the anchor loss, relative to nnU-Net's.
        recycling: share of the items that noise the network's own prediction; 0 as published.
        steps: of the sampler.
    """

    paper: ClassVar[Mapping[str, Any]] = {
        "anchor_levels": "own",
        "anchor_maps": "one",
        "anchor_detached": True,
        "ss_former_roles": "figure",
        "ss_former_values": "space",
        "ce_weight": 10.0,
        "learning_rate": 1e-4,
        "weight_average": 0.9999,
    }

    uncertain_attention: Switch = True
    smoothing: Switch = True
    anchor_levels: Literal["last", "own"] = "last"
    anchor_maps: Literal["heads", "one"] = "heads"
    anchor_detached: Switch = False
    ss_former: Switch = True
    ss_former_roles: Literal["planned", "figure"] = "planned"
    ss_former_values: Literal["spectrum", "space"] = "spectrum"
    band_pass: Switch = True
    ce_weight: Weight = 1.0
    recycling: Share = 0.0
    steps: Count = 20


class MedSegDiffV2(PublishedMethod):
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
            parts=Parts(
                smoothing=options.smoothing,
                own_levels=options.anchor_levels == "own",
                one_map=options.anchor_maps == "one",
                detached=options.anchor_detached,
                figure_roles=options.ss_former_roles == "figure",
                band_pass=options.band_pass,
                spatial=options.ss_former_values == "space",
            ),
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
            "denoising": mean((out.estimate - out.x0).square(), batch.weights(out.x0.shape[2:])),
        }
