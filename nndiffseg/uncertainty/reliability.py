"""Are the probabilities right, and does uncertainty tell where the errors are?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt

FINE_BINS = 4096  # of equal width, from which bins of equal mass are made
_EPS = 1e-7  # probabilities below count as this much in the NLL, which a single impossible voxel would make infinite


def region_of_interest(
    reference: NDArray, dilation: float, *, spacing: ArrayLike | None = None, ignore_label: int | None = None
) -> NDArray[np.bool_]:
    """The dilated union of the foreground, where calibration is measured: far background flatters every method.

    Args:
        reference: label map ``(*spatial)``, 0 is background; or a foreground mask, bool.
        dilation: Euclidean radius, in mm where ``spacing`` is given, else in voxels.
        spacing: of the voxels along each axis, in mm.
        ignore_label: voxels with this label are no foreground and are left out.

    Returns:
        bool ``(*spatial)``; all False without foreground.

    Raises:
        ValueError: negative dilation.
    """
    if dilation < 0:
        raise ValueError(f"The dilation must not be negative, got {dilation}.")
    reference = np.asarray(reference)
    step = np.ones(reference.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    ignored = np.zeros(reference.shape, dtype=bool) if ignore_label is None else reference == ignore_label
    foreground = (reference != 0) & ~ignored
    region = np.zeros_like(foreground)
    if foreground.any():
        box = tuple(  # distances are needed near the foreground only
            slice(max(0, int(where.min()) - margin), int(where.max()) + margin + 1)
            for where, margin in zip(np.nonzero(foreground), (dilation // step).astype(int) + 1, strict=True)
        )
        region[box] = distance_transform_edt(~foreground[box], sampling=step) <= dilation
    return region & ~ignored


class ReliabilityAccumulator:
    """Reliability bins, Brier score and negative log-likelihood, fed case by case.

    Holds a few numbers per class and bin. ECE is computed class by class in bins of equal width (Nixon et al., arXiv
    1904.01685, static calibration error; Guo et al., arXiv 1706.04599, eq. 3, for one class):
    ECE_c = sum over bins of n_b / n * |mean p_c - mean y_c|. ACE is the same in bins of equal mass (Nixon et al.).

    Args:
        classes: C, the number of heads, background included for softmax.
        regions: the heads are overlapping regions without background.
        bins: per class, over [0, 1]; the last one includes 1.

    Attributes:
        voxels, confidence, frequency: per class and bin the number of voxels, the sum of p and the sum of y, ``(C,
            bins)``: a reliability diagram.
        squared, nll, binary_nll: per class the sums over voxels of (p - y)^2, of -y ln p, and of the cross-entropy of the class
            against the rest, ``(C,)``.
    """

    def __init__(self, classes: int, *, regions: bool = False, bins: int = 15) -> None:
        if classes < (1 if regions else 2) or bins < 1:
            raise ValueError(f"Cannot measure the calibration of {classes} classes in {bins} bins.")
        self.regions = regions
        self.voxels: NDArray[np.int64] = np.zeros((classes, bins), dtype=np.int64)
        self.confidence: NDArray[np.float64] = np.zeros((classes, bins))
        self.frequency: NDArray[np.float64] = np.zeros((classes, bins))
        self.squared, self.nll, self.binary_nll = np.zeros((3, classes))
        self._fine = np.zeros((3, classes, FINE_BINS))  # voxels, sums of p and of y

    def add(self, probabilities: NDArray, reference: NDArray, region: NDArray[np.bool_]) -> None:
        """Adds one case.

        Args:
            probabilities: ``(C, *spatial)``.
            reference: label map ``(*spatial)``, integer; or ``(C, *spatial)``: masks of the classes, or how often
                several raters chose them, in [0, 1].
            region: voxels to use, bool ``(*spatial)``, see :func:`region_of_interest`; it must hold no ignored voxel.

        Raises:
            ValueError: shapes do not match, or a label map for overlapping regions.
        """
        classes, bins = self.voxels.shape
        labels = reference.shape == region.shape
        if probabilities.shape != (classes, *region.shape) or not (labels or reference.shape == probabilities.shape):
            raise ValueError(
                f"Probabilities {probabilities.shape}, reference {reference.shape} and region "
                f"{region.shape} do not match for {classes} classes."
            )
        if labels and self.regions:
            raise ValueError("Overlapping regions need one reference mask each, not a label map.")
        for c in range(classes):
            p = probabilities[c][region].astype(np.float64)
            y = ((reference[region] == c) if labels else reference[c][region]).astype(np.float64)
            for part, values in zip((self.voxels, self.confidence, self.frequency), _bin(p, y, bins), strict=True):
                part[c] += values.astype(part.dtype)
            self._fine[:, c] += _bin(p, y, FINE_BINS)
            own = -float((y * np.log(np.maximum(p, _EPS))).sum())
            self.squared[c] += float(((p - y) ** 2).sum())
            self.nll[c] += own
            self.binary_nll[c] += own - float(((1 - y) * np.log(np.maximum(1 - p, _EPS))).sum())

    def merge(self, other: ReliabilityAccumulator) -> None:
        """Adds what another one of the same classes and bins was fed."""
        for name in ("voxels", "confidence", "frequency", "squared", "nll", "binary_nll", "_fine"):
            getattr(self, name).__iadd__(getattr(other, name))

    def ece(self) -> NDArray[np.float64]:
        """Expected calibration error of every class, ``(C,)`` in [0, 1]; NaN before the first voxel."""
        gap = np.abs(self.confidence - self.frequency).sum(1)
        return gap / self.voxels.sum(1) if self.voxels.any() else np.full(len(gap), math.nan)

    def ace(self) -> NDArray[np.float64]:
        """Adaptive calibration error of every class, ``(C,)`` in [0, 1]: as many bins as for :meth:`ece`, of equal mass.

        Voxels of the same class are sorted by p to 1 / :data:`FINE_BINS`; those closer together count as tied, and a bin that
        ends among them takes its share of their sums. NaN before the first voxel.
        """
        classes, bins = self.voxels.shape
        if not self.voxels.any():
            return np.full(classes, math.nan)
        return np.array([_equal_mass_error(self._fine[:, c], bins) for c in range(classes)])

    def per_class(self) -> dict[str, NDArray[np.float64]]:
        """``ece``, ``ace``, ``brier`` and ``nll`` of every class against the rest, ``(C,)`` each; NaN before the first voxel.

        ``brier`` is the mean of (p - y)^2 in [0, 1], ``nll`` the mean binary cross-entropy in nats.
        """
        n = int(self.voxels[0].sum()) or math.nan
        return {"ece": self.ece(), "ace": self.ace(), "brier": self.squared / n, "nll": self.binary_nll / n}

    def summary(self) -> dict[str, Any]:
        """JSON-ready; None instead of a number before the first voxel.

        ``ece_per_class``, its mean ``ece`` and the mean ``ace`` are over the foreground: softmax leaves out class 0, whose
        probability follows from the others. ``brier`` is the mean over voxels of sum_c (p_c - y_c)^2 (Brier 1950, in [0, 2]),
        for regions of the mean over regions. ``nll`` is the mean over voxels of -sum_c y_c ln p_c, for regions of the mean
        binary cross-entropy, in nats.
        """
        n = int(self.voxels[0].sum())
        if n == 0:
            return {"ece": None, "ece_per_class": None, "ace": None, "brier": None, "nll": None, "voxels": 0}
        first = 0 if self.regions else 1
        foreground = self.ece()[first:]
        heads = len(self.voxels) if self.regions else 1
        return {
            "ece": float(foreground.mean()),
            "ece_per_class": [float(v) for v in foreground],
            "ace": float(self.ace()[first:].mean()),
            "brier": float(self.squared.sum()) / (n * heads),
            "nll": float((self.binary_nll if self.regions else self.nll).sum()) / (n * heads),
            "voxels": n,
        }


def _bin(p: NDArray[np.float64], y: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Number of voxels, sums of p and of y in bins of equal width over [0, 1], ``(3, bins)``."""
    index = np.minimum((p * bins).astype(np.int64), bins - 1)
    return np.stack([np.bincount(index, weights=weights, minlength=bins) for weights in (None, p, y)])


def _equal_mass_error(sums: NDArray[np.float64], bins: int) -> float:
    """Adaptive calibration error from many fine bins, :func:`_bin`, cut into ``bins`` of equal mass."""
    voxels, confidence, frequency = sums
    total = voxels.sum()
    mass = np.concatenate([[0.0], np.cumsum(voxels)])
    gap = np.concatenate([[0.0], np.cumsum(confidence - frequency)])
    used = np.concatenate([[True], voxels > 0])
    at_cuts = np.interp(np.linspace(0, total, bins + 1), mass[used], gap[used])
    return float(np.abs(np.diff(at_cuts)).sum() / total)
