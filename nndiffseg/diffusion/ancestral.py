"""Ancestral sampling (Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, arXiv 2006.11239)."""

from __future__ import annotations

import torch
from torch import Tensor

from nndiffseg.diffusion.common import Callback, Denoiser, StepNoise, check_times, noise_source, time_batch
from nndiffseg.diffusion.schedules import Schedule


def sample_ancestral(
    denoise: Denoiser,
    noise: Tensor,
    times: Tensor,
    *,
    schedule: Schedule,
    step_noise: StepNoise | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Walks from ``times[0]`` to 0 by the exact posterior q(z_s | z_t, x0); DDIM with eta = 1.

    Where ``denoise`` returns a *sample* of p(x0 | z_t), every step draws exactly from p(z_s | z_t), the integral of
    q(z_s | z_t, x0) p(x0 | z_t) over x0. The result is then exact for any number of steps, one included (Xiao et al.,
    DDGAN, arXiv 2112.07804; De Bortoli et al., distributional diffusion, arXiv 2502.02483). Where it returns
    the mean E[x0 | z_t], as in DDPM, the result is exact only in the limit of many steps.

    Args:
        denoise: ``denoise(z, t, i)`` -> sample or mean of z0 given z_t in step i; z ``(N, C, *grid)``, t ``(N,)``.
        noise: z at ``times[0]``, ``(N, C, *grid)``; standard normal where ``times[0]`` is 1.
        times: strictly descending to 0, see :func:`~nndiffseg.diffusion.schedules.timesteps`.
        schedule: alpha and sigma.
        step_noise, generator: source of the step noise, exactly one of them.
        callback: called as ``callback(i, t, z, x0)`` in every step.

    Returns:
        z0 ``(N, C, *grid)``: the estimate of the last step itself. Gradients flow unless the caller disables them.

    Raises:
        ValueError: bad ``times``, or not exactly one source of noise.
    """
    times = check_times(times)
    draw = noise_source(step_noise, generator)
    alpha, sigma = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    z = noise
    for i, t in enumerate(times[:-1].tolist()):
        x0 = denoise(z, time_batch(t, z), i)
        if callback is not None:
            callback(i, t, z, x0)
        if i == len(times) - 2:  # s = 0: the posterior is a point mass at x0
            return x0
        # q(z_s | z_t, x0), DDPM eq. 7 for arbitrary s < t: alpha_ts = alpha_t / alpha_s plays the part of
        # sqrt(alpha_t), and sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2 that of beta_t.
        alpha_ts = alpha[i] / alpha[i + 1]
        var_ts = 1 - alpha_ts**2  # = sigma_t^2 - alpha_ts^2 sigma_s^2 since alpha^2 + sigma^2 = 1
        var_s, var_t = sigma[i + 1] ** 2, sigma[i] ** 2
        z = (alpha_ts * var_s / var_t) * z + (alpha[i + 1] * var_ts / var_t) * x0
        z = z + (var_ts * var_s / var_t) ** 0.5 * draw(i, z)
    raise AssertionError("unreachable: times hold at least one step")
