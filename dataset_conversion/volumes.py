"""NIfTI files of a dataset, copied byte by byte where nothing in them has to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nndiffseg.data.file_kind import READ_ERRORS, refusal
from nndiffseg.data.nifti import check_nifti
from nndiffseg.dataset_conversion.labels import map_values
from nndiffseg.errors import UserError

#: what a file of the new dataset is made of: a file to copy, or an image to write
Volume = Path | sitk.Image
#: of spacing, relative, and of origin and direction, in voxels and cosines
CLOSE = 1e-3


def read_channels(file: Path, channels: int, labels: Sequence[Path]) -> list[Volume]:
    """The channels of an image: the file itself for one; for several, which lie along its last axis, the slices.

    Args:
        file: of the image.
        channels: their number.
        labels: of the image; the slices get the geometry of the first, since the image's has an axis more.

    Raises:
        UserError: the file is damaged, holds voxels that are not finite, or has another number of channels.
    """
    try:
        invalid = check_nifti(str(file))
    except READ_ERRORS as error:
        raise refusal(str(file), error) from None
    if invalid:
        raise UserError(f"{file} holds {invalid} NaN or infinite voxels; replace them by a valid intensity.")
    if channels == 1 or not labels:
        return [file]
    image, grid = read_volume(file), _header(labels[0])
    if image.GetSize() != (*grid.GetSize(), channels):
        sizes = " against ".join("x".join(map(str, i.GetSize())) for i in (image, grid))
        raise UserError(f"{file} does not hold {channels} channels of its label's size ({sizes}); download it again.")
    return [on_grid(channel, grid) for channel in sitk.GetArrayFromImage(image)]


def read_volume(file: Path) -> sitk.Image:
    """An image, checked for damage first.

    Raises:
        UserError: it cannot be read.
    """
    try:
        check_nifti(str(file))
        return sitk.ReadImage(str(file))
    except READ_ERRORS as error:
        raise refusal(str(file), error) from None


def read_label_volume(file: Path, reference: Volume, labels: Mapping[int, int]) -> tuple[Volume, str | None]:
    """The label of an image, on the image's grid.

    Args:
        file: of the label.
        reference: first channel of its image.
        labels: values in the file -> labels.

    Returns:
        What to write, and a remark where spacing or origin of the label's header are not the image's.

    Raises:
        UserError: it is damaged, has another shape or orientation, or holds other values.
    """
    label = read_volume(file)
    header = _header(reference)
    if label.GetNumberOfComponentsPerPixel() != 1 or label.GetSize() != header.GetSize():
        sizes = " against ".join("x".join(map(str, i.GetSize())) for i in (label, header))
        raise UserError(f"{file} and its image differ in size ({sizes}); replace it by the label of that image.")
    if not np.allclose(label.GetDirection(), header.GetDirection(), rtol=0, atol=0.01):
        raise UserError(f"{file} and its image differ in orientation; replace it by the label of that image.")
    values = sitk.GetArrayViewFromImage(label)
    new = map_values(values, labels, file)
    same = np.allclose(label.GetSpacing(), header.GetSpacing(), rtol=CLOSE, atol=0) and np.allclose(
        label.GetOrigin(), header.GetOrigin(), rtol=0, atol=0.1 * min(header.GetSpacing())
    )
    if same and values.dtype.kind in "iu" and all(k == v for k, v in labels.items()):
        return file, None
    return on_grid(new, header), None if same else f"{file.name} had another spacing or origin than its image, and got its"


def on_grid(array: np.ndarray, reference: sitk.Image | sitk.ImageFileReader) -> sitk.Image:
    """An array ``(*reversed(size))`` as an image in the geometry of another one."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(reference.GetSpacing())
    image.SetOrigin(reference.GetOrigin())
    image.SetDirection(reference.GetDirection())
    return image


def _header(volume: Volume) -> sitk.Image | sitk.ImageFileReader:
    if isinstance(volume, sitk.Image):
        return volume
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(volume))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise refusal(str(volume), error) from None
    return reader
