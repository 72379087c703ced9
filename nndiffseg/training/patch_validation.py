"""What a training sees of itself after every epoch: random patches of the validation cases, two samples of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

#: segmentations compared with the truth, but for ``seeds``: one sample compared with the other
COMPARED = ("deterministic", "samples", "fused", "seeds", "sample")
#: a spread between seeds below this share of the samples' error means that the latent is dead
DEAD_SPREAD = 0.1


def judge_patches(logits: Tensor, samples: Tensor, onehot: Tensor, *, regions: bool) -> dict[str, Any]:
    """Loss of the deterministic head and overlap counts of one batch.

    Args:
        logits: deterministic ``(B, heads, *patch)``.
        samples: logits of two samples ``(2, B, heads, *patch)``.
        onehot: truth ``(B, heads, *patch)`` float.
        regions: sigmoid heads instead of softmax.

    Returns:
        ``loss``, mean binary cross-entropy of the head, and for each of :data:`COMPARED` intersection and sum of sizes of every
        structure ``(2, structures)``.
    """
    p_det = _probabilities(logits, regions)
    p = _probabilities(samples.flatten(0, 1), regions).unflatten(0, samples.shape[:2])
    first = 0 if regions else 1  # without the background
    truth = onehot[:, first:] > 0.5
    one, other = (_hard(s, regions)[:, first:] for s in p)
    mean = p.mean(0)
    pairs = {
        "deterministic": (_hard(p_det, regions)[:, first:], truth),
        "samples": (_hard(mean, regions)[:, first:], truth),
        "fused": (_hard((mean + p_det) / 2, regions)[:, first:], truth),
        "seeds": (one, other),
        "sample": (one, truth),
    }
    loss = F.binary_cross_entropy(p_det.clamp(1e-6, 1 - 1e-6), onehot)
    return {"loss": float(loss), **{name: _overlap(*pairs[name]) for name in COMPARED}}


def dice_of_batches(judged: Sequence[dict[str, Any]]) -> dict[str, NDArray]:
    """Dice of every structure over all voxels of some batches, for each of :data:`COMPARED` ``(K,)``; NaN if it is nowhere."""
    dice = {}
    for name in COMPARED:
        both, sizes = np.sum([batch[name] for batch in judged], 0)
        dice[name] = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), np.nan)
    return dice


def mean_over_structures(dice: NDArray) -> float:
    """Mean of those that are there, 0 where none is."""
    return float(np.nanmean(dice)) if np.isfinite(dice).any() else 0.0


def _probabilities(logits: Tensor, regions: bool) -> Tensor:
    return logits.float().sigmoid() if regions else logits.float().softmax(1)


def _hard(p: Tensor, regions: bool) -> Tensor:  # (B, heads, *patch) -> bool
    return p > 0.5 if regions else F.one_hot(p.argmax(1), p.shape[1]).movedim(-1, 1).bool()


def _overlap(a: Tensor, b: Tensor) -> NDArray:
    """Intersection and sum of sizes over the batch: bool ``(B, structures, *spatial)`` -> ``(2, structures)``."""
    axes = [0, *range(2, a.ndim)]
    return torch.stack([(a & b).sum(axes), a.sum(axes) + b.sum(axes)]).cpu().double().numpy()
