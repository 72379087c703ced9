"""Fits the weight of the deterministic head in the fused probability, on cases that the network was not trained on.

``p = w p_deterministic + (1 - w) mean of samples``. One number is fitted, by the Dice that users look at; among weights
of equal Dice the one with the best likelihood wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WEIGHTS = np.linspace(0.0, 1.0, 11)
#: mean Dice differences below this are noise of a validation set
TOLERANCE = 5e-4


@dataclass(frozen=True)
class FusionTable:
    """One case under every candidate weight.

    Attributes:
        dice: ``(weights, structures)``, NaN where reference and prediction are both empty.
        nll: mean negative log-likelihood of the reference per voxel, in nats ``(weights,)``.
    """

    dice: np.ndarray
    nll: np.ndarray


def fusion_table(deterministic: Tensor, sampled: Tensor, onehot: Tensor, *, regions: bool) -> FusionTable:
    """Scores one case.

    Args:
        deterministic, sampled: probabilities ``(heads, *spatial)``.
        onehot: reference ``(heads, *spatial)``, boolean.
        regions: heads are independent regions; otherwise head 0 is the background and the heads sum to 1.
    """
    # Only voxels where something may be at stake; elsewhere every weight gives the same.
    background = 1 - deterministic.amax(0) if regions else deterministic[0]
    away = (1 - sampled.amax(0)) if regions else sampled[0]
    some = (background < 0.999) | (away < 0.999)
    some |= onehot.any(0) if regions else ~onehot[0]
    d, s, y = deterministic[:, some], sampled[:, some], onehot[:, some]
    dice, nll = [], []
    for weight in WEIGHTS:
        p = torch.lerp(s, d, float(weight))
        hard = p > 0.5 if regions else torch.nn.functional.one_hot(p.argmax(0), len(p)).T.bool()
        first = 0 if regions else 1
        both, sizes = (hard & y)[first:].sum(1), hard[first:].sum(1) + y[first:].sum(1)
        dice.append(torch.where(sizes > 0, 2 * both / sizes.clamp_min(1), torch.nan).tolist())
        likelihood = torch.where(y, p, 1 - p) if regions else (p * y).sum(0, keepdim=True)
        nll.append(float(-likelihood.clamp_min(1e-6).log().sum()) / max(1, onehot[0].numel()))
    return FusionTable(np.array(dice), np.array(nll))


def fit_fusion_weight(tables: list[FusionTable]) -> float:
    """The weight with the best mean Dice; among equals the best likelihood. 1 without any table."""
    if not tables:
        return 1.0
    dice = mean_dice(tables)
    nll = np.mean([t.nll for t in tables], 0)
    candidates = np.flatnonzero(dice >= np.nanmax(dice) - TOLERANCE) if np.isfinite(dice).any() else np.arange(len(nll))
    return float(WEIGHTS[candidates[np.argmin(nll[candidates])]])


def mean_dice(tables: list[FusionTable]) -> np.ndarray:
    """Per weight ``(weights,)``: mean over structures of the mean over cases."""
    values = np.stack([t.dice for t in tables])  # (cases, weights, structures)
    present = np.isfinite(values)
    per_structure = np.where(present, values, 0).sum(0) / np.maximum(present.sum(0), 1)
    per_structure[present.sum(0) == 0] = np.nan
    return np.nanmean(per_structure, 1) if np.isfinite(per_structure).any() else np.full(len(WEIGHTS), np.nan)
