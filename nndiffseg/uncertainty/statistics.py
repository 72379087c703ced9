"""What remains of a case's samples: sums of probabilities and one label map per sample, never all probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nndiffseg.uncertainty import Decomposition, entropy


class FoldSums:
    """Running mean probabilities of one fold.

    With a known fusion weight w, the fused probability ``w p_deterministic + (1 - w) p_samples`` is summed in one
    array. With ``weight=None`` the two parts stay apart, so that a weight can be fitted to them afterwards.
    """

    def __init__(self, heads: int, shape: tuple[int, ...], device: torch.device, weight: float | None):
        self.weight = weight
        self.deterministic = torch.zeros((heads, *shape), device=device)
        self.sampled = self.deterministic if weight is not None else torch.zeros_like(self.deterministic)

    def add_deterministic(self, where: tuple[slice, ...], probabilities: Tensor, share: float) -> None:
        """Adds ``(heads, *window)``; the shares of all passes over a voxel sum to 1."""
        share *= 1.0 if self.weight is None else self.weight
        _add(self.deterministic, where, probabilities, share)

    def add_samples(self, where: tuple[slice, ...], probabilities: Tensor, share: float) -> None:
        """Adds a sum over samples ``(heads, *window)``; ``share`` is one over the fold's number of samples."""
        share *= 1.0 if self.weight is None else 1.0 - self.weight
        _add(self.sampled, where, probabilities, share)


def _add(sums: Tensor, where: tuple[slice, ...], values: Tensor, share: float) -> None:
    window = (slice(None), *where)
    sums[window].add_(values.to(sums.device), alpha=share)


@dataclass(frozen=True)
class CaseStatistics:
    """One case on the grid of the preprocessed image, before export. Tensors are float32 on the CPU.

    Attributes:
        probabilities: fused probability, mean over folds ``(heads, *spatial)``. With labels the heads are all labels
            and sum to 1; with regions each head is a region's own probability.
        maps: ``total``, ``aleatoric`` and, with two or more folds, ``epistemic`` uncertainty, each ``(*spatial)`` in
            [0, 1]; see :class:`nndiffseg.uncertainty.Decomposition`.
        labels: label map of every sample ``(N, *spatial)``, uint8 (uint16 with labels above 255).
        fusion_weights: weight of the deterministic head in the fused probability, one per fold.
        deterministic, sampled: the two parts of ``probabilities``; None unless they were kept apart.
        regions: whether the heads are regions.
        volume_scales: of the samples' volumes around their mean, for each fold one for each structure or a single one for all
            (:mod:`nndiffseg.calibration.volumes`).
    """

    probabilities: Tensor
    maps: dict[str, Tensor]
    labels: np.ndarray
    fusion_weights: tuple[float, ...]
    deterministic: Tensor | None = None
    sampled: Tensor | None = None
    regions: bool = False
    volume_scales: tuple[tuple[float, ...], ...] = ((1.0,),)

    @classmethod
    def of_one_fold(
        cls, sums: FoldSums, weight: float, labels: np.ndarray, regions: bool, volume_scales: Sequence[float] = (1.0,)
    ) -> CaseStatistics:
        """With one fold, nothing can be told about disagreement between folds: aleatoric equals total."""
        deterministic, sampled = sums.deterministic.cpu(), sums.sampled.cpu()
        apart = sums.weight is None
        fused = torch.lerp(sampled, deterministic, weight) if apart else deterministic
        total = entropy(fused, regions=regions)
        return cls(
            fused,
            {"total": total, "aleatoric": total},
            labels,
            (weight,),
            deterministic if apart else None,
            sampled if apart else None,
            regions,
            (tuple(volume_scales),),
        )

    @classmethod
    def of_folds(
        cls,
        decomposition: Decomposition,
        weights: Sequence[float],
        labels: np.ndarray,
        volume_scales: Sequence[Sequence[float]] = ((1.0,),),
    ) -> CaseStatistics:
        """``decomposition`` holds the fused probabilities of two or more folds."""
        maps = {name: torch.as_tensor(values).cpu() for name, values in decomposition.maps().items()}
        probabilities = torch.as_tensor(decomposition.probabilities).cpu()
        return cls(
            probabilities,
            maps,
            labels,
            tuple(weights),
            regions=decomposition.regions,
            volume_scales=tuple(tuple(fold) for fold in volume_scales),
        )

    def with_fitted(self, fusion_weight: float, volume_scales: Sequence[float]) -> CaseStatistics:
        """The same samples of one fold, fused with another weight and with other scales of their volumes.

        Raises:
            ValueError: the two parts were not kept apart.
        """
        if self.deterministic is None or self.sampled is None:
            raise ValueError("The deterministic and sampled probabilities of this case were not kept apart.")
        fused = torch.lerp(self.sampled, self.deterministic, fusion_weight)
        total = entropy(fused, regions=self.regions)
        return replace(
            self,
            probabilities=fused,
            maps={"total": total, "aleatoric": total},
            fusion_weights=(fusion_weight,),
            volume_scales=(tuple(volume_scales),),
        )


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
