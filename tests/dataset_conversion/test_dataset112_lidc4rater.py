"""LIDC sample: four cases for each slice, empty masks kept, folds of whole groups."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from nndiffseg.dataset_conversion import Dataset112_LIDC4Rater as lidc
from nndiffseg.errors import UserError


def pixels(file):
    return np.asarray(Image.open(file))


def test_four_cases_for_each_slice_and_no_group_straddles(lidc_source, tmp_path, check_converted):
    folder = lidc.convert(lidc_source, tmp_path, progress=False)
    assert folder.name == "Dataset112_LIDC4Rater"
    rows = check_converted(folder)
    assert len(rows) == 48
    for row in rows:
        label = pixels(folder / "labelsTr" / f"{row['case']}.png")
        source = pixels(lidc_source / f"labels_{row['annotation']}" / f"{row['image']}.png")
        np.testing.assert_array_equal(label, source > 0)
    assert pixels(folder / "labelsTr" / "training_000_a03.png").max() == 0
    image = pixels(folder / "imagesTr" / "training_000_a03_0000.png")
    np.testing.assert_array_equal(image, pixels(lidc_source / "images" / "training_000.jpg"))


def test_a_folder_without_groups_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"groups\.csv is missing"):
        lidc.convert(tmp_path, tmp_path / "raw", progress=False)
    assert not (tmp_path / "raw").exists()


def test_the_real_slices(shared_data, tmp_path, check_converted):
    source = shared_data / "lidc_4rater_sample"
    if not source.is_dir():
        pytest.skip("needs lidc_4rater_sample in ../shared/data, which is absent")
    rows = check_converted(lidc.convert(source, tmp_path, progress=False))
    assert len(rows) == 28 * 4
    with (source / "groups.csv").open(newline="") as stream:
        groups = {r["name"]: r["inferred_group"] for r in csv.DictReader(stream)}
    assert all(groups[r["image"]] == r["group"] for r in rows)
    assert sorted(sum(int(r["fold"]) == k for r in rows) // 4 for k in range(5)) == [3, 4, 4, 4, 13]
