"""Isotonic regression of probabilities (Zadrozny & Elkan 2002, KDD, 694-699): the rival of the temperature.

It maps the probability of each channel monotonically to how often the channel was true. Unlike a temperature it has many
numbers to fit, and can move a voxel from one label to another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

#: bins of a probability
BINS = 1000


def probability_histogram(p: Tensor, y: Tensor) -> NDArray[np.float64]:
    """What a fit needs of a case: voxels and how many of them are true in each bin of the probability.

    Args:
        p: probabilities of each channel ``(heads, n)``.
        y: how often annotators chose it, in [0, 1] ``(heads, n)``.

    Returns:
        ``(heads, 2, bins)``.
    """
    index = (p * BINS).long().clamp(0, BINS - 1).numpy()
    return np.stack(
        [[np.bincount(i, minlength=BINS), np.bincount(i, w, minlength=BINS)] for i, w in zip(index, y.numpy(), strict=True)]
    )


def fit_isotonic(histograms: Sequence[NDArray], regions: bool) -> Callable[[Tensor], Tensor]:
    """Fits the map of probabilities ``(heads, n)`` -> calibrated ones ``(heads, n)``.

    Args:
        histograms: :func:`probability_histogram` of each case; none gives the identity.
        regions: channels are regions of their own, so that they need not sum to 1.
    """
    if not np.any(histograms):
        return lambda p: p
    centres, maps = (np.arange(BINS) + 0.5) / BINS, []
    for count, true in np.sum(histograms, 0):
        some = count > 0
        maps.append(
            IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(centres[some], true[some] / count[some], count[some])
        )

    def apply(p: Tensor) -> Tensor:
        values = torch.from_numpy(np.stack([m.predict(row) for m, row in zip(maps, p.numpy(), strict=True)])).float()
        return values if regions else values / values.sum(0).clamp_min(1e-6)

    return apply
