"""Shared by the samplers: types, checks of arguments, and the source of step noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: ``denoise(z, t, i)``: z ``(N, C, *grid)``, t ``(N,)``, step i = 0, 1, ... -> estimate of z0 ``(N, C, *grid)``. The step tells
#: a denoiser with noise of its own which streams to draw, however often a sampler calls it in one step.
Denoiser = Callable[[Tensor, Tensor, int], Tensor]
#: ``step_noise(i, z)``: standard normal noise like ``z`` for step i = 0, 1, ... (the starting noise is not among them).
StepNoise = Callable[[int, Tensor], Tensor]
#: ``callback(i, t, z, x0)``: called in every step with the time t (a float), z_t and the estimate of z0 made from it.
Callback = Callable[[int, float, Tensor, Tensor], None]


def check_times(times: Tensor) -> Tensor:
    """``times`` in float64 on the CPU, where the few scalars of a step are computed.

    Raises:
        ValueError: not one-dimensional, not strictly descending within [0, 1], or not ending at 0.
    """
    times = times.detach().to("cpu", torch.float64)
    if times.ndim != 1 or len(times) < 2 or bool((times.diff() >= 0).any()) or times[0] > 1 or times[-1] != 0:
        raise ValueError("times must descend strictly within [0, 1] and end at 0; make them with timesteps(steps).")
    return times


def time_batch(t: float, z: Tensor) -> Tensor:
    """The time as the denoiser takes it, ``(N,)``; at least float32, since half precision would blur it."""
    return torch.full((z.shape[0],), t, device=z.device, dtype=torch.promote_types(z.dtype, torch.float32))


def noise_source(step_noise: StepNoise | None, generator: torch.Generator | None) -> StepNoise:
    """The step noise of a stochastic sampler, from whichever of the two was given.

    Noise is drawn on the generator's own device, so a CPU generator gives the same noise to every device.

    Raises:
        ValueError: neither or both were given; a hidden source of noise would not be reproducible.
    """
    if (step_noise is None) == (generator is None):
        raise ValueError("A stochastic sampler needs exactly one of step_noise and generator.")
    if step_noise is not None:
        return step_noise
    assert generator is not None

    def draw(_: int, z: Tensor) -> Tensor:
        return torch.randn(z.shape, generator=generator, device=generator.device, dtype=z.dtype).to(z.device)

    return draw
