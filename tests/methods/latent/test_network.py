"""The composed model keeps the predictor's contract and nnU-Net's."""

from __future__ import annotations

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nndiffseg.diffusion.noise.field import NoiseField
from nndiffseg.diffusion.noise.source import FieldNoise
from nndiffseg.methods.latent.network import LatentDiffusionSegmenter
from nndiffseg.methods.settings import DiffusionSettings
from nndiffseg.nn.heads import Heads


def make(
    dim: int = 3,
    strides=((2, 2, 2), (2, 2, 2), (2, 2, 2)),
    unet=ResidualEncoderUNet,
    frozen=False,
    batch_norm=False,
):
    torch.manual_seed(0)
    features = [8, 12, 16, 16]
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if dim == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    more = {}
    if batch_norm:
        norm, dropout = (nn.BatchNorm3d, nn.Dropout3d) if dim == 3 else (nn.BatchNorm2d, nn.Dropout2d)
        more = {"dropout_op": dropout, "dropout_op_kwargs": {"p": 0.5}}
    blocks = {"n_blocks_per_stage" if unet is ResidualEncoderUNet else "n_conv_per_stage": [1, 1, 1, 1]}
    image_network = unet(
        1,
        4,
        features,
        conv,
        3,
        [[1] * dim, *map(list, strides)],
        num_classes=3,
        n_conv_per_stage_decoder=[1, 1, 1],
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
        **blocks,
        **more,
    )
    latent_stride = tuple(a * b for a, b in zip(strides[0], strides[1], strict=True))
    settings = DiffusionSettings(
        latent_stage=2,
        latent_stride=latent_stride,
        latent_channels=4,
        denoiser_channels=(8, 16),
        denoiser_strides=(tuple(strides[2]),),
        encoder_channels=(8, 8),
        decoder_channels=(4, 6, 8),
        noise_scales=(1, 4),
    )
    return LatentDiffusionSegmenter(image_network, strides, Heads(3), settings, frozen=frozen)


def draw_for(n: int, grid, seed: int = 0):
    return FieldNoise([NoiseField(seed, "case", i) for i in range(n)], grid)


CASES = [
    pytest.param(3, ((2, 2, 2), (2, 2, 2), (2, 2, 2)), (16, 24, 16), id="3d"),
    pytest.param(3, ((1, 2, 2), (2, 2, 2), (1, 2, 2)), (8, 24, 16), id="anisotropic"),
    pytest.param(2, ((2, 2), (2, 2), (2, 2)), (32, 24), id="2d"),
]


@pytest.mark.parametrize(("dim", "strides", "patch"), CASES)
@pytest.mark.parametrize("unet", [ResidualEncoderUNet, PlainConvUNet])
def test_maps_and_samples_have_the_announced_shapes(dim, strides, patch, unet):
    model = make(dim=dim, strides=strides, unet=unet).eval()
    maps = model.encode(torch.randn(1, 1, *patch))
    assert len(maps) == len(model.map_strides)
    for m, stride in zip(maps, model.map_strides, strict=True):
        assert tuple(m.shape[2:]) == tuple(n // s for n, s in zip(patch, stride, strict=True))
    grid = maps[1].shape[2:]
    z = model.sample(maps, draw_for(3, grid))
    assert z.shape == (3, 4, *grid)
    assert model.decode(z, maps).shape == (3, 3, *patch)


def test_evaluation_mode_gives_the_same_logits_as_the_wrapped_unet():
    model = make().eval()
    image = torch.randn(2, 1, 16, 16, 16)
    torch.testing.assert_close(model(image), model.image_network.unet(image)[0])
    deep = model(image, deep_supervision=True)
    for ours, theirs in zip(deep, model.image_network.unet(image), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_every_parameter_takes_part_in_a_training_step():
    model = make()
    onehot = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 16, 16, 16)), 3).movedim(-1, 1).float()
    # Residual branches start at zero, so the parameters behind them get a gradient only once these have moved.
    for p in model.parameters():
        p.data += 0.01 * torch.randn_like(p)
    out = model(torch.randn(2, 1, 16, 16, 16), onehot, deep_supervision=True, generator=torch.Generator().manual_seed(1))
    assert out.x0.shape == (2, *out.z0.shape) and out.prior.shape == out.z0.shape
    loss = sum(x.square().mean() for x in [*out.logits, out.reconstruction, out.x0, out.samples])
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == [], "DistributedDataParallel stops at parameters without a gradient"


@pytest.mark.parametrize("unet", [ResidualEncoderUNet, PlainConvUNet])
def test_a_frozen_image_network_is_the_same_function_in_training_and_learns_nothing(unet):
    """Also with batch norm and dropout, which behave otherwise in training."""
    model = make(dim=2, strides=((2, 2), (2, 2), (2, 2)), unet=unet, frozen=True, batch_norm=True)
    image, onehot = torch.randn(2, 1, 32, 24), torch.zeros(2, 3, 32, 24)
    onehot[:, 0] = 1
    before = {k: v.clone() for k, v in model.image_network.state_dict().items()}
    expected = model.eval()(image)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.01 * torch.randn_like(p)  # as above
    out = model.train()(image, onehot, generator=torch.Generator().manual_seed(1))
    assert torch.equal(out.logits[0], expected) and not out.logits[0].requires_grad
    sum(x.square().mean() for x in (out.reconstruction, out.x0, out.samples)).backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {name for name, _ in model.named_parameters() if not name.startswith("image_network.")}
    assert all(torch.equal(v, before[k]) for k, v in model.image_network.state_dict().items())


def test_diffusion_loss_does_not_reach_the_label_encoder():
    model = make()
    onehot = torch.zeros(1, 3, 16, 16, 16)
    onehot[:, 0] = 1
    out = model(torch.randn(1, 1, 16, 16, 16), onehot, generator=torch.Generator().manual_seed(1))
    (out.x0 - out.z0).square().mean().backward()
    assert all(p.grad is None for p in model.label_encoder.parameters())


def test_training_pass_depends_only_on_its_generator_and_seed():
    onehot = torch.nn.functional.one_hot(torch.randint(0, 3, (1, 16, 16, 16)), 3).movedim(-1, 1).float()
    image = torch.randn(1, 1, 16, 16, 16)
    outs = []
    for generator, seed in ((5, 1), (5, 1), (6, 1), (5, 2)):
        model = make()  # a pass moves the whitening's statistics, so each starts from the same network
        torch.nn.init.normal_(model.denoiser.head.weight, std=0.1)
        torch.manual_seed(len(outs))  # the global generator must not matter
        outs.append(model(image, onehot, generator=torch.Generator().manual_seed(generator), seed=seed))
    assert torch.equal(outs[0].reconstruction, outs[1].reconstruction) and torch.equal(outs[0].x0, outs[1].x0)
    assert not torch.equal(outs[0].reconstruction, outs[2].reconstruction)
    assert torch.equal(outs[0].reconstruction, outs[3].reconstruction) and not torch.equal(outs[0].x0, outs[3].x0)


def test_the_two_samples_of_a_training_pass_differ():
    model = make()
    torch.nn.init.normal_(model.denoiser.head.weight, std=0.1)
    onehot = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 16, 16, 16)), 3).movedim(-1, 1).float()
    out = model(torch.randn(2, 1, 16, 16, 16), onehot, generator=torch.Generator().manual_seed(1))
    assert all((out.x0[0, b] - out.x0[1, b]).abs().mean() > 1e-3 for b in range(2))


def test_an_untrained_denoiser_starts_from_the_deterministic_answer_at_pure_noise():
    model = make().eval()
    for p in model.denoiser.head.parameters():
        p.data.zero_()
    maps = model.encode(torch.randn(1, 1, 16, 16, 16))
    z = model.sample(maps, draw_for(2, maps[1].shape[2:]), steps=1)
    torch.testing.assert_close(z, maps[2].expand_as(z))


@pytest.mark.parametrize("gain", [0.1, 100.0])
def test_the_finest_guide_is_bounded_whatever_the_features(gain):
    """Large features of a clear edge must not outweigh the latent."""
    model = make().eval()
    model.to_guides[0].weight.data *= gain
    guide = model.encode(torch.randn(1, 1, 16, 16, 16))[3]
    assert guide.shape[2:] == (16, 16, 16)
    torch.testing.assert_close(guide.square().mean(1), torch.ones(1, 16, 16, 16), atol=0.1, rtol=0)


def test_the_prior_does_not_move_the_whitening_statistics():
    model = make()
    before = model.label_encoder.whiten.mean.clone()
    model.encode(torch.randn(1, 1, 16, 16, 16))
    assert torch.equal(model.label_encoder.whiten.mean, before)


def test_more_steps_draw_distinct_noise_streams():
    model = make().eval()
    maps = model.encode(torch.randn(1, 1, 16, 16, 16))
    seen: list[tuple[int, int]] = []
    inner = draw_for(1, maps[1].shape[2:])

    def draw(stream: int, channels: int, scale: int = 1):
        seen.append((stream, scale))
        return inner(stream, channels, scale)

    model.sample(maps, draw, steps=4)
    streams = [s for s, _ in seen]
    assert len(set(streams)) == len(streams), "two draws with one stream would be the same noise"


# ---- what a training pass draws ------------------------------------------------------------------------------------

ITEMS = 128


def small() -> LatentDiffusionSegmenter:
    return make(dim=2, strides=((2, 2), (2, 2), (2, 2)))


def training_pass(model: LatentDiffusionSegmenter, label: int = 0, seed: int = 0):
    """The output for a batch of one image, labelled at random, and the inputs of decoder and denoiser, call by call."""
    seen = {"label_decoder": [], "denoiser": []}
    hooks = [
        getattr(model, name).register_forward_pre_hook(lambda module, inputs, calls=calls: calls.append(inputs))
        for name, calls in seen.items()
    ]
    g = torch.Generator().manual_seed(label)
    onehot = nn.functional.one_hot(torch.randint(0, 3, (ITEMS, 16, 16), generator=g), 3).movedim(-1, 1).float()
    image = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1)).expand(ITEMS, -1, -1, -1)
    with torch.no_grad():
        out = model(image, onehot, generator=torch.Generator().manual_seed(seed))
    for hook in hooks:
        hook.remove()
    return out, seen


def test_half_of_the_reconstructions_see_no_guide_and_samples_see_all():
    """The latent alone must carry the label."""
    _, seen = training_pass(small())
    (_, first), (_, second) = seen["label_decoder"]
    kept = torch.stack([guide.flatten(1).abs().amax(1) > 0 for guide in first])  # (guides, items)
    assert kept.all(0).logical_or((~kept).all(0)).all(), "all guides of an item are dropped together"
    assert 0.35 < kept.float().mean() < 0.65  # 3.4 standard errors
    for guide, whole in zip(first, second, strict=True):
        assert (whole.flatten(1).abs().amax(1) > 0).all()
        assert torch.equal(guide[kept[0]], whole[kept[0]])


def test_the_latent_is_jittered_before_it_is_reconstructed():
    """By noise whose deviation is uniform in [0, 0.3], another one for each item."""
    out, seen = training_pass(small())
    (latent, _), _ = seen["label_decoder"]
    deviation = (latent - out.z0).flatten(1).square().mean(1).sqrt()  # of 64 numbers
    assert deviation.median() == pytest.approx(0.15, abs=0.05)
    assert deviation.min() < 0.05 and 0.22 < deviation.max() < 0.5


def test_half_of_the_items_are_denoised_from_pure_noise_the_others_from_any_time():
    (out, seen), (_, other) = training_pass(small(), label=0), training_pass(small(), label=1)
    z, t, *_ = seen["denoiser"][0]
    assert len(t) == 2 * ITEMS and torch.equal(t[:ITEMS], t[ITEMS:]), "both samples of an item share its time"
    pure = t[:ITEMS] == 1
    assert torch.equal(out.pure, pure) and 0.35 < pure.float().mean() < 0.65
    rest = t[:ITEMS][~pure].sort().values
    torch.testing.assert_close(rest, torch.linspace(0, 1, len(rest)), atol=0.25, rtol=0)  # Kolmogorov-Smirnov, 1 %
    same = (z == other["denoiser"][0][0]).flatten(1).all(1)[:ITEMS]
    assert torch.equal(same, pure), "pure noise knows nothing of the label, all other items do"


def test_the_two_samples_of_an_item_share_z_t_and_differ_in_the_auxiliary_noise():
    _, seen = training_pass(small())
    z, _, _, _, xi = seen["denoiser"][0]
    assert torch.equal(z[:ITEMS], z[ITEMS:])
    assert not torch.isclose(xi[:ITEMS], xi[ITEMS:]).flatten(1).all(1).any()
