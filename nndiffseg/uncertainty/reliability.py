"""Are the probabilities right, and does uncertainty tell where the errors are?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import average_precision_score, roc_auc_score

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
    ECE_c = sum over bins of n_b / n * |mean p_c - mean y_c|.

    Args:
        classes: C, the number of heads, background included for softmax.
        regions: the heads are overlapping regions without background.
        bins: per class, over [0, 1]; the last one includes 1.

    Attributes:
        voxels, confidence, frequency: per class and bin the number of voxels, the sum of p and the sum of y, ``(C,
            bins)``: a reliability diagram.
    """

    def __init__(self, classes: int, *, regions: bool = False, bins: int = 15) -> None:
        if classes < (1 if regions else 2) or bins < 1:
            raise ValueError(f"Cannot measure the calibration of {classes} classes in {bins} bins.")
        self.regions = regions
        self.voxels: NDArray[np.int64] = np.zeros((classes, bins), dtype=np.int64)
        self.confidence: NDArray[np.float64] = np.zeros((classes, bins))
        self.frequency: NDArray[np.float64] = np.zeros((classes, bins))
        self._brier = 0.0
        self._nll = 0.0

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
            index = np.minimum((p * bins).astype(np.int64), bins - 1)
            self.voxels[c] += np.bincount(index, minlength=bins)
            self.confidence[c] += np.bincount(index, weights=p, minlength=bins)
            self.frequency[c] += np.bincount(index, weights=y, minlength=bins)
            self._brier += float(((p - y) ** 2).sum())
            self._nll -= float((y * np.log(np.maximum(p, _EPS))).sum())
            if self.regions:
                self._nll -= float(((1 - y) * np.log(np.maximum(1 - p, _EPS))).sum())

    def ece(self) -> NDArray[np.float64]:
        """Expected calibration error of every class, ``(C,)`` in [0, 1]; NaN before the first voxel."""
        gap = np.abs(self.confidence - self.frequency).sum(1)
        return gap / self.voxels.sum(1) if self.voxels.any() else np.full(len(gap), math.nan)

    def summary(self) -> dict[str, Any]:
        """JSON-ready; None instead of a number before the first voxel.

        ``ece_per_class`` and its mean ``ece`` are over the foreground: softmax leaves out class 0, whose probability
        follows from the others. ``brier`` is the mean over voxels of sum_c (p_c - y_c)^2 (Brier 1950, in [0, 2]), for
        regions of the mean over regions. ``nll`` is the mean over voxels of -sum_c y_c ln p_c, for regions of the mean
        binary cross-entropy, in nats.
        """
        n = int(self.voxels[0].sum())
        if n == 0:
            return {"ece": None, "ece_per_class": None, "brier": None, "nll": None, "voxels": 0}
        foreground = self.ece()[0 if self.regions else 1 :]
        heads = len(self.voxels) if self.regions else 1
        return {
            "ece": float(foreground.mean()),
            "ece_per_class": [float(v) for v in foreground],
            "brier": self._brier / (n * heads),
            "nll": self._nll / (n * heads),
            "voxels": n,
        }


def error_detection(
    uncertainty: NDArray, errors: NDArray[np.bool_], region: NDArray[np.bool_] | None = None
) -> dict[str, float | None]:
    """How well an uncertainty map ranks the voxels that are wrong before those that are right.

    Args:
        uncertainty: any shape, higher is less certain.
        errors: same shape, True where the segmentation differs from the reference.
        region: voxels to use; all without it.

    Returns:
        ``auroc`` (0.5 is chance), ``auprc`` (average precision; the error rate is chance) and ``error_rate``. The
        areas are None where all voxels are right or all wrong, the rate is None without voxels.
    """
    u, e = (np.ravel(a) if region is None else np.asarray(a)[region] for a in (uncertainty, errors))
    if e.size == 0:
        return {"auroc": None, "auprc": None, "error_rate": None}
    rate = float(e.mean())
    if rate in (0.0, 1.0):
        return {"auroc": None, "auprc": None, "error_rate": rate}
    return {"auroc": float(roc_auc_score(e, u)), "auprc": float(average_precision_score(e, u)), "error_rate": rate}


def aurc(losses: ArrayLike, uncertainty: ArrayLike) -> float:
    """Area under the risk-coverage curve over cases.

    The mean over k = 1 .. n of the mean loss of the k most certain cases (Geifman, Uziel, El-Yaniv, arXiv 1805.08206).
    Ties count as in the mean over their orders.

    Args:
        losses: of each case, ``(n,)``, such as 1 - Dice.
        uncertainty: of each case, ``(n,)``, such as 1 - expected Dice.

    Raises:
        ValueError: no cases, or not one uncertainty per case.
    """
    ranked = _ranked(losses, uncertainty)
    return float((ranked.cumsum() / np.arange(1, len(ranked) + 1)).mean())


def augrc(losses: ArrayLike, uncertainty: ArrayLike) -> float:
    """Area under the generalised risk-coverage curve over cases: the average risk of undetected failures.

    The generalised risk at coverage k / n is the summed loss of the k most certain cases over n, from 0 at coverage 0;
    the curve is integrated by the trapezoid rule (Traub et al., arXiv 2407.01032). Arguments and errors
    as in :func:`aurc`.
    """
    ranked = _ranked(losses, uncertainty)
    risk = np.concatenate([[0.0], ranked.cumsum()]) / len(ranked)
    return float((risk[1:] + risk[:-1]).sum() / 2 / len(ranked))


def _ranked(losses: ArrayLike, uncertainty: ArrayLike) -> NDArray[np.float64]:
    """Losses from the most to the least certain case; tied cases share their mean loss."""
    loss, u = np.asarray(losses, dtype=float), np.asarray(uncertainty, dtype=float)
    if loss.ndim != 1 or loss.size == 0 or loss.shape != u.shape:
        raise ValueError(f"Expected one loss and one uncertainty per case, got shapes {loss.shape} and {u.shape}.")
    _, group, size = np.unique(u, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(group, weights=loss) / size, size)
