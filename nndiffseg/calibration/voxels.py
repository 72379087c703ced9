"""What is kept of a validation case so that temperature and coherence can be fitted without reading it again.

Most voxels of an image are background beyond doubt. Those near a structure, and those where samples can differ at all, are
kept; of the rest a few counts are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.calibration.temperature import FLOOR
from nndiffseg.data.dataset_json import structures_of
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

    @classmethod
    def of(cls, manager: LabelManager, dataset_json: dict[str, Any]) -> LabelKind:
        """Of a dataset; ``manager`` is nnU-Net's, for which the ignore label is no label."""
        heads = Heads(manager.num_segmentation_heads, manager.has_regions)
        if manager.has_regions:
            regions = manager.foreground_regions
            channels = [tuple(int(v) for v in (r if isinstance(r, (list, tuple)) else [r])) for r in regions]
            order = tuple(int(v) for v in manager.regions_class_order)
        else:
            channels, order = [(i,) for i in range(heads.number)], ()
        return cls(heads, order, tuple(channels), tuple(structures_of(dataset_json).values()))

    def hard(self, scores: Tensor) -> Tensor:
        """Scores ``(..., heads, n)`` -> labels ``(..., n)``: the largest, or regions above 0 painted one over the other."""
        if not self.heads.regions:
            # torch's argmax over an axis that is not the last is ten times slower on the CPU than this pass.
            best = scores[..., 0, :]
            labels = torch.zeros_like(best, dtype=torch.long)
            for label in range(1, scores.shape[-2]):
                labels = torch.where(scores[..., label, :] > best, label, labels)
                best = torch.maximum(best, scores[..., label, :])
            return labels
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
        reach: whether it is near the predicted segmentation, where samples are drawn at the fitted temperature ``(n,)``, bool.
        every: so many voxels each kept one stands for.
        certain: voxels of each structure elsewhere, the same in all samples ``(K,)``.
        certain_true: those of them that each annotation has ``(K, M)``.
        true: voxels of each structure in each annotation, everywhere ``(K, M)``.
        dice: of the segmentation and the truth, of each structure, mean over annotations ``(K,)``; NaN where all are empty.
        complete: every voxel has a label. The others count as certain background, so that none of all this knows of them.
        sampled: of a model with a trained sampler, its samples' mean probability there ``(heads, n)``, and
        drawn: its samples' labels ``(N, n)``; ``(0, n)`` both for other models.
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
    reach: Tensor
    every: int
    certain: Tensor
    certain_true: Tensor
    true: Tensor
    dice: NDArray[np.float64]
    sampled: Tensor
    drawn: Tensor
    complete: bool = True

    def frequency(self, kind: LabelKind) -> Tensor:
        """How often annotators chose each channel ``(heads, n)``."""
        return kind.onehot(self.labels).float().mean(1)

    def scaled(self, logits: Tensor, temperature: Sequence[float]) -> Tensor:
        """Logits ``(heads, n)`` that samples are drawn from: over their temperature within :attr:`reach`, else as they come.

        A temperature is fitted near structures. In the wide background it would make something of nothing: thousands of voxels
        at one per cent are a structure's volume, and samples that threshold the map would fill them all at once.
        """
        return torch.where(self.reach, logits / torch.tensor(temperature, dtype=logits.dtype)[:, None], logits)

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
            reach=self.reach[::k],
            sampled=self.sampled[:, ::k],
            drawn=self.drawn[:, ::k],
            every=self.every * k,
        )


def observe(
    case: str,
    probabilities: Tensor,
    references: NDArray,
    near: NDArray[np.bool_],
    reach: NDArray[np.bool_],
    kind: LabelKind,
    *,
    spacing: Sequence[float],
    voxel_ml: float,
    sampled: Tensor | None = None,
    drawn: NDArray | None = None,
    complete: bool = True,
) -> CaseVoxels:
    """Keeps of a case what fits need. Ignored voxels must be background in all that is given (:func:`without`).

    Args:
        case: its name.
        probabilities: as they come ``(heads, *image)``, float32.
        references: label map of each annotation ``(M, *image)``.
        near: voxels near a structure of the references or of the segmentation ``(*image)``.
        reach: those near one of the segmentation ``(*image)``.
        kind: what channels and labels mean.
        spacing: along each axis of the image, in mm.
        voxel_ml: volume of a voxel.
        sampled, drawn: of a trained sampler, mean probability ``(heads, *image)`` and labels of its samples ``(N, *image)``.
        complete: every voxel has a label.
    """
    p, shape = probabilities.flatten(1), probabilities.shape[1:]
    truth = torch.from_numpy(references.reshape(len(references), -1).astype(np.int64)).clamp_min(0)  # (M, voxels)
    samples = np.empty((0, p.shape[1]), np.uint8) if drawn is None else drawn.reshape(len(drawn), -1)  # (N, voxels)
    sure = torch.maximum(p, 1 - p).amin(0) if kind.heads.regions else p.amax(0)
    close = torch.from_numpy(near.ravel())
    segmentation = kind.hard(kind.heads.logits(p.clamp(FLOOR, 1 - FLOOR)))
    keep = (sure < CERTAIN) | close
    for sample in samples:  # one after another, since all voxels of all samples may be gigabytes
        keep |= torch.from_numpy(sample != segmentation.numpy())
    hard = kind.members(segmentation)  # (K, voxels)
    wanted = kind.members(truth)  # (K, M, voxels)
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
        torch.from_numpy(reach.ravel())[where],
        every,
        hard[:, ~keep].sum(1).float(),
        (hard[:, None, ~keep] & wanted[:, :, ~keep]).sum(2).float(),
        wanted.sum(2).float(),
        _dice(hard, wanted),
        p[:0, where] if sampled is None else sampled.flatten(1)[:, where],
        torch.from_numpy(samples[:, where.numpy()].astype(np.int32)),
        complete,
    )


def without(probabilities: Tensor, ignored: NDArray[np.bool_], heads: Heads) -> Tensor:
    """Probabilities ``(heads, *image)`` with certain background at ``ignored`` ``(*image)``; a copy, where there is any."""
    if not ignored.any():
        return probabilities
    mask = torch.from_numpy(ignored)
    left = probabilities.masked_fill(mask, 0)
    if not heads.regions:
        left[0].masked_fill_(mask, 1)
    return left


def _dice(hard: Tensor, wanted: Tensor) -> NDArray[np.float64]:
    """Of a segmentation ``(K, voxels)`` and annotators ``(K, M, voxels)``, mean over M ``(K,)``; NaN where all are empty."""
    total = wanted.sum(2).float() + hard.sum(1).float()[:, None]
    both = (hard[:, None] & wanted).sum(2).float()
    return torch.where(total > 0, 2 * both / total.clamp_min(1), torch.nan).double().nanmean(1).numpy()
