"""The noise of some samples of a whole volume, as prediction draws it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nndiffseg.diffusion.noise.field import NoiseField, draw_samples


class VolumeNoise:
    """Implements :class:`nndiffseg.diffusion.noise.source.NoiseSource`.

    Args:
        seed, case_id: of the run and of the case.
        samples: global indices of the N samples.
        grid: cells of the noise grid; its first cell is the origin of the coordinates.
        flip: mirrored axes: a mirrored image sees mirrored noise, since noise belongs to the place, not to the pass.
        device: where the noise is wanted.
        cache: keeps what was drawn, for the slices of a volume, which share their noise; None for no cache.
    """

    def __init__(
        self,
        seed: int,
        case_id: str,
        samples: Sequence[int],
        grid: Sequence[int],
        *,
        flip: Sequence[int] = (),
        device: torch.device | str = "cpu",
        cache: dict[tuple, Tensor] | None = None,
    ):
        self.fields = [NoiseField(seed, case_id, n) for n in samples]
        self.samples, self.grid, self.flip = tuple(samples), tuple(grid), tuple(flip)
        self.device, self.cache = device, cache

    def __call__(self, stream: int, channels: int, scale: int = 1) -> Tensor:
        key = (self.samples, stream, channels, scale)
        if self.cache is not None and key in self.cache:
            return self.cache[key]
        noise = draw_samples(self.fields, stream, channels, self.grid, scale=scale, device=self.device)
        noise = noise.flip([a + 2 for a in self.flip])
        if self.cache is not None:
            self.cache[key] = noise
        return noise

    def vector(self, stream: int, channels: int) -> Tensor:
        return torch.stack([f.vector(stream, channels, self.device) for f in self.fields])
