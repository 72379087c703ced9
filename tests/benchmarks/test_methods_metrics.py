"""Figures of the comparison of methods against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from benchmarks.methods_data import RATERS, references_of
from benchmarks.methods_metrics import Judge, dice_of, dice_scores, surface_dice
from benchmarks.methods_prediction import CasePrediction


def ball(radius: float, shape: tuple[int, ...] = (32, 40), shift: int = 0) -> np.ndarray:
    grid = np.indices(shape) - np.array([n // 2 for n in shape]).reshape(-1, *[1] * len(shape))
    grid[-1] -= shift
    return (grid**2).sum(0) <= radius**2


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a face on the outside, one by one."""
    padded = np.pad(mask, 1)
    where = np.argwhere(padded)
    steps = [s * np.eye(mask.ndim, dtype=int)[a] for a in range(mask.ndim) for s in (1, -1)]
    return np.array([v for v in where if not all(padded[tuple(v + s)] for s in steps)])


@pytest.mark.parametrize(("shape", "spacing"), [((14, 17), (1.0, 1.0)), ((7, 9, 8), (2.5, 0.8, 1.1))])
@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.6])
def test_surface_dice_equals_brute_force_over_all_pairs_of_surface_voxels(shape, spacing, tolerance):
    rng = np.random.default_rng(1)
    a, b = rng.random(shape) < 0.4, rng.random(shape) < 0.3
    distances = cdist(surface_voxels(a) * spacing, surface_voxels(b) * spacing)
    near = (distances.min(1) <= tolerance).sum() + (distances.min(0) <= tolerance).sum()
    assert surface_dice(a, b, spacing, tolerance) == pytest.approx(near / sum(distances.shape))


def test_surface_dice_of_two_plates_jumps_from_0_to_1_at_their_distance():
    a, b = np.zeros((2, 9, 6, 6), bool)
    a[2], b[5] = True, True
    assert surface_dice(a, b, (0.5, 1, 1), 1.4) == 0
    assert surface_dice(a, b, (0.5, 1, 1), 1.5) == 1


def test_surface_dice_of_empty_masks():
    some, none = ball(5), np.zeros((32, 40), bool)
    assert np.isnan(surface_dice(none, none, (1, 1), 1))
    assert surface_dice(some, none, (1, 1), 1) == surface_dice(none, some, (1, 1), 1) == 0
    assert surface_dice(some, some, (1, 1), 0) == 1


def test_dice_is_nan_only_where_both_lack_the_structure():
    a, b = np.array([0, 1, 1, 2]), np.array([0, 1, 0, 0])
    assert dice_of(a, b, [(1,), (2,), (3,), (1, 2)]) == pytest.approx([2 / 3, 0, np.nan, 1 / 2], nan_ok=True)


def prediction_of(labels: np.ndarray, count: int = 3) -> CasePrediction:
    """A prediction that is certain of one label map ``(*image)``."""
    p = np.stack([labels == k for k in range(3)]).astype(np.float32)
    return CasePrediction(p, p, np.stack([labels] * count).astype(np.uint8), 1.0)


def truth(data, case: str) -> np.ndarray:
    return references_of(data, case)[0][0]


def test_a_perfect_prediction_gets_perfect_figures(tiny_data):
    figures = Judge(tiny_data).judge(lambda: ((c, prediction_of(truth(tiny_data, c))) for c in tiny_data.cases))
    for kind in ("dice_fused", "dice_deterministic", "dice_samples", "dice_single", "nsd_fused"):
        assert figures[kind] == {"shell": 1.0, "core": 1.0, "mean": 1.0}
    assert figures["ged2"] == figures["ece"] == 0
    assert len(figures["per_case"]) == len(tiny_data.cases)


def test_a_prediction_that_misses_one_structure_loses_that_structure_alone(tiny_data):
    def shell_only(case: str) -> np.ndarray:
        labels = truth(tiny_data, case)
        return np.where(labels == 2, 0, labels)

    figures = Judge(tiny_data, fuse=False).judge(lambda: ((c, prediction_of(shell_only(c))) for c in tiny_data.cases))
    assert figures["dice_fused"] == {"shell": 1.0, "core": 0.0, "mean": 0.5}
    assert figures["ged2"] == pytest.approx(2 * 0.5)  # d = mean over structures of 1 - IoU, nothing varies
    assert figures["ece_per_class"][0] == 0 and figures["ece_per_class"][1] > 0.1


def test_the_fusion_weight_goes_to_the_better_part(tiny_data):
    def predictions():
        for case in tiny_data.cases:
            good = prediction_of(truth(tiny_data, case))
            bad = prediction_of(np.zeros_like(truth(tiny_data, case)))
            yield case, CasePrediction(bad.deterministic, good.sampled, good.labels, 1.0)

    figures = Judge(tiny_data).judge(predictions)
    assert figures["fusion_weight"] < 0.5
    assert figures["dice_fused"]["mean"] == 1 and figures["dice_deterministic"]["mean"] == 0


def test_all_annotations_of_a_case_are_used_where_there_are_several(tiny_data, tmp_path):
    import dataclasses

    from skimage import io

    case = tiny_data.cases[0]
    folder = tmp_path / RATERS / case
    folder.mkdir(parents=True)
    raters = [(ball(10) * 1 + ball(4)).astype(np.uint8), (ball(10, shift=3) * 1 + ball(4, shift=3)).astype(np.uint8)]
    for i, labels in enumerate(raters):
        io.imsave(folder / f"rater{i}.png", labels, check_contrast=False)
    data = dataclasses.replace(tiny_data, raw=tmp_path, cases=[case])
    assert np.array_equal(references_of(data, case)[0][:, 0], raters)
    sample = raters[0][None]
    figures = Judge(data, fuse=False).judge(lambda: [(case, prediction_of(sample))])
    iou = np.mean(
        [
            (np.isin(raters[0], k) & np.isin(raters[1], k)).sum() / (np.isin(raters[0], k) | np.isin(raters[1], k)).sum()
            for k in (1, 2)
        ]
    )
    assert figures["ged_cross"] == pytest.approx((1 - iou) / 2)  # of the two annotations, one is hit
    assert figures["ged_within_references"] == pytest.approx((1 - iou) / 2)
    assert figures["ged2"] == pytest.approx((1 - iou) / 2)
    assert figures["annotations_per_case"] == 2


def test_quick_scores_agree_with_the_judge(tiny_data):
    case = tiny_data.cases[0]
    labels = truth(tiny_data, case)
    prediction = prediction_of(np.roll(labels, 2, axis=-1))
    scores = dice_scores(tiny_data, case, prediction)
    expected = np.mean(dice_of(prediction.labels[0], labels, [(1,), (2,)]))
    assert scores["deterministic"] == scores["samples"] == scores["single"] == pytest.approx(expected)
    assert 0 < expected < 1 and scores["between_samples"] == 1
