"""Label encoder: one-hot label -> whitened latent z0 on the latent grid. Used in training only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from nndiffseg.nn.layers import ChannelNorm, ResidualBlock, conv
from nndiffseg.nn.whitening import RunningWhitening


class LabelEncoder(nn.Module):
    """Cuts the label into blocks stage by stage; sees neighbouring blocks, unlike the PCA that ranks the candidates."""

    def __init__(self, dim: int, heads: int, strides: Sequence[Sequence[int]], channels: Sequence[int], latent_channels: int):
        """``strides[s]`` leads from stage s to stage s + 1, ``channels[s]`` are those of stage s + 1."""
        super().__init__()
        stages: list[nn.Module] = []
        previous = heads
        for stride, width in zip(strides, channels, strict=True):
            stages.append(nn.Sequential(conv(dim, previous, width, stride, stride), ResidualBlock(dim, width)))
            previous = width
        self.stages = nn.ModuleList(stages)
        self.norm = ChannelNorm(previous)
        self.head = conv(dim, previous, latent_channels, 1)
        self.whiten = RunningWhitening(latent_channels)

    def forward(self, onehot: Tensor, update: bool = True) -> Tensor:  # (B, heads, *patch) -> (B, C_z, *latent)
        """``update=False`` leaves the statistics of the whitening alone: predictions must not shift them."""
        h = onehot * 2 - 1
        for stage in self.stages:
            h = stage(h)
        return self.whiten(self.head(F.silu(self.norm(h))), update)
