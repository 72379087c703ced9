"""Building blocks of the light networks: everything here acts alike on a tile and on a whole volume.

Normalisation is over channels at each voxel, never over space, so that a network's output at a voxel depends on its
receptive field alone and not on the extent of the grid it was run on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(
    dim: int, c_in: int, c_out: int, kernel: int | Sequence[int] = 3, stride: int | Sequence[int] = 1, *, bias: bool = True
) -> nn.Module:
    """Convolution of ``dim`` axes; odd kernels keep the size, ``kernel == stride`` cuts into blocks."""
    kernel = (kernel,) * dim if isinstance(kernel, int) else tuple(kernel)
    stride = (stride,) * dim if isinstance(stride, int) else tuple(stride)
    padding = tuple(0 if k == s else k // 2 for k, s in zip(kernel, stride, strict=True))
    return (nn.Conv2d if dim == 2 else nn.Conv3d)(c_in, c_out, kernel, stride, padding, bias=bias)  # type: ignore[arg-type]


def transposed(dim: int, c_in: int, c_out: int, stride: Sequence[int]) -> nn.Module:
    """Transposed convolution that turns every cell into a block of ``stride`` voxels; blocks do not overlap."""
    stride = tuple(stride)
    return (nn.ConvTranspose2d if dim == 2 else nn.ConvTranspose3d)(c_in, c_out, stride, stride)  # type: ignore[arg-type]


def zero(module: nn.Module) -> nn.Module:
    """Sets all parameters to zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ChannelNorm(nn.Module):
    """Root-mean-square normalisation over channels at each voxel (RMSNorm, arXiv 1910.07467, eq. 4)."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (B, C, *spatial)
        wide = x.float() if x.dtype == torch.float16 else x  # squares beyond 256 overflow in float16
        scale = torch.rsqrt(wide.square().mean(1, keepdim=True, dtype=torch.float32) + self.eps).to(x.dtype)
        return x * scale * self.weight.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))


class ResidualBlock(nn.Module):
    """``x + conv(act(film(norm(conv(act(norm(x)))))))``; the time embedding scales and shifts each channel (FiLM)."""

    def __init__(self, dim: int, channels: int, embedding: int | None = None):
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1, self.conv2 = conv(dim, channels, channels), zero(conv(dim, channels, channels))
        self.film = zero(nn.Linear(embedding, 2 * channels)) if embedding else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:  # (B, C, *spatial), (B, E)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None and embedding is not None:
            scale, shift = self.film(embedding).view(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, 1)
            h = h * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class TimeEmbedding(nn.Module):
    """Sinusoidal features of t in [0, 1] (Vaswani et al. 2017) through a two-layer perceptron."""

    frequencies: Tensor

    def __init__(self, channels: int, frequencies: int = 16):
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.linspace(-1, 6, frequencies), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, t: Tensor) -> Tensor:  # (B,) -> (B, E)
        angles = t.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], 1))


def upsample(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Nearest-neighbour up-sampling by whole factors: ``(B, C, *spatial)`` -> ``(B, C, *spatial * stride)``."""
    if all(s == 1 for s in stride):
        return x
    if x.device.type == "cpu" and not torch.is_grad_enabled():  # twice as fast there; its gradient would be slower
        for axis, s in reversed(list(enumerate(stride, start=2))):
            x = x.repeat_interleave(s, axis) if s > 1 else x
        return x
    # Sizes rather than factors: exact for any integer stride, whatever rounding a backend applies to factors.
    return F.interpolate(x, size=[n * s for n, s in zip(x.shape[2:], stride, strict=True)], mode="nearest")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``weight x + bias`` at every voxel: x ``(N, C, V)``, weight ``(K, C)``, bias ``(K,)`` -> ``(N, K, V)``.

    A 1^d convolution as one matrix product, which spares oneDNN's change of memory layout (docs/lab/speed.md).
    """
    weight = weight.to(x.dtype).expand(len(x), -1, -1)
    return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias.to(x.dtype).view(1, -1, 1), weight, x)


def pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """A 1^d convolution computed by :func:`product`: x ``(N, C, *spatial)`` -> ``(N, K, *spatial)``."""
    weight, bias = conv.get_parameter("weight").flatten(1), conv.get_parameter("bias")
    return product(x.flatten(2), weight, bias).unflatten(2, x.shape[2:])


def add_shared(x: Tensor, shared: Tensor) -> Tensor:
    """Adds what items share: x ``(N, C, *spatial)``, shared ``(G, C, *spatial)``; item i gets ``shared[i mod G]``.

    Overwrites x where no gradient is recorded, which spares a pass through memory.
    """
    x = x.unflatten(0, (-1, len(shared)))
    return (x + shared if torch.is_grad_enabled() else x.add_(shared)).flatten(0, 1)


def split_blocks(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Cuts into blocks of ``stride`` voxels: ``(B, C, *grid * stride)`` -> ``(B, voxels of a block, C, *grid)``."""
    dim = len(stride)
    grid = [n // s for n, s in zip(x.shape[2:], stride, strict=True)]
    pairs = [v for pair in zip(grid, stride, strict=True) for v in pair]
    axes = [0, *range(3, 3 + 2 * dim, 2), 1, *range(2, 2 + 2 * dim, 2)]
    return x.reshape(*x.shape[:2], *pairs).permute(axes).reshape(len(x), math.prod(stride), x.shape[1], *grid)


def join_blocks(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Inverse of :func:`split_blocks`."""
    dim, grid = len(stride), x.shape[3:]
    axes = [0, dim + 1, *(v for i in range(dim) for v in (dim + 2 + i, 1 + i))]
    size = [n * s for n, s in zip(grid, stride, strict=True)]
    return x.view(len(x), *stride, *x.shape[2:]).permute(axes).reshape(len(x), x.shape[2], *size)


def crop_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Drops trailing cells that padding to a multiple of the stride added."""
    window = (slice(None), slice(None), *(slice(0, n) for n in shape))
    return x[window]


def pad_to_multiple(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Replicates trailing cells until every spatial axis is a multiple of ``stride``."""
    missing = [(-n) % s for n, s in zip(x.shape[2:], stride, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [p for m in reversed(missing) for p in (0, m)], mode="replicate")
