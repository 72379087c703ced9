"""Coherent noise: a pure function of (seed, case, sample, stream, channel, global coordinate).

A random generator that is advanced cell by cell would give a voxel other noise as soon as the tiling, the batch or the
order of the cases changes. Here every cell hashes its own coordinate instead (a counter-based generator, Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3"), so any window of a draw equals the same window of a larger draw.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from nndiffseg.diffusion.noise.interpolation import Scale, interpolate_nodes, node_shape, per_axis


def _signed(value: int) -> int:
    """A 64-bit pattern as torch's signed int64."""
    return value - (1 << 64) if value >= 1 << 63 else value


# Constants of splitmix64 (Steele, Lea & Flood 2014): the increment and the two multipliers of its finaliser.
_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts signed numbers arithmetically


def _finalise(x: Tensor) -> Tensor:
    """splitmix64's finaliser, a bijection of 64-bit words with full avalanche; int64 products wrap in torch."""
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 31)


def _hash_grid(keys: Sequence[int], shape: Sequence[int], origin: Sequence[int], device: torch.device) -> Tensor:
    """One 64-bit word per key and cell, int64 ``(keys, *shape)``. Axis by axis: only the last axis costs a hash per cell."""
    words = torch.tensor([_signed(key) for key in keys], device=device)
    for size, first in zip(shape, origin, strict=True):
        coordinate = torch.arange(first, first + size, device=device)
        words = _finalise(words[..., None] + (coordinate + 1) * _GAMMA)
    return words


def _normal_pair(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals per word (Box & Muller 1958), float32 like ``words``."""
    angle = (words & 0xFFFFFFFF).float().mul_(2 * math.pi / 2**32)
    # The half keeps the uniform number above 0; rounding may make it 1, whose logarithm gives radius 0.
    uniform = _shift_right(words, 32).float().add_(0.5).mul_(2.0**-32)
    radius = uniform.log_().mul_(-2).clamp_(min=0).sqrt_()
    return radius * angle.cos(), radius * angle.sin()


class NoiseField:
    """All the noise of one sample of one case.

    Args:
        seed: the user's seed.
        case_id: the case's name; with the seed and the sample it makes the noise of this sample unique.
        sample: index of the sample, from 0.
    """

    def __init__(self, seed: int, case_id: str, sample: int):
        self.name = f"{seed}/{case_id}/{sample}"
        self.case, self.sample = f"{seed}/{case_id}", sample

    def _key(self, stream: int, channel_pair: int, scale: int | str) -> int:
        text = f"{self.name}/{stream}/{channel_pair}/{scale}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def draw(
        self,
        stream: int,
        channels: int,
        shape: Sequence[int],
        origin: Sequence[int] | None = None,
        scale: Scale = 1,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """:func:`draw_samples` of this sample alone: ``(channels, *shape)``."""
        return draw_samples([self], stream, channels, shape, origin, scale, device)[0]

    def vector(self, stream: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers ``(channels,)`` that belong to the whole volume; independent of every :meth:`draw`."""
        # The numbers lie along an axis: one key for all, where channels would need one for every two. No draw has scale 0.
        words = _hash_grid([self._key(stream, 0, 0)], ((channels + 1) // 2,), (0,), torch.device(device))
        return torch.stack(_normal_pair(words[0]), 1).flatten()[:channels]

    def spread_vector(self, stream: int, channels: int) -> Tensor:
        """As :meth:`vector`, but the samples of a case are spread evenly over the distribution instead of independent.

        Randomised quasi-Monte Carlo: sample n is point n of Roberts' additive recurrence (2018, "The unreasonable effectiveness
        of quasirandom sequences"), rotated by a random shift of the case (Cranley & Patterson 1976). Each sample alone is
        exactly standard normal, whatever their number is.
        """
        root = 2.0
        for _ in range(64):  # the fixed point of x = (1 + x)^(1 / (channels + 1)), the generalised golden ratio
            root = (1 + root) ** (1 / (channels + 1))
        values = []
        for c in range(channels):
            word = hashlib.blake2b(f"{self.case}/shift/{stream}/{c}".encode(), digest_size=6).digest()
            u = (int.from_bytes(word, "little") / 2**48 + (self.sample + 1) * root ** -(c + 1)) % 1.0
            values.append(NormalDist().inv_cdf(min(max(u, 1e-9), 1 - 1e-9)))
        return torch.tensor(values)


def draw_samples(
    fields: Sequence[NoiseField],
    stream: int,
    channels: int,
    shape: Sequence[int],
    origin: Sequence[int] | None = None,
    scale: Scale = 1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise of a window of the grid, for several samples at once.

    Args:
        fields: one for each sample.
        stream: number of the draw within one sampling run.
        channels: channels 0 .. channels - 1 of the stream.
        shape: cells of the window along each axis.
        origin: global coordinate of the window's first cell, by default 0 along each axis.
        scale: 1 for independent cells, otherwise the distance of the independent nodes between which the noise
            is interpolated (:func:`nndiffseg.diffusion.noise.interpolation.interpolate_nodes`), of all axes or of each.
        device: where to draw. The hash is exact everywhere; logarithm and cosine may differ in the last bit.

    Returns:
        ``(len(fields), channels, *shape)`` float32.
    """
    origin = tuple(origin or (0,) * len(shape))
    device, scales = torch.device(device), per_axis(scale, len(shape))
    name = scales[0] if len(set(scales)) == 1 else "x".join(map(str, scales))  # part of the key
    if max(scales) == 1:
        return _cells(fields, stream, channels, shape, origin, name, device)
    first = [o // s for o, s in zip(origin, scales, strict=True)]
    nodes = _cells(fields, stream, channels, node_shape(shape, scales, origin), first, name, device)
    return interpolate_nodes(nodes, shape, scales, origin)


def _cells(
    fields: Sequence[NoiseField],
    stream: int,
    channels: int,
    shape: Sequence[int],
    origin: Sequence[int],
    scale: int | str,
    device: torch.device,
) -> Tensor:
    pairs = (channels + 1) // 2  # channels 2p and 2p + 1 share a word
    keys = [field._key(stream, pair, scale) for field in fields for pair in range(pairs)]
    normals = torch.stack(_normal_pair(_hash_grid(keys, shape, origin, device)), 1)  # (fields * pairs, 2, *shape)
    return normals.view(len(fields), 2 * pairs, *shape)[:, :channels].contiguous()
