"""Figures of a comparison and their paired bootstrap intervals: pure functions of arrays.

All figures are functions of how often each case is drawn, so one set of resamples serves them all, and a difference of
two methods is formed within a resample: the interval is that of the paired difference (Efron & Tibshirani 1993, An
Introduction to the Bootstrap, sections 6 and 13, percentile intervals). It covers the choice of the cases (groups of them,
see :mod:`nndiffseg.data.groups`), not that of the training's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nndiffseg.uncertainty import (
    PairwiseOverlap,
    ReliabilityAccumulator,
    expected_dice,
    generalised_energy_distance,
    spread,
    volume_statistics,
)
from nndiffseg.uncertainty.evaluation import ErrorHistogram
from nndiffseg.uncertainty.volumes import MM3_PER_ML

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


def paired_bootstrap(a: NDArray[np.float64], b: NDArray[np.float64], *, count: int = RESAMPLES, seed: int = 0) -> Interval:
    """Interval of mean(a) - mean(b), both of the same cases ``(cases,)``; cases where one is NaN are left out."""
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        return Interval(np.nan, np.nan, np.nan)
    return interval(means(resamples([str(i) for i in np.flatnonzero(both)], count, seed), (a - b)[both][:, None])[:, 0])


# ---- calibration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """One case: everything that pooled calibration figures are made of, class by class, one class against the rest.

    Attributes:
        voxels, confidence, frequency: per class and bin the number of voxels, the sum of p and that of y ``(K, bins)``.
        brier, nll: per class the sum over voxels ``(K,)``; (p - y)^2 and the binary cross-entropy in nats.
        right, wrong: histograms of the uncertainty at voxels that are segmented right and wrong, see :class:`ErrorHistogram`.
    """

    voxels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    frequency: NDArray[np.float64]
    brier: NDArray[np.float64]
    nll: NDArray[np.float64]
    right: NDArray[np.int64]
    wrong: NDArray[np.int64]


def calibration(
    probabilities: NDArray,
    frequency: NDArray,
    region: NDArray[np.bool_],
    uncertainty: NDArray,
    errors: Sequence[NDArray[np.bool_]],
) -> Calibration:
    """Counts one case.

    Args:
        probabilities: of the K foreground classes ``(K, *image)``.
        frequency: how often annotators chose each class, in [0, 1] ``(K, *image)``; with one annotator 0 or 1.
        region: voxels to use ``(*image)``.
        uncertainty: in [0, 1] ``(*image)``.
        errors: for each annotator, where the segmentation differs ``(*image)``.
    """
    bins, brier, nll = [], [], []
    for p, y in zip(probabilities, frequency, strict=True):
        one = ReliabilityAccumulator(1, regions=True)
        one.add(p[None], y[None], region)
        summary, n = one.summary(), int(region.sum())
        bins.append((one.voxels[0], one.confidence[0], one.frequency[0]))
        brier.append(n * summary["brier"] if n else 0.0)
        nll.append(n * summary["nll"] if n else 0.0)
    histogram = ErrorHistogram()
    for wrong in errors:
        histogram.add(uncertainty[region], wrong[region])
    voxels, confidence, chosen = (np.stack(part) for part in zip(*bins, strict=True))
    return Calibration(voxels, confidence, chosen, np.array(brier), np.array(nll), histogram.right, histogram.wrong)


def pooled_ece(weights: NDArray[np.float64], cases: Sequence[Calibration]) -> NDArray[np.float64]:
    """Expected calibration error of the pooled voxels per class ``(R, K)``, see :class:`ReliabilityAccumulator`."""
    gap = np.stack([c.confidence - c.frequency for c in cases])  # (cases, K, bins)
    pooled = np.abs(np.einsum("rc,ckb->rkb", weights, gap)).sum(2)
    return pooled / _voxels(weights, cases)


def pooled_brier(weights: NDArray[np.float64], cases: Sequence[Calibration]) -> NDArray[np.float64]:
    """Brier score per voxel and class ``(R, K)``."""
    return weights @ np.stack([c.brier for c in cases]) / _voxels(weights, cases)


def pooled_nll(weights: NDArray[np.float64], cases: Sequence[Calibration]) -> NDArray[np.float64]:
    """Negative log-likelihood per voxel and class, in nats ``(R, K)``."""
    return weights @ np.stack([c.nll for c in cases]) / _voxels(weights, cases)


def pooled_auroc(weights: NDArray[np.float64], cases: Sequence[Calibration]) -> NDArray[np.float64]:
    """P(uncertainty at a wrong voxel > at a right voxel), ties count half ``(R,)``; see :class:`ErrorHistogram`."""
    right, wrong = (weights @ np.stack([getattr(c, k) for c in cases]).astype(float) for k in ("right", "wrong"))
    below = np.cumsum(right, 1) - right
    pairs = right.sum(1) * wrong.sum(1)
    return np.where(pairs > 0, (wrong * (below + right / 2)).sum(1) / np.maximum(pairs, 1), np.nan)


def _voxels(weights: NDArray[np.float64], cases: Sequence[Calibration]) -> NDArray[np.float64]:
    count = weights @ np.stack([c.voxels.sum(1) for c in cases]).astype(float)
    return np.where(count > 0, count, np.nan)


# ---- agreement of samples ---------------------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """One case; every figure is a mean over structures, and None where a set has a single member.

    Attributes:
        sample_dice: mean Dice of two samples.
        truth_dice: mean Dice of a sample and an annotation. Equal to ``sample_dice`` for a calibrated posterior.
        ged: squared generalised energy distance.
        cross, within_samples, within_references: its three terms, means of 1 - IoU with self-pairs.
        sample_spread, reference_spread: mean 1 - IoU of two distinct members.
        coverage: share of the annotations whose volume lies inside the 90 % interval of the samples' volumes
            (:func:`nndiffseg.uncertainty.volume_statistics`); see :func:`expected_coverage`.
    """

    sample_dice: float | None
    truth_dice: float
    ged: float
    cross: float
    within_samples: float
    within_references: float
    sample_spread: float | None
    reference_spread: float | None
    coverage: float | None


def agreement(
    samples: NDArray, references: NDArray, structures: Sequence[Sequence[int]], volume_scale: float = 1.0
) -> Agreement:
    """How samples agree with one another and with the annotations.

    Args:
        samples: label maps ``(N, *image)``.
        references: annotations ``(M, *image)``.
        structures: labels of each structure.
        volume_scale: of the samples' volumes around their mean.
    """
    n = len(samples)
    overlap = PairwiseOverlap(n + len(references), structures)
    overlap.add(np.concatenate([samples.astype(np.int32), references.astype(np.int32)]))
    energy = generalised_energy_distance(overlap, n)
    own, others = overlap.subset(range(n)), overlap.subset(range(n, n + len(references)))
    return Agreement(
        expected_dice(own),
        float(overlap.dice()[:, :n, n:].mean()),
        energy.squared,
        energy.cross,
        energy.within_samples,
        energy.within_references,
        spread(own),
        spread(others),
        volume_coverage(own.counts, others.counts, volume_scale),
    )


def volume_coverage(samples: NDArray, references: NDArray, volume_scale: float) -> float | None:
    """Share of the true volumes ``(K, M)`` inside the 90 % interval of the samples' ``(K, N)``; None with one sample."""
    if samples.shape[1] < 2:
        return None
    volumes = volume_statistics(
        {str(k): counts for k, counts in enumerate(samples)},
        MM3_PER_ML,  # as if in ml
        [volume_scale],
    )
    low, high = np.array([v["calibrated_interval_90_ml"] for v in volumes.values()]).T[..., None]
    return float(((low <= references) & (references <= high)).mean())


def expected_coverage(samples: int) -> float:
    """Coverage of N samples that follow the truth's distribution, below 0.9 where their extremes are too near for it.

    The truth falls into each of the N + 1 gaps between ordered samples with the same probability, see
    :func:`nndiffseg.uncertainty.volume_statistics`.
    """
    return min(0.9, (samples - 1) / (samples + 1))
