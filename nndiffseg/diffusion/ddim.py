"""DDIM (Song, Meng, Ermon: Denoising Diffusion Implicit Models, arXiv 2010.02502)."""

from __future__ import annotations

import torch
from torch import Tensor

from nndiffseg.diffusion.common import Callback, Denoiser, StepNoise, check_times, noise_source, time_batch
from nndiffseg.diffusion.schedules import Schedule


def sample_ddim(
    denoise: Denoiser,
    noise: Tensor,
    times: Tensor,
    *,
    schedule: Schedule,
    eta: float = 0.0,
    step_noise: StepNoise | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Integrates from ``times[0]`` to 0 by DDIM's update (eq. 12), first order.

    Args:
        denoise: ``denoise(z, t, i)`` -> estimate of z0; z ``(N, C, *grid)``, t ``(N,)``.
        noise: z at ``times[0]``, ``(N, C, *grid)``; standard normal where ``times[0]`` is 1.
        times: strictly descending to 0, see :func:`~nndiffseg.diffusion.schedules.timesteps`.
        schedule: alpha and sigma.
        eta: 0 is deterministic, 1 the ancestral sampler; in between the step noise is scaled by it (eq. 16).
        step_noise, generator: source of the step noise; exactly one where eta > 0, unused where eta = 0.
        callback: called as ``callback(i, t, z, x0)`` in every step.

    Returns:
        z0 ``(N, C, *grid)``: the estimate of the last step itself. Gradients flow unless the caller disables them.

    Raises:
        ValueError: bad ``times``, eta outside [0, 1], or eta > 0 without exactly one source of noise.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}.")
    times = check_times(times)
    draw = noise_source(step_noise, generator) if eta > 0 else None
    alpha, sigma = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    z = noise
    for i, t in enumerate(times[:-1].tolist()):
        x0 = denoise(z, time_batch(t, z), i)
        if callback is not None:
            callback(i, t, z, x0)
        if i == len(times) - 2:  # sigma_s = 0: eq. 12 returns x0, here without rounding
            return x0
        eps = (z - alpha[i] * x0) / sigma[i]
        # eq. 16, in our notation sqrt(alpha_bar) = alpha: standard deviation of the fresh noise
        fresh = eta * sigma[i + 1] / sigma[i] * (1 - (alpha[i] / alpha[i + 1]) ** 2) ** 0.5
        z = alpha[i + 1] * x0 + max(sigma[i + 1] ** 2 - fresh**2, 0.0) ** 0.5 * eps  # eq. 12
        if draw is not None:
            z = z + fresh * draw(i, z)
    raise AssertionError("unreachable: times hold at least one step")
