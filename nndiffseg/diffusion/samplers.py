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


SAMPLERS: dict[str, Sampler] = {
    "ancestral": sample_ancestral,
    "ddim": sample_ddim,
    "dpmpp_2m": sample_dpmpp_2m,
}


def sampler_of(sampler: str | Sampler) -> Sampler:
    """A sampler by its name in :data:`SAMPLERS`; a function is a sampler itself.

    Raises:
        UserError: there is no sampler of this name.
    """
    if callable(sampler):
        return sampler
    if sampler not in SAMPLERS:
        raise UserError(f"There is no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[sampler]
