"""cDAL's parts against their equations: posterior, R1, adaptive norm, attention, and the generator's contract."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nndiffseg.diffusion.ancestral import sample_ancestral
from nndiffseg.diffusion.noise.source import patch_noise
from nndiffseg.diffusion.schedules import Linear, timesteps
from nndiffseg.methods.cdal.discriminator import Discriminator, discriminator_loss, r1_penalty
from nndiffseg.methods.cdal.generator import AdaptiveGroupNorm, CDALGenerator, Layout, MappingNetwork
from nndiffseg.methods.cdal.pairs import posterior_sample, random_steps, real_pair
from nndiffseg.nn.heads import Heads

SCHEDULE = Linear()
LAYOUTS = [
    pytest.param(Layout((8, 12, 16), ((2, 2), (2, 2)), ((3, 3),) * 3), (16, 24), id="2d"),
    pytest.param(Layout((8, 8, 16), ((1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3))), (6, 16, 8), id="anisotropic"),
]


def generator(layout: Layout, patch, *, steps: int = 4, seed: int = 0) -> CDALGenerator:
    """Residual branches start at zero; moved a little, every part of the network has a say."""
    torch.manual_seed(seed)
    network = CDALGenerator(1, Heads(3), patch, layout, steps).eval()
    for p in network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return network


def discriminator(layout: Layout, seed: int = 0) -> Discriminator:
    torch.manual_seed(seed)
    return Discriminator(3, layout.channels, layout.strides, layout.kernels)


# ---- pairs: the posterior of the denoising GAN --------------------------------------------------------------------------


def ddgan_posterior(steps: int, n: int) -> tuple[float, float, float]:
    """Weights of x0 and x_t and the variance of q(x_{n-1} | x_n, x0), from the discrete betas (DDPM, eq. 6 and 7)."""
    a = np.exp(-0.25 * np.linspace(0, 1, steps + 1) ** 2 * 19.9 - 0.05 * np.linspace(0, 1, steps + 1))
    alpha_bar = ((a - a[-1]) / (1 - a[-1])) ** 2  # zero terminal SNR
    beta = 1 - alpha_bar[n] / alpha_bar[n - 1]
    rest, rest_before = 1 - alpha_bar[n], 1 - alpha_bar[n - 1]
    return (math.sqrt(alpha_bar[n - 1]) * beta / rest, math.sqrt(1 - beta) * rest_before / rest, beta * rest_before / rest)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_posterior_is_the_closed_form_of_the_denoising_gan(steps):
    x0, x_t, noise = (torch.randn(steps, 3, 4, 5, dtype=torch.float64) for _ in range(3))
    n = torch.arange(1, steps + 1, dtype=torch.float64)
    x_s = posterior_sample(SCHEDULE, x0, x_t, n / steps, (n - 1) / steps, noise)
    for i in range(steps):
        of_x0, of_x_t, variance = ddgan_posterior(steps, i + 1)
        torch.testing.assert_close(x_s[i], of_x0 * x0[i] + of_x_t * x_t[i] + variance**0.5 * noise[i], atol=1e-7, rtol=1e-6)
    assert torch.equal(x_s[0], x0[0]), "the last step returns the estimate itself"


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_shared_ancestral_sampler_walks_by_the_same_posterior(steps):
    torch.manual_seed(0)
    start, estimates, noise = torch.randn(2, 3, 4, 4), torch.rand(steps, 2, 3, 4, 4), torch.randn(steps, 2, 3, 4, 4)
    seen: list[Tensor] = []
    final = sample_ancestral(
        lambda x, t, i: (seen.append(x), estimates[len(seen) - 1])[1],
        start,
        timesteps(steps),
        schedule=SCHEDULE,
        step_noise=lambda i, x: noise[i],
    )
    x = start
    for i in range(steps):
        torch.testing.assert_close(seen[i], x, atol=1e-5, rtol=1e-5)
        t = torch.full((2,), (steps - i) / steps)
        x = posterior_sample(SCHEDULE, estimates[i], x, t, t - 1 / steps, noise[i])
    assert torch.equal(final, estimates[-1])


def test_real_pairs_have_the_moments_of_the_forward_process():
    n = 200_000
    g = torch.Generator().manual_seed(0)
    noise = [torch.randn(n, 1, 1, 1, generator=g, dtype=torch.float64) for _ in range(3)]
    t, s = torch.full((n,), 0.5, dtype=torch.float64), torch.full((n,), 0.25, dtype=torch.float64)
    x0 = torch.full((n, 1, 1, 1), 0.8, dtype=torch.float64)
    x_s, x_t = real_pair(SCHEDULE, x0, t, s, noise[0], noise[1])
    back = posterior_sample(SCHEDULE, x0, x_t, t, s, noise[2])  # q(x_s | x_t, x0) q(x_t | x0) has q(x_s | x0) as marginal
    alpha_ts = float(SCHEDULE.alpha(t[0]) / SCHEDULE.alpha(s[0]))
    for x, time in ((x_s, s), (x_t, t), (back, s)):
        assert float(x.mean()) == pytest.approx(0.8 * float(SCHEDULE.alpha(time[0])), abs=0.01)
        assert float(x.var()) == pytest.approx(float(SCHEDULE.sigma(time[0])) ** 2, rel=0.02)
    for first in (x_s, back):
        covariance = float(((first - first.mean()) * (x_t - x_t.mean())).mean())
        assert covariance == pytest.approx(alpha_ts * float(SCHEDULE.sigma(s[0])) ** 2, abs=0.01)


def test_steps_are_drawn_from_one_to_the_last():
    t, s = random_steps(1000, 4, torch.Generator().manual_seed(0))
    assert sorted(set(t.tolist())) == [0.25, 0.5, 0.75, 1.0] and torch.equal(t - s, torch.full((1000,), 0.25))


# ---- discriminator ------------------------------------------------------------------------------------------------------


def test_r1_of_a_linear_discriminator_is_the_norm_of_its_weight():
    x, w = torch.randn(5, 2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    assert float(r1_penalty((x * w).sum((1, 2, 3)), x)) == pytest.approx(float(w.square().sum()), rel=1e-5)


def test_gradient_of_r1_of_a_quadratic_discriminator():
    """D = a / 2 |x|^2 has dD/dx = a x, so R1 = a^2 mean |x|^2 and dR1/da = 2 a mean |x|^2."""
    x = torch.randn(5, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    size = float(x.detach().square().sum((1, 2, 3)).mean())
    penalty = r1_penalty(a / 2 * x.square().sum((1, 2, 3)), x)
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(0.49 * size) and float(a.grad) == pytest.approx(1.4 * size)


@pytest.mark.parametrize(("layout", "patch"), LAYOUTS)
def test_gradient_of_r1_of_the_discriminator_equals_a_finite_difference(layout, patch):
    model = discriminator(layout).double()
    x_s, x_t = (torch.randn(2, 3, *patch, dtype=torch.float64) for _ in range(2))
    x_s.requires_grad_()
    t = torch.tensor([0.5, 1.0], dtype=torch.float64)
    model.embed.double()
    weight = model.down[0].conv1.weight

    def penalty() -> Tensor:
        return r1_penalty(model(x_s, x_t, t), x_s)

    direction = torch.randn_like(weight)
    expected = float((torch.autograd.grad(penalty(), weight)[0] * direction).sum())
    h = 1e-7  # small: the leaky ReLU's kinks must not lie between the two points
    weight.data += h * direction
    above = float(penalty().detach())
    weight.data -= 2 * h * direction
    assert (above - float(penalty().detach())) / (2 * h) == pytest.approx(expected, rel=1e-4)


def test_discriminator_loss_is_the_logistic_loss():
    real, fake = torch.tensor([0.3, -2.0]), torch.tensor([1.5, 0.0])
    expected = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    torch.testing.assert_close(discriminator_loss(real, fake), expected)


@pytest.mark.parametrize(("layout", "patch"), LAYOUTS)
def test_a_logit_depends_on_its_own_item_its_time_and_both_maps(layout, patch):
    model = discriminator(layout).eval()
    x_s, x_t = torch.randn(3, 3, *patch), torch.randn(3, 3, *patch)
    t = torch.tensor([0.25, 0.5, 1.0])
    logits = model(x_s, x_t, t)
    assert logits.shape == (3,)
    torch.testing.assert_close(logits[1:2], model(x_s[1:2], x_t[1:2], t[1:2]), atol=1e-5, rtol=1e-4)
    for other in (model(x_s, x_t, t.flip(0)), model(x_t, x_s, t), model(x_s, x_t.flip(0), t)):
        assert float((other - logits).detach()[0].abs()) > 1e-3


@pytest.mark.parametrize(("layout", "patch"), LAYOUTS)
def test_attention_is_a_weight_whatever_the_scale_of_the_features(layout, patch):
    model = discriminator(layout)
    x_s, x_t, t = torch.randn(2, 3, *patch), torch.randn(2, 3, *patch), torch.ones(2)
    weight = model.attention(x_s, x_t, t)
    assert weight.shape == (2, 1, *patch) and not weight.requires_grad
    assert torch.equal(weight.flatten(1).amax(1), torch.ones(2)) and float(weight.min()) > 0
    assert float(weight.std()) > 0.05
    for module in (model.down[0].conv2, model.down[0].shortcut):
        for p in module.parameters():
            p.data *= 30
    torch.testing.assert_close(model.attention(x_s, x_t, t), weight, atol=1e-3, rtol=0)


# ---- generator ----------------------------------------------------------------------------------------------------------


def test_adaptive_group_norm_scales_and_shifts_the_normalised_groups():
    norm = AdaptiveGroupNorm(8, 4)
    x, style = torch.randn(2, 8, 5, 6), torch.randn(2, 4)
    scale, shift = norm.affine(style).chunk(2, 1)
    groups = x.view(2, 2, -1)  # two groups of four channels
    plain = ((groups - groups.mean(2, keepdim=True)) / (groups.var(2, keepdim=True, correction=0) + 1e-5).sqrt()).view_as(x)
    torch.testing.assert_close(norm(x, style), plain * (1 + scale[..., None, None]) + shift[..., None, None])


def test_the_style_depends_on_the_direction_of_the_vector_alone():
    torch.manual_seed(0)
    mapping, z = MappingNetwork(10, 6), torch.randn(3, 10)
    torch.testing.assert_close(mapping(5 * z), mapping(z), atol=1e-5, rtol=0)
    assert (mapping(z) - mapping(-z)).abs().max() > 1e-3
    assert torch.isfinite(mapping(0 * z)).all()


@pytest.mark.parametrize(("layout", "patch"), LAYOUTS)
def test_the_generator_predicts_label_maps_between_minus_one_and_one(layout, patch):
    model = generator(layout, patch)
    x0 = model(torch.randn(2, 1, *patch), torch.randn(2, 3, *patch), torch.tensor([0.5, 1.0]), torch.randn(2, 100))
    assert x0.shape == (2, 3, *patch) and float(x0.abs().max().detach()) < 1


@pytest.mark.parametrize(("layout", "patch"), LAYOUTS)
def test_every_input_matters_and_items_do_not_mix(layout, patch):
    model = generator(layout, patch)
    inputs = [torch.randn(2, 1, *patch), torch.randn(2, 3, *patch), torch.tensor([0.5, 1.0]), torch.randn(2, 100)]
    x0 = model(*inputs)
    torch.testing.assert_close(model(*(v[:1] for v in inputs)), x0[:1], atol=1e-5, rtol=1e-4)
    for i in range(4):
        changed = [v.flip(0) if i == j else v for j, v in enumerate(inputs)]
        assert (model(*changed) - x0).abs().max() > 1e-3


@pytest.mark.parametrize(("layout", "patch"), LAYOUTS)
def test_evaluation_gives_the_generator_at_the_end_without_noise_and_vector(layout, patch):
    model, image = generator(layout, patch), torch.randn(2, 1, *patch)
    x0 = model(image, torch.zeros(2, 3, *patch), torch.ones(2), torch.zeros(2, 100))
    logits = model(image)
    torch.testing.assert_close(logits, model.to_logits(x0))
    torch.testing.assert_close(model.encode(image)[0], logits)
    assert torch.equal(model(image), logits)


@pytest.mark.parametrize(("layout", "patch"), LAYOUTS)
def test_every_parameter_takes_part_in_a_training_step(layout, patch):
    model = generator(layout, patch).train()
    model(torch.randn(1, 1, *patch), torch.randn(1, 3, *patch), torch.ones(1), torch.randn(1, 100)).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == [], "DistributedDataParallel stops at parameters without a gradient"


@pytest.mark.parametrize(("layout", "patch"), LAYOUTS)
def test_samples_differ_and_one_image_serves_them_all(layout, patch):
    model = generator(layout, patch, steps=2)
    with torch.no_grad():
        maps = model.encode(torch.randn(1, 1, *patch))
        x0 = model.sample(maps, patch_noise(0, 3, [0], patch))
        again = model.sample([m.repeat(3, *[1] * (m.ndim - 1)) for m in maps], patch_noise(0, 3, [0], patch))
    assert x0.shape == (3, 3, *patch) and (x0[0] - x0[1]).abs().max() > 1e-3
    torch.testing.assert_close(x0, again, atol=1e-5, rtol=1e-4)


def test_logits_give_back_the_probability_that_x0_stands_for():
    model = generator(*LAYOUTS[0].values)
    p = torch.rand(2, 3, 4, 4).softmax(1)
    torch.testing.assert_close(model.to_logits(2 * p - 1).softmax(1), p, atol=1e-5, rtol=0)
    certain = nn.functional.one_hot(torch.tensor([0, 2]), 3).float().view(2, 3, 1, 1)
    assert torch.isfinite(model.to_logits(2 * certain - 1)).all()
    torch.testing.assert_close(model.to_logits(2 * certain - 1).softmax(1), certain, atol=1e-4, rtol=0)
    model.heads = Heads(3, regions=True)
    p = torch.rand(2, 3, 4, 4) * 0.98 + 0.01
    torch.testing.assert_close(model.to_logits(2 * p - 1).sigmoid(), p, atol=1e-5, rtol=0)
