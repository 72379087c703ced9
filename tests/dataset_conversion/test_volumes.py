"""NIfTI files are copied where they are right, put on their image's grid where only the header is wrong, else refused."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import SimpleITK as sitk
from replica_files import blocks, ct, square, volume

from nndiffseg.dataset_conversion.volumes import read_channels, read_label_volume
from nndiffseg.errors import UserError

LABELS = {0: 0, 1: 1}


def test_a_good_image_and_label_are_the_files_themselves(tmp_path):
    image, label = tmp_path / "i.nii.gz", tmp_path / "l.nii.gz"
    volume(image, ct(0))
    volume(label, blocks((1,)))
    assert read_channels(image, 1, [label]) == [image]
    assert read_label_volume(label, image, LABELS) == (label, None)


def test_a_label_of_fractions_or_other_numbers_is_written_anew_on_the_images_grid(tmp_path):
    image, label = tmp_path / "i.nii.gz", tmp_path / "l.nii.gz"
    volume(image, ct(0))
    volume(label, blocks((1,)).astype(np.float32) * 255)
    new, remark = read_label_volume(label, image, {0: 0, 255: 1})
    np.testing.assert_array_equal(sitk.GetArrayFromImage(new), blocks((1,)))
    reference = sitk.ReadImage(str(image))
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(new, what)() == pytest.approx(getattr(reference, what)())
    assert remark is None


def test_a_label_with_another_spacing_gets_the_images_and_it_is_said(tmp_path):
    image, label = tmp_path / "i.nii.gz", tmp_path / "l.nii.gz"
    volume(image, ct(0))
    volume(label, blocks((1,)), (0.5, 0.75, 1.4))
    new, remark = read_label_volume(label, image, LABELS)
    assert new.GetSpacing() == pytest.approx((0.5, 0.75, 2.0))
    assert remark == "l.nii.gz had another spacing or origin than its image, and got its"


def test_what_does_not_belong_to_the_image_is_refused(tmp_path):
    image, label = tmp_path / "i.nii.gz", tmp_path / "l.nii.gz"
    volume(image, ct(0))
    volume(label, blocks((1,), depth=5))
    with pytest.raises(UserError, match=r"l\.nii\.gz and its image differ in size \(16x16x5 against 16x16x4\)"):
        read_label_volume(label, image, LABELS)
    turned = sitk.GetImageFromArray(blocks((1,)))
    sitk.WriteImage(turned, str(label))
    with pytest.raises(UserError, match="differ in orientation"):
        read_label_volume(label, image, LABELS)
    volume(label, blocks((3,)))
    with pytest.raises(UserError, match=r"l\.nii\.gz holds the value 3, and labels here are 0, 1"):
        read_label_volume(label, image, LABELS)


def test_truncated_bombs_and_other_files_are_refused(tmp_path):
    image = tmp_path / "i.nii.gz"
    volume(image, ct(0))
    whole = gzip.decompress(image.read_bytes())
    image.write_bytes(gzip.compress(whole[:600]))
    with pytest.raises(UserError, match=r"i\.nii\.gz cannot be read"):
        read_channels(image, 1, [])
    with pytest.raises(UserError, match=r"i\.nii\.gz cannot be read"):
        read_label_volume(image, image, LABELS)
    huge = bytearray(whole)
    huge[42:50] = np.array([30000] * 4, np.int16).tobytes()  # its header says 10^18 voxels
    image.write_bytes(gzip.compress(bytes(huge)))
    with pytest.raises(UserError, match="its header says"):
        read_channels(image, 1, [])
    image.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="it is a web page"):
        read_channels(image, 1, [])


def test_voxels_that_are_not_finite_are_refused(tmp_path):
    array = ct(0).astype(np.float32)
    array[0, 0, :2] = np.nan, np.inf
    volume(tmp_path / "i.nii.gz", array)
    with pytest.raises(UserError, match="holds 2 NaN or infinite voxels"):
        read_channels(tmp_path / "i.nii.gz", 1, [])


def test_channels_along_the_last_axis_become_slices_on_the_labels_grid(tmp_path):
    image, label = tmp_path / "i.nii.gz", tmp_path / "l.nii.gz"
    volume(image, ct(0))
    volume(label, square(1), (0.3, 0.2))
    channels = read_channels(image, 4, [label])
    np.testing.assert_array_equal([sitk.GetArrayFromImage(c) for c in channels], ct(0))
    assert all(c.GetSpacing() == pytest.approx((0.3, 0.2)) for c in channels)
    with pytest.raises(UserError, match=r"does not hold 3 channels of its label's size \(16x16x4 against 16x16\)"):
        read_channels(image, 3, [label])
