"""LDSeg's latent: the plan's, or the published one (arXiv 2407.12952)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nndiffseg.methods.protocol import MethodPlan

#: the published latent: voxels per cell along each axis, channels
PAPER_STRIDE, PAPER_CHANNELS = 16, 1
MAX_IMAGE_CHANNELS = 64
#: the published widths: label encoder below full resolution, denoiser
PAPER_ENCODER = (16, 32, 64, 64)
PAPER_DENOISER = (16, 32, 64)


@dataclass(frozen=True)
class LDSegLatent:
    """Sizes of latent, label encoder and denoiser.

    Attributes:
        stage: stage of the planned image network whose grid carries the latent.
        stride: voxels per latent cell along each axis.
        channels: of the latent.
        image_channels: of the image latent.
        encoder_channels: of the label encoder at stages ``1 .. stage``.
        denoiser_channels: at the latent grid and at every coarser level of the denoiser.
        denoiser_strides: from each denoiser level to the next.
    """

    stage: int
    stride: tuple[int, ...]
    channels: int
    image_channels: int
    encoder_channels: tuple[int, ...]
    denoiser_channels: tuple[int, ...]
    denoiser_strides: tuple[tuple[int, ...], ...]


def ldseg_latent(plan: MethodPlan, latent: str) -> LDSegLatent:
    """The ``planned`` latent, or the ``paper``'s as far as the plan carries it."""
    if latent == "paper":
        return paper_latent(plan.arguments["strides"], plan.patch)
    settings = plan.settings
    # One number in a cell of a shallow grid would not tell the denoiser what each channel of the latent should be.
    width = min(MAX_IMAGE_CHANNELS, plan.features[settings.latent_stage])
    return LDSegLatent(
        settings.latent_stage,
        settings.latent_stride,
        settings.latent_channels,
        width,
        settings.encoder_channels,
        settings.denoiser_channels,
        settings.denoiser_strides,
    )


def paper_latent(strides: Any, patch: Any) -> LDSegLatent:
    """One channel at the deepest stage of the plan that is at most 16-fold along every axis.

    nnU-Net pools an axis while at least four cells are left, so small patches and thick slices stay below 16.

    Args:
        strides: of the plan's stages, the first of them all ones ``(stages, dim)``.
        patch: voxels of the patch ``(dim,)``.
    """
    cumulative = np.cumprod(np.asarray(strides, int), axis=0)  # (stages, dim)
    stage = int(np.flatnonzero((cumulative <= PAPER_STRIDE).all(1))[-1])
    stride = tuple(int(v) for v in cumulative[stage])
    cells, levels = [int(n) // s for n, s in zip(patch, stride, strict=True)], []
    for _ in PAPER_DENOISER[1:]:
        levels.append(tuple(2 if n >= 4 else 1 for n in cells))
        cells = [-(-n // s) for n, s in zip(cells, levels[-1], strict=True)]
    widths = tuple(PAPER_ENCODER[min(s, len(PAPER_ENCODER) - 1)] for s in range(stage))
    return LDSegLatent(stage, stride, PAPER_CHANNELS, PAPER_CHANNELS, widths, PAPER_DENOISER, tuple(levels))
