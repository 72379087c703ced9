"""One prediction and several annotators: consensus, thresholds of the QUBIQ challenge, and where they disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nndiffseg.uncertainty.agreement import dice_of
from nndiffseg.uncertainty.means import nanmean_rows

#: at which probability and frequency are cut (QUBIQ challenge, arXiv 2405.18435)
THRESHOLDS = tuple(k / 10 for k in range(1, 10))


def frequencies(references: NDArray, structures: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """How often annotators chose each structure: label maps ``(M, *image)`` -> ``(K, *image)`` in [0, 1]."""
    return np.stack([np.isin(references, labels).mean(0) for labels in structures])


def consensus_dice(segmentation: NDArray, frequency: NDArray, structures: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Dice with the majority of annotators, ``(K,)``; NaN where both lack the structure.

    A voxel belongs to the consensus of a structure if more than half of the annotators put it there.

    Args:
        segmentation: label map ``(*image)``.
        frequency: from :func:`frequencies`.
        structures: labels of each of the K structures.
    """
    masks = np.stack([np.isin(segmentation, labels) for labels in structures])
    return dice_of(masks, frequency > 0.5, structures)


def thresholded_dice(probabilities: NDArray, frequency: NDArray, structures: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Dice of the probability and of the annotators' frequency, both cut at 0.1, 0.2, ..., 0.9; mean over the cuts ``(K,)``.

    The measure of the QUBIQ challenge (arXiv 2405.18435). A voxel is above a cut if its value is at least that. Cuts at which
    both are empty are left out; NaN if all are.

    Args:
        probabilities: of the structures ``(K, *image)``.
        frequency: from :func:`frequencies`.
        structures: labels of each of the K structures.
    """
    dice = np.stack([dice_of(probabilities >= t, frequency >= t, structures) for t in THRESHOLDS])  # (cuts, K)
    return nanmean_rows(dice)


def disagreement_correlation(probabilities: NDArray, uncertainty: NDArray, references: Sequence[NDArray]) -> float:
    """Normalised cross-correlation of the uncertainty and of how far each annotator is from the prediction.

    S_NCC of PHiSeg (Baumgartner et al., arXiv 1906.04045), on the voxels that are given. There the first map is the samples'
    expected cross-entropy with their mean, which is the mean's entropy, and the second one that with an annotator, which for
    samples of labels is proportional to the probability 1 - p_y that a sample contradicts the annotator. So the correlation
    is that of the entropy and 1 - p_y, mean over annotators.

    Args:
        probabilities: ``(C, n)`` at n voxels; all labels, or regions.
        uncertainty: entropy at the same voxels ``(n,)``, any scale.
        references: of each annotator the masks of the C classes ``(C, n)``.

    Returns:
        In [-1, 1]; annotators for whom one of the maps is constant are left out, NaN if that leaves none.
    """
    values = []
    for masks in references:
        contradiction = np.abs(probabilities.astype(np.float64) - masks).mean(0)  # labels: 2 / C (1 - p_y)
        if contradiction.size and np.ptp(contradiction) > 0 and np.ptp(uncertainty) > 0:
            values.append(float(np.corrcoef(uncertainty.astype(np.float64), contradiction)[0, 1]))
    return float(np.mean(values)) if values else math.nan
