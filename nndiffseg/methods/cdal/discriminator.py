"""cDAL's discriminator: tells real pairs (x_{t-1}, x_t) from generated ones, and where it looks.

Hejrati et al., MICCAI 2024, arXiv 2502.06997; its form follows DDGAN (arXiv 2112.07804).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiffseg.nn.layers import TimeEmbedding, conv


class _DownBlock(nn.Module):
    """Residual block that ends with a down-sampling; the time enters between its two convolutions."""

    def __init__(self, dim: int, c_in: int, c_out: int, kernel: Sequence[int], stride: Sequence[int], embedding: int):
        super().__init__()
        self.conv1, self.conv2 = conv(dim, c_in, c_out, kernel), conv(dim, c_out, c_out, kernel)
        self.time = nn.Linear(embedding, c_out)
        self.shortcut = conv(dim, c_in, c_out, 1)
        self.stride = tuple(stride)
        self.pool = F.avg_pool2d if dim == 2 else F.avg_pool3d

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # (B, C_in, *n), (B, E) -> (B, C_out, *n / stride)
        h = self.conv1(_act(x)) + self.time(embedding).view(len(x), -1, *[1] * (x.ndim - 2))
        h = (self.conv2(_act(h)) + self.shortcut(x)) / 2**0.5
        return self.pool(h, self.stride) if any(s > 1 for s in self.stride) else h


class Discriminator(nn.Module):
    """D(x_s, x_t, t), a logit that is positive for real pairs.

    No normalisation: R1 needs the gradient of one item to depend on that item alone, and DDGAN's has none either. Its
    statistic over the mini-batch is left out for the same reason. The last features are summed over the patch, as in
    DDGAN: with their mean each voxel's share of the gradient, and with it R1, would vanish.
    """

    def __init__(
        self,
        heads: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        embedding: int = 64,
    ):
        """``channels[i]`` at level i, ``strides[i]`` from level i to i + 1, ``kernels[i]`` of level i."""
        super().__init__()
        dim = len(kernels[0])
        self.embed = TimeEmbedding(embedding)
        self.stem = conv(dim, 2 * heads, channels[0], 1)
        self.down = nn.ModuleList(
            _DownBlock(dim, channels[i], channels[i + 1], kernels[i], s, embedding) for i, s in enumerate(strides)
        )
        self.head = nn.Linear(channels[-1], 1)

    def forward(self, x_s: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_s, x_t ``(B, heads, *patch)``, t ``(B,)`` -> logits ``(B,)``."""
        embedding = self.embed(t)
        h = self.stem(torch.cat([x_s, x_t], 1))
        for block in self.down:
            h = block(h, embedding)
        return self.head(_act(h).flatten(2).sum(2))[:, 0]

    @torch.no_grad()
    def attention(self, x_s: Tensor, x_t: Tensor, t: Tensor, block: int = 1, raw: bool = False) -> Tensor:
        """Where the discriminator looks: ``(B, 1, *patch)`` in (0, 1], with maximum 1 in every item.

        Channel mean of the features after ``block`` blocks, or after all where there are fewer, up-sampled (arXiv
        2502.06997, section 2). A sigmoid of the mean, standardised over the patch, makes weights of it whatever the scale of
        the features. ``raw`` returns the mean itself, any number, as the released code does.
        """
        features, embedding = self.stem(torch.cat([x_s, x_t], 1)), self.embed(t)
        for down in self.down[:block]:
            features = down(features, embedding)
        m = features.float().mean(1, keepdim=True)
        mode = "bilinear" if m.ndim == 4 else "trilinear"
        if raw:
            return F.interpolate(m, x_s.shape[2:], mode=mode)
        axes = tuple(range(2, m.ndim))
        m = (m - m.mean(axes, keepdim=True)) / (m.std(axes, keepdim=True) + 1e-5)
        weight = torch.sigmoid(F.interpolate(m, x_s.shape[2:], mode=mode))
        return weight / weight.amax(axes, keepdim=True)


def _act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-D(real)) + softplus(D(fake)), mean over the batch (DDGAN, section 3.2); logits ``(B,)``."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def r1_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """Mean over the batch of |dD/dx|^2, without its factor gamma / 2 (Mescheder et al., arXiv 1801.04406, eq. 9).

    Args:
        logits: ``(B,)``, each a function of the item of ``x`` with its index alone.
        x: real input ``(B, C, *spatial)`` that requires a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
