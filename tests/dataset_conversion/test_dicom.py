"""CT series: slices in the order of their places, in Hounsfield units, complete or refused."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from replica_files import dicom_series

from nndiffseg.dataset_conversion.dicom import find_series, read_series
from nndiffseg.dataset_conversion.source import list_files
from nndiffseg.errors import UserError


def test_slices_are_in_order_whatever_the_files_are_called(tmp_path):
    scan = np.random.default_rng(0).integers(-1000, 1000, (5, 8, 8)).astype(np.int16)
    uids = dicom_series(tmp_path / "scan", scan, "LIDC-IDRI-0001", "1.2.3")
    image, slices = read_series(tmp_path / "scan")
    assert slices == uids
    assert image.GetSpacing() == pytest.approx((0.7, 0.7, 2.5))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan)


def test_series_are_found_with_their_patient(tmp_path):
    dicom_series(tmp_path / "a" / "b", np.zeros((2, 8, 8), np.int16), "LIDC-IDRI-0001", "1.2.3")
    dicom_series(tmp_path / "c", np.zeros((2, 8, 8), np.int16), "LIDC-IDRI-0002", "1.2.4", modality="CR")
    (series,) = find_series(list_files(tmp_path), progress=False)
    assert (series.folder, series.patient, series.uid) == (tmp_path / "a" / "b", "LIDC-IDRI-0001", "1.2.3")


def test_a_missing_slice_and_a_damaged_file_are_told(tmp_path):
    dicom_series(tmp_path / "scan", np.zeros((5, 8, 8), np.int16), "P", "1.2.3")
    files = sorted((tmp_path / "scan").iterdir())
    files[2].unlink()
    with pytest.raises(UserError, match=r"scan lacks a slice: distances between them are 2\.5 to 5 mm"):
        read_series(tmp_path / "scan")
    files[0].write_bytes(b"no DICOM")
    with pytest.raises(UserError, match="cannot be read as DICOM"):
        find_series(list_files(tmp_path), progress=False)


def test_a_patient_that_would_lead_elsewhere_is_refused(tmp_path):
    dicom_series(tmp_path / "scan", np.zeros((1, 8, 8), np.int16), "a/../b", "1.2.3")
    with pytest.raises(UserError, match=r"names a patient 'a/\.\./b', which cannot be part of a file's name"):
        find_series(list_files(tmp_path), progress=False)
