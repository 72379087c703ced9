"""Label files become label maps, or are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from replica_files import picture, square

from nndiffseg.dataset_conversion.labels import Above, Values, map_values
from nndiffseg.errors import UserError

IMAGE = np.zeros((16, 16, 3), np.uint8)


def test_a_mask_that_jpeg_has_blurred_is_cut_in_the_middle(tmp_path):
    picture(tmp_path / "mask.jpg", square(255))
    np.testing.assert_array_equal(Above(127)((tmp_path / "mask.jpg",), IMAGE), square(1))


def test_several_files_of_one_label_are_joined(tmp_path):
    picture(tmp_path / "left.png", square(255, 1, 5))
    picture(tmp_path / "right.png", square(1, 8, 12))
    both = Above()((tmp_path / "left.png", tmp_path / "right.png"), IMAGE)
    np.testing.assert_array_equal(both, square(1, 1, 5) + square(1, 8, 12))


def test_values_become_labels_and_unknown_ones_are_named(tmp_path):
    read = Values({255: 0, 128: 1, 0: 2})
    grey = square(128, background=255)
    grey[6, 6] = 0
    picture(tmp_path / "mask.bmp", grey)
    label = read((tmp_path / "mask.bmp",), IMAGE)
    assert label[6, 6] == 2
    assert np.bincount(label.ravel()).tolist() == [256 - 36, 35, 1]
    grey[0, 0] = 77
    picture(tmp_path / "mask.bmp", grey)
    with pytest.raises(UserError, match=r"mask\.bmp holds the value 77, and labels here are 0, 128, 255"):
        read((tmp_path / "mask.bmp",), IMAGE)


def test_a_label_of_another_size_is_refused(tmp_path):
    picture(tmp_path / "mask.png", np.zeros((16, 15), np.uint8))
    with pytest.raises(UserError, match=r"mask\.png and its image differ in size \(16x15 against 16x16\)"):
        Above()((tmp_path / "mask.png",), IMAGE)


def test_nan_is_no_label(tmp_path):
    with pytest.raises(UserError, match="holds the value nan"):
        map_values(np.array([0.0, np.nan]), {0: 0, 1: 1}, tmp_path / "x.nii.gz")
