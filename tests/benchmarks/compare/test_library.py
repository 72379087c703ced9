"""Independent per-voxel samples and label maps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.compare.library import independent_samples, labels_of

LABELS = SimpleNamespace(label_manager=SimpleNamespace(has_regions=False))
REGIONS = SimpleNamespace(label_manager=SimpleNamespace(has_regions=True, regions_class_order=[1, 2]))


def test_samples_follow_the_softmax_voxel_by_voxel():
    p = np.array([[0.2, 1.0], [0.5, 0.0], [0.3, 0.0]], np.float32).reshape(3, 1, 2)
    drawn = independent_samples(LABELS, p, 8000, 0)
    assert drawn.shape == (8000, 1, 2)
    np.testing.assert_allclose([(drawn == k).mean(0) for k in range(3)], p, atol=0.02)


def test_neighbours_and_regions_are_drawn_independently():
    p = np.full((1, 2), 0.5, np.float32)
    drawn = independent_samples(REGIONS, np.stack([p, p]), 8000, 0)  # label 2 is painted over label 1
    assert (drawn == 2).mean() == pytest.approx(0.5, abs=0.02) and (drawn == 1).mean() == pytest.approx(0.25, abs=0.02)
    inside = drawn[:, 0] == 2
    assert abs(np.corrcoef(inside.T)[0, 1]) < 0.05


def test_samples_are_a_function_of_the_seed():
    p = np.full((2, 1, 50), 0.5, np.float32)
    same, again, other = (independent_samples(LABELS, p, 2, seed) for seed in (3, 3, 4))
    assert np.array_equal(same, again) and not np.array_equal(same, other) and not np.array_equal(same[0], same[1])


def test_labels_are_the_most_probable_ones():
    p = np.array([[0.4, 0.2], [0.35, 0.5], [0.25, 0.3]], np.float32).reshape(3, 1, 2)
    assert labels_of(LABELS, p).tolist() == [[0, 1]]
    assert labels_of(REGIONS, np.array([[0.9, 0.9], [0.1, 0.8]], np.float32).reshape(2, 1, 2)).tolist() == [[1, 2]]
