"""Shared by the label-space methods, which diffuse the label map itself at the image's resolution."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nndiffseg.diffusion.noise.source import NoiseSource
from nndiffseg.diffusion.samplers import Sampler, sampler_of
from nndiffseg.diffusion.schedules import Schedule, timesteps
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.tiling import blending_weights, tile_starts

#: largest step between the tiles of one denoising step, as a fraction of the patch
TILE_STEP = 0.5
#: bytes for the conditions of a volume's tiles; what does not fit is computed again in every step
CONDITION_BYTES = 2**30

Window = tuple[slice, ...]


class LabelSpaceNetwork(nn.Module, ABC):
    """Implements :class:`nndiffseg.nn.sample_network.SampleNetwork` for a network that denoises patches.

    ``x`` is a label map with one channel per head in [-1, 1], +1 where the head's label is. In every step each tile of
    the volume is denoised and the estimates of x0 are blended before the sampler goes on (MultiDiffusion, arXiv
    2302.08113, eq. 5), so that all tiles of a sample stay one volume. ``encode`` passes the image on, because what the
    networks compute from it at full resolution is larger than the image.

    Attributes:
        vector_channels: length of the random vector that the network asks for in every step, 0 for none.
        condition_bytes: memory for the conditions of a volume's tiles while it is sampled.
    """

    halo = 0
    vector_channels = 0
    condition_bytes = CONDITION_BYTES

    def __init__(self, heads: Heads, patch: Sequence[int], schedule: Schedule, sampler: str, steps: int):
        super().__init__()
        self.heads, self.patch, self.schedule = heads, tuple(int(n) for n in patch), schedule
        self.default_sampler, self.default_steps = sampler, steps
        ones = (1,) * len(self.patch)
        self.stride, self.map_strides = ones, (ones, ones)

    # ---- what a method adds ---------------------------------------------------------------------------------------

    @abstractmethod
    def deterministic(self, image: Tensor) -> Tensor:
        """image ``(B, C_in, *patch)`` -> logits ``(B, heads, *patch)`` without any randomness."""

    @abstractmethod
    def condition(self, image: Tensor) -> Any:
        """What ``denoise`` needs to know of the image ``(B, C_in, *patch)``; computed once per tile."""

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, condition: Any, vector: Tensor | None) -> Tensor:
        """x_t ``(N, heads, *patch)``, t ``(N,)``, condition of 1 or N images, ``(N, vector_channels)`` -> x0."""

    @abstractmethod
    def to_logits(self, x0: Tensor) -> Tensor:
        """x0 ``(N, heads, *spatial)`` -> logits of the same shape."""

    # ---- SampleNetwork --------------------------------------------------------------------------------------------

    def encode(self, image: Tensor) -> list[Tensor]:
        """image ``(B, C_in, *patch)`` -> deterministic logits, image."""
        return [self.deterministic(image), image]

    def sample(
        self, maps: list[Tensor], noise: NoiseSource, *, sampler: str | Sampler | None = None, steps: int | None = None
    ) -> Tensor:
        """maps of one volume -> x0 ``(N, heads, *volume)``.

        Streams: 0 the starting noise, then for step i the network's vector (1 + 2 i) and the sampler's noise (2 + 2 i).
        """
        conditions = _Conditions(self.condition, maps[1], self.condition_bytes)

        def denoise(x: Tensor, t: Tensor, step: int) -> Tensor:
            vector = noise.vector(1 + 2 * step, self.vector_channels) if self.vector_channels else None
            return self._denoise_tiled(x, t, conditions, vector)

        return sampler_of(sampler or self.default_sampler)(
            denoise,
            noise(0, self.heads.number),
            timesteps(steps or self.default_steps),
            schedule=self.schedule,
            step_noise=lambda i, x: noise(2 + 2 * i, self.heads.number),
        )

    def _denoise_tiled(self, x: Tensor, t: Tensor, condition_of: Callable[[Window], Any], vector: Tensor | None) -> Tensor:
        frame = tuple(x.shape[2:])
        starts = [tile_starts(n, p, TILE_STEP, 1) for n, p in zip(frame, self.patch, strict=True)]
        weights = [blending_weights(n, p, s) for n, p, s in zip(frame, self.patch, starts, strict=True)]
        x0 = torch.zeros(x.shape, device=x.device)
        for tile in itertools.product(*(range(len(s)) for s in starts)):
            window = (
                slice(None),
                slice(None),
                *(slice(s[i], s[i] + p) for s, i, p in zip(starts, tile, self.patch, strict=True)),
            )
            weight = torch.ones((), device=x.device)
            for w, i in zip(weights, tile, strict=True):
                weight = weight[..., None] * torch.as_tensor(w[i], dtype=torch.float32, device=x.device)
            x0[window] += weight * self.denoise(x[window], t, condition_of(window), vector).float()
        return x0

    def decode(self, latent: Tensor, maps: list[Tensor]) -> Tensor:
        """x0 ``(N, heads, *slab)`` -> logits of the same shape."""
        return self.to_logits(latent)


class _Conditions:
    """The conditions of an image's tiles: they depend on the image alone, so all samples and steps share them.

    Args:
        compute: image ``(B, C_in, *patch)`` -> condition.
        image: ``(B, C_in, *volume)``.
        budget: bytes that may be kept.
    """

    def __init__(self, compute: Callable[[Tensor], Any], image: Tensor, budget: int):
        self.compute, self.image, self.left = compute, image, budget
        self.kept: dict[tuple[int, ...], Any] = {}

    def __call__(self, window: Window) -> Any:
        corner = tuple(s.start for s in window[2:])
        if corner in self.kept:
            return self.kept[corner]
        condition = self.compute(self.image[window])
        if (size := _bytes(condition)) <= self.left:
            self.kept[corner] = condition
            self.left -= size
        return condition


def _bytes(condition: Any) -> int:
    """Memory that a tensor, or all tensors in lists and tuples, keep alive."""
    if isinstance(condition, Tensor):
        return condition.untyped_storage().nbytes()
    return sum(_bytes(part) for part in condition)
