"""LDSeg's networks against their equations, and the contract with the predictor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nndiffseg.diffusion.noise.source import patch_noise
from nndiffseg.diffusion.schedules import add_noise
from nndiffseg.errors import UserError
from nndiffseg.methods.ldseg.latent import ldseg_latent, paper_latent
from nndiffseg.methods.ldseg.method import LDSegMethod, LDSegOptions
from nndiffseg.methods.ldseg.network import LDSeg, OffsetCosine
from nndiffseg.methods.ldseg.parts import Attention, ImageEncoder, LabelDecoder, PublishedEncoder, nearest
from nndiffseg.methods.protocol import Batch, MethodPlan
from nndiffseg.methods.settings import DiffusionSettings

ISOTROPIC, ANISOTROPIC = ((2, 2, 2),) * 3, ((1, 2, 2), (2, 2, 2), (1, 2, 2))
LAYOUTS = [
    pytest.param(ISOTROPIC, (16, 24, 16), id="3d"),
    pytest.param(ANISOTROPIC, (8, 24, 16), id="anisotropic"),
    pytest.param(((2, 2),) * 3, (32, 24), id="2d"),
]


def configuration(strides=ISOTROPIC, patch=(16, 16, 16)) -> dict[str, Any]:
    """One configuration of a plans file."""
    dim, ones = len(patch), [1] * len(patch)
    arch = {
        "n_stages": 4,
        "features_per_stage": [8, 12, 16, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": [[3] * dim] * 4,
        "strides": [ones, *map(list, strides)],
        "n_blocks_per_stage": [1] * 4,
        "n_conv_per_stage_decoder": [1] * 3,
        "conv_bias": True,
        "norm_op_kwargs": {"affine": True},
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "nonlin": "torch.nn.LeakyReLU",
    }
    settings = DiffusionSettings(
        2, tuple(a * b for a, b in zip(*strides[:2], strict=True)), 4, (8, 12), (strides[2],), (8, 8), (4, 6, 8)
    )
    diffusion: dict[str, Any] = {"settings": settings.to_plan(), "regions": False}
    return {
        "patch_size": list(patch),
        "diffusion": diffusion,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
            "arch_kwargs": arch,
            "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
        },
    }


def make(strides=ISOTROPIC, patch=(16, 16, 16), latent: str = "planned", **switches: Any) -> LDSeg:
    """Residual branches start at zero; moved a little, every part of the network has a say."""
    torch.manual_seed(0)
    network = LDSegMethod(
        MethodPlan.of(ConfigurationManager(configuration(strides, patch)), 1, 3), LDSegOptions(latent=latent, **switches)
    ).network()
    for p in network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return network


def batch(patch=(16, 16, 16), items: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 3, (items, *patch), generator=generator)
    return torch.randn(items, 1, *patch, generator=generator), torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- schedule and parametrisation ---------------------------------------------------------------------------------------


def test_the_schedule_is_the_published_cosine():
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2  # arXiv 2102.09672, eq. 17
    alpha, sigma = OffsetCosine().alpha(torch.from_numpy(t)), OffsetCosine().sigma(torch.from_numpy(t))
    np.testing.assert_allclose(alpha.numpy() ** 2, f / f[0], atol=1e-12)
    np.testing.assert_allclose(sigma.numpy() ** 2, 1 - f / f[0], atol=1e-12)
    assert (alpha[0], alpha[-1], sigma[0], sigma[-1]) == (pytest.approx(1), 0, 0, pytest.approx(1))
    assert (OffsetCosine().log_snr(torch.from_numpy(t)).diff() < 0).all()


def test_sigma_keeps_its_digits_near_the_end_of_sampling():
    t = torch.tensor([1e-6, 1e-4, 1e-3])
    exact = OffsetCosine().sigma(t.double())
    torch.testing.assert_close(OffsetCosine().sigma(t).double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("t", [0.001, 0.3, 0.999, 1.0])
def test_both_estimates_are_one_velocity(t):
    network = make().eval()
    z, time = torch.randn(1, 4, 4, 4, 4), torch.full((1,), t)
    condition = network.to_denoiser(torch.randn(1, 16, 4, 4, 4))
    x0 = network._denoise(z, time, condition)
    captured = {}
    network.denoiser.head.register_forward_hook(lambda _m, _i, out: captured.update(v=out))
    network._denoise(z, time, condition)
    alpha, sigma = (float(f(time.double())) for f in (OffsetCosine().alpha, OffsetCosine().sigma))
    # Salimans & Ho, arXiv 2202.00512, appendix D
    torch.testing.assert_close(x0, alpha * z - sigma * captured["v"])
    torch.testing.assert_close(network.noise_estimate(z, x0, time), sigma * z + alpha * captured["v"], rtol=1e-4, atol=1e-4)


# ---- parts --------------------------------------------------------------------------------------------------------------


def test_attention_is_the_textbook_formula():
    torch.manual_seed(0)
    attention = Attention(2, 16).eval()
    torch.nn.init.normal_(attention.out.weight, std=0.3)
    x = torch.randn(2, 16, 3, 5)
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).chunk(3, 1)  # (B, C, cells)
    mixed = torch.zeros_like(v)
    for h in range(8):
        part = slice(2 * h, 2 * h + 2)
        weight = torch.einsum("bcn,bcm->bnm", q[:, part], k[:, part]).div(math.sqrt(2)).softmax(-1)
        mixed[:, part] = torch.einsum("bnm,bcm->bcn", weight, v[:, part])
    torch.testing.assert_close(attention(x), x + attention.out(mixed.view_as(x)))


def test_nearest_neighbour_down_sampling_takes_the_middle_voxel():
    x = torch.arange(6 * 8.0).view(1, 1, 6, 8)
    assert torch.equal(nearest(x, (3, 4)), x[:, :, 1::3, 2::4])
    assert torch.equal(nearest(x, (1, 1)), x)


@pytest.mark.parametrize("strides", [((2, 2), (2, 2)), ((1, 2), (1, 2)), ((2, 2), (3, 1), (2, 2))])
def test_a_slab_with_halo_decodes_as_the_whole(strides):
    torch.manual_seed(0)
    decoder = LabelDecoder(2, 4, 3, strides, (4, 6, 8, 8)[: len(strides) + 1]).eval()
    for p in decoder.parameters():
        p.data += 0.2 * torch.randn_like(p)
    stride, halo = math.prod(s[0] for s in strides), decoder.halo
    z = torch.randn(2, 4, 2 * halo + 6, 4)
    a, b = halo + 2, halo + 4
    whole, slab = decoder(z), decoder(z[:, :, a - halo : b + halo])
    torch.testing.assert_close(slab[:, :, halo * stride : (halo + b - a) * stride], whole[:, :, a * stride : b * stride])


def test_the_halo_is_not_wastefully_large():
    decoder = LabelDecoder(2, 1, 2, ((2, 2), (2, 2)), (4, 4, 4))
    for p in decoder.parameters():
        p.data += 0.2 * torch.randn_like(p)
    z = torch.randn(1, 1, 24, 4)
    moved = z.clone()
    moved[:, :, 12] += 1
    cells = ((decoder(z) - decoder(moved)).abs().amax((0, 1, 3)) > 0).nonzero() // 4
    assert decoder.halo - 1 <= 12 - int(cells.min()) <= decoder.halo


def test_the_denoiser_sees_a_window_and_not_the_whole_grid():
    network = make(((2, 2),) * 3, (32, 32)).eval()
    z, condition = torch.randn(1, 4, 64, 4), torch.randn(1, 8, 64, 4)
    moved = z.clone()
    moved[:, :, 60] += 1
    t = torch.full((1,), 0.5)
    difference = (network._denoise(z, t, condition) - network._denoise(moved, t, condition)).abs().amax((0, 1, 3))
    assert difference[60] > 0 and not difference[:20].any()


# ---- the composed network -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", [{}, {"learned_label_encoder": False}, {"learned_image_encoder": False}], ids=str)
@pytest.mark.parametrize("latent", ["planned", "paper"])
@pytest.mark.parametrize(("strides", "patch"), LAYOUTS)
def test_maps_and_samples_have_the_announced_shapes(strides, patch, latent, switches):
    network = make(strides, patch, latent, **switches).eval()
    image, _ = batch(patch)
    with torch.no_grad():
        maps = network.encode(image)
        assert torch.equal(network(image), maps[0])
        for m, stride in zip(maps, network.map_strides, strict=True):
            assert tuple(m.shape[2:]) == tuple(n // s for n, s in zip(patch, stride, strict=True))
        channels = 3 if switches.get("learned_label_encoder") is False else {"planned": 4, "paper": 1}[latent]
        z = network.sample([m[:1] for m in maps], patch_noise(0, 3, [0], maps[1].shape[2:]), steps=3)
        assert z.shape == (3, channels, *maps[1].shape[2:])
        assert network.decode(z, maps).shape == (3, 3, *patch)
        alone = network(image[:1])
    torch.testing.assert_close(maps[0][:1], alone, msg="an answer must not depend on its batch")


@pytest.mark.parametrize("latent", ["planned", "paper"])
@pytest.mark.parametrize("learned", [True, False])
def test_every_parameter_takes_part_in_a_training_step(latent, learned):
    network = make(latent=latent, learned_label_encoder=learned, learned_image_encoder=learned)
    out = network(*batch(), generator=generator())
    assert out.logits.shape == (2, 3, 16, 16, 16) and out.noise.shape == out.estimate.shape
    (out.logits.square().mean() + (out.estimate - out.noise).square().mean()).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None]
    assert missing == [], "DistributedDataParallel stops at parameters without a gradient"


def test_the_published_image_encoder_has_the_published_size():
    strides = [(2, 2)] * 4  # GlaS: colour images
    encoder = ImageEncoder(2, PublishedEncoder(2, 3, strides), strides, 4, 1, (512, 512))
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(0.294e6, rel=0.03)
    assert [len(list(a.children())) > 0 for a in encoder.attention] == [False, False, False, True, True]


@pytest.mark.parametrize(("strides", "patch"), [(ISOTROPIC, (16, 16, 16)), (ANISOTROPIC, (8, 24, 16))])
@pytest.mark.parametrize("latent", ["planned", "paper"])
def test_the_published_image_encoder_carries_either_latent(strides, patch, latent):
    network = make(strides, patch, latent, image_encoder="paper")
    out = network(*batch(patch), generator=generator())
    (out.logits.square().mean() + (out.estimate - out.noise).square().mean()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert network.image_encoder.stages[0].out_channels == 16 and not hasattr(network.image_encoder, "unet")


@pytest.mark.parametrize("decoded", ["x0", "difference"])
def test_what_is_decoded_of_a_perfect_estimate(decoded, monkeypatch):
    """z_t - eps = alpha z0 + (sigma - 1) eps, not alpha z0."""
    network, seen = make(learned_label_encoder=False), {}
    image, onehot = batch()
    z0 = network.label_encoder(onehot)
    monkeypatch.setattr(network, "_denoise", lambda z, t, c: seen.update(t=t) or z0)
    network.label_decoder.register_forward_pre_hook(lambda _, given: seen.update(latent=given[0]))
    out = network(image, onehot, decoded=decoded, generator=generator())
    alpha, sigma = (f(seen["t"]).view(-1, 1, 1, 1, 1) for f in (network.schedule.alpha, network.schedule.sigma))
    expected = z0 if decoded == "x0" else alpha * z0 + (sigma - 1) * out.noise
    torch.testing.assert_close(seen["latent"], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("end_to_end", [True, False])
def test_in_two_step_training_neither_loss_reaches_the_others_networks(end_to_end):
    network = make()
    out = network(*batch(), end_to_end=end_to_end, recycling=0.5, generator=generator())
    label, image = network.label_encoder.head.weight, network.image_encoder.head.weight
    of_label, of_image = torch.autograd.grad(out.logits.square().mean(), [label, image], retain_graph=True, allow_unused=True)
    assert of_label is not None and (of_image is not None) == end_to_end
    of_label, of_image = torch.autograd.grad((out.estimate - out.noise).square().mean(), [label, image], allow_unused=True)
    assert (of_label is not None) == end_to_end and of_image is not None


def test_two_step_training_teaches_the_deterministic_answer_by_its_latent():
    network = make()
    out = network(*batch(), end_to_end=False, deterministic_share=1.0, generator=generator())
    assert out.recycled.all(), "their noise loss is zero"
    assert torch.equal(out.logits, network.label_decoder(out.latent))


def test_the_losses_pass_the_options_on():
    seen = {}

    def network(*_, **given):
        seen.update(given)
        raise StopIteration

    losses = LDSegMethod(None, LDSegOptions(setting="paper", end_to_end=False)).losses(lambda **_: None)
    with pytest.raises(StopIteration):
        losses(network, Batch(None, [], None, 0.0, (0, 0, 0, 0)))
    assert (seen["decoded"], seen["end_to_end"], seen["recycling"], seen["deterministic_share"]) == ("difference", False, 0, 0)


def test_a_training_pass_depends_only_on_its_generator():
    outs = []
    for seed in (5, 5, 6):
        network = make()  # a pass moves the running statistics, so each starts from the same network
        torch.manual_seed(len(outs))  # the global generator must not matter
        outs.append(network(*batch(), recycling=0.5, deterministic_share=0.25, generator=generator(seed)).logits)
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_quiet_items_train_the_deterministic_answer_and_cost_no_noise():
    network = make()
    image, onehot = batch()
    network(image, onehot, generator=generator())  # running statistics away from their start
    out = network(image, onehot, deterministic_share=1.0, generator=generator())
    assert not out.noise.any() and not out.estimate.any()
    for module in (network.image_encoder.whiten, network.label_encoder.whiten):
        module.eval()  # as at test
    torch.testing.assert_close(network(image, onehot, deterministic_share=1.0).logits, network.eval()(image))


@pytest.mark.parametrize("recycling", [0.0, 1.0])
def test_recycled_items_noise_the_networks_own_prediction(recycling, monkeypatch):
    network, seen = make(learned_label_encoder=False), {}
    image, onehot = batch()
    own = torch.full((2, 3, 4, 4, 4), 7.0)
    monkeypatch.setattr(network, "_own_prediction", lambda *_: own)
    denoise = network._denoise
    monkeypatch.setattr(network, "_denoise", lambda z, t, c: seen.update(z=z, t=t) or denoise(z, t, c))
    out = network(image, onehot, recycling=recycling, generator=generator())
    source = own if recycling else network.label_encoder(onehot)
    assert torch.equal(seen["z"], add_noise(network.schedule, source, out.noise, seen["t"]))
    assert out.recycled.tolist() == [bool(recycling)] * 2


def test_own_predictions_come_from_noise_alone(monkeypatch):
    network, seen = make(), {}
    denoise = network._denoise
    monkeypatch.setattr(network, "_denoise", lambda z, t, c: seen.update(z=z, t=t) or denoise(z, t, c))
    condition = torch.zeros(2, 8, 4, 4, 4)
    for z0 in (torch.zeros(2, 4, 4, 4, 4), torch.full((2, 4, 4, 4, 4), 9.0, requires_grad=True)):
        own = network._own_prediction(z0, condition, generator())
        assert (seen["t"] == 1).all() and not own.requires_grad
        assert torch.equal(seen["z"], torch.randn(z0.shape, generator=generator())), "the true latent must not leak"


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_samples_follow_their_noise_and_each_draw_is_a_new_stream(sampler):
    network = make().eval()
    maps = network.encode(batch(items=1)[0])
    streams: list[int] = []

    def draw(stream: int, channels: int, scale: int = 1) -> torch.Tensor:
        streams.append(stream)
        return torch.randn(2, channels, 4, 4, 4, generator=generator(stream))

    z = network.sample(maps, draw, sampler=sampler, steps=4)
    assert streams == ([0] if sampler == "ddim" else [0, 1, 2, 3])
    assert not torch.equal(z[0], z[1])


# ---- which latent -------------------------------------------------------------------------------------------------------


def test_the_planned_latent_is_that_of_the_settings():
    plan = MethodPlan.of(ConfigurationManager(configuration(ANISOTROPIC, (8, 24, 16))), 1, 3)
    sizes = ldseg_latent(plan, "planned")
    assert (sizes.stage, sizes.stride, sizes.channels, sizes.denoiser_channels) == (2, (2, 4, 4), 4, (8, 12))


@pytest.mark.parametrize(("strides", "patch", "stage", "stride", "levels"), [
    (((2, 2, 2),) * 5, (128, 128, 256), 4, (16, 16, 16), ((2, 2, 2), (2, 2, 2))),
    (((2, 2),) * 6, (512, 512), 4, (16, 16), ((2, 2), (2, 2))),
    (((2, 2, 2),) * 3, (40, 56, 40), 3, (8, 8, 8), ((2, 2, 2), (1, 2, 1))),
    (((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)), (16, 256, 256), 4, (4, 16, 16), ((2, 2, 2), (1, 2, 2))),
], ids=["knee", "GlaS", "small", "thick slices"])  # fmt: skip
def test_the_published_latent_is_16_fold_or_as_deep_as_the_patch_allows(strides, patch, stage, stride, levels):
    sizes = paper_latent([[1] * len(patch), *map(list, strides)], patch)
    assert (sizes.stage, sizes.stride, sizes.channels, sizes.image_channels) == (stage, stride, 1, 1)
    assert sizes.encoder_channels == (16, 32, 64, 64)[:stage]
    assert (sizes.denoiser_channels, sizes.denoiser_strides) == ((16, 32, 64), levels)


def test_bad_plans_are_told_what_is_wrong():
    with pytest.raises(UserError, match="invalid latent: input should be 'planned' or 'paper'"):
        LDSegMethod.read_options({"latent": "papr"})
    with pytest.raises(UserError, match="no diffusion settings"):
        DiffusionSettings.from_configuration({"patch_size": [16, 16]})
