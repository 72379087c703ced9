"""The one place that decides in which precision networks run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


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
    """``"bfloat16"`` where the hardware has it, else ``"float32"``."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def autocast_for(device: torch.device, precision: str | None = None) -> AbstractContextManager:
    """The autocast context for networks on ``device``.

    Args:
        device: where the network runs.
        precision: ``"bfloat16"``, ``"float32"`` or None for :func:`default_precision`.

    Raises:
        ValueError: another precision was asked for.
    """
    precision = precision or default_precision(device)
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    if precision == "float32":
        return nullcontext()
    raise ValueError(f"precision is bfloat16 or float32, not {precision!r}")
