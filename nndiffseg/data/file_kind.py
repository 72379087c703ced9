"""What a file that cannot be used is, and what helps, in one sentence."""

from __future__ import annotations

import functools
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk

from nndiffseg.errors import UserError

NIFTI = (".nii", ".nii.gz")
#: formats that SimpleITK reads
ITK = (*NIFTI, ".nrrd", ".mha", ".gipl")
#: of the cosines between two axes that count as at right angles
RIGHT_ANGLE = 1e-5

#: what the libraries behind nnU-Net's readers raise on a bad file (PIL: SyntaxError; tifffile: a ValueError)
READ_ERRORS = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    SyntaxError,
    AssertionError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    nibabel.orientations.OrientationError,
)


def check_components(file: str, *, label: bool) -> None:
    """Checks that a voxel holds one number; nnU-Net's readers would take several for another axis of the image.

    Raises:
        UserError: it holds several.
    """
    if not file.endswith(ITK):
        return
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return  # whoever reads it says what is wrong
    if (number := reader.GetNumberOfComponents()) == 1:
        return
    if label:
        raise UserError(
            f"{file} has {number} layers (components per voxel), as 3D Slicer writes overlapping segments, and a label has "
            "one; in Slicer, export it as a labelmap."
        )
    raise UserError(
        f"{file} has {number} components per voxel, a colour or vector image; save each as a file of its own, CASE_0000, "
        "CASE_0001 and so on."
    )


def is_sheared(file: str) -> bool:
    """Whether the axes of a NIfTI are not at right angles, so that SimpleITK refuses it."""
    if not file.endswith(NIFTI):
        return False
    try:
        return _is_sheared(file, os.stat(file).st_mtime_ns)
    except OSError:
        return False


@functools.lru_cache(maxsize=100_000)  # planning asks several times, and headers of compressed files are slow to read
def _is_sheared(file: str, _: int) -> bool:
    try:
        image: Any = nibabel.load(file)
        axes = image.affine[:3, :3]
        axes = axes / np.linalg.norm(axes, axis=0)
    except READ_ERRORS:
        return False
    if np.abs(axes.T @ axes - np.eye(3)).max() < RIGHT_ANGLE:
        return False
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        return "orthonormal" in str(error)
    return False


def refusal(file: str, error: BaseException) -> UserError:
    """The sentence for a file that a reader could not read."""
    reason = " ".join(str(error).split())
    path = Path(file)
    with path.open("rb") as stream:
        start = stream.read(512)
    if not start:
        return UserError(f"{file} cannot be read, it is empty; copy or export it again.")
    if "orthonormal" in reason:
        return UserError(
            f"{file} cannot be read, because its axes are not at right angles (gantry tilt, or an affine registration in its "
            'header); resample it onto straight axes, or plan and train with "overwrite_image_reader_writer": "NibabelIO" in '
            "dataset.json."
        )
    if (kind := _other_kind(path, start)) is not None:
        return UserError(f"{file} cannot be read, {kind}.")
    if file.endswith(ITK) and (axes := _axes(file)) > 3:
        return UserError(
            f"{file} cannot be read, it is an image of {axes} axes; save each volume as a file of its own, CASE_0000, "
            "CASE_0001 and so on."
        )
    return UserError(
        f"{file} cannot be read, it is truncated or not an image ({reason[-160:] or type(error).__name__}); replace it."
    )


def _other_kind(path: Path, start: bytes) -> str | None:
    """What a file is instead of what its name says, and what to do."""
    packed = start[:2] == b"\x1f\x8b"
    if start[128:132] == b"DICM":
        return "it is a DICOM file; convert the series to NIfTI, for example with dcm2niix"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS and not the image itself; run git lfs pull"
    if start.lstrip()[:9].lower() in (b"<!doctype", b"<html>") or start.lstrip()[:5].lower() == b"<html":
        return "it is a web page, probably of a failed download; download it again"
    if start[:4] == b"PK\x03\x04":
        return "it is a zip archive; unpack it"
    if path.suffix == ".gz" and not packed and start[344:347] in (b"n+1", b"ni1"):
        return "it is a NIfTI without compression although its name ends in .gz; compress it with gzip"
    if path.suffix == ".nii" and packed:
        return "it is compressed although its name does not end in .gz; unpack it, or name all images .nii.gz"
    return None


def _axes(file: str) -> int:
    """Number of axes in the header, or 0 where it cannot be told."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        if file.endswith(NIFTI):
            image: Any = nibabel.load(file)
            return len(image.shape)
        reader.ReadImageInformation()
    except READ_ERRORS:
        return 0
    return int(reader.GetDimension())
