"""The weight of the deterministic head in the fused probability, ``p = w p_head + (1 - w) mean of samples``.

Fitted to maximise Dice; among weights of equal Dice the one with the best likelihood wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.calibration.tables import CaseTable
from nndiffseg.nn.heads import Heads

WEIGHTS = np.linspace(0.0, 1.0, 11)
#: differences of the mean Dice below this are noise of a validation set
TOLERANCE = 5e-4
#: probabilities below this count as this in the likelihood
FLOOR = 1e-6


def fusion_scores(
    deterministic: Tensor, sampled: Tensor, onehot: Tensor, heads: Heads, voxels: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of one case under each of :data:`WEIGHTS`.

    Args:
        deterministic, sampled: probabilities ``(heads, *spatial)``.
        onehot: reference ``(heads, *spatial)``, bool.
        heads: what the channels mean.
        voxels: that are meant; None for all. Others, which annotators left open, are certain background in all three.

    Returns:
        Dice ``(weights, K)``, NaN where reference and prediction are both empty; mean negative log-likelihood of the
        reference per voxel, in nats ``(weights,)``.
    """
    some = _at_stake(deterministic, heads) | _at_stake(sampled, heads)
    some |= onehot.any(0) if heads.regions else ~onehot[0]
    d, s, y = deterministic[:, some], sampled[:, some], onehot[:, some]
    first, dice, nll = heads.first_structure, [], []
    for weight in WEIGHTS:
        p = torch.lerp(s, d, float(weight))
        hard = heads.hard(p, 0)
        both, sizes = (hard & y)[first:].sum(1), hard[first:].sum(1) + y[first:].sum(1)
        dice.append(torch.where(sizes > 0, 2 * both / sizes.clamp_min(1), torch.nan).tolist())
        likelihood = torch.where(y, p, 1 - p) if heads.regions else (p * y).sum(0)
        nll.append(float(-likelihood.clamp_min(FLOOR).log().sum()) / max(1, onehot[0].numel() if voxels is None else voxels))
    return np.array(dice), np.array(nll)


def _at_stake(probabilities: Tensor, heads: Heads) -> Tensor:
    """Voxels where a structure is possible; elsewhere every weight gives the same."""
    background = 1 - probabilities.amax(0) if heads.regions else probabilities[0]
    return background < 0.999


def fit_fusion_weight(tables: Sequence[CaseTable]) -> float:
    """The weight with the best mean Dice; among equals the best likelihood. 1 without any table."""
    if not tables:
        return 1.0
    dice = mean_dice(tables)
    nll = np.mean([t.nll for t in tables], 0)
    candidates = np.flatnonzero(dice >= np.nanmax(dice) - TOLERANCE) if np.isfinite(dice).any() else np.arange(len(nll))
    return float(WEIGHTS[candidates[np.argmin(nll[candidates])]])


def mean_dice(tables: Sequence[CaseTable]) -> NDArray[np.float64]:
    """Per weight ``(weights,)``: mean over structures of the mean over cases."""
    values = np.stack([t.dice for t in tables])  # (cases, weights, K)
    present = np.isfinite(values)
    per_structure = np.where(present, values, 0).sum(0) / np.maximum(present.sum(0), 1)
    per_structure[present.sum(0) == 0] = np.nan
    return np.nanmean(per_structure, 1) if np.isfinite(per_structure).any() else np.full(len(WEIGHTS), np.nan)
