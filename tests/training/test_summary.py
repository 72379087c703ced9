"""The validation's summary.json is nnU-Net's, and no process of its own can be killed while it is made."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nndiffseg.training.summary import write_summary


@pytest.fixture
def folders(tmp_path):
    random = np.random.default_rng(0)
    for name in ("reference", "prediction"):
        (tmp_path / name).mkdir()
        for case in range(3):
            labels = random.integers(0, 3, (4, 6, 6)).astype(np.uint8) * (case != 1)  # one without any structure
            sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / name / f"case_{case}.nii.gz"))
    return tmp_path / "reference", tmp_path / "prediction"


@pytest.mark.parametrize("labels", [[1, 2], [(1, 2), 2]], ids=["labels", "regions"])
def test_it_is_that_of_nnunet(folders, labels):
    reference, prediction = folders
    arguments = (SimpleITKIO(), ".nii.gz", labels, None)
    compute_metrics_on_folder(
        str(reference), str(prediction), str(prediction / "theirs.json"), *arguments, num_processes=1, chill=True
    )
    ours = write_summary(reference, prediction, *arguments)
    theirs = json.loads((prediction / "theirs.json").read_text())
    assert str(json.loads((prediction / "summary.json").read_text())) == str(theirs)  # NaN is NaN only in words
    assert ours["foreground_mean"]["Dice"] == theirs["foreground_mean"]["Dice"] and len(ours["metric_per_case"]) == 3


def test_files_that_macos_leaves_are_no_cases(folders):
    """Row 05 of the faults: ``._case.nii.gz`` beside the segmentations and the references."""
    for folder in folders:
        (folder / "._case_0.nii.gz").write_bytes(b"\x00\x05\x16\x07")
    result = write_summary(*folders, SimpleITKIO(), ".nii.gz", [1, 2], None)
    assert len(result["metric_per_case"]) == 3


def test_no_process_is_started(folders, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: pytest.fail("a pool waits for ever for a killed process"))
    write_summary(*folders, SimpleITKIO(), ".nii.gz", [1, 2], None)


def test_paths_are_those_of_the_folder_that_it_will_be(folders):
    reference, prediction = folders
    write_summary(reference, prediction, SimpleITKIO(), ".nii.gz", [1, 2], None, prediction.with_name("validation"))
    cases = json.loads((prediction / "summary.json").read_text())["metric_per_case"]
    assert {case["prediction_file"] for case in cases} == {
        str(prediction.parent / "validation" / f"case_{i}.nii.gz") for i in range(3)
    }
