"""GlaS: all glands are one label, and patients of Grade.csv stay together."""

from __future__ import annotations

import numpy as np
from dataset_replicas import glas
from PIL import Image
from replica_files import square

from nndiffseg.dataset_conversion.Dataset501_GlaS import GLAS, by_patient


def test_glands_of_any_number_are_one_label(tmp_path):
    glas(tmp_path / "source")
    folder = GLAS.convert(tmp_path / "source", tmp_path / "raw", progress=False)
    for file in (folder / "labelsTr" / "train_3.png", folder / "labelsTs" / "testA_1.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), square(1) + square(1, 12, 14))


def test_patients_are_those_of_the_table_or_else_each_image_is_one(tmp_path):
    glas(tmp_path)
    assert by_patient(tmp_path, ["train_1", "train_2", "train_3"]) == {
        "train_1": "patient_1",
        "train_2": "patient_1",
        "train_3": "patient_2",
    }
    next(tmp_path.rglob("Grade.csv")).unlink()
    assert by_patient(tmp_path, ["train_1"]) == {}
