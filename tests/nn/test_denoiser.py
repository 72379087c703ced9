"""The denoiser's output before any training, and what an s other than 1 makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nndiffseg.diffusion.schedules import add_noise, schedule_by_name
from nndiffseg.nn.denoiser import FIRST_DEVIATION, LEAST_DEVIATION, Denoiser, deviation_bias

SCHEDULE = schedule_by_name("cosine")


def make(learned_deviation: bool = True) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(2, 3, 0, (8, 16), [(2, 2)], SCHEDULE, learned_deviation=learned_deviation).eval()


def latents(n: int, deviation: float, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Priors, z0 around them, z_t and times."""
    g = torch.Generator().manual_seed(1)
    prior = torch.randn(n, 3, 8, 8, generator=g)
    z0 = prior + deviation * torch.randn(prior.shape, generator=g)
    times = torch.full((n,), t)
    return prior, z0, add_noise(SCHEDULE, z0, torch.randn(prior.shape, generator=g), times), times


@pytest.mark.parametrize("t", [1.0, 0.7, 0.3, 0.05])
@pytest.mark.parametrize("deviation", [0.1, 0.5, 1.0])
def test_untrained_it_answers_with_the_mean_of_a_normal_posterior(t, deviation):
    """The least mean squared error that any function of z_t can have is the posterior's variance."""
    network = make()
    network.to_deviation.bias.data.fill_(deviation_bias(deviation))
    prior, z0, z_t, times = latents(64, deviation, t)
    alpha, sigma = SCHEDULE.alpha(times[0]), SCHEDULE.sigma(times[0])
    with torch.no_grad():
        x0 = network(z_t, times, torch.zeros(1, 8, 8, 8), prior)
    least = deviation**2 * sigma**2 / (alpha**2 * deviation**2 + sigma**2)
    assert (x0 - z0).square().mean() == pytest.approx(float(least), rel=0.05)


def test_without_a_deviation_it_is_v_prediction():
    network = make(learned_deviation=False)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    prior, _, z_t, times = latents(2, 1.0, 0.6)
    view = (-1, 1, 1, 1)
    alpha, sigma = SCHEDULE.alpha(times).view(view), SCHEDULE.sigma(times).view(view)
    condition = torch.zeros(1, 8, 8, 8)
    with torch.no_grad():
        at_zero, around = network(z_t, times, condition, torch.zeros_like(prior)), network(z_t, times, condition, prior)
    v = (alpha * z_t - at_zero) / sigma
    assert v.abs().max() > 0.01
    torch.testing.assert_close(around, alpha * z_t - sigma * v + sigma**2 * prior)


def test_a_learned_deviation_starts_alike_everywhere_and_is_never_less_than_the_floor():
    network, condition = make(), torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(network.deviation(condition), torch.full((2, 1, 5, 6), FIRST_DEVIATION))
    network.to_deviation.weight.data.fill_(100.0)
    assert float(network.deviation(condition).detach().min()) == pytest.approx(LEAST_DEVIATION)


def test_the_deviation_learns_from_its_own_score_alone():
    network = make()
    condition = torch.randn(2, 8, 8, 8, requires_grad=True)
    network.deviation(condition).sum().backward()
    assert condition.grad is None and network.to_deviation.weight.grad is not None
    network.zero_grad()
    prior, _, z_t, times = latents(2, 1.0, 0.6)
    network(z_t, times, condition, prior).square().sum().backward()
    assert network.to_deviation.weight.grad is None and network.head.weight.grad is not None
