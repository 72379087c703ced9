"""The numbers that every side of a comparison is corrected by, fitted on the cases of other groups.

Every side gets the same fits on the same out-of-fold cases: the weight that fuses a deterministic and a sampled part (where
a side has two), the scale of its samples' volumes, and one temperature. No case is evaluated with a number that it, or
another case of its group, helped to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar

from benchmarks.compare.data import Data
from benchmarks.compare.library import CasePrediction
from nndiffseg.calibration import CaseTable
from nndiffseg.calibration.fusion import fusion_scores
from nndiffseg.calibration.volumes import structure_voxels
from nndiffseg.data.images import voxel_volume
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty.volumes import MM3_PER_ML

#: logarithms of the temperatures that a case's likelihood is tabulated at
LOG_TEMPERATURES = np.linspace(np.log(0.25), np.log(16.0), 33)
#: probabilities below this count as this
FLOOR = 1e-7


# ---- tables of one case -------------------------------------------------------------------------------------------


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
    return CaseTable(case, dice, np.mean([score[1] for score in scores], 0), sampled, true)


# ---- temperature --------------------------------------------------------------------------------------------------


def tempered(probabilities: NDArray, temperature: float, regions: bool) -> NDArray[np.float64]:
    """softmax(z / T), for regions sigmoid(z / T), of probabilities ``(heads, *any)`` with logits z."""
    p = np.clip(probabilities.astype(np.float64), FLOOR, 1 - FLOOR if regions else 1)
    if regions:
        return 1 / (1 + ((1 - p) / p) ** (1 / temperature))
    q = (p / p.max(0)) ** (1 / temperature)
    return q / q.sum(0)


def likelihoods(probabilities: NDArray, frequency: NDArray, regions: bool) -> NDArray[np.float64]:
    """Negative log-likelihood of a case at each of :data:`LOG_TEMPERATURES`, summed over voxels, in nats ``(T,)``.

    Args:
        probabilities: ``(heads, voxels)``.
        frequency: how often annotators chose each head, in [0, 1] ``(heads, voxels)``.
        regions: whether the heads are regions.
    """
    values = []
    for log_temperature in LOG_TEMPERATURES:
        p = tempered(probabilities, float(np.exp(log_temperature)), regions)
        value = -(frequency * np.log(np.maximum(p, FLOOR))).sum()
        if regions:
            value -= ((1 - frequency) * np.log(np.maximum(1 - p, FLOOR))).sum()
        values.append(float(value))
    return np.array(values)


def fit_temperature(curves: Sequence[NDArray]) -> float:
    """The temperature with the best summed likelihood; 1 without any case.

    Args:
        curves: of each case, see :func:`likelihoods`.
    """
    if not curves or not np.any(curves):
        return 1.0
    total = CubicSpline(LOG_TEMPERATURES, np.sum(curves, 0))
    start = int(np.clip(np.argmin(np.sum(curves, 0)), 1, len(LOG_TEMPERATURES) - 2))
    found = minimize_scalar(total, bounds=(LOG_TEMPERATURES[start - 1], LOG_TEMPERATURES[start + 1]), method="bounded")
    return float(np.exp(found.x))
