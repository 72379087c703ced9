"""The Dice that a training sees on validation patches, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nndiffseg.nn.heads import Heads
from nndiffseg.training.patch_validation import COMPARED, dice_of_batches, mean_over_structures, score_patches


def logits_of(labels: list[int], heads: int = 3, sure: float = 9.0) -> torch.Tensor:
    """Labels of a row of voxels -> ``(1, heads, 1, voxels)``."""
    return sure * F.one_hot(torch.tensor([[labels]]), heads).movedim(-1, 1).float()


def test_every_answer_is_compared_with_the_truth_and_the_samples_with_each_other():
    truth = F.one_hot(torch.tensor([[[0, 1, 1, 2]]]), 3).movedim(-1, 1).float()
    samples = torch.stack([logits_of([0, 1, 1, 0]), logits_of([0, 0, 1, 2], sure=3.0)])
    scored = score_patches(logits_of([1, 1, 1, 2]), samples, truth, Heads(3))
    dice = dice_of_batches([scored])
    assert list(dice) == list(COMPARED)
    assert dice["deterministic"].tolist() == pytest.approx([4 / 5, 1])
    assert dice["sample"].tolist() == pytest.approx([1, 0])  # the first one
    assert dice["seeds"].tolist() == pytest.approx([2 / 3, 0])
    assert dice["samples"].tolist() == pytest.approx([1, 0])  # the surer sample decides
    assert dice["fused"].tolist() == pytest.approx([4 / 5, 1])
    # One of four voxels is wrong, in two of three heads: p = e^-9 of the background and 1 - 2 e^-9 of the structure.
    assert scored["loss"] == pytest.approx((9 + 9 - np.log(2)) / 12, abs=0.001)


def test_regions_are_scored_one_by_one_and_may_overlap():
    truth = torch.tensor([[[[1.0, 1, 0, 0]], [[1.0, 0, 0, 0]]]])  # (1, 2 regions, 1, 4)
    answer = 9 * (2 * torch.tensor([[[[1.0, 1, 1, 0]], [[1.0, 1, 0, 0]]]]) - 1)
    dice = dice_of_batches([score_patches(answer, torch.stack([answer, answer]), truth, Heads(2, regions=True))])
    assert dice["fused"].tolist() == pytest.approx([4 / 5, 2 / 3]) and dice["seeds"].tolist() == [1, 1]


def test_batches_are_pooled_and_a_structure_that_is_nowhere_does_not_count():
    there, away = (F.one_hot(torch.tensor([[labels]]), 3).movedim(-1, 1).float() for labels in ([1, 1, 0, 0], [0, 0, 0, 0]))
    wrong = logits_of([1, 0, 0, 0])
    scored = [score_patches(wrong, torch.stack([wrong, wrong]), truth, Heads(3)) for truth in (there, away)]
    dice = dice_of_batches(scored)["deterministic"]
    assert dice[0] == pytest.approx(2 * 1 / (1 + 2 + 1)) and np.isnan(dice[1])
    assert mean_over_structures(dice) == dice[0] and mean_over_structures(np.array([np.nan])) == 0.0
