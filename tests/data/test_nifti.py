"""Damaged NIfTI headers are one sentence, whatever the libraries make of them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nndiffseg.data.cases import Case, check_headers
from nndiffseg.data.images import read_image
from nndiffseg.data.nifti import check_nifti, nifti_image
from nndiffseg.errors import UserError

#: place and form of a field in the header -> what it is set to, and what the message says
DAMAGES = {
    "another kind of file": (344, "4s", b"what", "cannot be read"),
    "no dimensions": (40, "<h", 0, "cannot be read"),
    "a negative size": (42, "<h", -3, "voxels"),
    "10^12 voxels": (40, "<8h", (3, 32767, 32767, 32767, 1, 1, 1, 1), "32767 voxels"),
    "no such type": (70, "<h", 77, "damaged header"),
    "spacing infinite": (80, "<f", float("inf"), "the spacing"),
    "spacing NaN": (84, "<f", float("nan"), "the spacing"),
    "spacing 0": (80, "<f", 0.0, "the spacing"),
    "spacing of 10^9 mm": (80, "<f", 1e9, "the spacing"),
    "voxels after 10^18 bytes": (108, "<f", 1e18, "bytes instead of"),
    "voxels before the file": (108, "<f", -1e9, "cannot be read"),
    "voxels nowhere": (108, "<f", float("nan"), "damaged header"),
    "no axes": (280, "<12f", (0.0,) * 12, "span no space"),
    "axes NaN": (280, "<12f", (float("nan"),) * 12, "span no space"),
}


def write(file: Path) -> bytes:
    """A sound image with sform and qform; returns its bytes, not compressed."""
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(60, dtype=np.float32).reshape(3, 4, 5)), str(file))
    return gzip.decompress(file.read_bytes())


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_header_is_one_sentence(tmp_path: Path, reader: type, damage: str) -> None:
    place, form, value, message = DAMAGES[damage]
    file = tmp_path / "case_0000.nii.gz"
    content = bytearray(write(file))
    struct.pack_into(form, content, place, *(value if isinstance(value, tuple) else (value,)))
    if form == "<12f":
        struct.pack_into("<2h", content, 252, 0, 1)  # the sform counts
    file.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(UserError, match=message) as raised:
        read_image(reader(), file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)
    if "bytes instead" not in message:  # of what headers tell, the check before a prediction finds all
        with pytest.raises(UserError):
            check_headers([Case("case", (file,))])


def test_a_compressed_file_that_never_ends_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "case_0000.nii.gz"
    content = write(file)
    with gzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(content)
        for _ in range(80):
            stream.write(bytes(2**20))
    with pytest.raises(ValueError, match="bytes instead of"):
        check_nifti(str(file))


def test_sound_headers_pass(tmp_path: Path) -> None:
    file = tmp_path / "case_0000.nii.gz"
    write(file)
    assert nifti_image(str(file)).shape == (5, 4, 3) and check_nifti(str(file)) == 0
    for spacing in ((1e-3, 0.5, 700.0), (0.2, 0.2, 999.0)):
        image = sitk.ReadImage(str(file))
        image.SetSpacing(spacing)
        sitk.WriteImage(image, str(file))
        assert read_image(SimpleITKIO(), file)[1]["spacing"] == pytest.approx(spacing[::-1])
