"""How much segmentations agree: samples with one another, and samples with several raters.

Everything follows from the voxel counts of pairwise intersections, which add up over slabs of the volume. So neither
all samples of a whole volume nor one-hot volumes are ever held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_CHUNK = 2**20  # voxels per matrix product: counts up to 2^24 are exact in float32


class PairwiseOverlap:
    """Intersections of N segmentations, pair by pair and structure by structure, accumulated over slabs.

    Args:
        members: N, the number of segmentations.
        structures: the K structures to compare: each a label, or several whose union is a region. No background.

    Attributes:
        intersections: voxels that two members share, ``(K, N, N)``; a member's own voxels on the diagonal.
    """

    def __init__(self, members: int, structures: Sequence[int | Sequence[int]]) -> None:
        self.structures = [(s,) if isinstance(s, int) else tuple(s) for s in structures]
        if members < 1 or not structures or any(0 in labels for labels in self.structures):
            raise ValueError("An overlap needs at least one segmentation and one structure without the background 0.")
        self.intersections: NDArray[np.int64] = np.zeros((len(structures), members, members), dtype=np.int64)

    def add(self, segmentations: NDArray | Tensor) -> None:
        """Adds the same slab (or the whole) of every member.

        Args:
            segmentations: label maps ``(N, *slab)``, integer; or masks of the structures ``(N, K, *slab)``, bool.

        Raises:
            ValueError: the number of members or structures does not match.
        """
        x = _as_tensor(segmentations)
        k, n = self.intersections.shape[:2]
        masks = x.dtype == torch.bool
        if len(x) != n or (masks and x.shape[1] != k):
            raise ValueError(f"Expected {n} segmentations of {k} structures, got an array of shape {tuple(x.shape)}.")
        x = x.reshape(n, k, -1) if masks else x.reshape(n, 1, -1)
        x = x[..., (x != 0).flatten(0, 1).any(0)]  # background in every member counts for nothing
        for chunk in x.split(_CHUNK, dim=-1):
            for i, labels in enumerate(self.structures):
                mask = chunk[:, i] if masks else _union(chunk[:, 0], labels)  # (N, voxels)
                with torch.autocast(x.device.type, enabled=False):  # half precision would round the counts
                    shared = mask.float() @ mask.float().T
                self.intersections[i] += shared.cpu().numpy().astype(np.int64)

    def subset(self, members: Sequence[int]) -> PairwiseOverlap:
        """The overlap of some of the members, such as the samples without the raters."""
        part = PairwiseOverlap(len(members), self.structures)
        part.intersections = self.intersections[:, members][:, :, members]
        return part

    @property
    def counts(self) -> NDArray[np.int64]:
        """Voxels of each structure in each member, ``(K, N)``."""
        return np.diagonal(self.intersections, axis1=1, axis2=2).copy()

    def structure(self, index: int) -> PairwiseOverlap:
        """The overlap of all members in one of the K structures alone."""
        part = PairwiseOverlap(self.intersections.shape[1], [self.structures[index]])
        part.intersections = self.intersections[[index]]
        return part

    def dice(self, empty: float = 1.0) -> NDArray[np.float64]:
        """Dice of every pair, ``(K, N, N)``; ``empty`` where both are empty."""
        sizes = self.counts[:, :, None] + self.counts[:, None, :]
        return _ratio(2 * self.intersections, sizes, empty)

    def iou(self, empty: float = 1.0) -> NDArray[np.float64]:
        """Intersection over union of every pair, ``(K, N, N)``; ``empty`` where both are empty."""
        sizes = self.counts[:, :, None] + self.counts[:, None, :]
        return _ratio(self.intersections, sizes - self.intersections, empty)


def _as_tensor(segmentations: NDArray | Tensor) -> Tensor:
    if isinstance(segmentations, Tensor):
        return segmentations
    wide = segmentations.dtype.kind == "u" and segmentations.dtype.itemsize > 1  # hardly supported by PyTorch
    return torch.from_numpy(np.ascontiguousarray(segmentations, dtype=np.int32 if wide else None))


def _union(labels: Tensor, wanted: tuple[int, ...]) -> Tensor:
    mask = labels == wanted[0]
    for label in wanted[1:]:
        mask |= labels == label
    return mask


def _ratio(a: NDArray[np.int64], b: NDArray[np.int64], empty: float) -> NDArray[np.float64]:
    return np.where(b == 0, empty, a / np.maximum(b, 1))


def dice_of(prediction: NDArray, reference: NDArray, structures: Sequence[int | Sequence[int]]) -> NDArray[np.float64]:
    """Dice of two segmentations per structure ``(K,)``; NaN where both lack the structure, as in nnU-Net's evaluation.

    Args:
        prediction, reference: as one member of :meth:`PairwiseOverlap.add`: labels ``(*image)``, or masks ``(K, *image)``.
        structures: see :class:`PairwiseOverlap`.
    """
    overlap = PairwiseOverlap(2, structures)
    overlap.add(np.stack([prediction, reference]))
    return overlap.dice(np.nan)[:, 0, 1]


def mean_pairwise_dice(overlap: PairwiseOverlap) -> NDArray[np.float64] | None:
    """Mean Dice over all pairs of distinct members, per structure ``(K,)``; None with one member."""
    return _mean_over_pairs(overlap.dice())


def expected_dice(overlap: PairwiseOverlap) -> float | None:
    """The Dice to expect of a sample: mean over pairs of distinct samples, then over structures.

    Were samples and truth drawn from one distribution, this would be a sample's expected Dice with the truth. None
    with one sample.
    """
    per_structure = mean_pairwise_dice(overlap)
    return None if per_structure is None else float(per_structure.mean())


def spread(overlap: PairwiseOverlap) -> float | None:
    """Mean distance 1 - IoU over pairs of distinct members and structures; 0 for a dead latent, None with one member.

    Unlike the diversity term of GED it leaves out the pairs of a member with itself, so that sets of different sizes
    (16 samples, 9 raters) can be compared.
    """
    per_structure = _mean_over_pairs(1 - overlap.iou())
    return None if per_structure is None else float(per_structure.mean())


def _mean_over_pairs(matrices: NDArray[np.float64]) -> NDArray[np.float64] | None:
    first, second = np.triu_indices(matrices.shape[1], k=1)
    return matrices[:, first, second].mean(1) if len(first) else None


@dataclass(frozen=True)
class EnergyDistance:
    """GED^2 = 2 cross - within_samples - within_references, with the sizes of both sets."""

    squared: float
    cross: float
    within_samples: float
    within_references: float
    samples: int
    references: int


def generalised_energy_distance(overlap: PairwiseOverlap, samples: int) -> EnergyDistance:
    """GED^2 between samples S and raters Y: 2 E d(S, Y) - E d(S, S') - E d(Y, Y').

    d = 1 - IoU, averaged over structures, 0 where both are empty (Kohl et al., arXiv 1806.05034). As in the
    published numbers the means within a set run over all ordered pairs, those of a member with itself included; so the
    value depends on the number of samples. With one reference more spread lowers GED by itself.

    Args:
        overlap: its first ``samples`` members are the samples, all others the raters.
        samples: N, at least 1, with at least one rater behind.
    """
    _check_split(overlap, samples)
    d = 1 - overlap.iou().mean(0)  # (N + M, N + M)
    cross = float(d[:samples, samples:].mean())
    within_samples, within_references = float(d[:samples, :samples].mean()), float(d[samples:, samples:].mean())
    return EnergyDistance(
        2 * cross - within_samples - within_references, cross, within_samples, within_references,
        samples, len(d) - samples,
    )  # fmt: skip


def matched_iou(overlap: PairwiseOverlap, samples: int) -> float:
    """Hungarian-matched IoU: mean IoU of the best one-to-one matching of samples and raters.

    Both sets are repeated to their least common multiple (Kohl et al., arXiv 1905.13077). Arguments as in
    :func:`generalised_energy_distance`.
    """
    _check_split(overlap, samples)
    iou = overlap.iou().mean(0)[:samples, samples:]  # (N, M)
    size = math.lcm(*iou.shape)
    iou = iou.repeat(size // iou.shape[0], axis=0).repeat(size // iou.shape[1], axis=1)
    return float(iou[linear_sum_assignment(iou, maximize=True)].mean())


def energy_score(overlap: PairwiseOverlap, samples: int) -> float | None:
    """Energy score of the samples with d = 1 - IoU: E d(S, Y) - E d(S, S') / 2, less is better.

    Proper (Gneiting & Raftery 2007, section 5): its expectation is least for samples of the truth's distribution. E d(S, S')
    is over pairs of *distinct* samples, which is unbiased, so that values do not depend on the number of samples. With several
    raters it is the mean of their scores. Arguments as in :func:`generalised_energy_distance`; None with one sample.
    """
    _check_split(overlap, samples)
    own = spread(overlap.subset(range(samples)))
    return None if own is None else generalised_energy_distance(overlap, samples).cross - own / 2


def best_dice(overlap: PairwiseOverlap, samples: int) -> float:
    """Dice of each rater's best sample, mean over raters: whether somebody's view is missing among the samples.

    It grows with the number of samples, so compare equal numbers. Called maximum Dice matching by Rahman et al. (arXiv
    2304.04745). Arguments as in :func:`generalised_energy_distance`.
    """
    _check_split(overlap, samples)
    return float(overlap.dice().mean(0)[:samples, samples:].max(0).mean())


def _check_split(overlap: PairwiseOverlap, samples: int) -> None:
    members = overlap.intersections.shape[1]
    if not 0 < samples < members:
        raise ValueError(f"Of {members} segmentations, {samples} cannot be samples: need at least one of each kind.")
