"""Temperature scaling: the probabilities of logits z / T, with T fitted by the likelihood.

Guo et al. 2017 (arXiv 1706.04599): one number for all labels, so that the most probable label stays the same. Regions are
separate yes-or-no questions and have a temperature each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar
from torch import Tensor

from nndiffseg.calibration.fusion import WEIGHTS
from nndiffseg.nn.heads import Heads

#: logarithms of the temperatures that a case's likelihood is tabulated at
LOG_TEMPERATURES = np.linspace(np.log(0.25), np.log(16.0), 33)
#: probabilities are kept this far from 0 and 1
FLOOR = 1e-7
#: A case's likelihood is tabulated on so many voxels at most, spread evenly; more change no digit of a temperature.
VOXELS = 100_000
#: the same for probabilities, where heads are many: a digit of the temperature is not worth minutes for each case
VALUES = 2_000_000
#: voxels that are scaled at once, so that a large volume needs no second copy of itself
CHUNK = 2**22


def tempered(probabilities: Tensor, temperature: Sequence[float], heads: Heads) -> Tensor:
    """softmax(z / T), for regions sigmoid(z / T), of the probabilities of logits z.

    Args:
        probabilities: ``(heads, *any)``, overwritten.
        temperature: one number, or one for each region.
        heads: what the channels mean.

    Returns:
        ``probabilities``, untouched where every temperature is 1.
    """
    if all(t == 1 for t in temperature):
        return probabilities
    scale = torch.tensor(temperature, device=probabilities.device)[:, None]  # (1 or heads, 1)
    flat = probabilities.view(len(probabilities), -1)
    for part in flat.split(max(1, CHUNK // len(flat)), 1):
        part.copy_(heads.probabilities(heads.logits(part.clamp(FLOOR, 1 - FLOOR)) / scale, 0))
    return probabilities


def likelihood_curves(probabilities: Tensor, frequency: Tensor, heads: Heads) -> NDArray[np.float64]:
    """Mean negative log-likelihood at each of :data:`LOG_TEMPERATURES`, in nats.

    Args:
        probabilities: of some voxels ``(heads, voxels)``.
        frequency: how often annotators chose each head, in [0, 1] ``(heads, voxels)``; with one annotator 0 and 1.
        heads: what the channels mean.

    Returns:
        ``(1 or regions, temperatures)``; 0 without any voxel.
    """
    every = _every(probabilities)
    p, y = (x[:, ::every].double() for x in (probabilities, frequency))
    if not p.shape[1]:
        return np.zeros((heads.number if heads.regions else 1, len(LOG_TEMPERATURES)))
    z, curves = heads.logits(p.clamp(FLOOR, 1 - FLOOR)), []
    for log_temperature in LOG_TEMPERATURES:
        scaled = z / float(np.exp(log_temperature))
        if heads.regions:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scaled, y, reduction="none")
        else:
            loss = -(y * scaled.log_softmax(0)).sum(0, keepdim=True)
        curves.append(loss.mean(1).numpy())
    return np.stack(curves, 1)


def _every(probabilities: Tensor) -> int:
    """Of so many voxels of ``(heads, voxels)`` one is used."""
    return max(1, -(-probabilities.shape[1] // min(VOXELS, VALUES // len(probabilities))))


def fused_curves(deterministic: Tensor, sampled: Tensor, onehot: Tensor, heads: Heads) -> NDArray[np.float64]:
    """:func:`likelihood_curves` of the fused probability under each fusion weight.

    Args:
        deterministic, sampled: probabilities of some voxels ``(heads, voxels)``.
        onehot: reference ``(heads, voxels)``.
        heads: what the channels mean.

    Returns:
        ``(weights, 1 or regions, temperatures)``.
    """
    every = _every(onehot)
    d, s, y = (x[:, ::every].float() for x in (deterministic, sampled, onehot))
    return np.stack([likelihood_curves(torch.lerp(s, d, float(w)), y, heads) for w in WEIGHTS])


def fit_temperature(curves: Sequence[NDArray]) -> tuple[float, ...]:
    """The temperatures of the best mean likelihood, between the tabulated ones by a cubic spline.

    Args:
        curves: of each case, see :func:`likelihood_curves`.

    Returns:
        One for all labels, or one for each region; 1 without any case, or where no case has a voxel.
    """
    if not len(curves):
        return (1.0,)
    return tuple(_minimum(curve) for curve in np.mean(curves, 0))


def _minimum(curve: NDArray) -> float:
    if not np.any(curve):
        return 1.0
    start = int(np.clip(np.argmin(curve), 1, len(LOG_TEMPERATURES) - 2))
    bounds = (LOG_TEMPERATURES[start - 1], LOG_TEMPERATURES[start + 1])
    found = minimize_scalar(CubicSpline(LOG_TEMPERATURES, curve), bounds=bounds, method="bounded")
    return float(np.exp(found.x))
