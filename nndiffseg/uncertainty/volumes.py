"""Volumes of structures with error bars, from samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

MM3_PER_ML = 1000.0


def volume_statistics(voxel_counts: Mapping[str, ArrayLike], voxel_volume: float) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and 90 % interval of every structure's volume over samples.

    Args:
        voxel_counts: name of the structure -> its number of voxels in each sample, ``(N,)``; see
            :attr:`nndiffseg.uncertainty.agreement.PairwiseOverlap.counts`.
        voxel_volume: of one voxel, in mm^3: the product of the spacing.

    Returns:
        JSON-ready, name -> ``{"mean_ml", "sd_ml", "interval_90_ml", "samples"}``. ``sd_ml`` is the sample standard
        deviation (divisor N - 1), ``interval_90_ml`` the 5th and 95th percentile ``[low, high]``, linearly
        interpolated between samples. One sample tells nothing about the spread: both are None.

    Raises:
        ValueError: no samples, or ``voxel_volume`` not positive.
    """
    if voxel_volume <= 0:
        raise ValueError(f"The volume of a voxel must be positive, got {voxel_volume}.")
    return {name: _statistics(np.asarray(counts, dtype=float) * voxel_volume / MM3_PER_ML)
            for name, counts in voxel_counts.items()}


def _statistics(volumes: np.ndarray) -> dict[str, Any]:
    if volumes.ndim != 1 or volumes.size == 0:
        raise ValueError(f"Expected one voxel count per sample, got an array of shape {volumes.shape}.")
    several = volumes.size > 1
    return {
        "mean_ml": float(volumes.mean()),
        "sd_ml": float(volumes.std(ddof=1)) if several else None,
        "interval_90_ml": [float(v) for v in np.percentile(volumes, [5, 95])] if several else None,
        "samples": int(volumes.size),
    }
