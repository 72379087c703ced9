"""Soft Dice confidence: the formula, for labels and regions, and counts in the place of certain voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nndiffseg.calibration.confidence import mean_confidence, soft_dice
from nndiffseg.nn.heads import Heads


def test_it_is_the_dice_of_mask_and_probability():
    p = torch.tensor([[0.7, 0.2, 0.1, 0.3], [0.2, 0.5, 0.1, 0.6], [0.1, 0.3, 0.8, 0.1]])
    first, second = 2 * (0.5 + 0.6) / (0.2 + 0.5 + 0.1 + 0.6 + 2), 2 * 0.8 / (0.1 + 0.3 + 0.8 + 0.1 + 1)
    np.testing.assert_allclose(soft_dice(p, Heads(3)), [first, second], rtol=1e-6)
    np.testing.assert_allclose(soft_dice(p[1:, None, :, None], Heads(2, True)), [2 * 0.6 / (1.4 + 1), second], rtol=1e-6)


def test_a_structure_that_is_not_there_has_none_and_certain_ones_have_1():
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = soft_dice(p, Heads(3))
    assert found[0] == 1 and np.isnan(found[1]) and mean_confidence(found) == 1
    assert mean_confidence(np.full(2, np.nan)) is None


def test_thinned_voxels_and_counts_give_the_same():
    g = torch.Generator().manual_seed(0)
    p = torch.randn(3, 60, generator=g).mul(3).softmax(0)
    repeated, certain = p.repeat_interleave(2, 1), torch.tensor([[0.0, 1.0, 0.0]]).T.repeat(1, 7)
    whole = soft_dice(torch.cat([repeated, certain], 1), Heads(3))
    np.testing.assert_allclose(soft_dice(p, Heads(3), 2, torch.tensor([7.0, 0.0])), whole, rtol=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_calibrated_probabilities_have_about_their_mean_dice(regions):
    g = torch.Generator().manual_seed(1)
    z = torch.randn(2, 20000, generator=g) * 3
    kind = Heads(1, True) if regions else Heads(2)
    p = kind.probabilities(z[1:] - z[:1] if regions else z, 0)
    truth = torch.rand(20000, generator=g) < p[-1]
    mask = p[-1] > 0.5
    dice = 2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum())
    assert soft_dice(p, kind)[0] == pytest.approx(dice, abs=0.01)
