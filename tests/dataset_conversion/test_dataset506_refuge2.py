"""REFUGE2: the disc contains the cup, in the layout of either challenge."""

from __future__ import annotations

import json

import numpy as np
from dataset_replicas import REPLICAS
from PIL import Image
from replica_files import colours, picture, square

from nndiffseg.data.check import check_dataset
from nndiffseg.dataset_conversion.Dataset506_REFUGE2 import REFUGE2


def test_cup_and_rim_are_labels_of_two_regions(tmp_path):
    REPLICAS["REFUGE2"].make(tmp_path / "source")
    folder = REFUGE2.convert(tmp_path / "source", tmp_path / "raw", progress=False)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "disc": [1, 2], "cup": [2]}
    assert content["regions_class_order"] == [1, 2]
    expected = square(1, 3, 12)
    expected[5:8, 5:8] = 2
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "labelsTr" / "g0001.png")), expected)


def test_the_layout_with_train_val_and_test_is_read_too(tmp_path):
    for part, name in (("train", "g0001"), ("train", "n0002"), ("val", "V0001"), ("test", "T0001")):
        picture(tmp_path / f"REFUGE2/{part}/images/{name}.jpg", colours(1))
        picture(tmp_path / f"REFUGE2/{part}/mask/{name}.bmp", square(128, background=255))
    folder = REFUGE2.convert(tmp_path / "REFUGE2", tmp_path / "raw", progress=False)
    check_dataset(folder, progress=False)
    assert sorted(p.stem for p in (folder / "labelsTr").iterdir()) == ["V0001", "g0001", "n0002"]
    assert [p.stem for p in (folder / "labelsTs").iterdir()] == ["T0001"]
