"""Decides in which precision networks run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

#: Grids of fewer planes than this, with planes of at least so many voxels, are not safe to train in bfloat16 on a CPU with AMX
#: (:func:`training_precision`).
SAFE_PLANES = 32
LARGE_PLANE = 8192
#: what networks compute in; all weights and sums stay float32
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX) and oneDNN can use it.

    Without such instructions torch emulates bfloat16 on the CPU and is many times slower than in float32.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    # These probes are private and partly younger than torch 2.4; where one is missing, stay in float32.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def default_precision(device: torch.device) -> str:
    """``"bfloat16"`` where the hardware has it; else ``"float16"`` on a CUDA GPU, as nnU-Net, and ``"float32"`` elsewhere.

    GPUs before Ampere have no bfloat16. In float32 they would need twice the memory that was planned for, and be several times
    slower.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def training_precision(device: torch.device, grids: Iterable[Sequence[int]]) -> str:
    """:func:`default_precision`, or ``"float32"`` where a training in bfloat16 would destroy its process' memory.

    For thin volumes oneDNN (3.13) writes past its buffers when it computes the weights' gradient of a bfloat16 convolution with
    AMX: the process aborts, dies or hangs. Seen with 1 to 20 planes of 8192 voxels (128x64) and more, depending on the
    channels; not in 2D, not with 24 planes, and not in predictions.

    Args:
        device: where the network is trained.
        grids: spatial shapes on which it convolves, slices first.
    """
    amx = device.type == "cpu" and bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
    thin = any(len(g) == 3 and g[0] < SAFE_PLANES and g[1] * g[2] >= LARGE_PLANE for g in grids)
    return "float32" if amx and thin else default_precision(device)


def autocast_for(device: torch.device, precision: str | None = None) -> AbstractContextManager:
    """The autocast context for networks on ``device``.

    Args:
        device: where the network runs.
        precision: ``"bfloat16"``, ``"float16"``, ``"float32"`` or None for :func:`default_precision`.

    Raises:
        ValueError: another precision was asked for.
    """
    precision = precision or default_precision(device)
    if precision not in DTYPES:
        raise ValueError(f"precision is {', '.join(DTYPES)}, not {precision!r}")
    return nullcontext() if precision == "float32" else torch.autocast(device.type, DTYPES[precision])
