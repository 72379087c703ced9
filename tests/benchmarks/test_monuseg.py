"""MoNuSeg's own division into training and test images as the only fold of a dataset."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import monuseg
from nndiffseg.data.groups import read_groups
from nndiffseg.data.splits import read_splits


@pytest.fixture
def half_size(tmp_path):
    rng = np.random.default_rng(0)
    names = ("train_TCGA-18-5592-01Z-00-DX1", "train_TCGA-18-5592-01Z-00-DX2", "test_TCGA-2Z-A9J9-01A-01-TS1")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in names:
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray((rng.random((20, 24)) < 0.3).astype(np.uint8) * 255).save(tmp_path / "labels" / f"{name}.png")
    return tmp_path


def test_the_test_images_are_the_only_validation_cases(half_size, tmp_path):
    out = monuseg.write(half_size, tmp_path / "raw" / monuseg.NAME)
    (fold,) = read_splits(out / "splits_final.json")
    assert fold["val"] == ["test_TCGA-2Z-A9J9-01A-01-TS1"] and len(fold["train"]) == 2
    groups = read_groups(out)
    assert len({groups[case] for case in fold["train"]}) == 1  # two images of one patient
    for case in [*fold["train"], *fold["val"]]:
        label = np.asarray(Image.open(out / "labelsTr" / f"{case}.png"))
        assert (label == (np.asarray(Image.open(half_size / "labels" / f"{case}.png")) == 255)).all()
        assert (out / "imagesTr" / f"{case}_0000.png").is_file()
    assert json.loads((out / "dataset.json").read_text())["numTraining"] == 3


def test_another_folder_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="half_size"):
        monuseg.write(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
