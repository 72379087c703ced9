"""What the predictor asks of a network: the one interface that all trainers share."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class NoiseSource(Protocol):
    """All randomness of one sampling run, for the N samples at hand.

    ``stream`` numbers the draws of the run, so that noise is a pure function of (seed, case, sample, stream, channel,
    global grid coordinate).
    """

    def __call__(self, stream: int, channels: int, scale: int = 1) -> Tensor:
        """Standard normal noise ``(N, channels, *grid)``.

        Independent between cells for ``scale`` 1, and linearly interpolated from independent nodes ``scale`` cells
        apart otherwise (:mod:`nndiffseg.diffusion.noise.interpolation`).
        """
        ...

    def vector(self, stream: int, channels: int) -> Tensor:
        """Standard normal numbers ``(N, channels)``, one vector for the whole volume of a sample."""
        ...


class SampleNetwork(Protocol):
    """A network that turns an image and noise into segmentations.

    ``encode`` is the heavy part and runs once per tile. Its outputs ("maps") are blended over tiles into whole-volume
    maps. ``sample`` runs on the whole noise grid, ``decode`` slab by slab.

    Attributes:
        stride: voxels per cell of the noise grid, along each axis.
        map_strides: stride of each map that ``encode`` returns; the first map is the deterministic logits at stride 1.
        halo: cells of the noise grid that ``decode`` must see on each side so that a slab equals the whole.
        fusion_weight: weight of the deterministic head in the fused probability, a buffer with one element in [0, 1].
            A network that inherits from :class:`nndiffseg.methods.fitted.FittedNumbers` has it, and calibrated volumes too.
        default_sampler, default_steps: what ``sample`` does when it is told nothing else.
    """

    stride: tuple[int, ...]
    map_strides: tuple[tuple[int, ...], ...]
    halo: int
    fusion_weight: Tensor
    default_sampler: str
    default_steps: int

    def encode(self, image: Tensor) -> list[Tensor]:
        """image ``(B, C_in, *patch)`` -> maps ``(B, C_i, *patch / map_strides[i])``."""
        ...

    def sample(self, maps: list[Tensor], draw: NoiseSource, *, sampler: str | None = None, steps: int | None = None) -> Tensor:
        """maps ``(1, C_i, *grid_i)`` of one volume -> latents ``(N, C_z, *grid)``, N as ``draw`` returns."""
        ...

    def decode(self, latent: Tensor, maps: list[Tensor]) -> Tensor:
        """latents ``(N, C_z, *slab)`` and maps ``(1, C_i, *slab_i)`` -> logits ``(N, heads, *slab * stride)``."""
        ...
