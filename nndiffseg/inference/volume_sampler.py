"""Samples one case: tiles for the image network, the whole noise grid for the denoiser, slabs for the decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nndiffseg.diffusion.noise.field import NoiseField
from nndiffseg.diffusion.noise.source import FieldNoise
from nndiffseg.inference.sampling import SamplingOptions, Window, in_chunks
from nndiffseg.inference.stages import PreviousStage
from nndiffseg.nn.heads import Heads
from nndiffseg.nn.precision import DTYPES, autocast_for, default_precision
from nndiffseg.nn.sample_network import SampleNetwork
from nndiffseg.nn.tiling import Frame, common_multiple, encode_tiled, tile_starts
from nndiffseg.uncertainty.statistics import Sums, label_map

# Rough numbers of float32 values that are alive at once, per cell and sample in the denoiser and per voxel and sample
# in the label decoder. They only choose chunks; results do not depend on them.
FLOATS_PER_CELL = 512
FLOATS_PER_VOXEL = 64
FLOATS_PER_HEAD = 4
#: Memory for activations on the CPU. A constant, not a share of what is free, so that a machine repeats itself exactly.
CPU_BUDGET_BYTES = 3 * 2**29
#: The same for the samples of one batch: its largest tensors stay below 32 MB, the size from which glibc takes memory from
#: the system and gives it back at every operation.
CPU_BATCH_BYTES = 2**28
#: The same for probabilities, which are passed over several times: they should not leave the processor's cache in between.
CPU_PROBABILITY_BYTES = 2**23
#: Share of a GPU's memory for activations; the maps and sums of a case take at most as much again, or stay on the CPU.
GPU_BUDGET_SHARE = 0.25


class VolumeSampler:
    """Runs one network over one case and adds the results to running sums.

    Args:
        network: in evaluation mode, on ``device``.
        patch_size: of the configuration; with one axis less than the images, these are cut into slices. All slices
            see the same noise, so that a sample is coherent through the volume.
        label_manager: of the dataset.
        device: where the network runs.
        options: how to sample.
        slice_batch: slices per batch of a 2D configuration.
        on_tile: called after every tile, for a progress bar.
    """

    def __init__(
        self,
        network: SampleNetwork,
        patch_size: Sequence[int],
        label_manager: LabelManager,
        device: torch.device,
        options: SamplingOptions,
        *,
        slice_batch: int = 8,
        on_tile: Callable[[], None] | None = None,
    ):
        multiple = common_multiple(network)
        if any(p % m for p, m in zip(patch_size, multiple, strict=True)):
            raise ValueError(f"The patch {tuple(patch_size)} is not a multiple of the network's strides {multiple}.")
        self.network, self.patch, self.multiple = network, tuple(patch_size), multiple
        self.label_manager, self.device, self.options = label_manager, device, options
        self.heads = Heads(label_manager.num_segmentation_heads, label_manager.has_regions)
        self.slice_batch, self.on_tile = slice_batch, on_tile
        self.memory = options.memory or default_memory(device)
        self.batch_memory = self.memory if device.type != "cpu" else min(self.memory, CPU_BATCH_BYTES)
        self.probability_bytes = self.memory // 4 if device.type != "cpu" else min(self.memory // 4, CPU_PROBABILITY_BYTES)
        # Guides in the precision of the convolutions spare the decoder half of its copies.
        self.guide_dtype = DTYPES[options.precision or default_precision(device)]

    # ---- plan of the work -----------------------------------------------------------------------------------------

    def is_sliced(self, data: Tensor) -> bool:
        """Whether ``data`` ``(C, *spatial)`` is a volume for a 2D configuration."""
        return data.ndim - 1 == len(self.patch) + 1

    def tiles(self, data: Tensor, samples: int, starts: int = 0) -> int:
        """Number of calls of ``on_tile`` that :meth:`run` will make for so many samples of a fold and of the stage before."""
        frame = self._frame(data)
        per_image = math.prod(
            len(tile_starts(n, p, self.options.step_size, m))
            for n, p, m in zip(frame.padded, self.patch, self.multiple, strict=True)
        )
        batches = math.ceil(data.shape[1] / self.slice_batch) if self.is_sliced(data) else 1
        return per_image * batches * len(self.options.passes(range(samples), starts))

    def _frame(self, data: Tensor) -> Frame:
        return Frame.around(data.shape[-len(self.patch) :], self.patch, self.multiple)

    def sums_device(self, data: Tensor) -> torch.device:
        """Where maps and sums of this case are kept: with the network if they may and fit easily, else on the CPU."""
        if self.device.type != "cuda" or not self.options.sums_on_device:
            return torch.device("cpu")
        channels = 4 * self.label_manager.num_segmentation_heads + 32
        fits = 4 * channels * math.prod(self._frame(data).padded) <= self.memory
        return self.device if fits or self.is_sliced(data) else torch.device("cpu")

    # ---- the work -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(
        self,
        data: Tensor,
        case_id: str,
        samples: Sequence[int],
        sums: Sums,
        labels: np.ndarray,
        previous: PreviousStage | None = None,
    ) -> None:
        """Encodes, samples and decodes one fold. Without any samples the head's map alone is added.

        Args:
            data: preprocessed image ``(C, *spatial)``.
            case_id: part of the key of the noise.
            samples: global indices of this fold's samples.
            sums: running sums ``(heads, *spatial)`` to add to.
            labels: ``(N, *spatial)``, filled at ``samples``.
            previous: what the stage before found, for the second stage of a cascade.
        """
        for one_pass in self.options.passes(samples, 0 if previous is None else previous.starts):
            flip, members = one_pass.flip, one_pass.samples
            noise: dict[tuple, Tensor] | None = {} if self.is_sliced(data) else None
            for first, maps in self._encode(data, flip, None if previous is None else previous.start(one_pass.start)):
                for i in range(len(maps[0])):
                    one = [m[i : i + 1] for m in maps]
                    window = Window(self._frame(data), flip, first + i if self.is_sliced(data) else None)
                    if one_pass.share:
                        self._add_deterministic(one[0], window, sums, one_pass.share)
                    if members:
                        self._add_samples(one, case_id, members, window, sums, labels, 1 / len(samples), noise)

    def _encode(self, data: Tensor, flip: tuple[int, ...], start: Tensor | None) -> Iterator[tuple[int, list[Tensor]]]:
        """Yields (index of the first slice, blended maps ``(B, C_i, *grid_i)`` of the mirrored image).

        ``start``: label map of the stage before ``(*spatial)``; of each tile it becomes one channel for every foreground label.
        """
        images = data.transpose(0, 1) if self.is_sliced(data) else data[None]  # (B, C, *image)
        starts = None if start is None else start[:, None] if self.is_sliced(data) else start[None, None]  # (B, 1, *image)
        frame, store = self._frame(data), self.sums_device(data)

        def encode(batch: Sequence[int]) -> list[Tensor]:
            def framed(values: Tensor) -> Tensor:
                return frame.pad(values[batch[0] : batch[-1] + 1]).flip([a + 2 for a in flip])

            image, stage = framed(images), None if starts is None else framed(starts)
            return encode_tiled(
                self.network,
                image,
                self.patch,
                self.options.step_size,
                self.device,
                store=store,
                precision=self.options.precision,
                on_tile=self.on_tile,
                more=None if stage is None else lambda window: self._onehot(stage[window].to(self.device)),
            )

        for batch, maps in in_chunks(encode, range(len(images)), self.slice_batch):
            yield batch[0], maps

    def _onehot(self, labels: Tensor) -> Tensor:
        """Labels ``(B, 1, *patch)`` -> ``(B, foreground labels, *patch)``, as nnU-Net's input of a next stage."""
        return torch.cat([labels == int(value) for value in self.label_manager.foreground_labels], 1).float()

    def _probabilities(self, logits: Tensor) -> Iterator[tuple[int, Tensor]]:
        """logits ``(N, heads, *window)`` -> first row and probabilities ``(N, heads, rows, ...)`` of some rows after others."""
        rows = max(1, self.probability_bytes * logits.shape[2] // (4 * logits.numel()))
        for start in range(0, logits.shape[2], rows):
            yield start, self.heads.probabilities(logits[:, :, start : start + rows])

    def _add_deterministic(self, logits: Tensor, window: Window, sums: Sums, share: float) -> None:
        for start, part in self._probabilities(logits):
            where, part = window.place(part, start)
            sums.add_deterministic(where, part[0], share)

    def _add_samples(
        self,
        maps: list[Tensor],
        case_id: str,
        members: Sequence[int],
        window: Window,
        sums: Sums,
        labels: np.ndarray,
        share: float,
        noise: dict[tuple, Tensor] | None,
    ) -> None:
        grid = [n // s for n, s in zip(window.frame.padded, self.network.stride, strict=True)]

        def sample(chunk: Sequence[int]) -> Tensor:
            fields = [NoiseField(self.options.seed, case_id, n) for n in chunk]
            draw = FieldNoise(fields, grid, flip=window.flip, device=self.device, cache=noise)
            with autocast_for(self.device, self.options.precision):
                return self.network.sample(
                    [self._to_device(m, i) for i, m in enumerate(maps)],
                    draw,
                    sampler=self.options.sampler,
                    steps=self.options.steps,
                ).float()

        chunk_size = max(1, self.batch_memory // (4 * FLOATS_PER_CELL * math.prod(grid)))
        for chunk, latents in in_chunks(sample, members, chunk_size):
            for start, indices, probabilities in self._decode(latents, maps):
                where, probabilities = window.place(probabilities, start)
                for index, p in zip(indices, probabilities, strict=True):
                    labels[chunk[index]][where] = label_map(p, self.label_manager).cpu().numpy()
                sums.add_samples(where, probabilities.sum(0) if len(indices) > 1 else probabilities[0], share)

    def _to_device(self, tensor: Tensor, index: int) -> Tensor:
        """A map for the denoiser. Maps finer than the noise grid serve the decoder and need not all be moved."""
        strides = self.network.map_strides[index]
        if any(a < b for a, b in zip(strides, self.network.stride, strict=True)):
            return tensor
        return tensor.to(self.device, torch.float32)

    def _decode(self, latents: Tensor, maps: list[Tensor]) -> Iterator[tuple[int, Sequence[int], Tensor]]:
        """Decodes slab by slab along the first axis, each with a halo that makes it equal to the whole.

        Yields:
            First voxel of the slab in the frame, indices into ``latents``, probabilities ``(n, heads, *slab)``.
        """
        stride, halo, rows = self.network.stride[0], self.network.halo, latents.shape[2]
        floats = max(FLOATS_PER_VOXEL, FLOATS_PER_HEAD * self.label_manager.num_segmentation_heads)
        row_bytes = 4 * floats * math.prod(latents.shape[2:]) // rows * math.prod(self.network.stride)
        thickness = min(rows, max(self.memory // row_bytes - 2 * halo, halo, 1))
        batch = max(1, self.batch_memory // (row_bytes * min(rows, thickness + 2 * halo)))
        for a in range(0, rows, thickness):
            b = min(a + thickness, rows)
            low, high = max(a - halo, 0), min(b + halo, rows)
            slabs = [
                m[:, :, low * stride // s[0] : high * stride // s[0]].to(self.device, self.guide_dtype)
                for m, s in zip(maps, self.network.map_strides, strict=True)
            ]
            inner = slice((a - low) * stride, (b - low) * stride)

            def decode(
                indices: Sequence[int], low: int = low, high: int = high, slabs: list[Tensor] = slabs, inner: slice = inner
            ) -> Tensor:
                with autocast_for(self.device, self.options.precision):
                    return self.network.decode(latents[indices[0] : indices[-1] + 1, :, low:high], slabs)[:, :, inner]

            for indices, logits in in_chunks(decode, range(len(latents)), batch):
                for start, probabilities in self._probabilities(logits):
                    yield a * stride + start, indices, probabilities


def default_memory(device: torch.device) -> int:
    """Bytes for the activations of denoiser and decoder."""
    if device.type == "cuda":
        return int(GPU_BUDGET_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return CPU_BUDGET_BYTES
