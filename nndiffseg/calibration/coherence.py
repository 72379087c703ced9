"""The weights of the coherent sampler's correlation lengths, fitted by proper scores.

The marginals of the coherent sampler are the calibrated map's, whatever the weights w_l of
:mod:`nndiffseg.diffusion.coherent` are, so no score of single voxels can choose them. Two scores of whole samples do: the
energy score of outlines, E d(X, y) - E d(X, X') / 2 with d = 1 - IoU, and the same of volumes with d(a, b) = |a - b| (their
continuous ranked probability score), over the mean volume of the structure (Gneiting & Raftery 2007, JASA 102, sections 4.2 and
4.3). Both are proper, and so is their sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.diffusion.coherent import LENGTHS, mixed, perturbation
from nndiffseg.nn.heads import Heads

#: weights are multiples of one over this
STEPS = 4
#: all weights of the lengths that are tried ``(candidates, lengths)``
CANDIDATES = np.array([w for w in itertools.product(range(STEPS + 1), repeat=len(LENGTHS)) if sum(w) == STEPS]) / STEPS
#: Voxels where the most probable label is less certain than this can differ between samples.
STAKE = 1e-3


class SampleScores(NamedTuple):
    """What each of :data:`CANDIDATES` gives for one case.

    Attributes:
        outlines: energy score of each structure ``(candidates, K)``.
        volumes: energy score of each structure's volume, in voxels ``(candidates, K)``.
        voxels: of each structure in each sample ``(candidates, K, N)``.
        agreement: mean Dice of two samples ``(candidates, K)``; 1 where both are empty.
    """

    outlines: NDArray[np.float64]
    volumes: NDArray[np.float64]
    voxels: NDArray[np.float64]
    agreement: NDArray[np.float64]


class CaseVoxels(NamedTuple):
    """A case where its samples can differ, and counts of the rest.

    Attributes:
        logits: of voxels at stake, calibrated ``(heads, n)``.
        truth: structures there ``(M, K, n)``, bool, in each of M annotations.
        certain: voxels of each structure elsewhere ``(K,)``, the same in all samples.
        certain_true: those of them that are true ``(M, K)``.
        true: voxels of each structure in each annotation, everywhere ``(M, K)``.
    """

    logits: Tensor
    truth: Tensor
    certain: Tensor
    certain_true: Tensor
    true: Tensor


def membership(structures: Sequence[Sequence[int]], largest: int) -> Tensor:
    """Whether a label belongs to a structure ``(K, largest + 1)``, bool."""
    table = torch.zeros(len(structures), largest + 1, dtype=torch.bool)
    for k, labels in enumerate(structures):
        table[k, list(labels)] = True
    return table


def hard_labels(scores: Tensor, heads: Heads, order: Sequence[int]) -> Tensor:
    """Labels of scores ``(N, heads, n)`` -> ``(N, n)``: the largest, or regions above 0 painted one over the other.

    Args:
        scores: logits plus perturbations.
        heads: what the channels mean.
        order: label that each region paints, ``regions_class_order`` of dataset.json; unused without regions.
    """
    if not heads.regions:
        return scores.argmax(1)
    labels = torch.zeros(scores.shape[0], scores.shape[2], dtype=torch.long)
    for channel, label in enumerate(order):
        labels[scores[:, channel] > 0] = label
    return labels


def score_candidates(
    case: CaseVoxels, normals: Sequence[Tensor], heads: Heads, order: Sequence[int], table: Tensor
) -> SampleScores:
    """Draws samples with every candidate's weights and scores them.

    Args:
        case: voxels at stake.
        normals: field of each length at them ``(N, heads, n)`` or, of infinite length, ``(N, heads, 1)``.
        heads, order: see :func:`hard_labels`.
        table: see :func:`membership`.
    """
    rows = []
    for weights in CANDIDATES:
        scores = case.logits + perturbation(mixed(normals, weights.tolist()), heads.regions)
        member = table[:, hard_labels(scores, heads, order)].transpose(0, 1)  # (N, K, n)
        rows.append(_scores_of(member.transpose(0, 1).float(), case))
    return SampleScores(*(np.stack(column) for column in zip(*rows, strict=True)))


def _scores_of(member: Tensor, case: CaseVoxels) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Samples ``(K, N, n)`` -> outlines, volumes, voxels and agreement of one candidate, see :class:`SampleScores`."""
    truth = case.truth.transpose(0, 1).float()  # (K, M, n)
    sizes = member.sum(2) + case.certain[:, None]  # (K, N)
    both = member @ member.transpose(1, 2) + case.certain[:, None, None]  # (K, N, N)
    hit = member @ truth.transpose(1, 2) + case.certain_true.T[:, None]  # (K, N, M)
    to_truth = _distance(hit, sizes[:, :, None] + case.true.T[:, None] - hit)
    apart = _distance(both, sizes[:, :, None] + sizes[:, None] - both)  # 0 on the diagonal
    samples = sizes.shape[1]
    pairs = samples * (samples - 1)
    outlines = to_truth.mean((1, 2)) - apart.sum((1, 2)) / pairs / 2
    error = (sizes[:, :, None] - case.true.T[:, None]).abs().mean((1, 2))
    volumes = error - (sizes[:, :, None] - sizes[:, None]).abs().sum((1, 2)) / pairs / 2
    total = sizes[:, :, None] + sizes[:, None]
    dice = torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0)
    agreement = dice[:, ~torch.eye(samples, dtype=torch.bool)].mean(1)
    return tuple(x.double().numpy() for x in (outlines, volumes, sizes, agreement))  # type: ignore[return-value]


def _distance(both: Tensor, either: Tensor) -> Tensor:
    """1 - IoU; 0 where both masks are empty."""
    return torch.where(either > 0, 1 - both / either.clamp_min(1), 0.0)


def fit_lengths(scores: Mapping[str, SampleScores], mean_voxels: NDArray, groups: Mapping[str, str]) -> int:
    """Index of the candidate with the lowest sum of both scores, mean over structures and groups of cases.

    Args:
        scores: of each case.
        mean_voxels: true voxels of each structure, mean over all cases ``(K,)``.
        groups: case -> group; a case that is not in it is a group of its own.
    """
    by_group: dict[str, list[NDArray]] = {}
    for case, score in scores.items():
        total = score.outlines + score.volumes / np.maximum(mean_voxels, 1)
        by_group.setdefault(groups.get(case, case), []).append(np.nanmean(total, 1))
    if not by_group:
        return len(CANDIDATES) - 1 if math.isinf(LENGTHS[-1]) else 0
    return int(np.argmin(np.mean([np.mean(g, 0) for g in by_group.values()], 0)))
