"""QUBIQ: each task is a dataset of its own, from folders of both years, with four channels where there are four sequences."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from dataset_replicas import qubiq
from replica_files import ct, square

from nndiffseg.dataset_conversion.catalogue import converters


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qubiq")
    qubiq(folder)
    return folder


def test_tasks_of_one_image_are_not_mixed_up(source, tmp_path):
    labels = []
    for task in (1, 2):
        folder = converters()[f"QUBIQ-brain-tumor-{task}"].convert(source, tmp_path, progress=False)
        labels.append(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / "case01_a02.nii.gz"))))
    np.testing.assert_array_equal(labels, [square(1, 7, 10), square(1, 7, 11)])


def test_four_sequences_are_four_channels(source, tmp_path):
    folder = converters()["QUBIQ-brain-tumor-1"].convert(source, tmp_path, progress=False)
    files = [folder / "imagesTr" / f"case02_a01_{c:04d}.nii.gz" for c in range(4)]
    np.testing.assert_array_equal([sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in files], ct(3))
    assert len(json.loads((folder / "dataset.json").read_text())["channel_names"]) == 4


def test_the_folder_of_one_organ_is_enough(source, tmp_path):
    kidney = source / "training_data_v3_QC" / "kidney"
    folder = converters()["QUBIQ-kidney"].convert(kidney, tmp_path, progress=False)
    assert len(list((folder / "labelsTr").iterdir())) == 6
    assert not (folder / "imagesTs").exists()
