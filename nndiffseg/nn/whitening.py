"""Running whitening: unit variance per latent channel, the same function in training and at test."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nndiffseg.nn.ranks import moments


class RunningWhitening(nn.Module):
    """Normalises each channel by running statistics (Batch Renormalization, Ioffe 2017, arXiv 1702.03275, Alg. 1).

    The forward value uses the running mean and deviation in both modes, so a latent does not depend on the batch or
    on the image size. Gradients in training flow as through batch statistics: otherwise the encoder could shrink the
    relative size of the noise that is added to its output simply by growing, without bound.
    """

    mean: Tensor
    var: Tensor
    updates: Tensor

    def __init__(self, channels: int, momentum: float = 0.05, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, update: bool = True) -> Tensor:  # (B, C, *spatial)
        x = x.float()
        view = (1, -1, *[1] * (x.ndim - 2))
        if not (self.training and update):
            return (x - self.mean.view(view)) * torch.rsqrt(self.var.view(view) + self.eps)
        axes = [0, *range(2, x.ndim)]
        batch_mean, batch_var = moments(x, axes)
        batch_std = torch.sqrt(batch_var + self.eps)
        with torch.no_grad():
            # Early statistics are those of a random encoder: forget them fast.
            rate = max(self.momentum, 1.0 / (int(self.updates) + 1))
            self.mean.lerp_(batch_mean, rate)
            self.var.lerp_(batch_var, rate)
            self.updates += 1
            std = torch.sqrt(self.var + self.eps)
            r, d = batch_std / std, (batch_mean - self.mean) / std  # Ioffe 2017, Alg. 1; no gradient
        return (x - batch_mean.view(view)) / batch_std.view(view) * r.view(view) + d.view(view)
