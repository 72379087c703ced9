from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest, norm

from nndiffseg.diffusion import sample_ancestral, sample_ddim, timesteps


def draw(target, denoise, steps: int) -> torch.Tensor:
    noise = torch.randn(1, 1, 100_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return sample_ancestral(
        denoise, noise, timesteps(steps), schedule=target.schedule, generator=torch.Generator().manual_seed(4)
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_denoiser_that_samples_gives_the_exact_distribution_in_any_number_of_steps(target, steps):
    z0 = draw(target, target.posterior_sampler(seed=5), steps)
    assert kstest(z0.flatten().numpy(), norm(target.mean, target.std).cdf).statistic < 0.005  # 1 % level: 0.0052


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_denoiser_that_averages_loses_variance_in_few_steps(target, steps):
    """The reason for the energy objective: E[z0 | z_t] makes few-step samples too alike."""
    assert draw(target, target.posterior_mean, steps).std() < 0.95 * target.std


def test_intermediate_latents_have_the_marginal_of_the_forward_process(schedule, target):
    visited = {}
    noise = torch.randn(1, 1, 100_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sample_ancestral(
        target.posterior_sampler(seed=5), noise, timesteps(4), schedule=schedule,
        generator=torch.Generator().manual_seed(4), callback=lambda i, t, z, x0: visited.update({t: z}),
    )  # fmt: skip
    for t, z in visited.items():
        alpha, sigma = schedule.alpha(torch.tensor(t).double()), schedule.sigma(torch.tensor(t).double())
        std = (alpha**2 * target.std**2 + sigma**2).sqrt().item()
        assert kstest(z.flatten().numpy(), norm((alpha * target.mean).item(), std).cdf).statistic < 0.006


def test_equals_ddim_with_eta_one(schedule, target):
    """DDPM's posterior (eq. 7) and DDIM's update (eq. 12 and 16) are written differently and must agree."""
    noise, stored = torch.randn(2, 3, 8).double(), torch.randn(6, 2, 3, 8).double()
    arguments = {
        "denoise": target.posterior_mean, "noise": noise, "times": timesteps(6), "schedule": schedule,
        "step_noise": lambda i, z: stored[i],
    }  # fmt: skip
    torch.testing.assert_close(sample_ancestral(**arguments), sample_ddim(**arguments, eta=1.0))
