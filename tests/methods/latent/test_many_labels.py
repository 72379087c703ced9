"""Over a hundred labels: the losses keep little for the backward pass, and are the same as with few."""

from __future__ import annotations

import pytest
import torch

from nndiffseg.methods.latent import losses
from nndiffseg.methods.latent.losses import LatentLosses
from nndiffseg.methods.latent.network import TrainingOutput
from nndiffseg.methods.protocol import Batch, SegmentationLoss
from nndiffseg.nn.heads import Heads

HEADS, PATCH = Heads(118), (8, 8, 8)


def pass_of() -> tuple[TrainingOutput, Batch, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    logits, reconstruction, samples = (leaf(*s, HEADS.number, *PATCH) for s in ((2,), (2,), (2, 2)))
    z0, x0 = torch.randn(2, 4, 2, 2, 2, generator=generator), leaf(2, 2, 4, 2, 2, 2)
    target = torch.randint(HEADS.number, (2, 1, *PATCH), generator=generator).float()
    out = TrainingOutput([logits], reconstruction, z0, z0, x0, samples, torch.tensor([True, False]))
    return out, Batch(samples, [target], HEADS.onehot(target), 0.5, (0, 0, 0, 0)), [logits, reconstruction, x0, samples]


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, target[:, 0].long())


def made(monkeypatch: pytest.MonkeyPatch, many: int) -> tuple[dict[str, float], list[torch.Tensor], int]:
    """Terms, gradients, and bytes that are kept between both passes."""
    monkeypatch.setattr(losses, "MANY", many)
    loss = LatentLosses(SegmentationLoss(lambda x, t: cross_entropy(x[0], t[0]), cross_entropy), HEADS)
    out, batch, leaves = pass_of()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = loss.terms(out, batch)
    sum(terms.values()).backward()
    return {k: float(v.detach()) for k, v in terms.items()}, [leaf.grad for leaf in leaves], sum(kept.values())


def test_many_heads_keep_less_and_give_the_same(monkeypatch):
    few, gradients, most = made(monkeypatch, many=1000)
    many, others, least = made(monkeypatch, many=32)
    assert many == pytest.approx(few, rel=1e-5)
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b)
    probabilities = 4 * 2 * 2 * HEADS.number * 512
    assert least < 2.5 * probabilities < most, (least / probabilities, most / probabilities)
