"""The metrics of one case: pure functions of arrays."""

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
from nndiffseg.uncertainty.agreement import energy_score
from nndiffseg.uncertainty.detection import ErrorHistogram
from nndiffseg.uncertainty.volumes import MM3_PER_ML

# ---- probabilities ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reliability:
    """Everything that pooled metrics of probabilities are made of, structure by structure, each against the rest.

    Attributes:
        voxels, confidence, frequency: per structure and bin the number of voxels, the sum of p and that of y ``(K, bins)``.
        brier, nll: per structure the sum over voxels ``(K,)``; (p - y)^2 and the binary cross-entropy in nats.
    """

    voxels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    frequency: NDArray[np.float64]
    brier: NDArray[np.float64]
    nll: NDArray[np.float64]


def reliability(probabilities: NDArray, frequency: NDArray, region: NDArray[np.bool_]) -> Reliability:
    """Counts one case.

    Args:
        probabilities: of the K structures ``(K, *image)``.
        frequency: how often annotators chose each structure, in [0, 1] ``(K, *image)``; with one annotator 0 or 1.
        region: voxels to use ``(*image)``.
    """
    bins, brier, nll = [], [], []
    for p, y in zip(probabilities, frequency, strict=True):
        one = ReliabilityAccumulator(1, regions=True)
        one.add(p[None], y[None], region)
        bins.append((one.voxels[0], one.confidence[0], one.frequency[0]))
        brier.append(one.squared[0])
        nll.append(one.binary_nll[0])
    voxels, confidence, chosen = (np.stack(part) for part in zip(*bins, strict=True))
    return Reliability(voxels, confidence, chosen, np.array(brier), np.array(nll))


def error_histogram(uncertainty: NDArray, errors: Sequence[NDArray[np.bool_]], region: NDArray[np.bool_]) -> ErrorHistogram:
    """Histograms of the uncertainty ``(*image)`` at voxels that are segmented right and wrong.

    Args:
        uncertainty: in [0, 1].
        errors: for each annotator, where the segmentation differs ``(*image)``.
        region: voxels to use.
    """
    histogram = ErrorHistogram()
    for wrong in errors:
        histogram.add(uncertainty[region], wrong[region])
    return histogram


# ---- samples ------------------------------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """How samples agree with one another and with the annotations; means over structures, NaN where a set is too small.

    Attributes:
        sample_dice: mean Dice of two samples.
        truth_dice: mean Dice of a sample and an annotation. Equal to ``sample_dice`` for a calibrated posterior.
        energy: energy score with d = 1 - IoU, E d(S, Y) - E d(S, S') / 2 over distinct samples: proper, less is better.
        energy_as_drawn: the same of the N samples as a distribution, a sample and itself included. It holds for samples that
            are not independent, such as evenly spread ones, too.
        ged: squared generalised energy distance, with self-pairs as in the published numbers.
        cross, within_samples, within_references: its three terms.
        sample_spread, reference_spread: mean 1 - IoU of two distinct members.
        coverage_as_drawn, coverage: share of the annotations whose volume lies inside the 90 % interval of the samples'
            volumes (:func:`nndiffseg.uncertainty.volume_statistics`), as drawn and calibrated (conformal where groups of
            cases are enough, else with the fitted scale).
        width: of the latter interval, relative to the annotations' mean volume.
    """

    sample_dice: float
    truth_dice: float
    energy: float
    energy_as_drawn: float
    ged: float
    cross: float
    within_samples: float
    within_references: float
    sample_spread: float
    reference_spread: float
    coverage_as_drawn: float
    coverage: float
    width: float


def agreement(
    samples: NDArray,
    references: NDArray,
    structures: Sequence[Sequence[int]],
    volume_scale: float = 1.0,
    volume_quantiles: Sequence[float | None] = (),
) -> Agreement:
    """Compares samples and annotations.

    Args:
        samples: label maps ``(N, *image)``.
        references: annotations ``(M, *image)``.
        structures: labels of each structure.
        volume_scale: of the samples' volumes around their mean.
        volume_quantiles: half the width of each structure's conformal interval in standard deviations, where there is one.
    """
    n = len(samples)
    overlap = PairwiseOverlap(n + len(references), structures)
    overlap.add(np.concatenate([samples.astype(np.int32), references.astype(np.int32)]))
    distance = generalised_energy_distance(overlap, n)
    own, others = overlap.subset(range(n)), overlap.subset(range(n, n + len(references)))
    coverage, width = volume_coverage(own.counts, others.counts, volume_scale, volume_quantiles)
    return Agreement(
        _number(expected_dice(own)),
        float(overlap.dice()[:, :n, n:].mean()),
        _number(energy_score(overlap, n)),
        distance.cross - distance.within_samples / 2,
        distance.squared,
        distance.cross,
        distance.within_samples,
        distance.within_references,
        _number(spread(own)),
        _number(spread(others)),
        volume_coverage(own.counts, others.counts, 1.0)[0],
        coverage,
        width,
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def volume_coverage(
    samples: NDArray, references: NDArray, volume_scale: float, quantiles: Sequence[float | None] = ()
) -> tuple[float, float]:
    """Share of the true volumes ``(K, M)`` inside the 90 % interval of the samples' ``(K, N)``, and its relative width.

    NaN with one sample; structures that no annotation has do not count for the width.
    """
    if samples.shape[1] < 2:
        return np.nan, np.nan
    volumes = volume_statistics(
        {str(k): counts for k, counts in enumerate(samples)},
        MM3_PER_ML,  # as if in ml
        [volume_scale],
        {str(k): q for k, q in enumerate(quantiles)},
    )
    low, high = np.array([v["calibrated_interval_90_ml"] for v in volumes.values()]).T
    true = references.mean(1)
    widths = (high - low)[true > 0] / true[true > 0]
    inside = (low[:, None] <= references) & (references <= high[:, None])
    return float(inside.mean()), float(widths.mean()) if len(widths) else np.nan


def expected_coverage(samples: int) -> float:
    """Coverage of N samples that follow the truth's distribution, below 0.9 where their extremes are too near for it.

    The truth falls into each of the N + 1 gaps between ordered samples with the same probability, see
    :func:`nndiffseg.uncertainty.volume_statistics`.
    """
    return min(0.9, (samples - 1) / (samples + 1))
