"""nnU-Net's ignore label: which voxels count, what stands in for the others, and means without them."""

from __future__ import annotations

import pytest
import torch

from nndiffseg.nn.annotated import annotated_voxels, completed, item_means, mean, shares
from nndiffseg.nn.heads import Heads

LABELS, REGIONS = Heads(3), Heads(2, regions=True)


def test_the_ignore_label_is_the_one_after_the_last():
    target = torch.tensor([[[[0, 1, 2, 3]]]])
    assert annotated_voxels(target, LABELS).tolist() == [[[[True, True, True, False]]]]
    onehot = LABELS.onehot(target)
    assert onehot.dtype == torch.float32 and onehot[0, :, 0].T.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_regions_have_a_channel_for_it(dtype):
    target = torch.tensor([[[[1, 1, 0, 0]], [[0, 1, 0, 0]], [[0, 0, 0, 1]]]]).to(dtype)
    assert annotated_voxels(target, REGIONS).tolist() == [[[[True, True, True, False]]]]
    assert torch.equal(REGIONS.onehot(target), target[:, :2].float())


@pytest.mark.parametrize("heads", [LABELS, REGIONS])
def test_ignored_voxels_hold_the_segmentation_and_pass_no_gradient(heads):
    logits = torch.randn(2, heads.number, 4, 4, requires_grad=True)
    onehot, annotated = torch.zeros(2, heads.number, 4, 4), torch.rand(2, 1, 4, 4) < 0.5
    onehot[:, -1] = 1
    label = completed(onehot, annotated, logits, heads)
    inside = annotated.expand_as(label)
    assert torch.equal(label[inside], onehot[inside])
    segmentation = logits > 0 if heads.regions else logits == logits.amax(1, keepdim=True)
    assert torch.equal(label[~inside], segmentation.float()[~inside]) and not label.requires_grad


def test_a_cell_counts_by_its_share_of_annotated_voxels():
    annotated = torch.tensor([[True, True, False, False], [True, False, False, False]])[None, None]
    assert shares(annotated, (1, 2)).tolist() == [[[[0.75, 0.0]]]]
    assert torch.equal(shares(annotated, (2, 4)), annotated.float())
    assert shares(annotated[..., None].expand(-1, -1, -1, -1, 4), (1, 2, 2)).shape == (1, 1, 1, 2, 2)


def test_means_are_over_what_is_annotated_and_nothing_is_finite():
    values = torch.tensor([[[[1.0, 3.0, 100.0]], [[5.0, 7.0, 100.0]]], [[[9.0, 9.0, 9.0]], [[9.0, 9.0, 9.0]]]])
    values.requires_grad_()
    weights = torch.tensor([[[[1.0, 1.0, 0.0]]], [[[0.0, 0.0, 0.0]]]])
    assert item_means(values, weights).tolist() == [4, 0] and mean(values, weights).item() == 4
    assert mean(values, weights.bool()).item() == 4
    (gradient,) = torch.autograd.grad(item_means(values, weights).sum(), values)
    assert gradient[0, :, 0].tolist() == [[0.25, 0.25, 0], [0.25, 0.25, 0]] and not gradient[1].any()
    assert torch.equal(item_means(values, None), values.flatten(1).mean(1)) and mean(values, None) == values.mean()


def test_one_hot_labels_lie_in_memory_as_torch_puts_them():
    """Convolutions round differently with another layout, so that trainings would change in the last bits."""
    target, p = torch.randint(3, (2, 1, 4, 5)), torch.rand(2, 3, 4, 5)
    for found, labels in ((LABELS.onehot(target), target[:, 0]), (LABELS.hard(p), p.argmax(1))):
        expected = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).to(found.dtype)
        assert torch.equal(found, expected) and found.stride() == expected.stride()
