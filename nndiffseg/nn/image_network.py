"""nnU-Net's planned U-Net, run so that the features of every decoder stage can be used."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class ImageOutput(NamedTuple):
    """What one pass over an image gives.

    Attributes:
        logits: deterministic logits per stage, full resolution first ``(B, heads, *patch / stride_s)``; only the
            first entry without deep supervision.
        features: features of stage s at index s ``(B, C_s, *patch / stride_s)``, the bottleneck last.
    """

    logits: list[Tensor]
    features: list[Tensor]


class ImageNetwork(nn.Module):
    """Wraps a ``PlainConvUNet`` or ``ResidualEncoderUNet`` of dynamic_network_architectures.

    The weights keep the U-Net's own names below ``unet.``, so a plain nnU-Net checkpoint can be read into it.
    """

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    @property
    def channels(self) -> list[int]:
        """Feature channels of each stage, full resolution first."""
        return list(self.unet.encoder.output_channels)  # type: ignore[union-attr, arg-type]

    def forward(self, image: Tensor, deep_supervision: bool = False) -> ImageOutput:  # (B, C_in, *patch)
        decoder = self.unet.decoder
        skips = self.unet.encoder(image)  # type: ignore[operator]
        x, features, logits = skips[-1], [skips[-1]], []
        stages = list(zip(decoder.transpconvs, decoder.stages, decoder.seg_layers, skips[-2::-1], strict=True))  # type: ignore[union-attr, arg-type]
        for i, (up, stage, head, skip) in enumerate(stages):
            x = stage(torch.cat((up(x), skip), 1))
            features.append(x)
            if deep_supervision or i == len(stages) - 1:
                logits.append(head(x))
        return ImageOutput(logits[::-1], features[::-1])
