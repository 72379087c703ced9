"""The table of one predicted case, from which calibrations are fitted: the same for every side of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from nndiffseg.calibration import CaseTable
from nndiffseg.calibration.fusion import fusion_scores
from nndiffseg.calibration.volumes import structure_voxels
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty.volumes import MM3_PER_ML

if TYPE_CHECKING:
    from benchmarks.methods_data import Data
    from benchmarks.methods_prediction import CasePrediction

#: a slice thicker than this many pixels marks a 2D image
THICK = 900


def table_of(
    data: Data,
    case: str,
    prediction: CasePrediction,
    references: NDArray,
    spacing: Sequence[float],
    heads: Sequence[Sequence[int]],
) -> CaseTable:
    """Scores under every fusion weight, mean over annotations, and volumes.

    Args:
        data: of the fold.
        case: its name.
        prediction: on the image's grid; for samples without a head both parts are the same.
        references: annotations ``(M, *image)``.
        spacing: in mm.
        heads: labels of each channel of the probabilities.
    """
    d, s = torch.from_numpy(prediction.deterministic), torch.from_numpy(prediction.sampled)
    kind, scores = Heads(len(heads), data.label_manager.has_regions), []
    for reference in references:
        onehot = torch.from_numpy(np.stack([np.isin(reference, list(labels)) for labels in heads]))
        scores.append(fusion_scores(d, s, onehot, kind))
    dice = np.stack([score[0] for score in scores])
    present = np.isfinite(dice).sum(0)
    dice = np.where(present > 0, np.nansum(dice, 0) / np.maximum(present, 1), np.nan)
    return CaseTable(
        case, dice, np.mean([score[1] for score in scores], 0), *volumes_of(data, prediction.labels, references, spacing)
    )


def volumes_of(
    data: Data, labels: NDArray, references: NDArray, spacing: Sequence[float]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Volumes of samples ``(K, N)`` and annotations ``(K, M)`` in ml; a 2D image counts as 1 mm thick."""
    ml = float(np.prod(spacing[1:] if is_flat(references, spacing) else spacing)) / MM3_PER_ML
    structures = list(structures_of(data.dataset_json).values())
    return ml * structure_voxels(labels, structures), ml * structure_voxels(references, structures)


def is_flat(references: NDArray, spacing: Sequence[float]) -> bool:
    """Whether an image is 2D: nnU-Net's readers give it one slice of a huge thickness."""
    return references.shape[1] == 1 and spacing[0] > THICK * max(spacing[1:])
