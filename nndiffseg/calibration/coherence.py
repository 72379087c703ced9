"""The weights of the coherent sampler's correlation lengths, fitted by proper scores.

The marginals of the coherent sampler are the calibrated map's, whatever the weights w_l of
:mod:`nndiffseg.diffusion.coherent` are, so no score of single voxels can choose them. Two scores of whole samples do: the
energy score of outlines, E d(X, y) - E d(X, X') / 2 with d = 1 - IoU, and the same of volumes with d(a, b) = |a - b| (their
continuous ranked probability score), over the mean volume of the structure (Gneiting & Raftery 2007, JASA 102, sections 4.2 and
4.3). Both are proper, and so is their sum. They are scores of the samples as an empirical distribution, over all pairs, a
sample with itself included: samples need not be independent, and few that represent the distribution well are worth more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.calibration.voxels import CaseVoxels, LabelKind
from nndiffseg.diffusion.coherent import LENGTHS, mixed, perturbation

#: weights are multiples of one over this
STEPS = 3
#: all weights of the lengths that are tried ``(candidates, lengths)``
CANDIDATES = np.array([w for w in itertools.product(range(STEPS + 1), repeat=len(LENGTHS)) if sum(w) == STEPS]) / STEPS


class SampleScores(NamedTuple):
    """What each of :data:`CANDIDATES` gives for one case.

    Attributes:
        outlines: energy score of each structure ``(candidates, K)``.
        volumes: energy score of each structure's volume, in voxels ``(candidates, K)``.
        voxels: of each structure in each sample ``(candidates, K, N)``.
        agreement: mean Dice of two samples ``(candidates, K)``; 1 where both are empty.
        spread: mean 1 - IoU of two samples, a sample and itself included ``(candidates, K)``.
    """

    outlines: NDArray[np.float64]
    volumes: NDArray[np.float64]
    voxels: NDArray[np.float64]
    agreement: NDArray[np.float64]
    spread: NDArray[np.float64]

    def total(self, mean_voxels: NDArray) -> NDArray[np.float64]:
        """Sum of both scores, mean over structures of ``mean_voxels`` ``(K,)`` each ``(candidates,)``; the lower the better."""
        return np.nanmean(self.outlines + self.volumes / np.maximum(mean_voxels, 1), 1)


def score_candidates(
    case: CaseVoxels,
    normals: Sequence[Tensor],
    temperature: Sequence[float],
    kind: LabelKind,
    *,
    candidates: NDArray = CANDIDATES,
) -> SampleScores:
    """Draws samples with every candidate's weights and scores them.

    Args:
        case: what was observed of it.
        normals: field of each length at its voxels ``(N, heads, n)`` or, of infinite length, ``(N, heads, 1)``.
        temperature: one, or one for each region.
        kind: what channels and labels mean.
        candidates: weights of the lengths ``(candidates, lengths)``.
    """
    logits = case.scaled(case.logits, temperature)
    return score_labels((coherent_labels(logits, normals, weights.tolist(), kind) for weights in candidates), case, kind)


def coherent_labels(logits: Tensor, normals: Sequence[Tensor], weights: Sequence[float], kind: LabelKind) -> Tensor:
    """Labels ``(N, n)`` of coherent samples.

    Args:
        logits: calibrated ``(heads, n)``.
        normals: field of each length, see :func:`score_candidates`.
        weights: of the lengths.
        kind: what channels and labels mean.
    """
    return kind.hard(logits + perturbation(mixed(normals, weights), kind.heads.regions))


def score_labels(candidates: Iterable[Tensor], case: CaseVoxels, kind: LabelKind) -> SampleScores:
    """Scores of several samplers' labels at a case's voxels, each ``(N, n)``."""
    rows = [_scores_of(kind.members(labels).float(), case) for labels in candidates]
    return SampleScores(*(np.stack(column) for column in zip(*rows, strict=True)))


def _scores_of(member: Tensor, case: CaseVoxels) -> tuple[NDArray, ...]:
    """Samples ``(K, N, n)`` -> all of one candidate's :class:`SampleScores`."""
    truth = case.members.float()  # (K, M, n)
    sizes = case.every * member.sum(2) + case.certain[:, None]  # (K, N)
    both = case.every * (member @ member.transpose(1, 2)) + case.certain[:, None, None]  # (K, N, N)
    hit = case.every * (member @ truth.transpose(1, 2)) + case.certain_true[:, None]  # (K, N, M)
    true = case.true[:, None]  # (K, 1, M)
    to_truth = _distance(hit, sizes[:, :, None] + true - hit)
    total = sizes[:, :, None] + sizes[:, None]
    spread = _distance(both, total - both).mean((1, 2))
    outlines = to_truth.mean((1, 2)) - spread / 2
    apart = (sizes[:, :, None] - sizes[:, None]).abs().mean((1, 2))
    volumes = (sizes[:, :, None] - true).abs().mean((1, 2)) - apart / 2
    dice = torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0)
    agreement = dice[:, ~torch.eye(sizes.shape[1], dtype=torch.bool)].mean(1)
    return tuple(x.double().numpy() for x in (outlines, volumes, sizes, agreement, spread))


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
    if not scores:
        return len(CANDIDATES) - 1 if math.isinf(LENGTHS[-1]) else 0
    return int(np.argmin(group_means({case: s.total(mean_voxels) for case, s in scores.items()}, groups).mean(0)))


def group_means(values: Mapping[str, NDArray], groups: Mapping[str, str]) -> NDArray[np.float64]:
    """Of each case ``(*any)`` -> mean over the cases of each group ``(groups, *any)``."""
    by_group: dict[str, list[NDArray]] = {}
    for case, value in values.items():
        by_group.setdefault(groups.get(case, case), []).append(value)
    return np.stack([np.mean(members, 0) for members in by_group.values()])
