from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from nndiffseg.diffusion import sample_ddim, timesteps


def test_follows_the_probability_flow_with_first_order(schedule, target):
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, -1)
    errors = [
        (sample_ddim(target.posterior_mean, noise, timesteps(n), schedule=schedule) - target.flow(noise)).abs().max()
        for n in (64, 128, 256)
    ]
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_adds_noise_of_the_right_size(schedule, target, eta):
    noise = torch.randn(1, 1, 65536, generator=torch.Generator().manual_seed(0))
    z0 = sample_ddim(
        target.posterior_mean, noise, timesteps(400), schedule=schedule, eta=eta,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert z0.std().item() == pytest.approx(target.std, rel=0.03)


def test_noise_is_needed_only_where_eta_is_positive(schedule):
    noise = torch.randn(1, 1, 4)
    with pytest.raises(ValueError, match="exactly one"):
        sample_ddim(lambda z, t, i: z, noise, timesteps(2), schedule=schedule, eta=0.5)
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match="eta"):
            sample_ddim(lambda z, t, i: z, noise, timesteps(2), schedule=schedule, eta=eta, generator=torch.Generator())
    assert sample_ddim(lambda z, t, i: z, noise, timesteps(2), schedule=schedule).shape == noise.shape
