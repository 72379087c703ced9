"""Arrays as files in the image's geometry: uncertainty maps as NIfTI, whatever the image's own format, and label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nndiffseg.data.listing import TIFF
from nndiffseg.errors import UserError

#: steps of a probability in a file
LEVELS = 255
NIFTI = (".nii.gz", ".nii")
#: ends of names that a label map can be written to, the longest first
LABEL_ENDINGS = (*NIFTI, ".nrrd", ".mha", ".gipl", *TIFF, ".png", ".bmp")


def write_map(values: np.ndarray, file: Path, properties: dict[str, Any], two_dimensional: bool) -> None:
    """Writes a float32 map in the image's geometry as NIfTI, whatever the image's own format.

    Args:
        values: ``(*image)``, three axes in the order of nnU-Net's readers.
        file: ``*.nii.gz``.
        properties: as the reader of the image gave them.
        two_dimensional: the image is 2D.
    """
    _write(values.astype(np.float32, copy=False), file, properties, two_dimensional)


def write_probability(values: np.ndarray, file: Path, properties: dict[str, Any], two_dimensional: bool) -> None:
    """Writes a probability in the image's geometry as NIfTI: one byte a voxel, which readers scale back to [0, 1].

    NIfTI has no float16. A byte with the scale 1 / 255 (``scl_slope``) is off by 0.002 at most.

    Args:
        values: ``(*image)`` in [0, 1], three axes in the order of nnU-Net's readers.
        file: ``*.nii.gz``.
        properties: as the reader of the image gave them.
        two_dimensional: the image is 2D.
    """
    plain = file.with_suffix("")  # ITK writes no scale, so nibabel adds it
    _write(np.rint(values * LEVELS).astype(np.uint8), plain, properties, two_dimensional)
    written = nibabel.Nifti1Image.from_filename(plain, mmap=False)
    image = nibabel.Nifti1Image(np.asarray(written.dataobj), written.affine, written.header)
    image.header.set_slope_inter(1 / LEVELS, 0)
    nibabel.save(image, file)
    plain.unlink()


def write_labels(values: np.ndarray, file: Path, properties: dict[str, Any], two_dimensional: bool) -> None:
    """Writes a label map in the image's geometry, in the format that the file's name asks for; TIFF's spacing beside it.

    Args:
        values: labels ``(*image)``, three axes in the order of nnU-Net's readers.
        file: one that :func:`check_label_file` allows.
        properties: as the reader of the image gave them.
        two_dimensional: the image is 2D.
    """
    values = values.astype(np.uint8 if values.max(initial=0) < 255 else np.uint16, copy=False)  # as nnU-Net
    if two_dimensional and file.name.endswith((".png", ".bmp", *TIFF)):
        NaturalImage2DIO().write_seg(values, str(file), properties)
    elif file.name.endswith(TIFF):
        Tiff3DIO().write_seg(values, str(file), {"spacing": [float(s) for s in properties["spacing"]]})
    else:
        _write(values, file, properties, two_dimensional)


def check_label_file(file: Path, properties: dict[str, Any], two_dimensional: bool) -> str:
    """The ending of a file for :func:`write_labels`.

    Raises:
        UserError: this image's labels cannot be written in the format that the name asks for.
    """
    ending = next((e for e in LABEL_ENDINGS if file.name.endswith(e) and file.name != e), None)
    if ending is None:
        raise UserError(f"{file} is no name of a segmentation; let it end in one of {', '.join(LABEL_ENDINGS)}.")
    if (ending in (".png", ".bmp") and not two_dimensional) or (ending not in NIFTI and "nibabel_stuff" in properties):
        raise UserError(f"This image's geometry does not fit into {ending}; write {file.name[: -len(ending)]}.nii.gz.")
    return ending


def _write(values: np.ndarray, file: Path, properties: dict[str, Any], two_dimensional: bool) -> None:
    if (affines := properties.get("nibabel_stuff")) is not None:
        _write_with_nibabel(values, file, affines)
        return
    image = sitk.GetImageFromArray(values[0] if two_dimensional else values)
    if (geometry := properties.get("sitk_stuff")) is not None:
        image.SetSpacing(geometry["spacing"])
        image.SetOrigin(geometry["origin"])
        image.SetDirection(geometry["direction"])
        if "original_orientation" in geometry:  # nnU-Net's SimpleITKIOWithReorient
            image = sitk.DICOMOrient(image, geometry["original_orientation"])
    elif not two_dimensional:  # 3D TIFF
        image.SetSpacing([float(s) for s in properties["spacing"]][::-1])
    sitk.WriteImage(image, str(file), True)


def _write_with_nibabel(values: np.ndarray, file: Path, affines: dict[str, Any]) -> None:
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), affines.get("reoriented_affine", affines["original_affine"]))
    if "reoriented_affine" in affines:  # nnU-Net's NibabelIOWithReorient
        original = io_orientation(affines["original_affine"])
        image = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), original))
    nibabel.save(image, str(file))
