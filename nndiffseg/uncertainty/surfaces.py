"""Distances between the surfaces of two masks, by the published package of Nikolov et al. (arXiv 1809.04430)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from surface_distance import compute_robust_hausdorff, compute_surface_dice_at_tolerance, compute_surface_distances


class SurfaceMeasures(NamedTuple):
    """How far two surfaces are apart.

    Attributes:
        nsd: normalised surface distance, also called surface Dice: the share of both surfaces within the tolerance of the
            other, in [0, 1]. NaN where both masks are empty, 0 where one is.
        hd95_mm: the larger of the two directed 95th percentiles of the distances, weighted by area. NaN where a mask is empty.
    """

    nsd: float
    hd95_mm: float


def surface_measures(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
) -> SurfaceMeasures:
    """Compares the surfaces of two masks.

    Args:
        prediction, reference: masks of equal shape, 2D or 3D.
        spacing: mm along each axis.
        tolerance: mm.
    """
    present = bool(prediction.any()), bool(reference.any())
    if not all(present):
        return SurfaceMeasures(0.0 if any(present) else math.nan, math.nan)
    distances = compute_surface_distances(reference, prediction, tuple(spacing))
    return SurfaceMeasures(
        float(compute_surface_dice_at_tolerance(distances, tolerance)), float(compute_robust_hausdorff(distances, 95))
    )
