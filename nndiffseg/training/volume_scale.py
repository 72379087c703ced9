"""Fits how far the samples' volumes must lie from their mean, so that reported intervals hold the true volume.

Samples can be right voxel by voxel, agree with each other as well as with the truth, and still vary too much or too little in
the volume of a whole structure: what all voxels of a structure have in common is one draw per case, and a training sees few
of them. Moving the samples until their volumes are right ruins their outlines (docs/ablations.md). So samples stay as
they are, and their volumes are stretched where they are reported, v' = mean + r (v - mean), with one *volume scale* r.

For a calibrated r the mean distance of two volumes equals that of a volume and the true one (as in
:mod:`nndiffseg.training.scores`, with d = |a - b|). Within a structure distances are summed in ml, so that what counts
are cases where a volume may be far off; structures of very different size count alike, by the mean of their log ratios. r
is the mode of a posterior, see :mod:`nndiffseg.training.posterior`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nndiffseg.training.posterior import candidates, mode

#: r lies between these
SMALLEST, LARGEST = 0.25, 4.0
#: standard deviation of log r that is expected before any case is seen. Volumes of first trainings (phantoms, hippocampus,
#: cells, vessels) varied 0.5 to 1.6 times as much as they should.
PRIOR_SD = 0.5


@dataclass(frozen=True)
class VolumeTable:
    """Volumes of one case.

    Attributes:
        case: its name.
        sampled: of each structure in each sample, in ml ``(K, N)``.
        true: of each structure in each annotation, in ml ``(K, M)``.
    """

    case: str
    sampled: NDArray[np.floating]
    true: NDArray[np.floating]


def structure_voxels(labels: NDArray, structures: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """Label maps ``(N, *spatial)`` -> voxels of each structure, the union of some labels, ``(K, N)``."""
    tuples = [list(s) for s in structures]
    size = max(int(labels.max(initial=0)), *(max(s) for s in tuples)) + 1
    # Slice by slice, since bincount needs eight bytes for each voxel that it looks at.
    counts = np.stack([sum(np.bincount(part.ravel(), minlength=size) for part in one) for one in labels], 1)  # (labels, N)
    return np.stack([counts[s].sum(0) for s in tuples])


def fit_volume_scale(tables: Sequence[VolumeTable], groups: Mapping[str, str] | None = None) -> float:
    """r at which spread and error of the volumes agree best, nearer to 1 where few groups of cases or unlike ones say so.

    Args:
        tables: one for each case.
        groups: case -> group; a case that is not in it is a group of its own.

    Returns:
        A number from :data:`SMALLEST` to :data:`LARGEST`; 1 with one sample, fewer than two groups or where nothing differs.
    """
    log_r = candidates(SMALLEST, LARGEST)
    sums: dict[str, NDArray] = {}  # group -> spread and error (2, candidates, K)
    for table in tables:
        if table.sampled.shape[1] > 1:
            group = (groups or {}).get(table.case, table.case)
            sums[group] = sums.get(group, 0) + _distances(table, np.exp(log_r))
    if len(sums) < 2:
        return 1.0
    each = np.stack(list(sums.values()))  # (groups, 2, candidates, K)
    without = each.sum(0) - each  # the sums with one group left out
    known = (without > 0).all((0, 1, 2))  # structures that two groups at least have, and whose samples differ
    if not known.any():
        return 1.0
    ratio = _log_ratio(each.sum(0)[..., known])
    return math.exp(mode(log_r, ratio, _log_ratio(without[..., known])[:, log_r == 0][:, 0], PRIOR_SD))


def ratio_of(tables: Sequence[VolumeTable], scale: float) -> float:
    """Spread / error of the volumes of these cases, geometric mean over structures, when they are stretched by ``scale``."""
    sums = np.sum([_distances(t, np.array([scale])) for t in tables], axis=0)
    return math.exp(_log_ratio(sums[..., (sums > 0).all((0, 1))]).item())


def _distances(table: VolumeTable, r: NDArray) -> NDArray:
    """Mean distance of two samples' volumes, and of a sample's and the true one's ``(2, candidates, K)``."""
    mean = table.sampled.mean(1, keepdims=True)
    apart = table.sampled - mean  # (K, N)
    samples = apart.shape[1]
    spread = np.abs(apart[:, :, None] - apart[:, None]).sum((1, 2)) / (samples * (samples - 1))  # (K,)
    to_truth = table.true - mean  # (K, M)
    error = np.abs(r[:, None, None, None] * apart[..., None] - to_truth[:, None]).mean((2, 3))  # (candidates, K)
    return np.stack([r[:, None] * spread, error])


def _log_ratio(sums: NDArray) -> NDArray:
    """``(..., 2, candidates, K)`` -> mean over structures of log(spread / error) ``(..., candidates)``."""
    return np.log(sums[..., 0, :, :] / sums[..., 1, :, :]).mean(-1)
