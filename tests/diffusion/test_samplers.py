"""The contract that every sampler passes; what is special to one of them is tested in its own file."""

from __future__ import annotations

import pytest
import torch

from nndiffseg.diffusion import add_noise, sampler_of, timesteps
from nndiffseg.diffusion.samplers import SAMPLERS
from nndiffseg.errors import UserError

STOCHASTIC = ("ancestral",)


@pytest.fixture(params=SAMPLERS)
def name(request) -> str:
    return request.param


@pytest.fixture
def sample(name):
    return sampler_of(name)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("rho", [1, 2])
def test_an_oracle_denoiser_is_recovered_exactly(sample, schedule, steps, rho):
    truth, noise = torch.randn(3, 2, 4, 5, 6), torch.randn(3, 2, 4, 5, 6)
    times = timesteps(steps) ** rho
    z0 = sample(lambda z, t, i: truth, noise, times, schedule=schedule, generator=seeded())
    assert torch.equal(z0, truth)


def test_a_known_noise_is_followed_back_to_the_latent_it_was_added_to(name, sample, schedule):
    """With the true noise as a deterministic oracle, z_t stays on the line alpha z0 + sigma eps at every time."""
    z0, eps = torch.randn(2, 3, 8).double(), torch.randn(2, 3, 8).double()
    visited = []
    times = (timesteps(6) ** 1.5)[1:]  # from t < 1, as when a prediction is refined
    start = add_noise(schedule, z0, eps, times[:1].double().expand(2))
    sample(
        lambda z, t, i: z0, start, times, schedule=schedule, step_noise=lambda i, z: eps,
        callback=lambda i, t, z, x0: visited.append((t, z)),
    )  # fmt: skip
    assert [t for t, _ in visited] == times[:-1].double().tolist()
    if name not in STOCHASTIC:
        for t, z in visited:
            torch.testing.assert_close(z, add_noise(schedule, z0, eps, torch.full((2,), t).double()))


def test_a_gaussian_keeps_its_mean_and_standard_deviation_in_many_steps(sample, schedule, target):
    noise = torch.randn(1, 1, 256, 256, generator=seeded(1))
    z0 = sample(target.posterior_mean, noise, timesteps(400), schedule=schedule, generator=seeded(2))
    assert z0.mean().item() == pytest.approx(target.mean, abs=0.01)  # standard error 0.0016
    assert z0.std().item() == pytest.approx(target.std, rel=0.03)


def test_the_same_generator_gives_the_same_sample(sample, schedule, target):
    noise = torch.randn(2, 3, 8)
    first, second = (
        sample(target.posterior_mean, noise, timesteps(4), schedule=schedule, generator=seeded(7)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_the_same_step_noise_gives_the_same_sample_and_samples_do_not_depend_on_their_batch(sample, schedule, target):
    noise = torch.randn(4, 3, 8)
    stored = torch.randn(5, 4, 3, 8)

    def run(members):
        return sample(
            target.posterior_mean, noise[members], timesteps(5), schedule=schedule,
            step_noise=lambda i, z: stored[i][members],
        )  # fmt: skip

    assert torch.equal(run([0, 1, 2, 3]), run([0, 1, 2, 3]))
    torch.testing.assert_close(run([2, 0]), run([0, 1, 2, 3])[[2, 0]])


def test_only_stochastic_samplers_need_noise_and_they_need_one_source(name, sample, schedule, target):
    def run(**source):
        return sample(lambda z, t, i: z, torch.randn(1, 1, 4), timesteps(2), schedule=schedule, **source)

    if name in STOCHASTIC:
        with pytest.raises(ValueError, match="exactly one of step_noise and generator"):
            run()
        with pytest.raises(ValueError, match="exactly one of step_noise and generator"):
            run(generator=seeded(), step_noise=lambda i, z: z)
        noise = torch.randn(1, 1, 4)
        a, b = (sample(target.posterior_mean, noise, timesteps(2), schedule=schedule, generator=seeded(s)) for s in (1, 2))
        assert not torch.equal(a, b)
    else:
        assert run().shape == (1, 1, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 3, 4, 5, 6)])
def test_shape_and_dtype_are_kept_and_time_is_a_batch_of_at_least_single_precision(sample, schedule, dtype, shape):
    def denoise(z, t, i):
        assert z.shape == shape and z.dtype == dtype
        assert t.shape == shape[:1] and t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        return 0.5 * z

    z0 = sample(denoise, torch.randn(shape, dtype=dtype), timesteps(4), schedule=schedule, generator=seeded())
    assert z0.shape == shape and z0.dtype == dtype and z0.isfinite().all()


def test_every_step_is_reported_and_the_last_estimate_is_returned(sample, schedule, target):
    steps, calls = timesteps(5), []
    noise = torch.randn(1, 2, 4)
    z0 = sample(
        target.posterior_mean, noise, steps, schedule=schedule, generator=seeded(),
        callback=lambda *call: calls.append(call),
    )  # fmt: skip
    assert [i for i, *_ in calls] == [0, 1, 2, 3, 4]
    assert [t for _, t, *_ in calls] == steps[:-1].tolist()
    assert torch.equal(calls[0][2], noise) and torch.equal(calls[-1][3], z0)
    for _, t, z, x0 in calls:
        assert torch.equal(target.posterior_mean(z, torch.full((1,), t)), x0)


@pytest.mark.parametrize("times", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.0, 0.5], [1.5, 0.0], [[1.0, 0.0]]])
def test_times_that_make_no_walk_to_zero_are_refused(sample, schedule, times):
    with pytest.raises(ValueError, match="times must descend strictly"):
        sample(lambda z, t, i: z, torch.randn(1, 1, 4), torch.tensor(times), schedule=schedule, generator=seeded())


def test_inputs_are_not_changed(sample, schedule, target):
    noise = torch.randn(1, 2, 4)
    kept, times = noise.clone(), timesteps(3)
    sample(target.posterior_mean, noise, times, schedule=schedule, generator=seeded())
    assert torch.equal(noise, kept) and torch.equal(times, timesteps(3))


def test_gradients_flow_through_sampling(sample, schedule):
    gain = torch.tensor(0.5, requires_grad=True)
    sample(lambda z, t, i: gain * z, torch.ones(1, 1, 4), timesteps(3), schedule=schedule, generator=seeded()
           ).sum().backward()  # fmt: skip
    assert gain.grad is not None and gain.grad.isfinite() and gain.grad != 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cpu_generator_gives_the_same_sample_on_the_gpu(sample, schedule, target):
    noise = torch.randn(2, 3, 8)
    here, there = (
        sample(target.posterior_mean, noise.to(device), timesteps(4), schedule=schedule, generator=seeded())
        for device in ("cpu", "cuda")
    )
    assert there.device.type == "cuda"
    torch.testing.assert_close(here, there.cpu())


def test_an_unknown_sampler_is_a_user_error():
    with pytest.raises(UserError, match="ancestral, ddim, dpmpp_2m"):
        sampler_of("euler")


def test_a_function_is_a_sampler_itself(sample):
    assert sampler_of(sample) is sample


def test_the_denoiser_is_told_the_step(sample, schedule):
    """Its own noise has a stream for each step."""
    told = []
    sample(lambda z, t, i: told.append(i) or z, torch.randn(1, 1, 4), timesteps(4), schedule=schedule, generator=seeded())
    assert told == [0, 1, 2, 3]


def test_everything_stays_on_the_device_of_the_noise(sample, schedule):
    def denoise(z, t, i):
        assert z.device.type == t.device.type == "meta"
        return 0.5 * z

    noise = torch.randn(2, 1, 4, device="meta")
    assert sample(denoise, noise, timesteps(3), schedule=schedule, generator=seeded()).device.type == "meta"
