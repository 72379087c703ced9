"""Where the randomness of samples comes from, in training as in prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from nndiffseg.diffusion.noise.field import NoiseField, draw_samples

#: patches of a training lie anywhere in this many cells along each axis
ORIGINS = 2**16


class NoiseSource(Protocol):
    """The noise of N samples: a pure function of (seed, case, sample, stream, channel, global grid coordinate).

    The same call gives the same noise, whatever was drawn before. ``stream`` numbers the draws of a sampling run.
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


class FieldNoise:
    """The :class:`NoiseSource` of prediction and training: a window of one noise field per sample.

    Args:
        fields: of the N samples.
        grid: cells of the window.
        origin: global coordinate of the window's first cell, by default 0 along each axis.
        flip: mirrored axes: a mirrored image sees mirrored noise, since noise belongs to the place, not to the pass.
        device: where the noise is wanted.
        cache: keeps what was drawn, for windows that share it; None for no cache.
    """

    def __init__(
        self,
        fields: Sequence[NoiseField],
        grid: Sequence[int],
        *,
        origin: Sequence[int] | None = None,
        flip: Sequence[int] = (),
        device: torch.device | str = "cpu",
        cache: dict[tuple, Tensor] | None = None,
    ):
        self.fields, self.grid, self.origin = list(fields), tuple(grid), origin
        self.flip, self.device, self.cache = tuple(flip), device, cache

    def __call__(self, stream: int, channels: int, scale: int = 1) -> Tensor:
        key = (tuple(f.name for f in self.fields), stream, channels, scale)
        if self.cache is not None and key in self.cache:
            return self.cache[key]
        noise = draw_samples(self.fields, stream, channels, self.grid, self.origin, scale, self.device)
        noise = noise.flip([a + 2 for a in self.flip])
        if self.cache is not None:
            self.cache[key] = noise
        return noise

    def vector(self, stream: int, channels: int) -> Tensor:
        return torch.stack([f.vector(stream, channels, self.device) for f in self.fields])


def patch_noise(
    seed: int, items: int | range, samples: Sequence[int], grid: Sequence[int], device: torch.device | str = "cpu"
) -> FieldNoise:
    """Noise for some samples of each patch of a batch, sample by sample: sample 0 of all items, then sample 1, ...

    A patch is a random window of a volume, so its window of the noise field lies at a random place as well, the same one for
    all items: nodes of correlated noise must not sit at fixed places in a patch.

    Args:
        seed: of this step.
        items: B patches, or the indices of those that are wanted.
        samples: indices of the M samples.
        grid: cells of the noise grid of a patch.
        device: where the noise is wanted.

    Returns:
        A source of N = M * B samples.
    """
    items = range(items) if isinstance(items, int) else items
    fields = [NoiseField(seed, f"patch {item}", sample) for sample in samples for item in items]
    origin = torch.randint(ORIGINS, (len(grid),), generator=torch.Generator().manual_seed(seed)).tolist()
    return FieldNoise(fields, grid, origin=origin, device=device)
