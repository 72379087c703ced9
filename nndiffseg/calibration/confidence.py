"""Soft Dice confidence: how alike a segmentation and the probabilities that it was made of are.

Borges et al. 2024 (arXiv 2402.10665): SDC = 2 sum(p s) / (sum(p) + sum(s)) of a structure's probability p and its mask s, an
approximation of the Dice that the segmentation can be expected to have. It ranks cases best with probabilities as they come; a
temperature, or the agreement of samples, ranks them worse (docs/results.md).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.nn.heads import Heads


def soft_dice(probabilities: Tensor, heads: Heads, every: int = 1, certain: Tensor | None = None) -> NDArray[np.float64]:
    """Soft Dice confidence of each structure.

    Args:
        probabilities: before any temperature ``(heads, *any)``.
        heads: what the channels mean.
        every: so many voxels each of these stands for.
        certain: further voxels of each structure that are certain ``(K,)``.

    Returns:
        ``(K,)``; NaN where the segmentation has none of the structure.
    """
    p = probabilities.flatten(1)
    best = torch.full_like(p[0], 0.5) if heads.regions else p.amax(0)
    more = torch.zeros(heads.number) if certain is None else certain
    found = []
    for k, row in enumerate(p[heads.first_structure :]):
        mask = row > best if heads.regions else row >= best
        size = every * float(mask.sum()) + float(more[k])
        both = every * float(row[mask].sum(dtype=torch.float64)) + float(more[k])
        total = every * float(row.sum(dtype=torch.float64)) + float(more[k]) + size
        found.append(2 * both / total if size > 0 else np.nan)
    return np.array(found)


def mean_confidence(of_structures: NDArray) -> float | None:
    """Mean over the structures that the segmentation has ``(K,)``; None without any."""
    known = of_structures[np.isfinite(of_structures)]
    return float(known.mean()) if len(known) else None
