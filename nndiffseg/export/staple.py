"""Fusion of a case's samples by STAPLE instead of by their mean.

STAPLE estimates a hidden true label map together with every rater's confusion matrix, by expectation maximisation
(Warfield et al. 2004, IEEE TMI 23:903; with several labels Rohlfing et al. 2004, IEEE TMI 23:983). The raters are the
samples. It gives labels without probabilities, so uncertainty maps stay those of the mean.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nndiffseg.errors import UserError
from nndiffseg.uncertainty.statistics import CaseStatistics, label_map

FUSIONS = ("mean", "staple")
#: of the expectation maximisation; it converges within a few tens
MAX_ITERATIONS = 100


def check_fusion(name: str) -> None:
    """Raises UserError: there is no fusion of this name."""
    if name not in FUSIONS:
        raise UserError(f"There is no fusion {name!r}; choose one of {', '.join(FUSIONS)}.")


def staple(labels: np.ndarray, undecided: np.ndarray) -> np.ndarray:
    """The consensus of label maps.

    Only the box around the foreground of all of them takes part. The background beyond, on which all agree, would make
    every rater look perfect at it, and the result would depend on how much of it the image shows.

    Args:
        labels: ``(N, *spatial)``, three spatial axes, unsigned integers.
        undecided: label map ``(*spatial)`` for voxels where labels tie.

    Returns:
        Label map ``(*spatial)``, dtype of ``labels``.
    """
    consensus = np.zeros(labels.shape[1:], labels.dtype)
    box = _box(np.any(labels > 0, axis=0))
    if box is None:
        return consensus
    tie = int(labels.max()) + 1
    fuse = sitk.MultiLabelSTAPLEImageFilter()
    fuse.SetMaximumNumberOfIterations(MAX_ITERATIONS)
    fuse.SetLabelForUndecidedPixels(tie)  # wider than the labels' own type, where 255 + 1 would be background
    fused = sitk.GetArrayFromImage(fuse.Execute([sitk.GetImageFromArray(one[box].astype(np.uint16)) for one in labels]))
    consensus[box] = np.where(fused == tie, undecided[box], fused)
    return consensus


def consensus_of(statistics: CaseStatistics, label_manager: LabelManager) -> np.ndarray:
    """STAPLE of a case's samples ``(*spatial)``; ties go to the label of the mean probability."""
    return staple(statistics.labels, label_map(statistics.probabilities, label_manager).numpy())


def _box(foreground: np.ndarray, margin: int = 1) -> tuple[slice, ...] | None:
    """The foreground's bounding box, a little larger; None where there is no foreground."""
    if not foreground.any():
        return None
    ranges = []
    for axis in range(foreground.ndim):
        where = np.flatnonzero(foreground.any(tuple(a for a in range(foreground.ndim) if a != axis)))
        ranges.append(slice(max(int(where[0]) - margin, 0), int(where[-1]) + 1 + margin))
    return tuple(ranges)
