"""Where all randomness of a sampling run comes from."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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
