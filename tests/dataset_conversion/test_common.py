"""Resizing, folds and the dataset folder that appears whole."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from PIL import Image

from nndiffseg.dataset_conversion import common
from nndiffseg.errors import UserError
from nndiffseg.groups import balanced_folds


def test_area_resize_by_a_whole_factor_is_the_mean_of_blocks():
    image = np.random.default_rng(0).random((12, 8, 3))
    expected = image.reshape(4, 3, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(common.area_resize(image, (4, 4)), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(7, 5), (11, 13), (30, 40)])
def test_area_resize_keeps_the_mean_and_the_centre_of_mass(shape):
    image = np.random.default_rng(1).random((11, 13))
    small = common.area_resize(image, shape)
    assert small.shape == shape
    assert small.mean() == pytest.approx(image.mean(), rel=1e-12)

    def centre(a):  # in units of the side: pixel i covers (i, i + 1) / n
        return (a.sum(1) @ (np.arange(a.shape[0]) + 0.5)) / a.sum() / a.shape[0]

    # inside one new pixel the position is lost, so the centre can move by less than half of it
    assert abs(centre(small) - centre(image)) < 0.5 / shape[0]


def test_a_mask_is_kept_where_it_covers_half_of_the_new_pixel():
    mask = np.zeros((4, 6), np.uint8)
    mask[:2, 0] = 1  # half of the first new pixel
    mask[0, 2] = 1  # a quarter of the second
    mask[2:, 4:] = 1
    np.testing.assert_array_equal(common.resize_mask(mask, (2, 3)), [[1, 0, 0], [0, 0, 1]])


def test_half_covered_pixels_survive_rounding_at_odd_factors():
    mask = np.zeros((9, 7), np.uint8)
    mask[:, :] = np.arange(7) % 2 == 0
    coverage = common.area_resize(mask, (3, 2))  # 7 columns on 2: each new pixel is 4/7 or 3.5/7 covered
    expected = (np.round(coverage, 6) >= 0.5).astype(np.uint8)
    np.testing.assert_array_equal(common.resize_mask(mask, (3, 2)), expected)


def test_images_keep_their_bit_depth():
    image = np.full((10, 10), 3001, np.uint16)
    small = common.resize_image(image, (3, 3))
    assert small.dtype == np.uint16
    assert (small == 3001).all()


def test_contiguous_folds_are_blocks_of_nearly_equal_length():
    folds = common.contiguous_folds([str(i) for i in range(32)])
    assert folds == sorted(folds)
    assert sorted(np.bincount(folds)) == [6, 6, 6, 7, 7]


def test_contiguous_folds_do_not_cut_groups():
    groups = list("aaabbbbbccdeeefghh")
    folds = common.contiguous_folds(groups)
    assert sorted(set(folds)) == [0, 1, 2, 3, 4]
    assert folds == sorted(folds)
    assert all(len({f for g, f in zip(groups, folds, strict=True) if g == name}) == 1 for name in set(groups))


def test_contiguous_folds_do_not_cut_a_group_whose_members_are_apart():
    groups = list("abacdefg")  # a stands around b
    folds = common.contiguous_folds(groups)
    assert folds[0] == folds[1] == folds[2]


def test_too_few_groups_are_refused():
    with pytest.raises(UserError, match="too few for 5 folds"):
        common.contiguous_folds(list("aabbccdd"))
    with pytest.raises(UserError, match="cannot be divided into 5 folds"):
        balanced_folds(list("aabbccdd"))


def test_balanced_folds_fill_the_smallest_fold_with_whole_groups():
    groups = ["x"] * 7 + ["a", "b", "c", "d"] * 2 + ["e"]
    folds = balanced_folds(groups)
    assert sorted(np.bincount(folds)) == [2, 2, 2, 3, 7]
    assert len(set(zip(groups, folds, strict=True))) == len(set(groups))


def test_a_failed_conversion_leaves_nothing_and_keeps_the_old_dataset(tmp_path):
    old = tmp_path / "Dataset500_X"
    old.mkdir()
    (old / "file").write_text("old")
    with pytest.raises(RuntimeError), common.new_dataset(tmp_path, "Dataset500_X", overwrite=True) as folder:
        (folder / "file").write_text("new")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset500_X"]
    assert (old / "file").read_text() == "old"


def test_overwriting_replaces_the_old_dataset_as_a_whole(tmp_path):
    (tmp_path / "Dataset500_X").mkdir()
    (tmp_path / "Dataset500_X" / "old").write_text("old")
    with common.new_dataset(tmp_path, "Dataset500_X", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset500_X"]
    assert [p.name for p in (tmp_path / "Dataset500_X").iterdir()] == ["new"]


def test_existing_datasets_and_taken_ids_are_refused(tmp_path):
    (tmp_path / "Dataset500_X").mkdir()
    with pytest.raises(UserError, match="exists already; add --overwrite"), common.new_dataset(tmp_path, "Dataset500_X"):
        pass
    with pytest.raises(UserError, match="id 500 belongs to Dataset500_X"), common.new_dataset(tmp_path, "Dataset500_Y"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset500_X"]


def test_links_become_copies_where_the_file_system_has_none(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no hard links here")

    (tmp_path / "a").write_text("content")
    monkeypatch.setattr(os, "link", no_links)
    common.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"


def test_masks_that_are_not_binary_are_refused(tmp_path):
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(UserError, match=r"grey\.png is not a binary mask"):
        common.read_mask(tmp_path / "grey.png")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_broken_image_files_are_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png cannot be read as an image"):
        common.read_array(tmp_path / "broken.png")
