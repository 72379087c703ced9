"""U-SA against its equations: smoothing, maximum, bounds, residual form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nndiffseg.methods.medsegdiff.uncertain_attention import (
    MAX_SIGMA,
    RADIUS,
    GaussianSmoothing,
    UncertainSpatialAttention,
    attend,
    pool,
)


def attention_for(dim: int, strides, maps: int = 3) -> UncertainSpatialAttention:
    torch.manual_seed(0)
    module = UncertainSpatialAttention(dim, 4, maps, strides)
    for p in module.to_logits.parameters():
        torch.nn.init.normal_(p)
    return module


@pytest.mark.parametrize("shape", [(17, 24), (9, 16, 11), (1, 16, 12), (2, 3, 2)])
def test_smoothing_is_scipys_gaussian(shape):
    smooth = GaussianSmoothing(len(shape))
    smooth.raw_sigma.data = torch.linspace(-1, 1, len(shape))
    x = torch.randn(2, 3, *shape)
    expected = np.stack(
        [
            [gaussian_filter(c.double().numpy(), smooth.sigma.tolist(), radius=RADIUS, mode="nearest") for c in item]
            for item in x
        ]
    )
    np.testing.assert_allclose(smooth(x).detach().numpy(), expected, atol=1e-5)


def test_sigma_starts_at_one_voxel_and_stays_below_the_kernels_width():
    smooth = GaussianSmoothing(3)
    torch.testing.assert_close(smooth.sigma, torch.ones(3))
    smooth.raw_sigma.data.fill_(50)
    assert (smooth.sigma <= MAX_SIGMA).all()
    smooth.raw_sigma.data.fill_(-50)
    x = torch.randn(1, 1, 5, 5, 5)
    torch.testing.assert_close(smooth(x), x)  # a vanishing width smooths nothing, and divides by nothing


@pytest.mark.parametrize("dim", [2, 3])
def test_the_anchor_is_the_larger_of_smoothed_and_unsmoothed(dim):
    module, f = attention_for(dim, [(1,) * dim]), torch.randn(2, 4, *(10, 7, 9)[:dim])
    anchor, smooth = module.anchor(f), module.smooth(f)
    assert (anchor >= f).all() and (anchor >= smooth).all()
    assert ((anchor == f) | (anchor == smooth)).all()
    assert (anchor > f).any() and (anchor > smooth).any()


def test_attention_is_the_sigmoid_of_a_projection_of_the_anchor_at_each_level():
    strides = [(1, 1, 1), (1, 2, 2)]
    module, f = attention_for(3, strides), 3 * torch.randn(2, 4, 4, 8, 6)
    levels = module(f)
    assert [tuple(a.shape) for a in levels] == [(2, 3, 4, 8, 6), (2, 3, 4, 4, 3)]
    anchor = module.anchor(f)
    for a, project, stride in zip(levels, module.to_logits, strides, strict=True):
        assert (a > 0).all() and (a < 1).all()
        logits = torch.einsum("oc,bcxyz->boxyz", project.weight[:, :, 0, 0, 0], anchor) + project.bias.view(1, -1, 1, 1, 1)
        torch.testing.assert_close(a, pool(logits, stride).sigmoid())


def test_fresh_attention_is_one_half_whatever_the_image():
    module, features = UncertainSpatialAttention(2, 4, 2, [(1, 1)]), torch.randn(3, 5, 8, 8)
    (attention,) = module(torch.randn(3, 4, 8, 8))
    torch.testing.assert_close(attend(features, attention), 1.5 * features)


@pytest.mark.parametrize(("maps", "channels"), [(1, 4), (3, 8), (4, 2)])
def test_attending_adds_the_product_of_each_channel_and_its_map(maps, channels):
    features, attention = torch.randn(2, channels, 5, 6), torch.rand(1, maps, 5, 6)
    out = attend(features, attention)
    for c in range(channels):
        torch.testing.assert_close(out[:, c], features[:, c] * (1 + attention[:, c % maps]))


def test_every_parameter_gets_a_gradient():
    module = attention_for(3, [(1, 1, 1), (2, 2, 2)])
    features = [torch.randn(1, 6, 8, 8, 8), torch.randn(1, 6, 4, 4, 4)]
    attention = module(torch.randn(1, 4, 8, 8, 8))
    sum(attend(f, a).square().mean() for f, a in zip(features, attention, strict=True)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_without_smoothing_it_is_plain_spatial_attention():
    module, f = UncertainSpatialAttention(2, 4, 3, [(1, 1)], smoothing=False), torch.randn(2, 4, 5, 6)
    torch.nn.init.normal_(module.to_logits[0].weight)
    torch.testing.assert_close(module(f)[0], module.to_logits[0](f).sigmoid())
