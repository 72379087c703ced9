"""The denoiser's preconditioning, and what becomes of its auxiliary noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nndiffseg.diffusion.schedules import Cosine, add_noise
from nndiffseg.nn.denoiser import Denoiser

SCHEDULE = Cosine()


def make(noise_channels: int = 0) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(2, 3, noise_channels, (8, 16), [(2, 2)], SCHEDULE).eval()


def latents(n: int, deviation: float, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Priors, z0 around them, z_t and times."""
    g = torch.Generator().manual_seed(1)
    prior = torch.randn(n, 3, 8, 8, generator=g)
    z0 = prior + deviation * torch.randn(prior.shape, generator=g)
    times = torch.full((n,), t)
    return prior, z0, add_noise(SCHEDULE, z0, torch.randn(prior.shape, generator=g), times), times


@pytest.mark.parametrize("t", [0.1, 0.6, 1.0])
def test_untrained_it_answers_with_the_mean_of_a_normal_posterior_of_unit_deviation(t):
    """The least mean squared error that any function of z_t can have is the posterior's variance."""
    prior, z0, z_t, times = latents(64, 1.0, t)
    with torch.no_grad():
        x0 = make()(z_t, times, torch.zeros(1, 8, 8, 8), prior)
    assert (x0 - z0).square().mean() == pytest.approx(float(SCHEDULE.sigma(times[0])) ** 2, rel=0.05)


def test_it_is_v_prediction_around_the_prior():
    network = make()
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


def answer(network: Denoiser, xi: Tensor) -> Tensor:
    prior, _, z_t, times = latents(len(xi), 1.0, 1.0)
    with torch.no_grad():
        return network(z_t, times, torch.zeros(1, 8, 8, 8), prior, xi)


def test_auxiliary_noise_has_no_tails():
    """Rare normal tails are hardly seen in training: whatever lies far out must act alike."""
    network = make(noise_channels=2)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    far, farther, near = (answer(network, torch.full((1, 2, 8, 8), v)) for v in (10.0, 100.0, 1.0))
    torch.testing.assert_close(far, farther)
    assert (far - near).abs().max() > 0.001, "noise acts on the answer"


def test_auxiliary_noise_reaches_the_network_uniform_with_unit_variance():
    network, seen = make(noise_channels=2), []
    network.stem.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][:, 3:]))
    answer(network, torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(2)))
    values = seen[0].flatten().sort().values  # 8192 numbers
    expected = 3**0.5 * torch.linspace(-1, 1, len(values))
    torch.testing.assert_close(values, expected, atol=0.06, rtol=0)  # five standard errors of the median
