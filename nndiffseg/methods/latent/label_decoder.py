"""Label decoder: latent and image guides -> logits. Light, since it runs once per sample at full resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nndiffseg.nn.layers import (
    ChannelNorm,
    add_shared,
    conv,
    join_blocks,
    product,
    split_blocks,
    transposed,
    upsample,
)

#: Factor of the logits. The optimiser moves every weight at one rate, so they grow sharp that much sooner; samples that are
#: still soft have smaller volumes than their segmentations, and the scores then ask for too much spread (docs/lab/volumes.md).
GAIN = 4.0


class LabelDecoder(nn.Module):
    """Additive decoder: at each stage the guide (a narrow projection of the image features) is added.

    Addition instead of concatenation lets the guides be computed once and shared by all samples. The finest stage acts
    on single voxels, ``GAIN head(silu(block of the coarser cell + guide))``: a 3^d convolution and two norms of full
    resolution took most of the time of a sample (docs/lab/speed.md).
    """

    def __init__(self, dim: int, heads: int, strides: Sequence[Sequence[int]], channels: Sequence[int], latent_channels: int):
        """``strides[s]`` leads from stage s to stage s + 1; ``channels[s]`` are those of stage s."""
        super().__init__()
        self.strides = [tuple(s) for s in strides]
        self.stem = conv(dim, latent_channels, channels[-1])
        self.narrow = nn.ModuleList(conv(dim, channels[s + 1], channels[s], 1) for s in range(1, len(strides)))
        self.norms = nn.ModuleList(ChannelNorm(c) for c in channels[1:])
        self.convs = nn.ModuleList(conv(dim, c, c) for c in channels[1:])
        self.finest = transposed(dim, channels[1], channels[0], strides[0])
        self.head = conv(dim, channels[0], heads, 1)

    @property
    def halo(self) -> int:
        """Latent cells that influence a cell's block on each side, for strides of at least 2.

        Two 3^d convolutions on the latent grid reach 2 cells; every finer stage adds one voxel of its own grid, in
        all less than one cell more. The finest stage adds nothing.
        """
        return 1 + len(self.strides)

    def forward(self, latent: Tensor, guides: Sequence[Tensor | None]) -> Tensor:
        """Decodes.

        Args:
            latent: ``(N, C_z, *latent)``.
            guides: of stage s ``(G, C_s, *stage s)`` or None; G images have N / G samples each, item i is of image i mod G.

        Returns:
            Logits ``(N, heads, *patch)``.
        """
        h = self.stem(latent)
        for s in range(len(self.strides), 0, -1):
            if s < len(self.strides):
                h = upsample(self.narrow[s - 1](h), self.strides[s])
            if (guide := guides[s]) is not None:
                h = add_shared(h, guide)
            h = h + self.convs[s - 1](F.silu(self.norms[s - 1](h)))
        return self._finest(h, guides[0])

    def _finest(self, h: Tensor, guide: Tensor | None) -> Tensor:
        """``GAIN head(silu(finest(h) + guide))`` as matrix products. What has fewer channels is put in the order of voxels.

        The bias is added to the guide, once for all samples of an image, and without gradients the activation overwrites its
        input: at full resolution every pass through memory counts.
        """
        stride, grid = self.strides[0], h.shape[2:]
        bias = self.finest.get_parameter("bias").to(h.dtype).view(-1, *[1] * len(grid))  # (C_0, 1, ...)
        head = GAIN * self.head.get_parameter("weight").flatten(1)  # (heads, C_0)
        head_bias = GAIN * self.head.get_parameter("bias")  # (heads,)
        n, voxels, channels, heads = len(h), math.prod(stride), len(bias), len(head)
        shared = bias[None] if guide is None else guide + bias  # (G, C_0, *patch), or (1, C_0, 1, ...)
        overwrite = not torch.is_grad_enabled()
        # (C_1, C_0, *stride) -> (voxels C_0, C_1)
        weight = self.finest.get_parameter("weight").flatten(2).permute(2, 1, 0).flatten(0, 1)
        x = product(h.flatten(2), weight).view(n, voxels, channels, *grid)
        if heads < channels:
            x = F.silu(add_shared(x, shared if guide is None else split_blocks(shared, stride)), inplace=overwrite)
            logits = product(x.reshape(n * voxels, channels, -1), head, head_bias)
            return join_blocks(logits.view(n, voxels, heads, *grid), stride)
        x = join_blocks(x, stride)
        x = F.silu(add_shared(x, shared), inplace=overwrite)
        return product(x.flatten(2), head, head_bias).view(n, heads, *x.shape[2:])
