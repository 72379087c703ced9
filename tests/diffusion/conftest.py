"""The schedules, and a Gaussian prior, for which everything about diffusion is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nndiffseg.diffusion import Cosine, Linear, Schedule


@pytest.fixture(params=[Cosine(), Linear(), Linear(0.5, 10.0)], ids=["cosine", "linear", "linear-short"])
def schedule(request):
    return request.param


@pytest.fixture
def target(schedule):
    return Gaussian(schedule)


@dataclass(frozen=True)
class Gaussian:
    """z0 ~ N(mean, std^2), independent in every element."""

    schedule: Schedule
    mean: float = 1.5
    std: float = 0.4

    def _posterior(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of p(z0 | z_t), by completing the square."""
        t = t.double().reshape(-1, *[1] * (z.ndim - 1))
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        evidence = alpha**2 * self.std**2 + sigma**2  # variance of z_t
        mean = self.mean + alpha * self.std**2 / evidence * (z - alpha * self.mean)
        return mean, self.std * sigma / evidence.sqrt()

    def posterior_mean(self, z: Tensor, t: Tensor, step: int = 0) -> Tensor:
        return self._posterior(z, t)[0].to(z.dtype)

    def posterior_sampler(self, seed: int):
        generator = torch.Generator().manual_seed(seed)

        def denoise(z: Tensor, t: Tensor, step: int = 0) -> Tensor:
            mean, std = self._posterior(z, t)
            return (mean + std * torch.randn(z.shape, generator=generator, dtype=torch.float64)).to(z.dtype)

        return denoise

    def flow(self, noise: Tensor) -> Tensor:
        """The probability-flow ODE's exact end point for the start ``noise`` at t = 1: the monotone transport map."""
        return self.mean + self.std * noise
