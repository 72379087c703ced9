from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from nndiffseg.uncertainty import (
    PairwiseOverlap,
    expected_dice,
    generalised_energy_distance,
    matched_iou,
    mean_pairwise_dice,
    spread,
)
from nndiffseg.uncertainty.agreement import best_dice, energy_score


def label_maps(members: int, *shape: int, classes: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, size=(members, *shape)).astype(np.uint8)


def overlap_of(segmentations, structures=(1,)) -> PairwiseOverlap:
    overlap = PairwiseOverlap(len(segmentations), structures)
    overlap.add(np.asarray(segmentations))
    return overlap


def test_dice_and_iou_of_every_pair_agree_with_sklearn():
    maps = label_maps(5, 6, 7, 8)
    overlap = overlap_of(maps, structures=[1, 2, 3])
    for k, label in enumerate([1, 2, 3]):
        for i in range(5):
            for j in range(5):
                a, b = (maps[i] == label).ravel(), (maps[j] == label).ravel()
                assert overlap.dice()[k, i, j] == pytest.approx(f1_score(a, b))
                assert overlap.iou()[k, i, j] == pytest.approx(jaccard_score(a, b))


def test_counts_are_the_voxels_of_each_structure_in_each_member():
    maps = label_maps(5, 6, 7)
    assert overlap_of(maps, [1, (2, 3)]).counts.tolist() == [
        [(m == 1).sum() for m in maps], [((m == 2) | (m == 3)).sum() for m in maps]
    ]  # fmt: skip


def test_slabs_add_up_to_the_volume_and_huge_slabs_are_cut(monkeypatch):
    maps = label_maps(4, 10, 7, 8)
    whole, slabs, chunked = (PairwiseOverlap(4, [1, 2, (1, 3)]) for _ in range(3))
    whole.add(maps)
    for start in range(0, 10, 3):
        slabs.add(torch.from_numpy(maps[:, start : start + 3]))
    monkeypatch.setattr("nndiffseg.uncertainty.agreement._CHUNK", 17)
    chunked.add(maps)
    np.testing.assert_array_equal(whole.intersections, slabs.intersections)
    np.testing.assert_array_equal(whole.intersections, chunked.intersections)


def test_masks_of_overlapping_regions_equal_unions_of_labels():
    maps = label_maps(4, 9, 9)
    regions = np.stack([maps > 0, maps >= 2], axis=1)  # (N, K, *spatial)
    by_mask, by_label = PairwiseOverlap(4, [(1, 2, 3), (2, 3)]), PairwiseOverlap(4, [(1, 2, 3), (2, 3)])
    by_mask.add(regions)
    by_label.add(maps)
    np.testing.assert_array_equal(by_mask.intersections, by_label.intersections)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.int64])
def test_every_integer_type_of_a_label_map_is_read(dtype):
    maps = label_maps(3, 40)
    np.testing.assert_array_equal(overlap_of(maps.astype(dtype), [1, 2]).intersections, overlap_of(maps, [1, 2]).intersections)


def test_counts_are_exact_under_half_precision_autocast():
    maps = np.ones((2, 70_001), dtype=np.uint8)  # not a number that bfloat16 can hold
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert overlap_of(maps).counts.tolist() == [[70_001, 70_001]]


def test_both_empty_agree_and_one_empty_disagrees():
    a, b = np.zeros(8, dtype=np.uint8), np.ones(8, dtype=np.uint8)
    overlap = overlap_of([a, a, b])
    assert overlap.dice()[0].tolist() == overlap.iou()[0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_expected_dice_is_the_mean_over_distinct_pairs_then_structures():
    maps = label_maps(6, 5, 5, classes=3)
    per_structure = [np.mean([f1_score((a == k).ravel(), (b == k).ravel()) for a, b in combinations(maps, 2)]) for k in (1, 2)]
    overlap = overlap_of(maps, [1, 2])
    np.testing.assert_allclose(mean_pairwise_dice(overlap), per_structure)
    assert expected_dice(overlap) == pytest.approx(np.mean(per_structure))


def test_equal_samples_have_no_spread_and_disjoint_ones_all_of_it():
    same = overlap_of([[1, 1, 0, 0]] * 3)
    assert expected_dice(same) == 1 and spread(same) == 0
    disjoint = overlap_of(np.eye(3, dtype=np.uint8))
    assert expected_dice(disjoint) == 0 and spread(disjoint) == 1


def test_one_sample_has_no_pairs():
    overlap = overlap_of([[1, 0, 1]])
    assert expected_dice(overlap) is None and spread(overlap) is None and mean_pairwise_dice(overlap) is None


# Four voxels; samples {0,1}, {0}; raters {0,1}, {0,1,2}. IoU sample x rater: [[1, 2/3], [1/2, 1/3]].
SAMPLES_AND_RATERS = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]


def test_energy_distance_of_a_hand_worked_case():
    ged = generalised_energy_distance(overlap_of(SAMPLES_AND_RATERS), samples=2)
    assert ged.cross == pytest.approx((0 + 1 / 3 + 1 / 2 + 2 / 3) / 4)
    assert ged.within_samples == pytest.approx((1 / 2 + 1 / 2) / 4)  # {0,1} with {0}, both orders, of four pairs
    assert ged.within_references == pytest.approx((1 / 3 + 1 / 3) / 4)
    assert ged.squared == pytest.approx(2 * ged.cross - ged.within_samples - ged.within_references)
    assert (ged.samples, ged.references) == (2, 2)


def test_energy_distance_of_equal_sets_is_zero_and_empty_ones_are_alike():
    maps = label_maps(3, 20, classes=2)
    assert generalised_energy_distance(overlap_of([*maps, *maps]), 3).squared == pytest.approx(0)
    empty = np.zeros((4, 20), dtype=np.uint8)
    assert generalised_energy_distance(overlap_of(empty), 2).squared == 0


def test_matched_iou_takes_the_best_assignment():
    assert matched_iou(overlap_of(SAMPLES_AND_RATERS), samples=2) == pytest.approx((1 + 1 / 3) / 2)  # > 2/3 + 1/2
    maps = label_maps(8, 30, classes=2)
    iou = overlap_of(maps).iou()[0, :4, 4:]
    best = max(np.mean([iou[i, j] for i, j in enumerate(order)]) for order in permutations(range(4)))
    assert matched_iou(overlap_of(maps), samples=4) == pytest.approx(best)


def test_matched_iou_repeats_sets_of_unequal_size():
    maps = label_maps(5, 30, classes=2)  # 2 samples, 3 raters: each sample thrice, each rater twice
    iou = overlap_of(maps).iou()[0, :2, 2:]
    best = 0.0
    for share in np.ndindex(4, 4, 4):  # copies of sample 0 (of 2) that rater j gets
        if max(share) <= 2 and sum(share) == 3:
            best = max(best, sum(s * iou[0, j] + (2 - s) * iou[1, j] for j, s in enumerate(share)) / 6)
    assert matched_iou(overlap_of(maps), samples=2) == pytest.approx(best)


def test_energy_score_of_a_hand_worked_case():
    # 1 - IoU of samples and raters: 0 and 1/3, 1/2 and 2/3; of the two samples: 1/2.
    assert energy_score(overlap_of(SAMPLES_AND_RATERS), 2) == pytest.approx((0 + 1 / 3 + 1 / 2 + 2 / 3) / 4 - 1 / 4)
    assert energy_score(overlap_of(SAMPLES_AND_RATERS[1:]), 1) is None


def test_energy_score_is_least_for_samples_of_the_truths_distribution():
    rng = np.random.default_rng(0)
    sizes = np.arange(1, 31)

    def samples(low: int, high: int) -> np.ndarray:
        return (sizes <= rng.integers(low, high, 400)[:, None]).astype(int)

    truth = samples(5, 25)
    right, narrow, wide, apart = (
        energy_score(overlap_of(np.concatenate([s, truth])), 400)
        for s in (samples(5, 25), samples(14, 16), samples(1, 30), samples(10, 30))
    )
    assert right < min(narrow, wide, apart)


def test_energy_score_does_not_depend_on_the_number_of_samples():
    maps = label_maps(300, 12, classes=2)
    few = np.mean([energy_score(overlap_of(np.concatenate([maps[i : i + 2], maps[-50:]])), 2) for i in range(0, 250, 2)])
    assert energy_score(overlap_of(maps), 250) == pytest.approx(few, abs=0.01)


def test_best_dice_is_that_of_each_raters_best_sample():
    # Rater 1 equals sample 1; rater 2 has three voxels, two of them in sample 1: 4/5.
    assert best_dice(overlap_of(SAMPLES_AND_RATERS), 2) == pytest.approx((1 + 4 / 5) / 2)


def test_one_structure_of_an_overlap_is_that_structures_own():
    maps = label_maps(5, 40)
    alone = overlap_of(maps, [1, 2, 3]).structure(1)
    np.testing.assert_array_equal(alone.intersections, overlap_of(maps, [2]).intersections)
    assert alone.structures == [(2,)]


def test_a_subset_equals_the_overlap_of_those_members():
    maps = label_maps(6, 40)
    np.testing.assert_array_equal(
        overlap_of(maps, [1, 2]).subset([4, 0, 5]).intersections, overlap_of(maps[[4, 0, 5]], [1, 2]).intersections
    )
    with pytest.raises(ValueError):
        overlap_of(maps).subset([])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="background"):
        PairwiseOverlap(3, [0, 1])
    with pytest.raises(ValueError, match="Expected 3"):
        PairwiseOverlap(3, [1]).add(label_maps(2, 5))
    with pytest.raises(ValueError, match="2 structures"):
        PairwiseOverlap(3, [1, 2]).add(np.zeros((3, 1, 5), dtype=bool))
    for function in (generalised_energy_distance, matched_iou, energy_score, best_dice):
        for samples in (0, 4):
            with pytest.raises(ValueError, match="at least one of each kind"):
                function(overlap_of(SAMPLES_AND_RATERS), samples)
