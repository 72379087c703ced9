"""The table of one case of one side, from which the side's calibration is fitted on the cases of other groups.

Every side gets the same fits on the same out-of-fold cases (:mod:`nndiffseg.calibration`): the weight that fuses a
deterministic and a sampled part (where a side has two), the temperature, and scale and quantiles of its samples' volumes. No
case is evaluated with a number that it, or another case of its group, helped to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.compare.data import Data
from benchmarks.compare.library import CasePrediction, labels_of
from nndiffseg.calibration import CaseTable
from nndiffseg.calibration.confidence import soft_dice
from nndiffseg.calibration.fusion import WEIGHTS, fusion_scores
from nndiffseg.calibration.temperature import fused_curves
from nndiffseg.calibration.volumes import structure_voxels
from nndiffseg.data.images import voxel_volume
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty.case_labels import near_structures
from nndiffseg.uncertainty.volumes import MM3_PER_ML


def case_table(data: Data, case: str, prediction: CasePrediction, references: NDArray, spacing: Sequence[float]) -> CaseTable:
    """Scores under every fusion weight, mean over annotations, and volumes in ml; a 2D image counts as 1 mm thick.

    Args:
        data: of the fold.
        case: its name.
        prediction: on the image's grid.
        references: annotations ``(M, *image)``.
        spacing: in mm.
    """
    d, s = torch.from_numpy(prediction.deterministic), torch.from_numpy(prediction.sampled)
    kind, scores = Heads(len(data.heads), data.label_manager.has_regions), []
    for reference in references:
        onehot = torch.from_numpy(np.stack([np.isin(reference, list(labels)) for labels in data.heads]))
        scores.append(fusion_scores(d, s, onehot, kind))
    dice = np.stack([score[0] for score in scores])
    present = np.isfinite(dice).sum(0)
    dice = np.where(present > 0, np.nansum(dice, 0) / np.maximum(present, 1), np.nan)
    ml = voxel_volume(references.shape[1:], spacing) / MM3_PER_ML
    sampled, true = (ml * structure_voxels(m, data.structures.values()) for m in (prediction.labels, references))
    region = torch.from_numpy(near_structures([*references, labels_of(data, prediction.deterministic)]))
    frequency = torch.from_numpy(np.stack([np.isin(references, list(labels)).mean(0) for labels in data.heads]))
    curves = fused_curves(d[:, region], s[:, region], frequency[:, region], kind)
    confidence = np.stack([soft_dice(torch.lerp(s, d, float(w)), kind) for w in WEIGHTS])
    return CaseTable(case, dice, np.mean([score[1] for score in scores], 0), sampled, true, curves, confidence)
