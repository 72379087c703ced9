"""Streaming statistics of a case's samples: sums of probabilities and one label map per sample, never all probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.confidence import soft_dice
from nndiffseg.calibration.temperature import tempered
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty.maps import Decomposition, entropy


class Sums(Protocol):
    """Running mean probabilities of one fold."""

    def add_deterministic(self, where: tuple[slice, ...], probabilities: Tensor, share: float) -> None:
        """Adds ``(heads, *window)``; the shares of all passes over a voxel sum to 1."""
        ...

    def add_samples(self, where: tuple[slice, ...], probabilities: Tensor, share: float) -> None:
        """Adds a sum over samples ``(heads, *window)``; ``share`` is one over the fold's number of samples."""
        ...


class FusedSums:
    """With a known fusion weight w: ``w p_deterministic + (1 - w) p_samples`` in one array ``(heads, *shape)``."""

    def __init__(self, heads: int, shape: tuple[int, ...], device: torch.device, weight: float):
        self.weight = weight
        self.fused = torch.zeros((heads, *shape), device=device)

    def add_deterministic(self, where: tuple[slice, ...], probabilities: Tensor, share: float) -> None:
        _add(self.fused, where, probabilities, share * self.weight)

    def add_samples(self, where: tuple[slice, ...], probabilities: Tensor, share: float) -> None:
        _add(self.fused, where, probabilities, share * (1.0 - self.weight))


class PartSums:
    """Deterministic and sampled probabilities apart, so that a fusion weight can be fitted to them afterwards."""

    def __init__(self, heads: int, shape: tuple[int, ...], device: torch.device):
        self.deterministic = torch.zeros((heads, *shape), device=device)
        self.sampled = torch.zeros_like(self.deterministic)

    def add_deterministic(self, where: tuple[slice, ...], probabilities: Tensor, share: float) -> None:
        _add(self.deterministic, where, probabilities, share)

    def add_samples(self, where: tuple[slice, ...], probabilities: Tensor, share: float) -> None:
        _add(self.sampled, where, probabilities, share)


def _add(sums: Tensor, where: tuple[slice, ...], values: Tensor, share: float) -> None:
    window = (slice(None), *where)
    sums[window].add_(values.to(sums.device), alpha=share)


@dataclass(frozen=True)
class CaseParts:
    """One case of one fold on the grid of the preprocessed image, before a calibration fuses it.

    Attributes:
        deterministic, sampled: probabilities of head and mean of samples ``(heads, *spatial)``, float32 on the CPU.
        labels: label map of every sample ``(N, *spatial)``.
        regions: whether the heads are regions.
    """

    deterministic: Tensor
    sampled: Tensor
    labels: np.ndarray
    regions: bool

    def fused(self, calibration: Calibration) -> Tensor:
        """w p_deterministic + (1 - w) p_samples, before the temperature ``(heads, *spatial)``."""
        return torch.lerp(self.sampled, self.deterministic, calibration.fusion_weight)

    def statistics(self, calibration: Calibration) -> CaseStatistics:
        """The case's statistics with this calibration."""
        fused, heads = self.fused(calibration), Heads(len(self.sampled), self.regions)
        confidence = soft_dice(fused, heads)
        fused = tempered(fused, calibration.temperature, heads)
        return CaseStatistics.of_one_fold(fused, self.labels, calibration, self.regions, confidence)


@dataclass(frozen=True)
class CaseStatistics:
    """One case on the grid of the preprocessed image, before export. Tensors are float32 on the CPU.

    Attributes:
        probabilities: fused and temperature-scaled probability, mean over folds ``(heads, *spatial)``. With labels the heads
            are all labels and sum to 1; with regions each head is a region's own probability.
        maps: ``total``, ``aleatoric`` and, with two or more folds, ``epistemic`` uncertainty, each ``(*spatial)`` in
            [0, 1]; see :class:`nndiffseg.uncertainty.Decomposition`.
        labels: label map of every sample ``(N, *spatial)``, uint8 (uint16 with labels above 255); with F folds, 0, F, 2F, ...
            are the first fold's.
        calibrations: of each fold.
        regions: whether the heads are regions.
        confidence: :func:`~nndiffseg.calibration.confidence.soft_dice` of the fused probabilities before their temperature, of
            each structure ``(K,)``, mean over folds.
        logits: of a stock nnU-Net, ``(heads, *spatial)``: the segmentation is made of them by nnU-Net's own export, to the last
            voxel. None where it is made of ``probabilities``.
    """

    probabilities: Tensor
    maps: dict[str, Tensor]
    labels: np.ndarray
    calibrations: tuple[Calibration, ...]
    regions: bool = False
    confidence: NDArray[np.float64] = field(default_factory=lambda: np.full(1, np.nan))
    logits: Tensor | None = None

    @classmethod
    def of_one_fold(
        cls, fused: Tensor, labels: np.ndarray, calibration: Calibration, regions: bool, confidence: NDArray[np.float64]
    ) -> CaseStatistics:
        """With one fold, disagreement between folds is unknown: aleatoric equals total."""
        fused = fused.cpu()
        total = entropy(fused, regions=regions)
        return cls(fused, {"total": total, "aleatoric": total}, labels, (calibration,), regions, confidence)

    @classmethod
    def of_folds(
        cls,
        decomposition: Decomposition,
        labels: np.ndarray,
        calibrations: Sequence[Calibration],
        confidences: Sequence[NDArray[np.float64]],
    ) -> CaseStatistics:
        """``decomposition`` holds the fused probabilities of two or more folds."""
        maps = {name: torch.as_tensor(values).cpu() for name, values in decomposition.maps().items()}
        probabilities = torch.as_tensor(decomposition.probabilities).cpu()
        confidence = np.mean(confidences, 0)
        return cls(probabilities, maps, labels, tuple(calibrations), decomposition.regions, confidence)


def label_map(probabilities: Tensor, label_manager: LabelManager) -> Tensor:
    """Labels of probabilities, as nnU-Net makes them: argmax, or regions painted in the order of the dataset.

    Args:
        probabilities: ``(heads, *spatial)``.
        label_manager: of the dataset.

    Returns:
        Label values ``(*spatial)`` int16.
    """
    if not label_manager.has_regions:
        # torch's argmax over the first axis is ten times slower on the CPU than this pass through the heads.
        labels = torch.zeros(probabilities.shape[1:], dtype=torch.int16, device=probabilities.device)
        best = probabilities[0]
        for label, probability in enumerate(probabilities[1:], start=1):
            # Later labels are larger, so the maximum replaces; a masked write is slower (docs/lab/speed.md).
            torch.maximum(labels, (probability > best).to(labels.dtype) * label, out=labels)
            best = torch.maximum(best, probability)
        return labels
    labels = torch.zeros(probabilities.shape[1:], dtype=torch.int16, device=probabilities.device)
    for probability, label in zip(probabilities, label_manager.regions_class_order or [], strict=True):
        labels[probability > 0.5] = int(label)
    return labels
