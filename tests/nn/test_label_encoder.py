"""The label encoder: blocks of the label become whitened latents, and it looks beyond them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nndiffseg.nn.label_encoder import LabelEncoder

HEADS, LATENT = 3, 4


def make(strides, *, trained: bool = False) -> LabelEncoder:
    torch.manual_seed(0)
    encoder = LabelEncoder(len(strides[0]), HEADS, strides, (6, 8)[: len(strides)], LATENT)
    if trained:  # residual branches start at zero
        for p in encoder.parameters():
            p.data += 0.2 * torch.randn_like(p)
    return encoder


def onehot(batch: int, patch) -> Tensor:
    label = torch.randint(0, HEADS, (batch, *patch), generator=torch.Generator().manual_seed(1))
    return F.one_hot(label, HEADS).movedim(-1, 1).float()


@pytest.mark.parametrize(
    ("strides", "patch", "grid"),
    [
        (((2, 2),), (12, 8), (6, 4)),
        (((2, 2, 2), (2, 2, 2)), (8, 16, 12), (2, 4, 3)),
        (((1, 2, 2), (2, 3, 2)), (4, 12, 8), (2, 2, 2)),
    ],
)
def test_a_latent_cell_is_a_block_of_the_label(strides, patch, grid):
    assert make(strides)(onehot(2, patch)).shape == (2, LATENT, *grid)


def test_latents_are_whitened():
    latents = make(((2, 2), (2, 2)))(onehot(8, (16, 16))).detach()
    values = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(LATENT), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.var(1, correction=0), torch.ones(LATENT), atol=1e-2, rtol=0)


def test_predictions_do_not_shift_the_whitening():
    encoder, label = make(((2, 2),)), onehot(4, (8, 8))
    encoder(label)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    value = encoder(onehot(3, (8, 12)), update=False)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    encoder(onehot(3, (8, 12)))
    assert int(encoder.whiten.updates) == 2
    encoder.load_state_dict(before)
    torch.testing.assert_close(value, encoder.eval()(onehot(3, (8, 12))))


def test_the_label_enters_with_signs():
    """-1 and 1: with 0 and 1 a voxel would say nothing about the heads that it does not belong to."""
    encoder, seen = make(((2, 2),)), []
    encoder.stages[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    label = onehot(1, (4, 4))
    encoder(label)
    assert torch.equal(seen[0], torch.where(label == 1, 1.0, -1.0))


def test_a_cell_depends_on_neighbouring_blocks_and_on_no_others():
    """One stage: blocks are cut, then two 3^d convolutions look two cells to each side."""
    encoder = make(((2, 2),), trained=True).eval()
    label = onehot(1, (20, 20)).requires_grad_()
    encoder(label)[:, :, 5, 5].sum().backward()
    assert label.grad is not None
    touched = label.grad.abs().amax((0, 1)).unflatten(0, (10, 2)).unflatten(2, (10, 2)).amax((1, 3)) > 0
    expected = torch.zeros(10, 10, dtype=torch.bool)
    expected[3:8, 3:8] = True
    assert torch.equal(touched, expected)


def test_it_is_stages_norm_activation_and_head():
    encoder, label = make(((2, 2), (2, 2)), trained=True).eval(), onehot(2, (8, 8))
    h = 2 * label - 1
    for down, block in encoder.stages:
        h = F.conv2d(h, down.weight, down.bias, stride=2)
        first = F.conv2d(F.silu(block.norm1(h)), block.conv1.weight, block.conv1.bias, padding=1)
        h = h + F.conv2d(F.silu(block.norm2(first)), block.conv2.weight, block.conv2.bias, padding=1)
    expected = F.conv2d(F.silu(encoder.norm(h)), encoder.head.weight, encoder.head.bias)
    torch.testing.assert_close(encoder(label), expected * (1 + encoder.whiten.eps) ** -0.5)
