"""Outlines are filled at the right place, and absurd ones harm nothing."""

from __future__ import annotations

import numpy as np
import pytest

from nndiffseg.dataset_conversion.polygons import fill

SQUARE = [(2, 3), (6, 3), (6, 8), (2, 8)]


def test_x_is_the_column_and_the_edge_belongs_to_the_mask():
    expected = np.zeros((12, 10), np.uint8)
    expected[3:9, 2:7] = 1
    np.testing.assert_array_equal(fill([SQUARE], (12, 10)), expected)


def test_without_the_edge_only_the_inside_is_left_and_masks_add_up():
    expected = np.zeros((12, 20), np.uint8)
    expected[4:8, 3:6] = 1
    expected[4:8, 13:16] = 1
    both = [SQUARE, [(x + 10, y) for x, y in SQUARE]]
    np.testing.assert_array_equal(fill(both, (12, 20), edge=False), expected)


def test_an_outline_beside_another_does_not_take_from_it():
    touching = [SQUARE, [(5, 3), (9, 3), (9, 8), (5, 8)]]
    inside = fill(touching, (12, 12), edge=False)
    assert inside[5, 3:9].tolist() == [1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("outline", [[(1, 1), (2, 2)], [(np.nan, 1), (2, 2), (3, 1)], [(np.inf, 1), (2, 2), (3, 1)], []])
def test_what_is_no_outline_is_left_out(outline):
    assert fill([outline], (4, 4)).sum() == 0


def test_far_points_are_cut_to_the_image():
    assert fill([[(-1e300, -1e300), (1e300, -1e300), (1e300, 1e300), (-1e300, 1e300)]], (5, 6)).all()
