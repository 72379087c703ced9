"""Noise schedules and samplers: pure functions on tensors, without networks and files."""

from nndiffseg.diffusion.ancestral import sample_ancestral
from nndiffseg.diffusion.ddim import sample_ddim
from nndiffseg.diffusion.dpm_solver import sample_dpmpp_2m
from nndiffseg.diffusion.samplers import Sampler, sampler_of
from nndiffseg.diffusion.schedules import Cosine, Linear, Schedule, add_noise, timesteps

__all__ = [
    "Cosine",
    "Linear",
    "Sampler",
    "Schedule",
    "add_noise",
    "sample_ancestral",
    "sample_ddim",
    "sample_dpmpp_2m",
    "sampler_of",
    "timesteps",
]
