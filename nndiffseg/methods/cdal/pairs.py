"""The pairs (x_{t-1}, x_t) that a denoising-diffusion GAN compares (Xiao et al., DDGAN, arXiv 2112.07804).

Steps are numbered n = 1 .. T; step n leads from t = n / T to s = (n - 1) / T, the times that the samplers visit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nndiffseg.diffusion.items import drawn
from nndiffseg.diffusion.schedules import Schedule, add_noise


def random_steps(batch: int, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Times t and s ``(batch,)`` of uniformly drawn steps."""
    n = drawn(lambda items: torch.randint(1, steps + 1, (items,), generator=generator), batch, generator)
    return n / steps, (n - 1) / steps


def real_pair(schedule: Schedule, x0: Tensor, t: Tensor, s: Tensor, noise_s: Tensor, noise_t: Tensor) -> tuple[Tensor, Tensor]:
    """x_s ~ q(x_s | x0), then x_t ~ q(x_t | x_s) (DDPM, arXiv 2006.11239, eq. 2).

    Args:
        x0, noise_s, noise_t: ``(B, C, *spatial)``, the noises standard normal.
        t, s: times ``(B,)``, s < t.
    """
    x_s = add_noise(schedule, x0, noise_s, s)
    alpha_ts = _view(schedule.alpha(t) / schedule.alpha(s), x0)
    return x_s, alpha_ts * x_s + (1 - alpha_ts**2).sqrt() * noise_t


def posterior_sample(schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
    """x_s ~ q(x_s | x_t, x0) (DDPM, eq. 6 and 7): one step of the ancestral sampler, with a time per item.

    Args:
        x0, x_t, noise: ``(B, C, *spatial)``, the noise standard normal.
        t, s: times ``(B,)``, s < t; x0 itself is returned where s = 0.
    """
    alpha_s, alpha_ts = schedule.alpha(s), schedule.alpha(t) / schedule.alpha(s)
    var_ts, var_s, var_t = 1 - alpha_ts**2, schedule.sigma(s) ** 2, schedule.sigma(t) ** 2
    mean = _view(alpha_ts * var_s / var_t, x0) * x_t + _view(alpha_s * var_ts / var_t, x0) * x0
    return torch.where(_view(s, x0) > 0, mean + _view((var_ts * var_s / var_t).sqrt(), x0) * noise, x0)


def _view(value: Tensor, like: Tensor) -> Tensor:  # (B,) -> (B, 1, *1)
    return value.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
