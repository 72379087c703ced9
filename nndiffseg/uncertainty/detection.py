"""Do uncertainty maps tell where the errors are?"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 4096  # of an uncertainty map


@dataclass
class ErrorHistogram:
    """Counts of uncertainty values in [0, 1] at right and at wrong voxels, summed over cases."""

    right: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    wrong: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, uncertainty: NDArray, wrong: NDArray[np.bool_]) -> None:
        """``uncertainty`` and ``wrong`` of the same voxels, any equal shape."""
        bins = np.clip((uncertainty * BINS).astype(np.int64), 0, BINS - 1)
        self.right += np.bincount(bins[~wrong], minlength=BINS)
        self.wrong += np.bincount(bins[wrong], minlength=BINS)

    def merge(self, other: ErrorHistogram) -> None:
        """Adds the counts of another one."""
        self.right += other.right
        self.wrong += other.wrong

    def auroc(self) -> float:
        """P(uncertainty at a wrong voxel > at a right voxel), ties count half (Mann-Whitney); NaN if one is absent."""
        if not self.right.any() or not self.wrong.any():
            return float("nan")
        below = np.cumsum(self.right) - self.right
        return float(np.sum(self.wrong * (below + 0.5 * self.right)) / (self.right.sum() * self.wrong.sum()))

    def auprc(self) -> float:
        """Area under precision and recall of wrong voxels, as average precision: sum over thresholds of (R_n - R_{n-1}) P_n.

        A map that knows nothing reaches :meth:`error_rate`, a perfect one 1. NaN without a wrong voxel.
        """
        if not self.wrong.any():
            return float("nan")
        wrong = self.wrong[::-1]
        flagged = np.cumsum(wrong + self.right[::-1])
        precision = np.cumsum(wrong) / np.maximum(flagged, 1)
        return float((wrong * precision).sum() / wrong.sum())

    def error_rate(self) -> float:
        """Share of wrong voxels; NaN before the first voxel."""
        total = int(self.right.sum() + self.wrong.sum())
        return int(self.wrong.sum()) / total if total else float("nan")
