"""cDAL's options: sizes of the generator, rhythm of R1, attention's layer and values, and what the discriminator judges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nndiffseg.diffusion.schedules import add_noise, normal_like
from nndiffseg.methods.cdal.method import CDAL, CDALLosses
from nndiffseg.methods.cdal.pairs import random_steps
from nndiffseg.methods.protocol import Batch, SegmentationLoss
from nndiffseg.nn.heads import Heads

PATCH = (8, 16)


def method_with(**options: Any) -> CDAL:
    plan = SimpleNamespace(
        patch=PATCH,
        features=[8, 12, 16],
        strides=[(2, 2), (2, 2)],
        arguments={"kernel_sizes": [[3, 3]] * 3},
        heads=Heads(3),
        input_channels=1,
    )
    return CDAL(plan, CDAL.read_options(options))  # type: ignore[arg-type]


def losses_of(method: CDAL) -> CDALLosses:
    torch.manual_seed(0)
    return method.losses(lambda: SegmentationLoss(None, lambda logits, target: logits.square().mean()))  # type: ignore[arg-type]


def make_batch(iteration: int = 0, items: int = 2) -> Batch:
    g = torch.Generator().manual_seed(1)
    onehot = F.one_hot(torch.randint(0, 3, (items, *PATCH), generator=g), 3).movedim(-1, 1).float()
    image = torch.randn(items, 1, *PATCH, generator=g)
    return Batch(image, [onehot.argmax(1, keepdim=True)], onehot, 0.0, (0, 0, 0, iteration))


@pytest.mark.parametrize(
    ("options", "layers", "width", "blocks"),
    [({}, 3, 64, 2), ({"setting": "paper"}, 4, 256, 5), ({"image_blocks": 6}, 3, 64, 6)],
)
def test_mapping_and_image_encoder_have_the_asked_size(options, layers, width, blocks):
    network = method_with(**options).network()
    assert [layer.out_features for layer in network.mapping.layers] == [width] * layers
    assert len(network.image_encoder.blocks) == blocks
    batch = make_batch()
    assert network(batch.image, batch.onehot, torch.ones(2), torch.randn(2, 100)).shape == batch.onehot.shape


@pytest.mark.parametrize(("every", "due"), [(1, [True, True, True]), (2, [True, False, True])])
def test_r1_is_paid_in_its_rhythm(every, due):
    method = method_with(r1_every=every)
    losses, network = losses_of(method), method.network()
    terms = [losses.before_step(network, make_batch(i), 1e-3) for i in range(3)]
    assert [term["r1"] > 0 for term in terms] == due and all(term["discriminator"] > 0 for term in terms)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_nnunets_loss_has_its_weight(weight):
    method = method_with(label_weight=weight, attention=False)
    torch.manual_seed(0)
    network = method.network()
    terms = losses_of(method)(network, make_batch())
    whole = losses_of(method_with(attention=False))(network, make_batch())
    torch.testing.assert_close(terms["label"], weight * whole["label"])
    assert torch.equal(terms["x0"], whole["x0"])


@pytest.mark.parametrize(("block", "used"), [(1, 1), (2, 2), (9, 2)])
def test_raw_attention_is_the_channel_mean_after_its_block(block, used):
    discriminator = losses_of(method_with()).discriminator
    x_s, x_t, t = torch.randn(2, 3, *PATCH), torch.randn(2, 3, *PATCH), torch.ones(2)
    h = discriminator.stem(torch.cat([x_s, x_t], 1))
    for down in discriminator.down[:used]:
        h = down(h, discriminator.embed(t))
    expected = F.interpolate(h.mean(1, keepdim=True), PATCH, mode="bilinear")
    torch.testing.assert_close(discriminator.attention(x_s, x_t, t, block, raw=True), expected)
    weight = discriminator.attention(x_s, x_t, t, block)
    assert torch.equal(weight.flatten(1).amax(1), torch.ones(2)), "otherwise a weight, whatever the block"


def test_the_label_is_weighted_by_the_asked_attention():
    losses, seen = losses_of(method_with(attention_block=2, attention_raw=True)), []
    losses.discriminator.attention = lambda *a: seen.append(a[3:]) or torch.tensor(2.0)  # type: ignore[method-assign]
    losses(method_with().network(), make_batch())
    assert seen == [(2, True)]


def test_the_discriminator_judges_pairs_of_the_label_itself():
    """It is trained on x_t of the label, so the generator's term must not show it x_t of the weighted one."""
    method = method_with(adversarial_weight=1.0, deterministic_share=0.0)
    losses, network, inputs, judged = losses_of(method), method.network(), [], []
    forward, judge = network.forward, losses.discriminator.forward
    network.forward = lambda *a: inputs.append(a[1]) or forward(*a)  # type: ignore[method-assign]
    losses.discriminator.forward = lambda *a: judged.append(a[1]) or judge(*a)  # type: ignore[method-assign]
    batch = make_batch()
    losses(network, batch)
    replay, x0 = batch.generator("noise"), 2 * batch.onehot - 1
    t, _ = random_steps(2, method.options.steps, replay)
    plain = add_noise(network.schedule, x0, normal_like(x0, replay), t)
    (x_t,) = judged
    assert torch.equal(x_t, plain) and torch.equal(x_t, inputs[1])
    assert not torch.equal(inputs[0], plain), "the generator itself learns from the weighted label"
