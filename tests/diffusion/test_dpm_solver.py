from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from nndiffseg.diffusion import Cosine, sample_ddim, sample_dpmpp_2m, timesteps

NOISE = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, -1)


def error(sample, target, times: torch.Tensor) -> float:
    z0 = sample(target.posterior_mean, NOISE, times, schedule=target.schedule)
    return (z0 - target.flow(NOISE)).abs().max().item()


def test_follows_the_probability_flow_with_second_order(schedule, target):
    # Spacing t ~ i^2: with uniform times the last step, which returns x0, is of first order in a linear schedule.
    errors = [error(sample_dpmpp_2m, target, timesteps(n) ** 2) for n in (64, 128, 256)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine > 3


@pytest.mark.parametrize("steps", [8, 16, 32, 64])
def test_beats_ddim_at_equal_steps(target, steps):
    times = timesteps(steps) ** 2
    assert error(sample_dpmpp_2m, target, times) < 0.5 * error(sample_ddim, target, times)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_equals_ddim_while_there_is_nothing_to_extrapolate(schedule, target, steps):
    torch.testing.assert_close(
        sample_dpmpp_2m(target.posterior_mean, NOISE, timesteps(steps), schedule=schedule),
        sample_ddim(target.posterior_mean, NOISE, timesteps(steps), schedule=schedule),
    )


def test_an_inner_step_is_algorithm_2_written_out():
    """One second-order step by hand, from t = 3/4 over 1/2 and 1/4, for a denoiser whose outputs are given numbers."""
    schedule, outputs, visited = Cosine(), iter([2.0, 5.0, 11.0]), []
    start = torch.tensor([[[0.3]]], dtype=torch.float64)
    sample_dpmpp_2m(
        lambda z, t, i: torch.full_like(z, next(outputs)), start, torch.tensor([0.75, 0.5, 0.25, 0.0]),
        schedule=schedule, callback=lambda i, t, z, x0: visited.append(z.item()),
    )  # fmt: skip
    t = torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64)
    alpha, sigma = torch.cos(torch.pi * t / 2), torch.sin(torch.pi * t / 2)
    h = (alpha / sigma).log().diff()
    first = sigma[1] / sigma[0] * 0.3 - alpha[1] * ((-h[0]).exp() - 1) * 2.0
    r = h[0] / h[1]
    d = (1 + 1 / (2 * r)) * 5.0 - 1 / (2 * r) * 2.0
    second = sigma[2] / sigma[1] * first - alpha[2] * ((-h[1]).exp() - 1) * d
    assert visited == pytest.approx([0.3, first.item(), second.item()], rel=1e-12)
