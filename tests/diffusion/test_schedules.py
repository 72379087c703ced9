from __future__ import annotations

import math

import pytest
import torch

from nndiffseg.diffusion import Cosine, Linear, add_noise, timesteps
from nndiffseg.diffusion.schedules import normal_like, training_times


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_variance_is_preserved(schedule, dtype):
    t = torch.linspace(0, 1, 1001, dtype=dtype)
    power = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    assert power.dtype == dtype
    torch.testing.assert_close(power, torch.ones_like(t), rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ends_are_exact(schedule, dtype):
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    assert schedule.alpha(ends).tolist() == [pytest.approx(1.0, abs=2 * torch.finfo(dtype).eps), 0.0]
    assert schedule.sigma(ends).tolist() == [0.0, 1.0]
    assert schedule.log_snr(ends).tolist() == [math.inf, -math.inf]


def test_log_snr_decreases_strictly_and_matches_its_definition(schedule):
    t = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close(log_snr, (schedule.alpha(t) ** 2 / (1 - schedule.alpha(t) ** 2)).log())


def test_cosine_is_the_cosine():
    t = torch.tensor([0.0, 1 / 3, 0.5, 2 / 3], dtype=torch.float64)
    torch.testing.assert_close(Cosine().alpha(t), torch.tensor([1, math.sqrt(3) / 2, math.sqrt(0.5), 0.5]).double())


def test_linear_follows_ddpm_rescaled_to_zero_terminal_snr():
    # The discrete recipe: DDPM's betas in many small steps, then Algorithm 1 of arXiv 2305.08891, line by line.
    steps = 100_000
    betas = torch.linspace(0.1, 20.0, steps, dtype=torch.float64) / steps
    root = (1 - betas).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * first / (first - last)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    torch.testing.assert_close(Linear(0.1, 20.0).alpha(t), root, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rates", [(2.0, 1.0), (-0.1, 1.0), (0.0, 0.0)])
def test_linear_refuses_rates_that_make_no_schedule(rates):
    with pytest.raises(ValueError, match="beta_min"):
        Linear(*rates)


@pytest.mark.parametrize("rates", [(0.0, 1.0), (3.0, 3.0), (0.5, 1.0)])
def test_linear_takes_a_rate_of_zero_and_a_constant_one(rates):
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    a = torch.exp(-0.5 * (rates[0] * t + 0.5 * (rates[1] - rates[0]) * t**2))  # eq. 33 of arXiv 2011.13456
    torch.testing.assert_close(Linear(*rates).alpha(t), (a - a[2]) / (1 - a[2]), rtol=0, atol=1e-14)


def test_add_noise_uses_each_batch_elements_own_time(schedule):
    z0, noise = torch.randn(3, 2, 4, 5, 6), torch.randn(3, 2, 4, 5, 6)
    t = torch.tensor([0.0, 0.37, 1.0])
    z = add_noise(schedule, z0, noise, t)
    torch.testing.assert_close(z[0], z0[0])
    assert torch.equal(z[2], noise[2])
    torch.testing.assert_close(z[1], schedule.alpha(t[1]) * z0[1] + schedule.sigma(t[1]) * noise[1])


def test_add_noise_keeps_half_precision_and_refuses_mismatched_shapes(schedule):
    z0 = torch.randn(2, 1, 4, dtype=torch.bfloat16)
    assert add_noise(schedule, z0, torch.randn_like(z0), torch.rand(2)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="do not match"):
        add_noise(schedule, z0, torch.randn_like(z0), torch.rand(3))
    with pytest.raises(ValueError, match="do not match"):
        add_noise(schedule, z0, torch.randn(2, 2, 4), torch.rand(2))


def test_normal_noise_comes_from_its_generator_and_takes_shape_and_dtype():
    z = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    one, same = (normal_like(z, torch.Generator().manual_seed(7)) for _ in range(2))
    assert one.shape == z.shape and one.dtype == z.dtype and torch.equal(one, same)
    assert torch.equal(one, torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(7)).bfloat16())


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 1000])
def test_timesteps_descend_strictly_from_one_to_zero(steps):
    times = timesteps(steps)
    assert times.shape == (steps + 1,)
    assert times[0] == 1 and times[-1] == 0
    torch.testing.assert_close(times.diff(), torch.full((steps,), -1 / steps))


def test_sampling_needs_a_step():
    with pytest.raises(ValueError, match="at least one step"):
        timesteps(0)


def test_training_times_are_uniform_and_evenly_spread_over_a_batch():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([training_times(5, generator) for _ in range(4000)])
    assert drawn.min() == 1 / 1000 and drawn.max() == 1 and len(drawn.unique()) == 1000
    torch.testing.assert_close(drawn.mean(0), torch.full((5,), 0.5005), atol=0.02, rtol=0)  # four standard errors
    torch.testing.assert_close(drawn.sort(1).values.diff(dim=1), torch.full((4000, 4), 0.2), atol=1e-6, rtol=0)


def test_training_times_come_from_their_generator_and_reach_every_step():
    def drawn(seed: int, batch: int, steps: int) -> list[float]:
        return training_times(batch, torch.Generator().manual_seed(seed), steps).tolist()

    torch.manual_seed(0)
    first = drawn(3, 4, 1000)
    torch.manual_seed(1)  # the global generator must not matter
    assert drawn(3, 4, 1000) == first and drawn(4, 4, 1000) != first
    assert {round(3 * t, 4) for seed in range(50) for t in drawn(seed, 1, 3)} == {1, 2, 3}


def test_training_times_are_whole_steps_in_ascending_order_around_the_clock():
    for seed in range(20):
        steps = 1000 * training_times(7, torch.Generator().manual_seed(seed)).double()
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
        assert all(gap in (142, 143) for gap in (steps.round().diff() % 1000).tolist())
