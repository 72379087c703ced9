"""MedSegDiff-V2's network: contract, parameterisation, gradients, ablations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from nndiffseg.diffusion.noise.source import patch_noise
from nndiffseg.diffusion.schedules import Linear, training_times
from nndiffseg.methods.medsegdiff.method import MedSegDiffV2
from nndiffseg.methods.medsegdiff.network import MedSegDiff, Parts, TrainingOutput, diffusion_channels
from nndiffseg.nn.heads import Heads

STRIDES = {2: ((2, 2), (2, 2)), 3: ((1, 2, 2), (2, 2, 2))}
PATCH = {2: (16, 24), 3: (6, 16, 12)}


def unet_for(dim: int, heads: int) -> ResidualEncoderUNet:
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if dim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    return ResidualEncoderUNet(
        1,
        3,
        [8, 12, 16],
        conv,
        3,
        [[1] * dim, *map(list, STRIDES[dim])],
        [1, 1, 1],
        heads,
        [1, 1],
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


def make(dim: int = 2, heads: int = 3, **switches: Any) -> MedSegDiff:
    torch.manual_seed(0)
    return MedSegDiff(unet_for(dim, heads), STRIDES[dim], (16, 16, 32), Heads(heads), PATCH[dim], **switches)


def lively(model: MedSegDiff) -> MedSegDiff:
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return model


def batch(dim: int = 2, n: int = 2, heads: int = 3):
    torch.manual_seed(1)
    labels = torch.randint(0, heads, (n, *PATCH[dim]))
    return torch.randn(n, 1, *PATCH[dim]), torch.nn.functional.one_hot(labels, heads).movedim(-1, 1).float()


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(
    "switches", [{}, {"uncertain_attention": False}, {"ss_former": False}, {"uncertain_attention": False, "ss_former": False}]
)
def test_every_parameter_takes_part_in_a_training_step(dim, switches):
    model = lively(make(dim, **switches))
    image, onehot = batch(dim)
    out = model(image, onehot, deep_supervision=True, generator=torch.Generator().manual_seed(1))
    assert isinstance(out, TrainingOutput) and out.estimate.shape == onehot.shape and len(out.logits) == 2
    (sum(x.square().mean() for x in out.logits) + (out.estimate - out.x0).square().mean()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == [], "DistributedDataParallel stops at parameters without a gradient"


@pytest.mark.parametrize(
    ("switches", "absent"), [({"uncertain_attention": False}, "attention."), ({"ss_former": False}, "ss_former.")]
)
def test_a_part_that_is_switched_off_has_no_parameters(switches, absent):
    assert any(absent in name for name, _ in make().named_parameters())
    assert not any(absent in name for name, _ in make(**switches).named_parameters())


@pytest.mark.parametrize("recycling", [0.0, 1.0])
def test_recycled_items_noise_the_networks_own_prediction_from_noise_alone(recycling, monkeypatch):
    model, calls = lively(make()), []
    estimate = model._estimate
    monkeypatch.setattr(model, "_estimate", lambda x, t, c: calls.append((x, t)) or estimate(x, t, c))
    image, onehot = batch()
    generator = torch.Generator().manual_seed(1)
    out = model(image, onehot, recycling=recycling, generator=generator)
    assert isinstance(out, TrainingOutput) and torch.equal(out.x0, 2 * onehot - 1), "the target stays the true label"
    x, t = calls[-1]
    alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (model.schedule.alpha, model.schedule.sigma))
    noise = (x - alpha * out.x0) / sigma
    replay = torch.Generator().manual_seed(1)
    training_times(2, replay)
    same = torch.allclose(noise, torch.randn(x.shape, generator=replay), atol=1e-3)
    assert same is (recycling == 0)
    if recycling:
        assert len(calls) == 2 and (calls[0][1] == 1).all()


def test_evaluation_mode_gives_the_condition_models_logits():
    model = make().eval()
    image, _ = batch()
    torch.testing.assert_close(model(image), model.condition_model.unet(image)[0])
    torch.testing.assert_close(model.encode(image)[0], model(image))


@pytest.mark.seconds
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("switches", [{}, {"uncertain_attention": False, "ss_former": False}])
def test_samples_have_the_volumes_shape_and_depend_on_image_and_noise(dim, switches):
    model = lively(make(dim, **switches)).eval()
    image, _ = batch(dim, n=2)
    volume = torch.cat([image, image.flip(-1)], -1)  # several tiles
    with torch.inference_mode():
        samples = [
            model.sample(model.encode(v[None]), patch_noise(s, 2, [0], v.shape[1:]), steps=3)
            for v, s in ((volume[0], 0), (volume[1], 0), (volume[0], 1), (volume[0], 0))
        ]
    assert samples[0].shape == (2, 3, *volume.shape[2:])
    assert samples[0].abs().max() <= 1 + 1e-6
    assert torch.equal(samples[0], samples[3])
    assert not torch.allclose(samples[0], samples[1]) and not torch.allclose(samples[0], samples[2])


@pytest.mark.parametrize("attention", [True, False])
def test_the_condition_model_runs_once_per_tile_for_all_samples_and_steps(attention):
    model, seen = lively(make(uncertain_attention=attention)).eval(), []
    volume = torch.cat([batch()[0][:1], batch()[0][:1].flip(-1)], -1)  # three tiles
    model.condition_model.register_forward_hook(lambda *_: seen.append(1))
    samples, runs = [], []
    for model.condition_bytes in (2**30, 0):
        maps = model.encode(volume)
        seen.clear()
        with torch.inference_mode():
            samples.append(model.sample(maps, patch_noise(0, 2, [0], volume.shape[2:]), steps=3))
        runs.append(len(seen))
    assert runs == [3, 9]
    torch.testing.assert_close(samples[0], samples[1], atol=1e-5, rtol=0)


def test_a_perfect_v_gives_the_label_back_at_every_time_also_at_pure_noise():
    model = make()
    _, onehot = batch(n=4)
    x0, noise, t = 2 * onehot - 1, torch.randn(4, 3, 16, 24), torch.tensor([0.001, 0.4, 0.9, 1.0])
    alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (Linear().alpha, Linear().sigma))
    model.diffusion_model.forward = lambda *_: alpha * noise - sigma * x0  # v of Salimans & Ho 2022, eq. 7 f.
    torch.testing.assert_close(model.denoise(alpha * x0 + sigma * noise, t, None), x0)


def test_logits_are_those_of_the_probability_that_the_estimate_means():
    model = make()
    p = torch.rand(2, 3, 4, 5).clamp(0.01).mul(0.9)
    p = p / p.sum(1, keepdim=True)
    torch.testing.assert_close(model.to_logits(2 * p - 1).softmax(1).argmax(1), p.argmax(1))
    clear = p[:, :, :1].clamp(0.01, 0.99)
    torch.testing.assert_close(model.to_logits(2 * clear - 1).softmax(1), clear / clear.sum(1, keepdim=True))
    model.heads = Heads(3, regions=True)
    torch.testing.assert_close(model.to_logits(2 * clear - 1).sigmoid(), clear)
    assert torch.isfinite(model.to_logits(torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1))).all()


def test_training_pass_depends_only_on_its_generator():
    image, onehot = batch()
    model, outs = lively(make()), []
    for seed in (5, 5, 6):
        torch.manual_seed(len(outs))  # the global generator must not matter
        outs.append(model(image, onehot, generator=torch.Generator().manual_seed(seed)).estimate)
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_items_of_a_batch_do_not_touch_each_other():
    model = lively(make()).eval()
    image, _ = batch()
    x, t = torch.randn(2, 3, 16, 24), torch.tensor([0.3, 0.8])
    with torch.inference_mode():
        both = model.denoise(x, t, model.condition(image))
        alone = model.denoise(x[1:], t[1:], model.condition(image[1:]))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_both_losses_reach_the_condition_model():
    """Condition and diffusion model are trained together: the anchor learns what the diffusion model needs."""
    model = lively(make())
    image, onehot = batch()
    out = model(image, onehot, generator=torch.Generator().manual_seed(1))
    (out.estimate - out.x0).square().mean().backward()
    gradients = {n: p.grad for n, p in model.condition_model.named_parameters() if p.grad is not None}
    assert any("encoder" in n for n in gradients) and any("decoder" in n for n in gradients)


def test_widths_are_half_the_plans_and_whole_attention_heads():
    assert diffusion_channels([16, 32, 64, 128]) == [16, 16, 32, 64]
    assert diffusion_channels([32, 64, 128, 256, 320, 320]) == [16, 32, 64, 128, 160, 160]


PUBLISHED = Parts(own_levels=True, one_map=True, detached=True, figure_roles=True, spatial=True)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("parts", [PUBLISHED, Parts(smoothing=False, band_pass=False)], ids=["published", "plain"])
def test_every_parameter_of_every_form_takes_part(dim, attention, parts):
    model = lively(make(dim, uncertain_attention=attention, parts=parts))
    image, onehot = batch(dim)
    out = model(image, onehot, deep_supervision=True, generator=torch.Generator().manual_seed(1))
    (sum(x.square().mean() for x in out.logits) + (out.estimate - out.x0).square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_the_second_levels_anchor_is_the_asked_feature(attention, own):
    model = lively(make(uncertain_attention=attention, parts=Parts(own_levels=own)))
    out = model.condition_model(batch()[0])
    before = model._condition(out).anchor
    out.features[1] = out.features[1] + torch.randn_like(out.features[1])
    after = model._condition(out).anchor
    assert [a.shape[2:] for a in after] == [(16, 24), (8, 12)]
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1]) is not own


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("detached", [True, False])
def test_a_detached_anchor_keeps_the_denoising_loss_from_the_condition_decoder(attention, detached):
    model = lively(make(uncertain_attention=attention, parts=Parts(detached=detached)))
    out = model(*batch(), generator=torch.Generator().manual_seed(1))
    (out.estimate - out.x0).square().mean().backward()
    reached = [p.grad is not None for n, p in model.condition_model.named_parameters() if "decoder.stages" in n]
    assert reached and all(r is not detached for r in reached)


@pytest.mark.parametrize(("one", "maps"), [(True, 1), (False, 3)])
def test_attention_has_one_map_or_one_for_each_head(one, maps):
    model = make(parts=Parts(one_map=one))
    assert [a.shape[1] for a in model._condition(model.condition_model(batch()[0])).anchor] == [maps, maps]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, Parts()),
        ({"setting": "paper"}, PUBLISHED),
        ({"smoothing": False, "band_pass": False}, Parts(smoothing=False, band_pass=False)),
    ],
)
def test_options_choose_the_forms(options, parts):
    plan = SimpleNamespace(
        unet=lambda: unet_for(2, 3), strides=STRIDES[2], features=[8, 12, 16], heads=Heads(3), patch=PATCH[2]
    )
    network = MedSegDiffV2(plan, MedSegDiffV2.read_options(options)).network()
    assert network.parts == parts
