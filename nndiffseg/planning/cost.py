"""What the networks cost, in closed form: floating-point operations and feature-map sizes of their convolutions.

A convolution costs ``2 * prod(kernel) * C_in * C_out * cells`` operations (a multiplication and an addition per tap),
``cells`` counting output cells. Norms, activations and the time embedding are left out: a few per cent. The layer
structure mirrored here is that of :mod:`nndiffseg.nn` and :mod:`nndiffseg.methods.latent`; a test compares both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nndiffseg.methods.settings import DiffusionSettings

#: residual blocks of the denoiser before and after the coarser levels, and at the deepest level
DENOISER_BLOCKS = (1, 3)
CONVS_PER_BLOCK = 2
#: a training step decodes the true latent and two samples
TRAINING_DECODES = 3
TRAINING_DENOISES = 2
#: Tensors kept for the backward pass per element of a convolution's output, relative to the image network: the channel
#: norms of the light networks keep their inputs and outputs, where nnU-Net's activations work in place. The label
#: decoder has none at full resolution; its figure holds the losses of what it decodes.
LIGHT_MEMORY, DECODER_MEMORY = 2.0, 1.1
#: Operations of a convolution that take as long as moving one of its outputs through memory, with the norm and activation
#: behind it. Measured (docs/lab/speed.md): counted in operations alone, full resolution looks several times too cheap.
OPERATIONS_PER_ELEMENT = 300.0


@dataclass(frozen=True)
class Cost:
    """Of one patch. ``flops`` count operations, ``elements`` the outputs of all convolutions (nnU-Net's measure)."""

    flops: float = 0.0
    elements: float = 0.0

    @property
    def time(self) -> float:
        """Proportional to seconds: operations, and the traffic of the outputs counted as operations."""
        return self.flops + OPERATIONS_PER_ELEMENT * self.elements

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.elements + other.elements)

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.flops * factor, self.elements * factor)

    __rmul__ = __mul__


def conv(c_in: int, c_out: int, kernel: Sequence[int], cells: Sequence[int]) -> Cost:
    """One convolution with output grid ``cells``."""
    n = float(np.prod(cells))
    return Cost(2.0 * float(np.prod(kernel)) * c_in * c_out * n, c_out * n)


def stage_grids(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Grid of each stage; ``strides[0]`` is that of the first stage (all ones), as in the plans."""
    grids, grid = [], tuple(int(n) for n in patch)
    for stride in strides:
        grid = tuple(-(-n // int(s)) for n, s in zip(grid, stride, strict=True))
        grids.append(grid)
    return grids


def image_network(arch_kwargs: Mapping[str, Any], input_channels: int, heads: int, patch: Sequence[int]) -> Cost:
    """One forward pass of a planned ``ResidualEncoderUNet``, without deep supervision."""
    strides, features, kernels = arch_kwargs["strides"], arch_kwargs["features_per_stage"], arch_kwargs["kernel_sizes"]
    grids = stage_grids(patch, strides)
    one = (1,) * len(grids[0])
    total = conv(input_channels, features[0], kernels[0], grids[0])  # stem
    previous = features[0]
    for grid, width, kernel, blocks in zip(grids, features, kernels, arch_kwargs["n_blocks_per_stage"], strict=True):
        total += conv(previous, width, kernel, grid) + (2 * blocks - 1) * conv(width, width, kernel, grid)
        if previous != width:
            total += conv(previous, width, one, grid)  # projection of the first block's shortcut
        previous = width
    for i, convs in enumerate(arch_kwargs["n_conv_per_stage_decoder"]):  # deepest first
        s = len(grids) - 2 - i
        below, stride = grids[s + 1], strides[s + 1]
        up = conv(features[s + 1], features[s], stride, below)  # transposed: every input cell makes a block
        total += Cost(up.flops, up.elements * float(np.prod(stride)))
        total += conv(2 * features[s], features[s], kernels[s], grids[s])
        total += (convs - 1) * conv(features[s], features[s], kernels[s], grids[s])
    return total + conv(features[0], heads, one, grids[0])


def projections(features: Sequence[int], settings: DiffusionSettings, grids: Sequence[Sequence[int]]) -> Cost:
    """The convolutions from image features and prior to the denoiser's condition and the decoder's guides, once per tile."""
    one, three = (1,) * len(grids[0]), (3,) * len(grids[0])
    depth = settings.latent_stage
    total = conv(features[depth], settings.denoiser_channels[0], one, grids[depth])
    total += conv(settings.latent_channels, settings.denoiser_channels[0], three, grids[depth])
    for s, width in enumerate(settings.decoder_channels):
        total += conv(features[s], width, one, grids[s])
    return total


def denoiser(settings: DiffusionSettings, grid: Sequence[int]) -> Cost:
    """One evaluation of the denoiser for one sample; ``grid`` is the latent grid."""
    dim = len(grid)
    three, one, widths = (3,) * dim, (1,) * dim, settings.denoiser_channels
    xi = len(settings.noise_scales) * settings.noise_channels
    total = conv(settings.latent_channels + xi, widths[0], three, grid) + conv(widths[0], settings.latent_channels, three, grid)
    cells = tuple(grid)
    for i, width in enumerate(widths):
        deepest = i == len(widths) - 1
        blocks = DENOISER_BLOCKS[1] if deepest else 2 * DENOISER_BLOCKS[0]
        total += CONVS_PER_BLOCK * blocks * conv(width, width, three, cells)
        if not deepest:
            stride = settings.denoiser_strides[i]
            cells = tuple(-(-n // s) for n, s in zip(cells, stride, strict=True))
            total += conv(width, widths[i + 1], stride, cells) + conv(widths[i + 1], width, one, cells)
    return total


def label_decoder(settings: DiffusionSettings, heads: int, grids: Sequence[Sequence[int]]) -> Cost:
    """Decoding one sample; ``grids`` are those of the image network's stages."""
    dim, widths = len(grids[0]), settings.decoder_channels
    three, one = (3,) * dim, (1,) * dim
    total = conv(settings.latent_channels, widths[-1], three, grids[settings.latent_stage])
    for s, width in enumerate(widths[1:], start=1):
        total += conv(width, width, three, grids[s])
        if s + 1 < len(widths):
            total += conv(widths[s + 1], width, one, grids[s + 1])
    # The transposed convolution makes every voxel of full resolution from the one cell above it.
    return total + conv(widths[1], widths[0], one, grids[0]) + conv(widths[0], heads, one, grids[0])


def label_encoder(settings: DiffusionSettings, heads: int, patch: Sequence[int], strides: Sequence[Sequence[int]]) -> Cost:
    """Encoding one label (in training), or the deterministic answer once per tile.

    ``strides`` as in the plans, with the leading stage of ones.
    """
    grids = stage_grids(patch, strides)
    total, previous = Cost(), heads
    for s, width in enumerate(settings.encoder_channels, start=1):
        total += conv(previous, width, strides[s], grids[s])
        total += CONVS_PER_BLOCK * conv(width, width, (3,) * len(grids[0]), grids[s])
        previous = width
    return total + conv(previous, settings.latent_channels, (1,) * len(grids[0]), grids[settings.latent_stage])


def sample(settings: DiffusionSettings, heads: int, grids: Sequence[Sequence[int]]) -> Cost:
    """One sample: ``settings.steps`` evaluations of the denoiser and one decode."""
    return settings.steps * denoiser(settings, grids[settings.latent_stage]) + label_decoder(settings, heads, grids)


def training_overhead(settings: DiffusionSettings, arch_kwargs: Mapping[str, Any], heads: int, patch: Sequence[int]) -> float:
    """Memory that all networks but the image network add to a training pass of one patch, in its elements."""
    grids = stage_grids(patch, arch_kwargs["strides"])
    light = (
        label_encoder(settings, heads, patch, arch_kwargs["strides"])
        + projections(arch_kwargs["features_per_stage"], settings, grids)
        + TRAINING_DENOISES * denoiser(settings, grids[settings.latent_stage])
    )
    decoded = TRAINING_DECODES * label_decoder(settings, heads, grids)
    return LIGHT_MEMORY * light.elements + DECODER_MEMORY * decoded.elements
