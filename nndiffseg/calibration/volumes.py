"""Fits how far the samples' volumes must lie from their mean, so that reported intervals hold the true volume.

Samples can be right voxel by voxel, agree with each other as well as with the truth, and still vary too much or too little in
the volume of a whole structure: what all voxels of a structure have in common is one draw per case, and a training sees few
of them. Moving the samples until their volumes are right ruins their outlines (docs/lab/volumes.md). So samples stay as
they are, and their volumes are stretched where they are reported, v' = mean + r (v - mean), with a *volume scale* r for each
structure.

For a calibrated r the mean distance of two volumes equals that of a volume and the true one (as in
:mod:`nndiffseg.methods.latent.scores`, with d = |a - b|). Within a structure distances are summed in ml, so that what counts
are cases where a volume may be far off. First a common r is fitted to the mean of the structures' log ratios, so that
structures of very different size count alike; then each structure's own one to the difference that is left between its log
ratio and their mean. What a case's structures have in common drops out of that difference, and a structure that few
cases have, or unlike ones, stays at the common r: both steps are modes of posteriors, see
:mod:`nndiffseg.calibration.shrinkage`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nndiffseg.calibration.shrinkage import candidates, mode
from nndiffseg.uncertainty.volumes import stretched

#: r lies between these
SMALLEST, LARGEST = 0.25, 4.0
#: standard deviation of log r that is expected before any case is seen. Volumes of first trainings (phantoms, hippocampus,
#: cells, vessels) varied 0.5 to 1.6 times as much as they should.
PRIOR_SD = 0.5
#: that of log r of one structure around the common one. Two structures of one training differed by up to 0.6 on phantoms and by
#: 0.02 on the hippocampus' fold 3 (docs/lab/volumes.md).
STRUCTURE_SD = 0.2


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


def fit_volume_scales(tables: Sequence[VolumeTable], groups: Mapping[str, str] | None = None) -> tuple[float, ...]:
    """r of each structure at which spread and error of its volumes agree best.

    The common one is nearer to 1, and each one nearer to the common one, where few groups of cases or unlike ones say so.

    Args:
        tables: one for each case.
        groups: case -> group; a case that is not in it is a group of its own.

    Returns:
        K numbers from :data:`SMALLEST` to :data:`LARGEST`; 1 with one sample, fewer than two groups or where nothing
        differs. A structure that fewer than two groups have gets the common one. Without cases, a single 1.
    """
    structures = len(tables[0].true) if tables else 1
    log_r = candidates(SMALLEST, LARGEST)
    sums: dict[str, NDArray] = {}  # group -> spread and error (2, candidates, K)
    for table in tables:
        if table.sampled.shape[1] > 1:
            group = (groups or {}).get(table.case, table.case)
            sums[group] = sums.get(group, 0) + _distances(table, np.exp(log_r))
    if len(sums) < 2:
        return (1.0,) * structures
    each = np.stack(list(sums.values()))  # (groups, 2, candidates, K)
    without = each.sum(0) - each  # the sums with one group left out
    known = (without > 0).all((0, 1, 2))  # structures that two groups at least have, and whose samples differ
    if not known.any():
        return (1.0,) * structures
    ratios = _log_ratios(each.sum(0)[..., known])  # (candidates, known)
    left_out = _log_ratios(without[..., known])[:, log_r == 0][:, 0]  # (groups, known), at r = 1
    common = mode(log_r, ratios.mean(1), left_out.mean(1), PRIOR_SD)
    found = np.full(structures, common)
    apart = left_out - left_out.mean(1, keepdims=True)
    for i, structure in enumerate(np.flatnonzero(known)):
        has = each[..., structure].any((1, 2))  # groups without it say nothing about how uncertain its ratio is
        difference = ratios[:, i] - ratios[log_r == common].mean()
        found[structure] += mode(log_r - common, difference, apart[has, i], STRUCTURE_SD)
    return tuple(np.exp(found).tolist())


def ratio_of(tables: Sequence[VolumeTable], scales: Sequence[float]) -> float:
    """Spread / error of the volumes of these cases, geometric mean over structures, when they are stretched.

    Args:
        tables: of the cases.
        scales: r of each structure, or a single one for all.
    """
    apart = [replace(t, sampled=stretched(t.sampled, np.reshape(scales, (-1, 1)))) for t in tables]
    sums = np.sum([_distances(t, np.ones(1)) for t in apart], axis=0)
    return math.exp(_log_ratios(sums[..., (sums > 0).all((0, 1))]).mean())


def _distances(table: VolumeTable, r: NDArray) -> NDArray:
    """Mean distance of two samples' volumes, and of a sample's and the true one's ``(2, candidates, K)``."""
    mean = table.sampled.mean(1, keepdims=True)
    apart = table.sampled - mean  # (K, N)
    samples = apart.shape[1]
    spread = np.abs(apart[:, :, None] - apart[:, None]).sum((1, 2)) / (samples * (samples - 1))  # (K,)
    to_truth = table.true - mean  # (K, M)
    error = np.abs(r[:, None, None, None] * apart[..., None] - to_truth[:, None]).mean((2, 3))  # (candidates, K)
    return np.stack([r[:, None] * spread, error])


def _log_ratios(sums: NDArray) -> NDArray:
    """``(..., 2, candidates, K)`` -> log(spread / error) ``(..., candidates, K)``."""
    return np.log(sums[..., 0, :, :] / sums[..., 1, :, :])
