"""The interface that the predictor requires of every method's network."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from nndiffseg.diffusion.noise.source import NoiseSource
from nndiffseg.diffusion.samplers import Sampler


class SampleNetwork(Protocol):
    """A network that turns an image and noise into segmentations.

    ``encode`` is the heavy part and runs once per tile. Its outputs ("maps") are blended over tiles into whole-volume
    maps. ``sample`` runs on the whole noise grid, ``decode`` slab by slab.

    Attributes:
        stride: voxels per cell of the noise grid, along each axis.
        map_strides: stride of each map that ``encode`` returns; the first map is the deterministic logits at stride 1.
        halo: cells of the noise grid that ``decode`` must see on each side so that a slab equals the whole.
        default_sampler, default_steps: defaults of ``sample``.
    """

    stride: tuple[int, ...]
    map_strides: tuple[tuple[int, ...], ...]
    halo: int
    default_sampler: str
    default_steps: int

    def encode(self, image: Tensor) -> list[Tensor]:
        """image ``(B, C_in, *patch)`` -> maps ``(B, C_i, *patch / map_strides[i])``."""
        ...

    def sample(
        self, maps: list[Tensor], noise: NoiseSource, *, sampler: str | Sampler | None = None, steps: int | None = None
    ) -> Tensor:
        """maps ``(1 or N, C_i, *grid_i)`` -> latents ``(N, C_z, *grid)``; ``noise`` fixes N and all randomness."""
        ...

    def decode(self, latent: Tensor, maps: list[Tensor]) -> Tensor:
        """latents ``(N, C_z, *slab)`` and maps ``(1 or N, C_i, *slab_i)`` -> logits ``(N, heads, *slab * stride)``."""
        ...
