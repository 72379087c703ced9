"""Per-epoch validation on random patches: pseudo Dice, and two samples of each patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.nn.annotated import mean
from nndiffseg.nn.heads import Heads

#: segmentations compared with the truth, but for ``seeds``: one sample compared with the other
COMPARED = ("deterministic", "samples", "fused", "seeds", "sample")
#: a spread between seeds below this share of the samples' error means that the latent is dead
DEAD_SPREAD = 0.1


def score_patches(
    logits: Tensor, samples: Tensor, onehot: Tensor, heads: Heads, annotated: Tensor | None = None
) -> dict[str, Any]:
    """Loss of the deterministic head and overlap counts of one batch.

    Args:
        logits: deterministic ``(B, heads, *patch)``.
        samples: logits of two samples ``(2, B, heads, *patch)``.
        onehot: truth ``(B, heads, *patch)`` float.
        heads: what the channels mean.
        annotated: voxels that count, bool ``(B, 1, *patch)``; None for all.

    Returns:
        ``loss``, mean binary cross-entropy of the head, and for each of :data:`COMPARED` intersection and sum of sizes of every
        structure ``(2, K)``.
    """
    p_det, p, first = heads.probabilities(logits), heads.probabilities(samples, 2), heads.first_structure
    truth, of_samples = onehot[:, first:] > 0.5, p.mean(0)
    one, other = (heads.hard(s)[:, first:] for s in p)
    pairs = {
        "deterministic": (heads.hard(p_det)[:, first:], truth),
        "samples": (heads.hard(of_samples)[:, first:], truth),
        "fused": (heads.hard((of_samples + p_det) / 2)[:, first:], truth),
        "seeds": (one, other),
        "sample": (one, truth),
    }
    loss = mean(F.binary_cross_entropy(p_det.clamp(1e-6, 1 - 1e-6), onehot, reduction="none"), annotated)
    return {"loss": float(loss), **{name: _overlap(*pairs[name], annotated) for name in COMPARED}}


def dice_of_batches(scored: Sequence[dict[str, Any]]) -> dict[str, NDArray]:
    """Dice of every structure over all voxels of some batches, for each of :data:`COMPARED` ``(K,)``; NaN if it is nowhere."""
    dice = {}
    for name in COMPARED:
        both, sizes = np.sum([batch[name] for batch in scored], 0)
        dice[name] = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), np.nan)
    return dice


def mean_over_structures(dice: NDArray) -> float:
    """Mean of those that are there, 0 where none is."""
    return float(np.nanmean(dice)) if np.isfinite(dice).any() else 0.0


def _overlap(a: Tensor, b: Tensor, annotated: Tensor | None) -> NDArray:
    """Intersection and sum of sizes over the batch: bool ``(B, structures, *spatial)`` -> ``(2, K)``."""
    axes = [0, *range(2, a.ndim)]
    if annotated is not None:
        a, b = a & annotated, b & annotated
    return torch.stack([(a & b).sum(axes), a.sum(axes) + b.sum(axes)]).cpu().double().numpy()
