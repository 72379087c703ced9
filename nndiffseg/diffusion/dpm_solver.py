"""DPM-Solver++ (2M) (Lu et al.: DPM-Solver++, arXiv 2211.01095, Algorithm 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nndiffseg.diffusion.common import Callback, Denoiser, StepNoise, check_times, time_batch
from nndiffseg.diffusion.schedules import Schedule


def sample_dpmpp_2m(
    denoise: Denoiser,
    noise: Tensor,
    times: Tensor,
    *,
    schedule: Schedule,
    step_noise: StepNoise | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Integrates the probability-flow ODE from ``times[0]`` to 0 by the second-order multistep solver.

    In lambda = log(alpha / sigma) (half the log SNR) a step of width h = lambda_s - lambda_t is
    z_s = sigma_s / sigma_t z_t + alpha_s (1 - exp(-h)) D, with D the estimate of x0 extrapolated linearly in lambda to
    the middle of the step from this and the previous estimate. With zero terminal SNR lambda is -inf at t = 1 and there
    is nothing to extrapolate in that step nor from it: the first two steps are then of first order (D = x0), as is the
    last one, which ends at lambda = +inf. The solver needs at least 4 steps to differ from DDIM.

    Args:
        denoise: ``denoise(z, t, i)`` -> E[z0 | z_t]; z ``(N, C, *grid)``, t ``(N,)``.
        noise: z at ``times[0]``, ``(N, C, *grid)``; standard normal where ``times[0]`` is 1.
        times: strictly descending to 0, see :func:`~nndiffseg.diffusion.schedules.timesteps`.
        schedule: alpha and sigma.
        step_noise, generator: unused (the solver is deterministic); here so that all samplers are called alike.
        callback: called as ``callback(i, t, z, x0)`` in every step.

    Returns:
        z0 ``(N, C, *grid)``: the estimate of the last step itself. Gradients flow unless the caller disables them.

    Raises:
        ValueError: bad ``times``.
    """
    times = check_times(times)
    alpha, sigma = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    lambdas = (0.5 * schedule.log_snr(times)).tolist()
    z, previous, h_previous = noise, noise, math.inf
    for i, t in enumerate(times[:-1].tolist()):
        x0 = denoise(z, time_batch(t, z), i)
        if callback is not None:
            callback(i, t, z, x0)
        if i == len(times) - 2:  # h = inf: the step returns D, of which x0 is the first-order estimate
            return x0
        h = lambdas[i + 1] - lambdas[i]
        r_inverse = 0.0 if math.isinf(h_previous) else h / h_previous  # 1 / r_i of Algorithm 2
        d = x0 if r_inverse == 0 else (1 + 0.5 * r_inverse) * x0 - 0.5 * r_inverse * previous
        z = (sigma[i + 1] / sigma[i]) * z - (alpha[i + 1] * math.expm1(-h)) * d
        previous, h_previous = x0, h
    raise AssertionError("unreachable: times hold at least one step")
