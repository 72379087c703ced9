"""What is kept of a validation case so that temperature and coherence can be fitted without reading it again.

Most voxels of an image are background beyond doubt. Those near a structure, and those where samples can differ at all, are
kept; of the rest a few counts are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.calibration.temperature import FLOOR
from nndiffseg.nn.heads import Heads

#: Voxels whose most probable label is this certain, as it comes, are the same in all samples.
CERTAIN = 1 - 1e-6
#: so many logits of a case are kept at most, of voxels that are spread evenly
MOST = 200_000


@dataclass(frozen=True)
class LabelKind:
    """How channels become labels, and labels structures.

    Attributes:
        heads: what the channels mean.
        order: label that each region paints, ``regions_class_order`` of dataset.json; empty without regions.
        head_labels: labels that belong to each channel.
        structures: labels that make up each of K structures.
    """

    heads: Heads
    order: tuple[int, ...]
    head_labels: tuple[tuple[int, ...], ...]
    structures: tuple[tuple[int, ...], ...]

    def hard(self, scores: Tensor) -> Tensor:
        """Scores ``(..., heads, n)`` -> labels ``(..., n)``: the largest, or regions above 0 painted one over the other."""
        if not self.heads.regions:
            return scores.argmax(-2)
        labels = torch.zeros_like(scores[..., 0, :], dtype=torch.long)
        for channel, label in enumerate(self.order):
            labels = torch.where(scores[..., channel, :] > 0, label, labels)
        return labels

    def members(self, labels: Tensor) -> Tensor:
        """Labels ``(*any)`` -> whether each structure has them ``(K, *any)``, bool."""
        return self._table(self.structures)[:, labels]

    def onehot(self, labels: Tensor) -> Tensor:
        """Labels ``(*any)`` -> ``(heads, *any)``, bool."""
        return self._table(self.head_labels)[:, labels]

    def _table(self, groups: Sequence[Sequence[int]]) -> Tensor:
        table = torch.zeros(
            len(groups), 1 + max(max(g, default=0) for g in (*self.head_labels, *self.structures)), dtype=torch.bool
        )
        for row, labels in enumerate(groups):
            table[row, list(labels)] = True
        return table


@dataclass(frozen=True)
class CaseVoxels:
    """One validation case: voxels near structures or at stake, and counts of the rest.

    Attributes:
        case: its name.
        voxel_ml: volume of a voxel.
        shape, spacing: of the image, along each axis; in mm.
        where: index of each kept voxel in the flattened image ``(n,)``.
        logits: as they come, up to a constant ``(heads, n)``.
        labels: of each of M annotations there ``(M, n)``.
        members: structures there ``(K, M, n)``, bool.
        near: whether a voxel is near a structure, where calibration is judged ``(n,)``, bool.
        every: so many voxels each kept one stands for.
        certain: voxels of each structure elsewhere, the same in all samples ``(K,)``.
        certain_true: those of them that each annotation has ``(K, M)``.
        true: voxels of each structure in each annotation, everywhere ``(K, M)``.
        dice: of the segmentation and the truth, of each structure, mean over annotations ``(K,)``; NaN where all are empty.
    """

    case: str
    voxel_ml: float
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    where: NDArray[np.int64]
    logits: Tensor
    labels: Tensor
    members: Tensor
    near: Tensor
    every: int
    certain: Tensor
    certain_true: Tensor
    true: Tensor
    dice: NDArray[np.float64]

    def frequency(self, kind: LabelKind) -> Tensor:
        """How often annotators chose each channel ``(heads, n)``."""
        return kind.onehot(self.labels).float().mean(1)

    def thinned(self, values: int) -> CaseVoxels:
        """At most so many logits, of every k-th voxel."""
        k = max(1, -(-self.logits.numel() // values))
        if k == 1:
            return self
        return replace(
            self,
            where=self.where[::k],
            logits=self.logits[:, ::k],
            labels=self.labels[:, ::k],
            members=self.members[:, :, ::k],
            near=self.near[::k],
            every=self.every * k,
        )


def observe(
    case: str,
    probabilities: Tensor,
    references: NDArray,
    near: NDArray[np.bool_],
    kind: LabelKind,
    *,
    spacing: Sequence[float],
    voxel_ml: float,
) -> CaseVoxels:
    """Keeps of a case what fits need.

    Args:
        case: its name.
        probabilities: as they come ``(heads, *image)``, float32.
        references: label map of each annotation ``(M, *image)``.
        near: voxels near a structure ``(*image)``.
        kind: what channels and labels mean.
        spacing: along each axis of the image, in mm.
        voxel_ml: volume of a voxel.
    """
    p, shape = probabilities.flatten(1), probabilities.shape[1:]
    truth = torch.from_numpy(references.reshape(len(references), -1).astype(np.int64)).clamp_min(0)  # (M, voxels)
    sure = torch.maximum(p, 1 - p).amin(0) if kind.heads.regions else p.amax(0)
    close = torch.from_numpy(near.ravel())
    keep = (sure < CERTAIN) | close
    hard = kind.members(kind.hard(kind.heads.logits(p.clamp(FLOOR, 1 - FLOOR))))  # (K, voxels)
    wanted = kind.members(truth)  # (K, M, voxels)
    true, predicted = wanted.sum(2).float(), hard.sum(1).float()
    both = (hard[:, None] & wanted).sum(2).float()
    total = true + predicted[:, None]
    dice = torch.where(total > 0, 2 * both / total.clamp_min(1), torch.nan).double()
    where = keep.nonzero()[:, 0]
    every = max(1, -(-len(where) * len(p) // MOST))
    where = where[::every]
    return CaseVoxels(
        case,
        voxel_ml,
        tuple(shape),
        tuple(float(s) for s in spacing),
        where.numpy(),
        kind.heads.logits(p[:, where].clamp(FLOOR, 1 - FLOOR)),
        truth[:, where],
        wanted[:, :, where],
        close[where],
        every,
        hard[:, ~keep].sum(1).float(),
        (hard[:, None, ~keep] & wanted[:, :, ~keep]).sum(2).float(),
        true,
        dice.nanmean(1).numpy(),
    )
