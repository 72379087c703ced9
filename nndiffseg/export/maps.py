"""Uncertainty maps as NIfTI files in the image's geometry, whatever the image's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

#: steps of a probability in a file
LEVELS = 255


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
