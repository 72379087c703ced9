"""MedSegDiff-V2 (arXiv 2301.11798): a condition model on the image and a diffusion model on the noisy label map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiffseg.diffusion.items import uniform
from nndiffseg.diffusion.schedules import Linear, add_noise, normal_like, training_times
from nndiffseg.methods.label_space import LabelSpaceNetwork
from nndiffseg.methods.medsegdiff.ss_former import HEAD_CHANNELS, SSFormer
from nndiffseg.methods.medsegdiff.uncertain_attention import UncertainSpatialAttention, attend, pool
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.image_network import ImageNetwork, ImageOutput
from nndiffseg.nn.layers import ChannelNorm, ResidualBlock, TimeEmbedding, conv, upsample, zero

#: levels of the diffusion encoder that see the anchor
ANCHOR_LEVELS = 2
SS_FORMER_BLOCKS = 2
EMBEDDING = 64
#: probabilities are kept this far from 0 and 1
EPSILON = 1e-3


class Condition(NamedTuple):
    """What the diffusion model knows of an image.

    Attributes:
        anchor: per level ``(B, maps, *patch / stride)``: attention in (0, 1), or without U-SA features to add.
        semantic: deepest embedding of the condition model ``(B, C, *patch / deepest stride)``.
    """

    anchor: list[Tensor]
    semantic: Tensor


class Parts(NamedTuple):
    """Forms of U-SA and SS-Former.

    Attributes:
        smoothing: the anchor is smoothed; False is plain spatial attention.
        own_levels: each level's anchor is the condition decoder's feature of that level, not the last one pooled.
        one_map: U-SA has one map, not one for each head.
        detached: no gradient flows into the condition model through the anchor.
        figure_roles: the SS-Former's roles are those of the published figure.
        band_pass: the SS-Former has its filter.
        spatial: the SS-Former's values stay in space.
    """

    smoothing: bool = True
    own_levels: bool = False
    one_map: bool = False
    detached: bool = False
    figure_roles: bool = False
    band_pass: bool = True
    spatial: bool = False


class TrainingOutput(NamedTuple):
    """One training pass.

    Attributes:
        logits: of the condition model, full resolution first ``(B, heads, *patch / stride_s)``.
        x0: the true label map in [-1, 1] ``(B, heads, *patch)``.
        estimate: its estimate from x_t, float32, same shape.
    """

    logits: list[Tensor]
    x0: Tensor
    estimate: Tensor


class DiffusionModel(nn.Module):
    """A time-conditioned U-Net on x_t whose encoder is anchored and whose deepest embedding meets the condition model's.

    Args:
        dim: number of spatial axes.
        heads: channels of x.
        channels: of each level, full resolution first; the deepest a multiple of ``HEAD_CHANNELS``.
        strides: ``strides[i]`` leads from level i to i + 1.
        use_attention: the anchor multiplies (U-SA); otherwise it is added.
        use_ss_former: embeddings meet in the SS-Former; otherwise they are added.
        parts: forms of the SS-Former.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        use_attention: bool,
        use_ss_former: bool,
        parts: Parts = Parts(),  # noqa: B008 - a tuple of switches
    ):
        super().__init__()
        self.strides, self.use_attention = [tuple(s) for s in strides], use_attention
        self.embed = TimeEmbedding(EMBEDDING)
        self.stem = conv(dim, heads, channels[0])
        self.down = nn.ModuleList(ResidualBlock(dim, c, EMBEDDING) for c in channels)
        self.pool = nn.ModuleList(conv(dim, channels[i], channels[i + 1], s, s) for i, s in enumerate(strides))
        forms = {"figure_roles": parts.figure_roles, "band_pass": parts.band_pass, "spatial": parts.spatial}
        self.ss_former = SSFormer(dim, channels[-1], EMBEDDING, SS_FORMER_BLOCKS, **forms) if use_ss_former else None
        self.middle = ResidualBlock(dim, channels[-1], EMBEDDING)
        self.merge = nn.ModuleList(conv(dim, channels[i + 1], channels[i], 1) for i in range(len(strides)))
        self.up = nn.ModuleList(ResidualBlock(dim, c, EMBEDDING) for c in channels[:-1])
        self.norm = ChannelNorm(channels[0])
        self.head = zero(conv(dim, channels[0], heads))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x_t ``(N, heads, *patch)``, t ``(N,)``, condition of 1 or N images -> v ``(N, heads, *patch)`` float32."""
        embedding = self.embed(t)
        h = self.stem(x)
        skips = []
        for i, level in enumerate(self.down):
            h = level(h, embedding)
            if i < len(condition.anchor):
                h = attend(h, condition.anchor[i]) if self.use_attention else h + condition.anchor[i]
            if i < len(self.pool):
                skips.append(h)
                h = self.pool[i](h)
        if self.ss_former is not None:
            h = self.ss_former(condition.semantic, h, embedding).to(h.dtype)
        else:
            h = h + condition.semantic
        h = self.middle(h, embedding)
        for i in range(len(self.up) - 1, -1, -1):
            h = self.up[i](upsample(self.merge[i](h), self.strides[i]) + skips[i], embedding)
        return self.head(F.silu(self.norm(h))).float()


class MedSegDiff(LabelSpaceNetwork):
    """Condition model (nnU-Net's planned U-Net) and diffusion model; v-prediction on DDPM's linear schedule.

    ``network.eval()(image)`` returns the condition model's logits ``(B, heads, *patch)``. In training
    ``network(image, onehot, generator=g)`` returns a :class:`TrainingOutput`.
    """

    def __init__(
        self,
        unet: nn.Module,
        strides: Sequence[Sequence[int]],
        channels: Sequence[int],
        heads: Heads,
        patch: Sequence[int],
        *,
        uncertain_attention: bool = True,
        ss_former: bool = True,
        parts: Parts = Parts(),  # noqa: B008 - a tuple of switches
        sampler: str = "dpmpp_2m",
        steps: int = 20,
    ):
        """``strides[s]`` leads from stage s to s + 1 of ``unet``; ``channels`` of the diffusion model per stage."""
        super().__init__(heads, patch, Linear(), sampler, steps)
        dim, features = len(self.patch), ImageNetwork(unet).channels
        levels = [(1,) * dim]
        for s in list(strides)[: min(ANCHOR_LEVELS, len(strides)) - 1]:
            levels.append(tuple(int(a) * int(b) for a, b in zip(levels[-1], s, strict=True)))
        self.condition_model = ImageNetwork(unet)
        self.parts, maps = parts, 1 if parts.one_map else heads.number
        widths = features[: len(levels)] if parts.own_levels else [features[0]] * len(levels)
        self.anchor_strides = [(1,) * dim] * len(levels) if parts.own_levels else levels
        self.attention = (
            UncertainSpatialAttention(dim, widths, maps, self.anchor_strides, parts.smoothing) if uncertain_attention else None
        )
        self.to_anchor = (
            None if uncertain_attention else nn.ModuleList(conv(dim, w, c, 1) for w, c in zip(widths, channels, strict=False))
        )
        self.to_semantic = conv(dim, features[-1], channels[-1], 1)
        self.diffusion_model = DiffusionModel(dim, heads.number, channels, strides, uncertain_attention, ss_former, parts)

    # ---- training -------------------------------------------------------------------------------------------------

    def forward(
        self,
        image: Tensor,
        onehot: Tensor | None = None,
        *,
        deep_supervision: bool = False,
        recycling: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor | list[Tensor] | TrainingOutput:
        """image ``(B, C_in, *patch)``; onehot ``(B, heads, *patch)`` of the true label switches to training.

        ``recycling`` is the share of the items that noise the network's own prediction instead of the true label.
        """
        out = self.condition_model(image, deep_supervision)
        if onehot is None:
            return out.logits if deep_supervision else out.logits[0]
        x0 = 2 * onehot - 1
        t = training_times(len(x0), generator).to(x0)
        noise = normal_like(x0, generator)
        condition, source = self._condition(out), x0
        if recycling > 0:
            recycled = (uniform(len(x0), generator) < recycling).to(x0.device)
            own = self._own_prediction(normal_like(x0, generator), condition)
            source = torch.where(recycled.view(-1, *[1] * (x0.ndim - 1)), own, x0)
        estimate = self._estimate(add_noise(self.schedule, source, noise, t), t, condition)
        return TrainingOutput(out.logits, x0, estimate)

    @torch.no_grad()
    def _own_prediction(self, noise: Tensor, condition: Condition) -> Tensor:
        """x0 as a sampler first sees it, from noise alone (recycling, MELBA 2023:016)."""
        return self.denoise(noise, noise.new_ones(len(noise)), condition)

    def _condition(self, out: ImageOutput) -> Condition:
        levels, semantic = len(self.anchor_strides), self.to_semantic(out.features[-1])
        features = out.features[: levels if self.parts.own_levels else 1]
        if self.parts.detached:
            features = [feature.detach() for feature in features]
        if self.attention is not None:
            return Condition(self.attention(*features), semantic)
        assert self.to_anchor is not None
        features = features if self.parts.own_levels else features * levels
        anchors = zip(self.to_anchor, features, self.anchor_strides, strict=True)
        return Condition([pool(project(feature), s) for project, feature, s in anchors], semantic)

    def _estimate(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x0 = alpha x_t - sigma v (Salimans & Ho 2022, arXiv 2202.00512, appendix D); defined at alpha = 0 too."""
        v = self.diffusion_model(x, t, condition)
        view = (-1, *[1] * (x.ndim - 1))
        return self.schedule.alpha(t).view(view) * x.float() - self.schedule.sigma(t).view(view) * v

    # ---- LabelSpaceNetwork ----------------------------------------------------------------------------------------

    def deterministic(self, image: Tensor) -> Tensor:
        return self.condition_model(image).logits[0]

    def condition(self, image: Tensor) -> Condition:
        return self._condition(self.condition_model(image))

    def denoise(self, x: Tensor, t: Tensor, condition: Condition, vector: Tensor | None = None) -> Tensor:
        return self._estimate(x, t, condition).clamp(-1, 1)

    def to_logits(self, x0: Tensor) -> Tensor:
        """log p, for regions logit p, of the probability p = (x0 + 1) / 2 that the estimate of a +-1 variable means."""
        p = ((x0.float() + 1) / 2).clamp(EPSILON, 1 - EPSILON)
        return self.heads.logits(p)


def diffusion_channels(features: Sequence[int]) -> list[int]:
    """Half the condition model's features, at least 16: the diffusion model runs once per sample and step."""
    return [max(HEAD_CHANNELS, math.ceil(f / 2 / HEAD_CHANNELS) * HEAD_CHANNELS) for f in features]
