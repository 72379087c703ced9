"""The samplers by the names that the settings use."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nndiffseg.diffusion.ancestral import sample_ancestral
from nndiffseg.diffusion.common import Callback, Denoiser, StepNoise
from nndiffseg.diffusion.ddim import sample_ddim
from nndiffseg.diffusion.dpm_solver import sample_dpmpp_2m
from nndiffseg.diffusion.schedules import Schedule
from nndiffseg.errors import UserError


class Sampler(Protocol):
    """What every sampler can be called with; see :func:`~nndiffseg.diffusion.ancestral.sample_ancestral`."""

    def __call__(
        self,
        denoise: Denoiser,
        noise: Tensor,
        times: Tensor,
        *,
        schedule: Schedule,
        step_noise: StepNoise | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor: ...


def sampler_by_name(name: str) -> Sampler:
    """``ancestral``, ``ddim`` or ``dpmpp_2m``, as in ``DiffusionSettings.sampler``.

    Raises:
        UserError: there is no such sampler.
    """
    samplers: dict[str, Sampler] = {
        "ancestral": sample_ancestral,
        "ddim": sample_ddim,
        "dpmpp_2m": sample_dpmpp_2m,
    }
    if name not in samplers:
        raise UserError(f"There is no sampler {name!r}; choose one of {', '.join(samplers)}.")
    return samplers[name]
