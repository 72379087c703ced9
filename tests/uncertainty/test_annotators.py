"""One prediction and several annotators, against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from nndiffseg.uncertainty import entropy
from nndiffseg.uncertainty.agreement import dice_of
from nndiffseg.uncertainty.annotators import (
    THRESHOLDS,
    consensus_dice,
    disagreement_correlation,
    frequencies,
    thresholded_dice,
)

ONE = [(1,)]


def line(*labels: int) -> np.ndarray:
    return np.array([[labels]])


def test_frequencies_count_annotators_and_regions():
    references = np.stack([line(0, 1, 2), line(0, 2, 2), line(0, 1, 0), line(1, 1, 2)])
    found = frequencies(references, [(1,), (1, 2)])
    np.testing.assert_allclose(found[0].ravel(), [1 / 4, 3 / 4, 0])
    np.testing.assert_allclose(found[1].ravel(), [1 / 4, 1, 3 / 4])


def test_consensus_is_more_than_half_of_the_annotators():
    references = np.stack([line(1, 1, 1, 0), line(1, 1, 0, 0), line(1, 0, 0, 0), line(1, 0, 0, 0)])
    frequency = frequencies(references, ONE)  # 1, 1/2, 1/4, 0
    assert consensus_dice(line(1, 0, 0, 0), frequency, ONE) == [1]
    assert consensus_dice(line(1, 1, 0, 0), frequency, ONE) == pytest.approx([2 / 3])  # half is no majority
    assert np.isnan(consensus_dice(line(0, 0, 0, 0), np.zeros((1, 1, 1, 4)), ONE))[0]


def test_thresholded_dice_is_1_for_the_annotators_own_frequency():
    frequency = np.array([[[[0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0]]]])
    assert thresholded_dice(frequency, frequency, ONE) == [1]


def test_thresholded_dice_is_the_mean_over_nine_cuts():
    frequency, p = np.array([[[[1.0, 0.5]]]]), np.array([[[[1.0, 0.2]]]])
    # Cuts .1 and .2: both voxels on either side. .3, .4, .5: the prediction misses one. .6 to .9: one each.
    assert thresholded_dice(p, frequency, ONE) == pytest.approx([(2 + 3 * 2 / 3 + 4) / 9])
    assert len(THRESHOLDS) == 9


def test_cuts_at_which_both_are_empty_are_left_out():
    frequency = np.array([[[[0.35, 0.0]]]])
    assert thresholded_dice(frequency, frequency, ONE) == [1]
    assert np.isnan(thresholded_dice(0 * frequency, 0 * frequency, ONE))[0]


def test_a_frequency_of_three_in_ten_reaches_the_cut_at_0_3():
    references = np.stack([line(1)] * 3 + [line(0)] * 7)
    assert thresholded_dice(np.ones((1, 1, 1, 1)), frequencies(references, ONE), ONE) == pytest.approx([3 / 9])


def test_ncc_equals_that_of_phiseg_with_cross_entropies_of_samples():
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 3, (8, 500))
    references = np.where(rng.random((4, 500)) < 0.6, samples[:4], rng.integers(0, 3, (4, 500)))
    p = np.stack([(samples == c).mean(0) for c in range(3)])
    masks = [np.stack([r == c for c in range(3)]) for r in references]

    def cross_entropy(of: np.ndarray, q: np.ndarray) -> np.ndarray:
        return -(of * np.log(q + 1e-8)).sum(0)

    one_hot = [np.stack([s == c for c in range(3)]).astype(float) for s in samples]
    spread = np.mean([cross_entropy(s, p) for s in one_hot], 0)
    errors = [np.mean([cross_entropy(m, s) for s in one_hot], 0) for m in masks]
    expected = np.mean([np.corrcoef(spread, e)[0, 1] for e in errors])
    found = disagreement_correlation(p, np.asarray(entropy(p)), masks)
    assert found == pytest.approx(expected, abs=1e-5)


def test_ncc_without_any_variation_is_undefined():
    p = np.full((2, 5), 0.5)
    assert np.isnan(disagreement_correlation(p, np.ones(5), [np.array([[1] * 5, [0] * 5])]))
    assert np.isnan(disagreement_correlation(np.zeros((2, 0)), np.zeros(0), [np.zeros((2, 0))]))


def test_dice_is_nan_only_where_both_lack_the_structure():
    a, b = np.array([0, 1, 1, 2]), np.array([0, 1, 0, 0])
    assert dice_of(a, b, [(1,), (2,), (3,), (1, 2)]) == pytest.approx([2 / 3, 0, np.nan, 1 / 2], nan_ok=True)


@pytest.mark.seconds
def test_dice_equals_that_of_monai():
    monai = pytest.importorskip("monai.metrics", reason="needs MONAI, of the extra oracle")
    import torch

    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, (2, 1, 1, 9, 9, 9))
    one_hot = [torch.nn.functional.one_hot(torch.from_numpy(x[0]), 4).movedim(-1, 1).float() for x in (a, b)]
    theirs = monai.compute_dice(*one_hot, include_background=False).numpy()[0]
    np.testing.assert_allclose(dice_of(a[0, 0], b[0, 0], [(1,), (2,), (3,)]), theirs, rtol=1e-6)
