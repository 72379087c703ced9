"""The prediction of one image, the files that it becomes, and the array that it starts from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nndiffseg.data.files import write_json
from nndiffseg.data.images import is_flat
from nndiffseg.errors import UserError
from nndiffseg.export.maps import check_label_file, write_labels, write_map


@dataclass(frozen=True)
class Prediction:
    """Prediction of one image, on the image's own grid; spatial axes as in the image that was given.

    Attributes:
        segmentation: labels ``(*image)``.
        probabilities: ``(heads, *image)`` float32; heads are all labels, or the regions.
        total, aleatoric: uncertainty ``(*image)`` in [0, 1].
        epistemic: the same, or None with one fold.
        volumes: per structure ``segmentation_ml``, ``mean_ml``, ``calibrated_sd_ml``, ``calibrated_interval_90_ml`` and more,
            see :func:`nndiffseg.export.summary.case_summary`.
        expected_dice: of the segmentation, see :func:`nndiffseg.export.summary.case_summary`; None with one sample.
        samples: label map of every sample ``(N, *image)``, or None unless asked for.
        properties: where the image lies, as nnU-Net's readers tell it; of an array the spacing alone.
        record: what the JSON of a predicted folder holds: volumes, expected Dice, settings.
    """

    segmentation: np.ndarray
    probabilities: np.ndarray
    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray | None
    volumes: dict[str, dict[str, Any]]
    expected_dice: float | None
    samples: np.ndarray | None = None
    properties: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def write(
        self, file: str | Path, like: str | Path | sitk.Image | None = None, *, save_probabilities: bool = False
    ) -> list[Path]:
        """Writes the segmentation, and beside it everything else under names that begin as the file's does.

        With ``out/liver.nii.gz`` these are ``liver_total.nii.gz``, ``liver_aleatoric.nii.gz``, with several folds
        ``liver_epistemic.nii.gz``, ``liver_uncertainty.json``, and ``liver_s00.nii.gz`` ... where samples were asked for.
        All appear together, the segmentation last.

        Args:
            file: of the segmentation; its folder is made where there is none. What stands there already is replaced.
            like: an image, or its file, whose origin, spacing and direction the files get. By default those of the image
                that was predicted, as far as it had any: an array has its spacing alone.
            save_probabilities: also write ``liver.npz``, as nnU-Net does.

        Returns:
            The files, the segmentation last.

        Raises:
            UserError: the name does not end as that of an image, or ``like`` lies on another grid.
        """
        file = Path(file).expanduser()
        if file.is_dir():
            raise UserError(f"{file} is a folder; give the name of a file.")
        segmentation, properties = _three_axes(self.segmentation), self.properties
        if like is not None:
            properties = {"spacing": self.properties["spacing"], **_geometry(like, self.segmentation.shape)}
        flat = self.segmentation.ndim == 2 or is_flat(segmentation.shape, properties["spacing"])
        ending = check_label_file(file, properties, flat)
        stem = file.name[: -len(ending)]
        file.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".nndiffseg_", dir=file.parent))
        try:
            for kind in ("total", "aleatoric", "epistemic"):
                if (values := getattr(self, kind)) is not None:
                    write_map(_three_axes(values), stage / f"{stem}_{kind}.nii.gz", properties, flat)
            for n, labels in enumerate(() if self.samples is None else self.samples):
                write_labels(_three_axes(labels), stage / f"{stem}_s{n:02d}{ending}", properties, flat)
            if save_probabilities:
                np.savez_compressed(stage / f"{stem}.npz", probabilities=self.probabilities)
            write_json(self.record, stage / f"{stem}_uncertainty.json")
            write_labels(segmentation, stage / file.name, properties, flat)
            names = sorted((f.name for f in stage.iterdir()), key=lambda name: (name == file.name, name))
            for name in names:
                os.replace(stage / name, file.with_name(name))
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        return [file.with_name(name) for name in names]


def _three_axes(values: np.ndarray) -> np.ndarray:
    """With the slice axis that 2D images have in nnU-Net: ``(1, y, x)``."""
    return values[None] if values.ndim == 2 else values


def _geometry(like: str | Path | sitk.Image, shape: tuple[int, ...]) -> dict[str, Any]:
    """The properties of an image that a prediction ``(*shape)`` is to be written like.

    Raises:
        UserError: it cannot be read, or lies on another grid.
    """
    image: Any = like
    if not isinstance(like, sitk.Image):
        image = sitk.ImageFileReader()
        image.SetFileName(str(Path(like).expanduser()))
        try:
            image.ReadImageInformation()
        except RuntimeError:
            raise UserError(f"{like} is no image that can be read; give like= the image that was predicted.") from None
    if tuple(image.GetSize())[::-1] != tuple(shape):
        raise UserError(f"like= has {image.GetSize()[::-1]} voxels and the prediction {tuple(shape)}; give the image itself.")
    return geometry_of(image)


def geometry_of(image: Any) -> dict[str, Any]:
    """Properties of a SimpleITK image, or of a reader that has read its header, as nnU-Net's SimpleITK reader gives them."""
    stuff = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return {"sitk_stuff": stuff}


def blank_image(spacing: Sequence[float]) -> sitk.Image:
    """An image of one voxel with this spacing, slices first, at the origin."""
    image = sitk.Image([1] * len(spacing), sitk.sitkUInt8)
    image.SetSpacing(list(spacing)[::-1])
    return image


def array_of(images: Sequence[sitk.Image]) -> tuple[np.ndarray, list[float]]:
    """Array ``(C, *spatial)`` with slices first, and spacing in the same order."""
    arrays = []
    for image in images:
        array = sitk.GetArrayFromImage(image)
        vector = image.GetNumberOfComponentsPerPixel() > 1
        arrays.append(np.moveaxis(array, -1, 0) if vector else array[None])
        if image.GetSize() != images[0].GetSize():
            raise UserError(f"The channels have different sizes, {images[0].GetSize()} and {image.GetSize()}.")
    return np.concatenate(arrays), list(images[0].GetSpacing())[::-1]


def without_slice_axis(p: Prediction) -> Prediction:
    return replace(
        p,
        segmentation=p.segmentation[0],
        probabilities=p.probabilities[:, 0],
        total=p.total[0],
        aleatoric=p.aleatoric[0],
        epistemic=None if p.epistemic is None else p.epistemic[0],
        samples=None if p.samples is None else p.samples[:, 0],
    )
