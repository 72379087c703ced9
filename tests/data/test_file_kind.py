"""Files that cannot be used: each sentence says what the file is and what helps."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nndiffseg.data.file_kind import is_sheared
from nndiffseg.data.images import find_reader, read_image
from nndiffseg.errors import UserError

SHAPE = (6, 8, 10)
NIFTI = {"file_ending": ".nii.gz"}


def refused(file: Path, reader: Any = None, *, label: bool = False) -> str:
    with pytest.raises(UserError) as error:
        read_image(reader or SimpleITKIO(), file, label=label)
    assert "\n" not in str(error.value) and str(file) in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


def nifti(file: Path, *, shear: float = 0.0, shape: tuple[int, ...] = SHAPE) -> Path:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[0, 2] = shear
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.float32), affine), file)
    return file


def test_sheared_axes_are_told_and_read_by_nibabel_whichever_file_comes_first(tmp_path: Path) -> None:  # row 06
    files = [nifti(tmp_path / f"{i}.nii.gz", shear=0.02 * (i == 1)) for i in range(3)]
    assert [is_sheared(str(f)) for f in files] == [False, True, False]
    sentence = refused(files[1])
    assert "axes are not at right angles" in sentence and "NibabelIO" in sentence and "truncated" not in sentence
    assert read_image(NibabelIO(), files[1])[0].shape == (1, *SHAPE[::-1])
    paths = [str(f) for f in files]
    assert [find_reader(NIFTI, f, paths) for f in paths] == [NibabelIO] * 3
    assert find_reader(NIFTI, paths[0], [paths[0], paths[2]]) is SimpleITKIO
    assert find_reader({**NIFTI, "overwrite_image_reader_writer": "SimpleITKIO"}, paths[0], paths) is SimpleITKIO


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
@pytest.mark.parametrize("shape", [SHAPE, (8, 10)], ids=["3D", "2D"])
def test_layers_of_a_label_and_vectors_of_an_image_are_told(
    tmp_path: Path, ending: str, shape: tuple[int, ...]
) -> None:  # row 11
    file = tmp_path / f"x{ending}"
    layers = np.zeros((*shape, 2), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(layers, isVector=True), str(file))
    label = refused(file, label=True)
    assert "2 layers (components per voxel)" in label and "labelmap" in label and "shape" not in label
    assert "2 components per voxel" in (image := refused(file)) and "CASE_0000" in image


def test_a_label_of_several_volumes_is_told(tmp_path: Path) -> None:  # row 02
    file = nifti(tmp_path / "x.nii.gz", shape=(*SHAPE, 3))
    assert "holds 3 channels or volumes; a label has one" in refused(file, label=True)
    assert read_image(SimpleITKIO(), file)[0].shape == (3, *SHAPE[::-1])


def test_more_axes_than_a_reader_takes_are_told(tmp_path: Path) -> None:
    file = nifti(tmp_path / "x.nii.gz", shape=(*SHAPE, 3))
    assert "image of 4 axes; save each volume as a file of its own" in refused(file, NibabelIO())


OTHERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "it is empty"),
    "not compressed": (gzip.decompress, "NIfTI without compression although its name ends in .gz"),
    "web page": (lambda _: b"\n<!DOCTYPE html><html>not found</html>", "it is a web page"),
    "git lfs": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
    "dicom": (lambda _: bytes(128) + b"DICM" + bytes(200), "it is a DICOM file"),
    "zip": (lambda _: b"PK\x03\x04" + bytes(200), "it is a zip archive"),
    "other": (lambda _: b"anything", "truncated or not an image"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_image_is_called_by_its_name(tmp_path: Path, kind: str) -> None:
    change, words = OTHERS[kind]
    file = nifti(tmp_path / "x.nii.gz")
    file.write_bytes(change(file.read_bytes()))
    assert words in refused(file) and "cannot be read" in refused(file)


def test_a_compressed_file_without_its_ending_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.nii"
    file.write_bytes(nifti(tmp_path / "x.nii.gz").read_bytes())
    assert "it is compressed although its name does not end in .gz" in refused(file, NibabelIO())
