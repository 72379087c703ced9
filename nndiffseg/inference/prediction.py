"""The prediction of one image, and the array that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK as sitk

from nndiffseg.errors import UserError


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
    """

    segmentation: np.ndarray
    probabilities: np.ndarray
    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray | None
    volumes: dict[str, dict[str, Any]]
    expected_dice: float | None
    samples: np.ndarray | None = None


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
