"""Running whitening against closed forms: its statistics, the value in both modes, its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nndiffseg.nn.whitening import RunningWhitening


def batches(n: int, shape: tuple[int, ...] = (4, 3, 5, 6)) -> list[Tensor]:
    """Each with a mean and a deviation of its own in every channel."""
    g = torch.Generator().manual_seed(0)
    view = (1, shape[1], *[1] * (len(shape) - 2))
    return [
        torch.randn(shape, generator=g) * (1 + 3 * torch.rand(view, generator=g)) + 5 * torch.randn(view, generator=g)
        for _ in range(n)
    ]


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over batch and space."""
    values = x.transpose(0, 1).flatten(1)
    return values.mean(1), (values - values.mean(1, keepdim=True)).square().mean(1)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (2, 3, 4, 5, 6)], ids=["2d", "3d"])
def test_early_statistics_are_the_plain_mean_over_all_batches(shape):
    layer, seen = RunningWhitening(3, momentum=0.05), batches(20, shape)
    for i, x in enumerate(seen, start=1):
        layer(x)
        means, variances = zip(*map(statistics, seen[:i]), strict=True)
        torch.testing.assert_close(layer.mean, torch.stack(means).mean(0))
        torch.testing.assert_close(layer.var, torch.stack(variances).mean(0))
    assert int(layer.updates) == 20


def test_the_first_batch_leaves_nothing_of_the_start_and_nothing_to_whiten():
    layer, x = RunningWhitening(3), batches(1)[0]
    mean, variance = statistics(layer(x))
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(variance, torch.ones(3), atol=1e-4, rtol=0)


def test_late_statistics_forget_with_the_momentum():
    layer, (first, second) = RunningWhitening(3, momentum=0.1), batches(2)
    layer(first)
    layer.updates.fill_(10)  # from here on 1 / (updates + 1) is the smaller rate
    layer(second)
    (m1, v1), (m2, v2) = statistics(first), statistics(second)
    torch.testing.assert_close(layer.mean, 0.9 * m1 + 0.1 * m2)
    torch.testing.assert_close(layer.var, 0.9 * v1 + 0.1 * v2)


def test_training_and_test_compute_the_same_function():
    """Of the statistics after the update: what the next prediction will use."""
    layer, seen = RunningWhitening(3), batches(7)
    for x in seen:
        trained = layer(x)
    assert statistics(trained)[0].abs().max() > 0.1, "the last batch alone would be whitened to zero mean"
    torch.testing.assert_close(trained, layer.eval()(seen[-1]), rtol=1e-4, atol=1e-5)


def test_the_value_is_centred_and_scaled_by_the_running_statistics():
    layer, x = RunningWhitening(2, eps=0.5).eval(), torch.randn(3, 2, 4, 4)
    layer.mean.copy_(torch.tensor([1.0, -2.0]))
    layer.var.copy_(torch.tensor([3.5, 8.5]))
    expected = (x - torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)) / torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(layer(x), expected)


def test_at_test_neither_batch_nor_image_size_matter_and_nothing_is_learnt():
    layer, x = RunningWhitening(3), batches(1)[0]
    for other in batches(3):
        layer(other)
    layer.eval()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    torch.testing.assert_close(layer(x)[1:2, :, 2:5, :3], layer(x[1:2, :, 2:5, :3]))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_without_update_a_training_layer_acts_as_at_test():
    layer, (first, second) = RunningWhitening(3), batches(2)
    layer(first)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    value = layer(second, update=False)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert torch.equal(value, layer.eval()(second))


def test_gradients_flow_as_through_batch_statistics():
    """Batch normalisation's gradient, times r = batch deviation / running deviation (Ioffe 2017, Alg. 1)."""
    layer, seen = RunningWhitening(3), batches(5)
    for x in seen[:4]:
        layer(x)
    x, probe = seen[4].requires_grad_(), torch.randn(seen[4].shape)
    (gradient,) = torch.autograd.grad((layer(x) * probe).sum(), x)
    (plain,) = torch.autograd.grad((F.batch_norm(x, None, None, training=True, eps=layer.eps) * probe).sum(), x)
    r = ((statistics(x.detach())[1] + layer.eps) / (layer.var + layer.eps)).sqrt().view(1, 3, 1, 1)
    assert (r - 1).abs().max() > 0.1
    torch.testing.assert_close(gradient, r * plain, rtol=1e-4, atol=1e-5)


def test_no_gradient_reaches_the_scale_of_its_input():
    layer, x = RunningWhitening(1), torch.randn(64, 1, 4, 4)
    scale = torch.tensor(2.0, requires_grad=True)
    layer(scale * x).pow(4).mean().backward()
    assert scale.grad is not None and scale.grad.abs() < 1e-3, "else the encoder would grow without bound"


def test_half_precision_is_whitened_in_single_precision():
    layer, x = RunningWhitening(1), 1000 + torch.arange(64.0).view(4, 1, 4, 4)  # squares would overflow in float16
    value = layer(x.half())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, (x - x.mean()) / x.std(correction=0), rtol=1e-4, atol=1e-4)


def test_statistics_are_state_of_the_network():
    assert set(RunningWhitening(3).state_dict()) == {"mean", "var", "updates"}
