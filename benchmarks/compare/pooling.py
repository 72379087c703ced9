"""Means over cases and their paired bootstrap intervals: pure functions of arrays.

All metrics are functions of how often each case is drawn, so one set of resamples serves them all, and a difference of
two methods is formed within a resample: the interval is that of the paired difference (Efron & Tibshirani 1993, An
Introduction to the Bootstrap, sections 6 and 13, percentile intervals). It covers the choice of the cases (groups of them,
see :mod:`nndiffseg.data.groups`), not that of the training's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.compare.metrics import Reliability
from nndiffseg.uncertainty.detection import ErrorHistogram

RESAMPLES = 5000
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate and its percentile interval."""

    value: float
    low: float
    high: float


def resamples(groups: Sequence[str], count: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """How often each case is drawn ``(1 + count, cases)``: once each in row 0, which gives the estimate itself.

    Groups of cases are drawn whole, as many as there are (Davison & Hinkley 1997, Bootstrap Methods and their Application,
    section 3.8): a person's two eyes are no two observations.

    Args:
        groups: of each case; all different where nothing belongs together.
        count: number of resamples.
        seed: of the draws.
    """
    names = sorted(set(groups))
    if not names:
        raise ValueError("A bootstrap needs at least one case.")
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
    of_case = [names.index(g) for g in groups]
    return np.concatenate([np.ones((1, len(groups))), drawn[:, of_case].astype(float)])


def interval(statistic: NDArray[np.float64], level: float = LEVEL) -> Interval:
    """Row 0 of a statistic over :func:`resamples`, and the percentile interval of all others ``(1 + count,)``."""
    others = statistic[1:][np.isfinite(statistic[1:])]
    if not len(others):
        return Interval(float(statistic[0]), np.nan, np.nan)
    low, high = np.quantile(others, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic[0]), float(low), float(high))


def means(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the drawn cases, leaving out NaN: weights ``(R, cases)``, values ``(cases, K)`` -> ``(R, K)``."""
    present = np.isfinite(values)
    count = weights @ present
    return np.where(count > 0, weights @ np.where(present, values, 0.0) / np.maximum(count, 1), np.nan)


def mean_of_columns(statistic: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over structures ``(R, K)`` -> ``(R,)``, leaving out NaN."""
    count = np.isfinite(statistic).sum(1)
    return np.where(count > 0, np.nansum(statistic, 1) / np.maximum(count, 1), np.nan)


# ---- pooled voxels ------------------------------------------------------------------------------------------------


def pooled_ece(weights: NDArray[np.float64], cases: Sequence[Reliability]) -> NDArray[np.float64]:
    """Expected calibration error of the pooled voxels per structure ``(R, K)``, see :class:`ReliabilityAccumulator`."""
    gap = np.stack([c.confidence - c.frequency for c in cases])  # (cases, K, bins)
    pooled = np.abs(np.einsum("rc,ckb->rkb", weights, gap)).sum(2)
    return pooled / _voxels(weights, cases)


def pooled_brier(weights: NDArray[np.float64], cases: Sequence[Reliability]) -> NDArray[np.float64]:
    """Brier score per voxel and structure ``(R, K)``."""
    return weights @ np.stack([c.brier for c in cases]) / _voxels(weights, cases)


def pooled_nll(weights: NDArray[np.float64], cases: Sequence[Reliability]) -> NDArray[np.float64]:
    """Negative log-likelihood per voxel and structure, in nats ``(R, K)``."""
    return weights @ np.stack([c.nll for c in cases]) / _voxels(weights, cases)


def pooled_auroc(weights: NDArray[np.float64], cases: Sequence[ErrorHistogram]) -> NDArray[np.float64]:
    """P(uncertainty at a wrong voxel > at a right voxel), ties count half ``(R,)``; see :class:`ErrorHistogram`."""
    right, wrong = (weights @ np.stack([getattr(c, k) for c in cases]).astype(float) for k in ("right", "wrong"))
    below = np.cumsum(right, 1) - right
    pairs = right.sum(1) * wrong.sum(1)
    return np.where(pairs > 0, (wrong * (below + right / 2)).sum(1) / np.maximum(pairs, 1), np.nan)


def _voxels(weights: NDArray[np.float64], cases: Sequence[Reliability]) -> NDArray[np.float64]:
    count = weights @ np.stack([c.voxels.sum(1) for c in cases]).astype(float)
    return np.where(count > 0, count, np.nan)
