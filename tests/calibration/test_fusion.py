"""The fusion weight is the one with the best Dice, and among equals the likeliest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nndiffseg.calibration.fusion import FLOOR, TOLERANCE, WEIGHTS, fit_fusion_weight, fusion_scores, mean_dice
from nndiffseg.calibration.tables import CaseTable
from nndiffseg.nn.heads import Heads


def table(dice: np.ndarray, nll: np.ndarray) -> CaseTable:
    return CaseTable("case", dice, nll, np.zeros((1, 2)), np.zeros((1, 1)), np.zeros((11, 1, 33)), np.ones((11, 1)))


def test_scores_equal_a_plain_computation_over_all_voxels():
    generator = torch.Generator().manual_seed(0)
    head, samples = (torch.rand(3, 5, 6, generator=generator).softmax(0) for _ in range(2))
    labels = torch.randint(0, 3, (5, 6), generator=generator)
    onehot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 0).bool()
    dice, nll = fusion_scores(head, samples, onehot, Heads(3))
    for i, w in enumerate(WEIGHTS):
        p = w * head + (1 - w) * samples
        hard = p.argmax(0)
        for k in (1, 2):
            overlap = 2 * ((hard == k) & (labels == k)).sum() / ((hard == k).sum() + (labels == k).sum())
            assert dice[i, k - 1] == pytest.approx(float(overlap), abs=1e-6)
        assert nll[i] == pytest.approx(float(-p.gather(0, labels[None]).log().mean()), rel=1e-5)


def test_regions_are_binary_problems_of_their_own():
    generator = torch.Generator().manual_seed(1)
    head, samples = (torch.rand(2, 4, 5, generator=generator) for _ in range(2))
    onehot = torch.rand(2, 4, 5, generator=generator) > 0.5
    dice, nll = fusion_scores(head, samples, onehot, Heads(2, regions=True))
    p = (head + samples) / 2
    likelihood = torch.where(onehot, p, 1 - p).log().sum() / onehot[0].numel()
    assert nll[5] == pytest.approx(float(-likelihood), rel=1e-5)
    hard = p > 0.5
    for k in range(2):
        assert dice[5, k] == pytest.approx(float(2 * (hard[k] & onehot[k]).sum() / (hard[k].sum() + onehot[k].sum())))


def test_certain_background_counts_as_voxels_without_loss_and_an_absent_structure_has_no_dice():
    p = torch.tensor([[1.0, 1.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    onehot = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    dice, nll = fusion_scores(p, p, onehot, Heads(3))
    assert np.isnan(dice[:, 1]).all() and nll == pytest.approx(np.full(len(WEIGHTS), np.log(2) / 3))


@pytest.mark.parametrize(("background", "counts"), [(0.998, True), (0.999, False), (0.9995, False), (1.0, False)])
def test_background_of_0_999_is_certain(background, counts):
    p, onehot = torch.tensor([[background], [1 - background]]), torch.tensor([[True], [False]])
    _, nll = fusion_scores(p, p, onehot, Heads(2))
    assert nll == pytest.approx(np.full(len(WEIGHTS), -np.log(background) if counts else 0.0), rel=1e-3, abs=0)


def test_a_voxel_counts_where_head_samples_or_reference_see_a_structure():
    """One such voxel each, and one that nobody doubts, whose loss is not counted although it is not 0."""
    head = torch.tensor([[0.5, 0.9996, 0.9998, 0.9996], [0.5, 0.0004, 0.0002, 0.0004]])
    samples = torch.tensor([[0.9996, 0.5, 0.9998, 0.9996], [0.0004, 0.5, 0.0002, 0.0004]])
    onehot = torch.tensor([[True, True, False, True], [False, False, True, False]])
    _, nll = fusion_scores(head, samples, onehot, Heads(2))
    loss = np.log(0.5) + np.log(0.9996) + np.log(0.0002)
    assert nll[[0, -1]] == pytest.approx(np.full(2, -loss / 4), rel=1e-6)


def test_a_voxel_of_regions_counts_where_any_region_is_possible():
    """Both regions' losses count in a voxel where one is possible, and none in the last voxel, that nobody doubts."""
    head = torch.tensor([[0.5, 0.0004, 0.0002, 0.0004], [0.0004, 0.0004, 0.0004, 0.0004]])
    samples = torch.tensor([[0.0004, 0.0004, 0.0002, 0.0004], [0.0004, 0.5, 0.0004, 0.0004]])
    onehot = torch.tensor([[False, False, True, False], [False, True, False, False]])
    dice, nll = fusion_scores(head, samples, onehot, Heads(2, regions=True))
    certain = np.log(0.9996)
    of_samples = (certain + certain) + (certain + np.log(0.5)) + (np.log(0.0002) + certain)
    of_head = (np.log(0.5) + certain) + (certain + np.log(0.0004)) + (np.log(0.0002) + certain)
    assert nll[[0, -1]] == pytest.approx([-of_samples / 4, -of_head / 4], rel=1e-6)
    assert (dice == 0).all()  # structures of the reference that no probability above 1/2 finds


def test_a_probability_of_0_costs_a_finite_loss():
    p, onehot = torch.tensor([[1.0], [0.0]]), torch.tensor([[False], [True]])
    _, nll = fusion_scores(p, p, onehot, Heads(2))
    assert nll == pytest.approx(np.full(len(WEIGHTS), -np.log(FLOOR)), rel=1e-6)


def test_the_best_dice_wins_and_the_likelihood_decides_among_equals():
    dice, nll = np.full((len(WEIGHTS), 1), 0.8), np.linspace(1.0, 2.0, len(WEIGHTS))
    dice[7] = 0.9
    assert fit_fusion_weight([table(dice, nll)]) == WEIGHTS[7]
    dice[3] = 0.9 - TOLERANCE / 2  # as good, and likelier
    assert fit_fusion_weight([table(dice, nll)]) == WEIGHTS[3]
    assert fit_fusion_weight([table(dice, nll[::-1])]) == WEIGHTS[7]
    dice[3] = 0.9 - 2 * TOLERANCE
    assert fit_fusion_weight([table(dice, nll)]) == WEIGHTS[7]
    assert fit_fusion_weight([]) == 1.0
    assert fit_fusion_weight([table(np.full((len(WEIGHTS), 1), np.nan), nll)]) == WEIGHTS[0]


def test_structures_weigh_alike_however_many_cases_have_them():
    one, two = np.full((len(WEIGHTS), 2), 0.5), np.full((len(WEIGHTS), 2), 0.7)
    two[:, 1] = np.nan
    assert mean_dice([table(one, np.zeros(11)), table(two, np.zeros(11))]) == pytest.approx(np.full(11, (0.6 + 0.5) / 2))


def test_a_structure_that_no_case_has_does_not_count():
    dice = np.full((len(WEIGHTS), 2), 0.6)
    dice[:, 1] = np.nan
    assert mean_dice([table(dice, np.zeros(11))] * 2) == pytest.approx(np.full(11, 0.6))
