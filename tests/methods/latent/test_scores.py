"""The training scores are proper: they are least for the true distribution, and agree with their definitions."""

from __future__ import annotations

import pytest
import torch

from nndiffseg.methods.latent.scores import energy_distances, jaccard_distances


def expected_energy(spread: float, scales, n: int = 4000, truth: float = 1.0, weight: float = 1.0) -> float:
    g = torch.Generator().manual_seed(0)
    y = truth * torch.randn(n, 1, 4, generator=g).mean(2, keepdim=True).expand(n, 1, 4) * 2
    x = spread * torch.randn(2, n, 1, 4, generator=g).mean(3, keepdim=True).expand(2, n, 1, 4) * 2
    return float(energy_distances(x[..., None], y[..., None], scales).score(weight))


@pytest.mark.parametrize("scales", [(1,), (0,), (1, 2, 0)])
def test_energy_score_is_least_at_the_true_spread(scales):
    scores = {s: expected_energy(s, scales) for s in (0.0, 0.5, 1.0, 2.0)}
    assert min(scores, key=scores.__getitem__) == 1.0, scores


def test_a_spread_weight_below_one_asks_for_narrower_samples():
    """lambda / sqrt(2 - lambda^2) = 0.58 for lambda = 0.71: the closed form of a Gaussian."""
    scores = {s: expected_energy(s, (0,), weight=0.71) for s in (0.2, 0.4, 0.58, 0.8, 1.0)}
    assert min(scores, key=scores.__getitem__) == 0.58, scores


def test_a_spread_weight_below_one_charges_outliers_linearly():
    """A share e of outliers at distance D costs e^2 D with weight 1, and (1 - lambda) e D more below."""
    e, big, n = 0.1, 100.0, 20000
    g = torch.Generator().manual_seed(0)
    x = big * (torch.rand(2, n, 1, 1, 1, generator=g) < e).float()
    y = torch.zeros(n, 1, 1, 1)
    assert float(energy_distances(x, y, (1,)).score()) == pytest.approx(e**2 * big, rel=0.15)
    assert float(energy_distances(x, y, (1,)).score(0.8)) == pytest.approx((e**2 + 0.2 * e * (1 - e)) * big, rel=0.15)


@pytest.mark.parametrize("scales", [(1,), (0,), (1, 2, 0)])
def test_error_equals_spread_for_samples_of_the_truth(scales):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 20000, 1, 4, 1, generator=g), torch.randn(20000, 1, 4, 1, generator=g)
    distances = energy_distances(x, y, scales)
    torch.testing.assert_close(distances.error.mean(1), distances.spread.mean(1), rtol=0.03, atol=0)
    assert (energy_distances(2 * x, y, scales).spread.mean(1) > 1.2 * distances.spread.mean(1)).all()


def test_energy_score_of_one_number_is_the_crps_estimate():
    x, y = torch.tensor([1.0, 4.0]), torch.tensor(2.0)
    got = energy_distances(x.view(2, 1, 1, 1, 1), y.view(1, 1, 1, 1), (1,)).score()
    assert got == pytest.approx((1 + 2) / 2 - 3 / 2, abs=1e-5)


def test_coarse_scales_tell_coherent_from_independent_samples():
    """Both forecasts have the right marginals; only the coarse score sees that one lacks the common offset."""
    g = torch.Generator().manual_seed(1)
    n, cells = 4000, 16
    y = torch.randn(n, 1, 1, 1, generator=g).expand(n, 1, cells, 1)
    coherent = torch.randn(2, n, 1, 1, 1, generator=g).expand(2, n, 1, cells, 1)
    independent = torch.randn(2, n, 1, cells, 1, generator=g)
    fine = energy_distances(coherent, y, (1,)).score() - energy_distances(independent, y, (1,)).score()
    coarse = energy_distances(coherent, y, (0,)).score() - energy_distances(independent, y, (0,)).score()
    assert abs(fine) < 0.02
    assert coarse < -0.1


def test_energy_score_has_a_finite_gradient_where_samples_agree():
    x = torch.zeros(2, 1, 2, 4, 4, requires_grad=True)
    energy_distances(x, torch.zeros(1, 2, 4, 4), (1, 2, 0)).score().backward()
    assert torch.isfinite(x.grad).all()


def test_jaccard_score_on_masks_is_the_generalised_energy_distance():
    a, b, y = (torch.zeros(1, 1, 4, 4) for _ in range(3))
    a[..., :2, :], b[..., 1:3, :], y[..., :3, :] = 1, 1, 1

    def d(p, q):
        return 1 - float((p * q).sum() / ((p + q) > 0).sum())

    expected = (d(a, y) + d(b, y) - d(a, b)) / 2
    assert float(jaccard_distances(torch.stack([a, b]), y, eps=0.0).score()) == pytest.approx(expected, abs=1e-6)


def test_jaccard_score_of_empty_masks_is_zero():
    empty = torch.zeros(2, 1, 1, 4, 4)
    assert float(jaccard_distances(empty, empty[0]).score()) == 0
