"""Hippocampus: files copied byte by byte, the two sides of a person in one fold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nndiffseg.data.check import check_dataset
from nndiffseg.dataset_conversion.Dataset004_Hippocampus import HIPPOCAMPUS, by_subject


def test_an_odd_case_and_the_next_are_one_subject(tmp_path):
    names = [f"hippocampus_{n:03d}" for n in (1, 3, 4, 394)]
    assert list(by_subject(tmp_path, names).values()) == ["subject_001", "subject_002", "subject_002", "subject_197"]


@pytest.mark.slow
def test_the_real_volumes_in_the_layout_of_the_decathlon(hippocampus, tmp_path):
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / "Task04_Hippocampus" / kind).mkdir(parents=True)
        for file in (hippocampus / kind).iterdir():
            (tmp_path / "Task04_Hippocampus" / kind / file.name.replace("_0000", "")).symlink_to(file)
    folder = HIPPOCAMPUS.convert(tmp_path / "Task04_Hippocampus", tmp_path / "raw", progress=False)
    assert check_dataset(folder, progress=False) == []
    for file in (hippocampus / "imagesTr").iterdir():
        assert (folder / "imagesTr" / file.name).read_bytes() == file.read_bytes()
    for file in (hippocampus / "labelsTr").iterdir():
        new, old = (sitk.ReadImage(str(f)) for f in (folder / "labelsTr" / file.name, file))
        assert new.GetPixelID() == sitk.sitkUInt8  # two of them are stored as fractions
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(new), sitk.GetArrayViewFromImage(old))
    (remark,) = json.loads((folder / "dataset.json").read_text())["remarks"]
    assert "203 training images (published: 260) and 0 test images (published: 130)" in remark
    for fold in json.loads((folder / "splits_final.json").read_text()):
        sides = [{(int(c[-3:]) + 1) // 2 for c in fold[side]} for side in ("train", "val")]
        assert not sides[0] & sides[1]
