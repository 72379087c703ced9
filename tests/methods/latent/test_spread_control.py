"""The spread weight follows the measured ratio of spread to error."""

from __future__ import annotations

import torch

from nndiffseg.methods.latent.scores import energy_distances
from nndiffseg.methods.latent.spread_control import HORIZON, RISE, SpreadControl


def test_narrow_and_calibrated_samples_leave_the_score_proper():
    control = SpreadControl(2)
    assert torch.equal(control.weight(1.0), torch.ones(2))
    control.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [2.0]]))
    assert torch.equal(control.weight(1.0), torch.ones(2))


def test_wide_samples_lower_the_weight_of_their_own_scale_only():
    control = SpreadControl(2)
    control.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.1], [1.0]]))
    torch.testing.assert_close(control.weight(1.0), torch.tensor([0.6, 1.0]))
    control.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[9.0], [1.0]]))
    assert control.weight(1.0)[0] == 0


def test_the_ceiling_rises_over_the_training():
    control = SpreadControl(1)
    assert [float(control.weight(p)) for p in (0.0, RISE / 2, RISE, 1.0)] == [0.5, 0.75, 1.0, 1.0]


def test_means_forget_after_the_horizon():
    control = SpreadControl(1)
    for _ in range(10):
        control.update(torch.ones(1, 3), torch.ones(1, 3))
    assert float(control.ratio) == 1
    for _ in range(6 * HORIZON):
        control.update(torch.ones(1, 1), torch.full((1, 1), 2.0))
    assert 1.98 < float(control.ratio) < 2


def test_a_batch_without_items_changes_nothing():
    control = SpreadControl(2)
    control.update(torch.ones(2, 0), torch.ones(2, 0))
    assert int(control.updates) == 0 and torch.equal(control.weight(1.0), torch.ones(2))


def test_state_survives_a_checkpoint():
    control, copy = SpreadControl(1), SpreadControl(1)
    control.update(torch.ones(1, 1), torch.full((1, 1), 1.05))
    copy.load_state_dict(control.state_dict())
    assert torch.equal(copy.weight(1.0), control.weight(1.0)) and int(copy.updates) == 1


def test_it_silences_outliers_that_the_plain_score_leaves():
    """A generator with a share of 4 % of outliers at distance 10, whose size is learnt: e^2 D is felt too little."""

    def train(controlled: bool) -> float:
        g = torch.Generator().manual_seed(0)
        outlier = torch.tensor(10.0, requires_grad=True)
        optimiser, control = torch.optim.SGD([outlier], lr=1.0), SpreadControl(1)
        for _ in range(400):
            y = torch.randn(512, 1, 1, generator=g)
            x = torch.randn(2, 512, 1, 1, generator=g) + outlier * (torch.rand(2, 512, 1, 1, generator=g) < 0.04)
            distances = energy_distances(x, y, (1,))
            control.update(*distances)
            optimiser.zero_grad()
            distances.score(control.weight(1.0) if controlled else 1.0).backward()
            optimiser.step()
        return abs(float(outlier.detach()))

    assert train(True) < 0.5 * train(False)
