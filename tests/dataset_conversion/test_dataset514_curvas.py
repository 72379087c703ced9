"""CURVAS: a case for each annotation in training, all annotations beside the test volumes."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from dataset_replicas import curvas
from replica_files import blocks, volume

from nndiffseg.dataset_conversion.Dataset514_CURVAS import CURVAS


def test_test_volumes_keep_all_annotations_and_validation_cases_too(tmp_path, check_converted):
    curvas(tmp_path / "source")
    for n in (11, 12):
        place = tmp_path / "source" / "training_set" / f"UKCHLL{n:03d}"
        volume(place / "image.nii.gz", blocks((9,)).astype(np.int16))
        for rater in (1, 2, 3):
            volume(place / f"annotation_{rater}.nii.gz", blocks((1, 2, 3), shift=rater))
    folder = CURVAS.convert(tmp_path / "source", tmp_path / "raw", progress=False)
    check_converted(folder)
    for case in ("UKCHLL007", "UKCHLL009"):
        assert (folder / "imagesTs" / f"{case}_0000.nii.gz").is_file()
        for rater in (1, 2, 3):
            label = sitk.ReadImage(str(folder / "labelsTs" / case / f"rater{rater}.nii.gz"))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(label), blocks((1, 2, 3), shift=rater))
