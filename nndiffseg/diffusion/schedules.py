"""Variance-preserving noise schedules in continuous time: z_t = alpha(t) z_0 + sigma(t) eps, t in [0, 1].

t = 0 is the clean latent and t = 1 pure noise. Both schedules have zero terminal signal-to-noise ratio, alpha(1) = 0
exactly: sampling starts from pure noise, so training must have seen it (Lin et al., arXiv 2305.08891, section 3.1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nndiffseg.diffusion.items import drawn


class Schedule(ABC):
    """alpha and sigma as functions of time; alpha^2 + sigma^2 = 1."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal at times ``t`` (any shape, floating point): 1 at t = 0 and exactly 0 at t = 1."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at times ``t``: exactly 0 at t = 0, 1 at t = 1."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at times ``t``: strictly decreasing, +inf at t = 0 and -inf at t = 1."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Nichol and Dhariwal, arXiv 2102.09672, eq. 17, without their offset (s = 0).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t))  # not cos(pi t / 2), which misses 0 at t = 1 by rounding

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)


@dataclass(frozen=True)
class Linear(Schedule):
    """The linear-beta schedule of DDPM in continuous time, rescaled to zero terminal SNR.

    beta(t) = beta_min + t (beta_max - beta_min) gives a(t) = exp(-B(t) / 2) with B(t) the integral of beta from 0 to t
    (Song et al., arXiv 2011.13456, eq. 33). The rescaling alpha(t) = (a(t) - a(1)) / (1 - a(1)) shifts a(1) to 0 and
    keeps a(0) = 1 (Lin et al., arXiv 2305.08891, Algorithm 1).

    Attributes:
        beta_min, beta_max: noise rate at t = 0 and t = 1; the defaults are DDPM's.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min <= self.beta_max or self.beta_max == 0:
            raise ValueError(f"Need 0 <= beta_min <= beta_max and beta_max > 0, got {self.beta_min}, {self.beta_max}.")

    def alpha(self, t: Tensor) -> Tensor:
        rest = (1 - t) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (1 + t))  # B(1) - B(t)
        # a(t) - a(1) = a(t) (1 - exp(-rest / 2)): exactly 0 at t = 1
        return torch.exp(-0.5 * self._integral(t)) * -torch.expm1(-0.5 * rest) / self._range()

    def sigma(self, t: Tensor) -> Tensor:
        one_minus_alpha = -torch.expm1(-0.5 * self._integral(t)) / self._range()  # without cancellation near t = 0
        return (one_minus_alpha * (2 - one_minus_alpha)).sqrt()

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)  # B(t)

    def _range(self) -> float:
        return -math.expm1(-0.25 * (self.beta_min + self.beta_max))  # 1 - a(1)


def add_noise(schedule: Schedule, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t = alpha(t) z_0 + sigma(t) eps.

    Args:
        z0, noise: ``(B, C, *grid)``.
        t: times ``(B,)`` in [0, 1].

    Returns:
        z_t, shape and dtype of ``z0``.

    Raises:
        ValueError: shapes do not match.
    """
    if z0.shape != noise.shape or t.shape != z0.shape[:1]:
        raise ValueError(f"z0 {tuple(z0.shape)}, noise {tuple(noise.shape)} and t {tuple(t.shape)} do not match.")
    t = t.reshape(-1, *[1] * (z0.ndim - 1))  # (B, 1, *1)
    return schedule.alpha(t).to(z0.dtype) * z0 + schedule.sigma(t).to(z0.dtype) * noise


def normal_like(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise like ``z`` ``(B, ...)``, its dtype and device; drawn on the CPU: every device gets the same."""
    return drawn(lambda n: torch.randn((n, *z.shape[1:]), generator=generator), len(z), generator).to(z)


def timesteps(steps: int) -> Tensor:
    """The times that a sampler visits.

    Args:
        steps: number of sampling steps (evaluations of the denoiser): t_i = 1 - i / steps.

    Returns:
        ``(steps + 1,)`` float32, strictly descending from exactly 1 to exactly 0.

    Raises:
        ValueError: ``steps`` below 1.
    """
    if steps < 1:
        raise ValueError(f"Sampling needs at least one step, got {steps}.")
    return (torch.arange(steps, -1, -1, dtype=torch.float64) / steps).float()


def training_times(batch: int, generator: torch.Generator | None = None, steps: int = 1000) -> Tensor:
    """One random training step over ``steps`` for each item of a batch.

    Each is uniform in {1 / steps, ..., 1}, and they are spread evenly over the batch, which takes variance from the loss
    (Kingma et al., arXiv 2107.00630, appendix I.1).

    Returns:
        ``(batch,)`` float32.
    """
    first = torch.randint(0, steps, (1,), generator=generator)
    return drawn(lambda n: (1 + (first + torch.arange(n) * steps // n) % steps) / steps, batch, generator)
