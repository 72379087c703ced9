"""Sampling options, the samples of a fold, chunks that fit the memory, and the position of a window in a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import torch
from torch import Tensor

from nndiffseg.data.memory import is_out_of_memory
from nndiffseg.diffusion.samplers import Sampler
from nndiffseg.nn.tiling import Frame

T = TypeVar("T")


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample.

    Attributes:
        samples: number of samples per case, over all folds.
        steps, sampler: of the diffusion; None for what the plans say.
        seed: equal seeds give equal results.
        step_size: largest step between tiles, as a fraction of the patch.
        mirror_axes: spatial axes of the patch along which test-time mirroring is allowed; empty for none.
        precision: see :func:`~nndiffseg.nn.precision.autocast_for`.
        memory: bytes for activations; None for the device's default.
        sums_on_device: maps and sums of a case may stay on a GPU with the network; False keeps them on the CPU.
    """

    samples: int = 16
    steps: int | None = None
    sampler: str | Sampler | None = None
    seed: int = 0
    step_size: float = 0.5
    mirror_axes: tuple[int, ...] = ()
    precision: str | None = None
    memory: int | None = None
    sums_on_device: bool = True

    def flips(self) -> list[tuple[int, ...]]:
        """All combinations of the mirrored axes, the unmirrored image first."""
        return [c for n in range(len(self.mirror_axes) + 1) for c in combinations(self.mirror_axes, n)]

    def passes(self, samples: Sequence[int], starts: int = 0) -> list[Pass]:
        """The passes of the image network for a fold's samples.

        Flip f of the F allowed ones is used by every F-th sample, so mirroring costs passes of the image network only. Without
        any samples all are used for the head's map, as nnU-Net averages it.

        With samples of the stage before, the head sees that stage's segmentation, and every one of those samples is seen by one
        more pass, each mirrored in another way, from which samples are drawn.

        Args:
            samples: global indices.
            starts: number of the stage before's samples.
        """
        every = self.flips()
        flips = every[: len(samples)] if samples else every
        if not starts:
            return [Pass(flip, 0, list(samples[f :: len(flips)]), 1 / len(flips)) for f, flip in enumerate(flips)]
        head = [Pass(flip, 0, [], 1 / len(flips)) for flip in flips]
        used = min(starts, len(samples))
        return head + [Pass(every[k % len(every)], 1 + k, list(samples[k::used]), 0.0) for k in range(used)]


@dataclass(frozen=True)
class Pass:
    """One pass of the image network over a case.

    Attributes:
        flip: mirrored axes of the image.
        start: which label map of the stage before it sees (:meth:`~nndiffseg.inference.stages.PreviousStage.start`).
        samples: that are drawn from it.
        share: of its logits in the head's map.
    """

    flip: tuple[int, ...]
    start: int
    samples: list[int]
    share: float


def samples_of_fold(samples: int, fold: int, folds: int) -> list[int]:
    """Global indices of a fold's samples: dealt out in turn, at least one for each fold."""
    return list(range(max(samples, folds)))[fold::folds]


def in_chunks(run: Callable[[Sequence[int]], T], items: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], T]]:
    """Yields ``(chunk, run(chunk))``; chunks shrink when memory is exhausted, and never for other errors."""
    start = 0
    while start < len(items):
        chunk = items[start : start + size]
        try:
            result = run(chunk)
        except (MemoryError, RuntimeError) as error:
            if len(chunk) == 1 or not is_out_of_memory(error):
                raise
            size = (len(chunk) + 1) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield chunk, result
        start += len(chunk)


@dataclass(frozen=True)
class Window:
    """Leads from rows of the mirrored, padded frame back to the image.

    Attributes:
        frame: padding of the image.
        flip: mirrored axes of the image.
        index: slice of the volume that the image is, or None.
    """

    frame: Frame
    flip: tuple[int, ...]
    index: int | None

    def place(self, values: Tensor, start: int) -> tuple[tuple[slice, ...], Tensor]:
        """Rows ``start ...`` of the mirrored frame ``(N, heads, rows, ...)`` -> where they lie, and what lies there.

        Returns:
            Slices into the case's ``(*spatial)``, and ``(N, heads, *where)``.
        """
        values = values.flip([a + 2 for a in self.flip])
        first = self.frame.padded[0] - start - values.shape[2] if 0 in self.flip else start
        corner = [first] + [0] * (len(self.frame.shape) - 1)
        where: list[slice] = []
        inside: list[slice] = [slice(None), slice(None)]
        for axis, (n, low, c) in enumerate(zip(self.frame.shape, self.frame.lower, corner, strict=True)):
            begin = min(max(c - low, 0), n)
            end = max(begin, min(c + values.shape[axis + 2] - low, n))
            where.append(slice(begin, end))
            inside.append(slice(begin + low - c, end + low - c))
        values = values[tuple(inside)]
        if self.index is None:
            return tuple(where), values
        return (slice(self.index, self.index + 1), *where), values[:, :, None]
