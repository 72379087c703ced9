"""Volumes of structures with error bars, from samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nndiffseg.calibration.volumes import floored_sd, stretched

MM3_PER_ML = 1000.0


def volume_statistics(
    voxel_counts: Mapping[str, ArrayLike],
    voxel_volume: float,
    scales: Sequence[float] = (1.0,),
    quantiles: Mapping[str, float | None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and 90 % interval of every structure's volume over samples, as drawn and calibrated.

    Calibrated means first that volumes are stretched around their mean by ``scales``
    (:mod:`nndiffseg.calibration.volumes`), and second that the interval's ends are quantiles in Weibull's sense, with order
    statistic k of N at k / (N + 1): a further draw from the same distribution falls into each of the N + 1 gaps with the same
    probability. Such an interval holds it with 90 % for N of at least 19. Fewer samples show too little of the tails; their
    smallest and largest hold it with (N - 1) / (N + 1), 88 % for N = 16, where interpolated percentiles hold 79 %.

    Where a conformal quantile q is known, the calibrated interval is mean +- q sd instead, and holds the volume of 90 % of new
    cases whatever the distribution; only then is it called promised.

    Args:
        voxel_counts: name of the structure -> its number of voxels in each sample, ``(N,)``; see
            :attr:`nndiffseg.uncertainty.agreement.PairwiseOverlap.counts`.
        voxel_volume: of one voxel, in mm^3: the product of the spacing.
        scales: of each of F folds that drew the samples in turn (0, F, 2F, ... are the first one's); each fold's volumes are
            stretched around their own mean.
        quantiles: name of the structure -> q (:attr:`nndiffseg.calibration.Calibration.volume_quantiles`), or None.

    Returns:
        JSON-ready, name -> ``{"mean_ml", "sd_ml", "interval_90_ml", "calibrated_sd_ml", "calibrated_interval_90_ml",
        "interval_promised", "samples"}``. ``sd_ml`` is the sample standard deviation (divisor N - 1), ``interval_90_ml`` the
        5th and 95th percentile ``[low, high]``, linearly interpolated between samples; the calibrated interval never reaches
        below 0. One sample tells nothing about the spread: all but mean and number are None.

    Raises:
        ValueError: no samples, or ``voxel_volume`` not positive.
    """
    if voxel_volume <= 0:
        raise ValueError(f"The volume of a voxel must be positive, got {voxel_volume}.")
    return {
        name: _statistics(np.asarray(counts, dtype=float) * voxel_volume / MM3_PER_ML, scales, (quantiles or {}).get(name))
        for name, counts in voxel_counts.items()
    }


def _statistics(volumes: np.ndarray, scales: Sequence[float], quantile: float | None) -> dict[str, Any]:
    if volumes.ndim != 1 or volumes.size == 0:
        raise ValueError(f"Expected one voxel count per sample, got an array of shape {volumes.shape}.")
    several = volumes.size > 1
    calibrated = volumes.copy()
    for fold, scale in enumerate(scales):
        calibrated[fold :: len(scales)] = stretched(volumes[fold :: len(scales)], scale)
    interval = np.quantile(calibrated, [0.05, 0.95], method="weibull")
    if promised := several and quantile is not None:
        interval = volumes.mean() + np.array([-1, 1]) * quantile * floored_sd(volumes)
    return {
        "mean_ml": float(volumes.mean()),
        "sd_ml": float(volumes.std(ddof=1)) if several else None,
        "interval_90_ml": np.percentile(volumes, [5, 95]).tolist() if several else None,
        "calibrated_sd_ml": float(calibrated.std(ddof=1)) if several else None,
        "calibrated_interval_90_ml": interval.clip(0).tolist() if several else None,
        "interval_promised": promised,
        "samples": int(volumes.size),
    }


def crps(samples: ArrayLike, true: ArrayLike) -> float | None:
    """Continuous ranked probability score of sampled volumes: E |X - y| - E |X - X'| / 2, in the volumes' unit.

    E |X - X'| is over pairs of distinct samples (the "fair" score, Ferro 2014), so that it does not depend on their number.
    With several annotators it is the mean of their scores.

    Args:
        samples: ``(N,)``.
        true: of one or several annotators ``(M,)``.

    Returns:
        None with one sample.
    """
    x, y = np.asarray(samples, dtype=float), np.asarray(true, dtype=float)
    n = len(x)
    if n < 2:
        return None
    spread = np.abs(x[:, None] - x[None]).sum() / (n * (n - 1))
    return float(np.abs(x[:, None] - y[None]).mean() - spread / 2)


def error_bars(structure: Mapping[str, Any]) -> tuple[float | None, list[float] | None]:
    """Calibrated standard deviation and 90 % interval of one of :func:`volume_statistics`; None where there are none."""
    return structure.get("calibrated_sd_ml"), structure.get("calibrated_interval_90_ml")
