"""Stochastic segmentation networks: likelihood, covariance and coherence of samples."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.compare.library import Options
from benchmarks.compare.ssn import LowRankGaussian, StochasticSegmentationNetwork, drawn_noise, negative_log_likelihood
from nndiffseg.nn.heads import Heads


class TinyUnet(nn.Module):
    """What nnU-Net's network shows: a decoder whose last layer makes logits of features."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 4, 1)
        self.decoder = nn.Module()
        self.decoder.seg_layers = nn.ModuleList([nn.Conv2d(4, 3, 1)])

    def forward(self, image):
        return self.decoder.seg_layers[-1](self.body(image).relu())


def gaussian(heads=3, rank=2, grid=(2, 2), scale=1.0):
    g = torch.Generator().manual_seed(0)
    return LowRankGaussian(
        *(scale * torch.randn(1, *shape, *grid, generator=g) for shape in ((heads,), (heads, rank))),
        scale * torch.rand(1, heads, *grid, generator=g),
    )


def test_without_variance_the_likelihood_is_the_cross_entropy():
    made = gaussian(rank=0)
    certain = LowRankGaussian(made.mean, made.factor, torch.zeros_like(made.mean))
    target = torch.tensor([[[[0, 2], [1, 1]]]])
    found = negative_log_likelihood(certain, target, Heads(3), draws=3)
    torch.testing.assert_close(found, F.cross_entropy(made.mean, target[:, 0]))
    regions = torch.randint(0, 2, made.mean.shape)
    found = negative_log_likelihood(certain, regions, Heads(3, regions=True), draws=3)
    torch.testing.assert_close(found, 3 * F.binary_cross_entropy_with_logits(made.mean, regions.float()))


@pytest.mark.parametrize("regions", [False, True])
def test_likelihood_is_the_integral_over_all_logits(regions):
    # One common number and no own ones: the integral over it by Gauss-Hermite quadrature.
    made = gaussian(heads=2, rank=1)
    made = LowRankGaussian(made.mean, made.factor, torch.zeros_like(made.mean))
    target = torch.tensor([[[[0, 1], [1, 1]]]])
    target = torch.cat([target, 1 - target], 1) if regions else target
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z = made.mean + torch.tensor(nodes).float().view(-1, 1, 1, 1) * made.factor[:, :, 0]  # (nodes, heads, 2, 2)
    if regions:
        log_p = F.logsigmoid(torch.where(target == 1, z, -z)).sum((1, 2, 3))
    else:
        log_p = z.log_softmax(1).gather(1, target.expand(60, -1, -1, -1)).sum((1, 2, 3))
    expected = -float((log_p.exp() @ torch.tensor(weights / weights.sum()).float()).log()) / 4
    found = negative_log_likelihood(made, target, Heads(2, regions), 20000, torch.Generator().manual_seed(0))
    assert float(found) == pytest.approx(expected, rel=0.02)


def test_samples_have_the_covariance_of_factor_and_diagonal():
    made = gaussian(grid=(1, 2))
    own, common = (torch.randn(1, 40000, *s, generator=torch.Generator().manual_seed(1)) for s in ((3, 1, 2), (2,)))
    logits = made.logits(common, own)[0].flatten(1)
    p = made.factor[0].movedim(1, -1).reshape(6, 2)
    expected = p @ p.T + torch.diag(made.deviation.flatten() ** 2)
    torch.testing.assert_close(torch.cov(logits.T), expected, atol=0.08, rtol=0.05)
    torch.testing.assert_close(logits.mean(0), made.mean.flatten(), atol=0.04, rtol=0)


def test_the_mean_begins_as_nnunets_logits_and_only_the_new_layers_learn():
    network = StochasticSegmentationNetwork(TinyUnet(), rank=2)
    network.start_at_finished()
    image = torch.rand(2, 1, 4, 6) + 0.1
    torch.testing.assert_close(network(image), network.unet(image))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 0.1)
    target = (image > 0.6).long()
    loss = negative_log_likelihood(network.gaussian(network.features(image), image), target, Heads(3))
    loss.backward()
    optimizer.step()
    changed = {k.split(".")[0] for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"mean", "factor", "log_variance"}


def test_logits_do_not_vary_where_the_image_is_zero():
    network, image = StochasticSegmentationNetwork(TinyUnet(), rank=2), torch.rand(1, 1, 4, 4) + 0.1
    image[..., :2] = 0
    with torch.no_grad():
        found = network.gaussian(network.features(image), image)
    assert float(found.factor[..., :2].abs().max()) == 0 and float(found.deviation[..., :2].max()) < 0.01
    assert float(found.factor[..., 2:].abs().min()) > 0 and float(found.deviation[..., 2:].min()) > 0.1


def test_noise_of_a_window_is_that_of_the_whole():
    common, own = drawn_noise(3, "case", 1, 4, 3, (6, 8))
    again, window = drawn_noise(3, "case", 1, 4, 3, (2, 5), origin=(4, 2))
    assert torch.equal(common, again) and torch.equal(own[:, 4:, 2:7], window)
    assert not torch.equal(common, drawn_noise(3, "case", 2, 4, 3, (6, 8))[0])


@pytest.mark.parametrize("sliced", [False, True])
def test_samples_do_not_depend_on_the_tiles(sliced):
    from benchmarks.compare.ssn_model import StochasticSegmentation

    network = StochasticSegmentationNetwork(TinyUnet(), rank=2).eval()  # point by point: tiles see what the whole sees
    image = np.random.default_rng(0).uniform(0.1, 1, size=(1, 11 if sliced else 1, 10, 12)).astype(np.float32)

    def predict(*patch, samples=4):
        configuration = SimpleNamespace(patch_size=patch)
        data = SimpleNamespace(
            configuration="2d",
            plans_manager=SimpleNamespace(get_configuration=lambda _: configuration),
            label_manager=SimpleNamespace(has_regions=False, num_segmentation_heads=3),
        )
        model = SimpleNamespace(data=data, network=network, device=torch.device("cpu"), mirror_axes=(0, 1))
        return StochasticSegmentation.predict_parts(model, image, "case", Options(samples, seed=5))

    whole, tiled = predict(10, 12), predict(4, 6)
    torch.testing.assert_close(whole.sampled, tiled.sampled)
    torch.testing.assert_close(whole.deterministic, tiled.deterministic)
    assert (whole.labels != tiled.labels).mean() < 1e-3  # rounding, where two labels are level
    assert whole.labels.shape == (4, *image.shape[1:]) and not np.array_equal(whole.labels[0], whole.labels[1])
    np.testing.assert_array_equal(predict(10, 12, samples=2).labels, whole.labels[:2])
    torch.testing.assert_close(whole.sampled.sum(0), torch.ones(image.shape[1:]))
