from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, generate_binary_structure
from sklearn.metrics import brier_score_loss, log_loss

from nndiffseg.uncertainty import ReliabilityAccumulator, region_of_interest


def random_case(classes: int, *shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Softmax probabilities and a label map drawn from them: perfectly calibrated."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.5), size=shape)
    labels = (rng.random(shape)[..., None] > p.cumsum(-1)).sum(-1).clip(max=classes - 1)
    return np.moveaxis(p, -1, 0).astype(np.float32), labels


def everywhere(*shape: int) -> np.ndarray:
    return np.ones(shape, dtype=bool)


# --- region of interest


def test_the_region_is_the_ball_around_a_voxel():
    reference = np.zeros((15, 15, 15), dtype=np.uint8)
    reference[7, 7, 7] = 2
    distance = np.linalg.norm(np.indices(reference.shape) - 7, axis=0)
    np.testing.assert_array_equal(region_of_interest(reference, 5), distance <= 5)


def test_the_region_unites_the_classes_and_one_voxel_of_dilation_is_the_cross():
    reference = np.random.default_rng(0).choice(4, p=[0.97, 0.01, 0.01, 0.01], size=(20, 21, 22))
    expected = binary_dilation(reference > 0, generate_binary_structure(3, 1))
    np.testing.assert_array_equal(region_of_interest(reference, 1), expected)
    np.testing.assert_array_equal(region_of_interest(reference > 0, 0), reference > 0)


def test_the_region_is_measured_in_millimetres_where_spacing_is_given():
    reference = np.zeros((5, 21), dtype=bool)
    reference[2, 10] = True
    region = region_of_interest(reference, 3.0, spacing=(4.0, 0.5))
    assert region.sum() == 13 and region[2, 4:17].all()  # no neighbour at 4 mm, six at 0.5 mm on either side


def test_ignored_voxels_neither_grow_the_region_nor_belong_to_it():
    reference = np.array([9, 0, 0, 0, 9, 1, 0])
    assert region_of_interest(reference, 1, ignore_label=9).tolist() == [False] * 5 + [True, True]


def test_without_foreground_the_region_is_empty():
    assert not region_of_interest(np.zeros((4, 4), dtype=np.uint8), 3).any()
    with pytest.raises(ValueError, match="negative"):
        region_of_interest(np.zeros((4, 4), dtype=np.uint8), -1)


# --- reliability


def test_ece_of_a_hand_worked_case():
    # Two bins. Class 1: p = .1, .3 (one true of two: |.4 - 1| / 4), p = .6, 1. (both true: |1.6 - 2| / 4).
    p1 = np.array([0.1, 0.3, 0.6, 1.0])
    accumulator = ReliabilityAccumulator(2, bins=2)
    accumulator.add(np.stack([1 - p1, p1]), np.array([0, 1, 1, 1]), everywhere(4))
    assert accumulator.ece()[1] == pytest.approx((0.6 + 0.4) / 4)
    assert accumulator.summary()["ece_per_class"] == pytest.approx([0.25])
    assert accumulator.voxels.tolist() == [[2, 2], [2, 2]]


def test_ece_equals_the_loop_over_bins():
    p, labels = random_case(3, 20, 20)
    accumulator = ReliabilityAccumulator(3)
    accumulator.add(p, labels, everywhere(20, 20))
    for c in range(3):
        pc, y, expected = p[c].ravel(), labels.ravel() == c, 0.0
        for low in np.arange(15) / 15:
            inside = (pc >= low) & ((pc < low + 1 / 15) | (low + 1 / 15 > 0.999))
            if inside.any():
                expected += inside.mean() * abs(pc[inside].mean() - y[inside].mean())
        assert accumulator.ece()[c] == pytest.approx(expected, abs=1e-6)


def test_calibrated_probabilities_have_a_small_error_and_polarised_ones_a_large_one():
    p, labels = random_case(3, 200, 200)
    calibrated, polarised = ReliabilityAccumulator(3), ReliabilityAccumulator(3)
    calibrated.add(p, labels, everywhere(200, 200))
    sharp = p**3 / (p**3).sum(0)
    polarised.add(sharp, labels, everywhere(200, 200))
    assert calibrated.summary()["ece"] < 0.01
    for score in ("ece", "brier", "nll"):
        assert polarised.summary()[score] > 1.1 * calibrated.summary()[score]


def test_brier_and_nll_agree_with_sklearn():
    p, labels = random_case(3, 30, 30)
    accumulator = ReliabilityAccumulator(3)
    accumulator.add(p, labels, everywhere(30, 30))
    flat = np.moveaxis(p, 0, -1).reshape(-1, 3).astype(float)
    flat /= flat.sum(1, keepdims=True)
    assert accumulator.summary()["nll"] == pytest.approx(log_loss(labels.ravel(), flat), rel=1e-5)
    per_class = sum(brier_score_loss(labels.ravel() == c, flat[:, c]) for c in range(3))
    assert accumulator.summary()["brier"] == pytest.approx(per_class, rel=1e-5)


def test_regions_are_binary_problems_of_their_own():
    rng = np.random.default_rng(0)
    p = rng.random((2, 500))
    masks = rng.random((2, 500)) < p
    accumulator = ReliabilityAccumulator(2, regions=True)
    accumulator.add(p, masks, everywhere(500))
    summary = accumulator.summary()
    assert summary["nll"] == pytest.approx(np.mean([log_loss(m, q) for m, q in zip(masks, p, strict=True)]))
    assert summary["brier"] == pytest.approx(np.mean([brier_score_loss(m, q) for m, q in zip(masks, p, strict=True)]))
    assert len(summary["ece_per_class"]) == 2 and summary["ece"] == pytest.approx(accumulator.ece().mean())


def test_cases_add_up_and_only_the_region_counts():
    p, labels = random_case(3, 10, 12)
    region = np.random.default_rng(1).random((10, 12)) < 0.4
    whole, parts = ReliabilityAccumulator(3), ReliabilityAccumulator(3)
    whole.add(p, labels, region)
    parts.add(p[:, :4], labels[:4], region[:4])
    parts.add(p[:, 4:], labels[4:], region[4:])
    selected = ReliabilityAccumulator(3)
    selected.add(p[:, region], labels[region], everywhere(int(region.sum())))
    assert whole.summary()["voxels"] == region.sum()
    for other in (parts, selected):
        for key, value in whole.summary().items():
            assert other.summary()[key] == pytest.approx(value)


def test_rater_frequencies_may_stand_for_labels():
    p, labels = random_case(2, 40)
    one_hot = np.stack([labels == 0, labels == 1])
    hard, masks, soft = (ReliabilityAccumulator(2) for _ in range(3))
    hard.add(p, labels, everywhere(40))
    masks.add(p, one_hot, everywhere(40))
    assert masks.summary() == hard.summary()
    soft.add(p, p, everywhere(40))  # the raters' own frequencies
    assert soft.summary()["brier"] == 0 and soft.summary()["ece"] == 0


def test_an_impossible_voxel_costs_a_finite_nll_and_an_empty_region_no_numbers():
    accumulator = ReliabilityAccumulator(2)
    accumulator.add(np.array([[1.0], [0.0]]), np.array([1]), np.array([False]))
    assert accumulator.summary() == {"ece": None, "ece_per_class": None, "ace": None, "brier": None, "nll": None, "voxels": 0}
    assert np.isnan(accumulator.ece()).all()
    accumulator.add(np.array([[1.0], [0.0]]), np.array([1]), np.array([True]))
    assert accumulator.summary()["nll"] == pytest.approx(7 * math.log(10))
    json.dumps(accumulator.summary(), allow_nan=False)


def test_adaptive_error_is_that_of_sorted_probabilities_in_bins_of_equal_mass():
    rng = np.random.default_rng(4)
    p = rng.beta(0.3, 2, 3000)
    y = (rng.random(3000) < np.where(p < 0.02, 4 * p, p / 3)).astype(float)  # over and under in one bin of equal width
    accumulator = ReliabilityAccumulator(1, regions=True, bins=15)
    accumulator.add(p[None], y[None], everywhere(3000))
    order = np.argsort(p)
    expected = np.abs((p - y)[order].reshape(15, 200).sum(1)).sum() / 3000
    assert accumulator.ace()[0] == pytest.approx(expected, abs=2e-3)  # ties within 1 / 4096 are shared
    assert accumulator.ace()[0] > accumulator.ece()[0] + 2e-3
    assert accumulator.per_class()["ace"][0] == accumulator.summary()["ace"] == accumulator.ace()[0]


def test_adaptive_bins_share_voxels_of_equal_probability():
    # 90 voxels at 0 and 10 at 0.5, all of these right: two bins of 50. The first has no gap, the second all of it.
    p = np.r_[np.zeros(90), np.full(10, 0.5)]
    accumulator = ReliabilityAccumulator(1, regions=True, bins=2)
    accumulator.add(p[None], (p > 0)[None].astype(float), everywhere(100))
    assert accumulator.ace()[0] == pytest.approx(10 * 0.5 / 100)


def test_merged_cases_equal_one_accumulator_that_saw_both():
    whole, first, second = (ReliabilityAccumulator(3) for _ in range(3))
    for seed, part in ((0, first), (1, second)):
        p, labels = random_case(3, 50, seed=seed)
        part.add(p, labels, everywhere(50))
        whole.add(p, labels, everywhere(50))
    first.merge(second)
    for name, values in first.per_class().items():
        np.testing.assert_allclose(values, whole.per_class()[name])
    assert first.summary()["nll"] == pytest.approx(whole.summary()["nll"])
    np.testing.assert_allclose(first.frequency, whole.frequency)


def test_each_class_has_the_scores_of_itself_against_the_rest():
    from sklearn.metrics import brier_score_loss, log_loss

    p, labels = random_case(3, 400)
    accumulator = ReliabilityAccumulator(3)
    accumulator.add(p, labels, everywhere(400))
    for c in range(3):
        assert accumulator.per_class()["brier"][c] == pytest.approx(brier_score_loss(labels == c, p[c]))
        assert accumulator.per_class()["nll"][c] == pytest.approx(log_loss(labels == c, p[c]))
    assert accumulator.summary()["brier"] == pytest.approx(accumulator.per_class()["brier"].sum())


@pytest.mark.seconds
def test_calibration_error_of_a_class_equals_that_of_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.classification", reason="needs torchmetrics, of the extra oracle")
    import torch

    p, labels = random_case(3, 2000)
    accumulator = ReliabilityAccumulator(3, bins=15)
    accumulator.add(p, labels, everywhere(2000))
    for c in range(3):
        theirs = metrics.BinaryCalibrationError(n_bins=15)(torch.from_numpy(p[c]), torch.from_numpy(labels == c).long())
        assert accumulator.ece()[c] == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.seconds
def test_adaptive_error_equals_that_of_torch_uncertainty():
    try:
        from torch_uncertainty.metrics.classification import AdaptiveCalibrationError
    except ImportError as error:
        pytest.skip(f"needs torch-uncertainty, of the extra oracle ({error})")
    import torch

    p, labels = random_case(3, 3000)
    for c in range(3):
        metric = AdaptiveCalibrationError(task="binary", num_bins=15)
        metric.update(torch.from_numpy(p[c]), torch.from_numpy(labels == c).long())
        accumulator = ReliabilityAccumulator(1, regions=True, bins=15)  # theirs is of the chosen class
        right = ((p[c] > 0.5) == (labels == c)).astype(float)
        accumulator.add(np.maximum(p[c], 1 - p[c])[None], right[None], everywhere(3000))
        assert accumulator.ace()[0] == pytest.approx(float(metric.compute()), abs=2e-3)


def test_shapes_and_kinds_that_do_not_fit_are_refused():
    p, labels = random_case(3, 8)
    with pytest.raises(ValueError, match="do not match"):
        ReliabilityAccumulator(2).add(p, labels, everywhere(8))
    with pytest.raises(ValueError, match="do not match"):
        ReliabilityAccumulator(3).add(p, labels[:5], everywhere(8))
    with pytest.raises(ValueError, match="one reference mask each"):
        ReliabilityAccumulator(3, regions=True).add(p, labels, everywhere(8))
    with pytest.raises(ValueError, match="Cannot measure"):
        ReliabilityAccumulator(1)
