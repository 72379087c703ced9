"""The scale of the samples' volumes around their mean, so that reported intervals hold the true volume.

Samples can be right voxel by voxel, agree with each other as well as with the truth, and still vary too much or too little in
the volume of a whole structure: what all voxels of a structure have in common is one draw per case, and a training sees few
of them. Moving the samples until their volumes are right ruins their outlines (docs/lab/volumes.md). So samples stay as they
are, and their volumes are stretched where they are reported, v' = mean + r (v - mean), with one *volume scale* r.

For a calibrated r the mean distance of two volumes equals that of a volume and the true one (the identity of
:mod:`nndiffseg.methods.latent.scores`, with d = |a - b|). Within a structure distances are summed in ml, so that what counts
are cases where a volume may be far off. Over structures the log ratios are averaged, so that structures of very different size
count alike. r is the MAP estimate of :mod:`nndiffseg.calibration.shrinkage`.

Where groups of cases are enough, the reported 90 % interval is conformal (:mod:`nndiffseg.calibration.conformal`): the mean
plus and minus q standard deviations, with q a quantile of |true - mean| / sd over validation cases. A case's standard deviation
counts as at least :data:`FLOOR` of its mean, since samples that agree by chance would make the ratio infinite.

Where a label has ignored voxels, volumes of samples and truth are those inside the annotated ones. r compares them, which is
right in any part of an image. The interval promises something about whole structures, whose true volume is then unknown, so
that such cases do not count for q.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nndiffseg.calibration.conformal import conformal_quantile
from nndiffseg.calibration.shrinkage import candidates, map_log_scale
from nndiffseg.calibration.tables import CaseTable

#: r lies between these
SMALLEST, LARGEST = 0.25, 4.0
#: standard deviation of log r that is expected before any case is seen. Volumes of first trainings (phantoms, hippocampus,
#: cells, vessels) varied 0.5 to 1.6 times as much as they should.
PRIOR_SD = 0.5
#: least standard deviation of a volume, as a share of its mean. Small ones tell little about the error: on eleven models of
#: cells, hippocampi and phantoms the score of the intervals (Gneiting & Raftery 2007, section 6.2) was 1 to 29 % lower with 0.2
#: than with 0.01, and on three of them 5 to 11 % lower than with widths that are all the same share of the mean
#: (benchmarks/volume_floor.py).
FLOOR = 0.2
#: An interval of so many standard deviations says nothing.
LARGEST_QUANTILE = 1e6


def stretched(volumes: NDArray, scale: ArrayLike) -> NDArray[np.float64]:
    """Volumes ``(..., N)`` of N samples, moved away from their mean or towards it by scales that broadcast to ``(..., 1)``."""
    mean = volumes.mean(-1, keepdims=True)
    return mean + np.asarray(scale) * (volumes - mean)


def structure_voxels(labels: NDArray, structures: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """Label maps ``(N, *spatial)`` -> voxels of each structure, the union of some labels, ``(K, N)``."""
    tuples = [list(s) for s in structures]
    size = max(int(labels.max(initial=0)), *(max(s) for s in tuples)) + 1
    # Slice by slice, since bincount needs eight bytes for each voxel that it looks at.
    counts = np.stack([sum(np.bincount(part.ravel(), minlength=size) for part in one) for one in labels], 1)  # (labels, N)
    return np.stack([counts[s].sum(0) for s in tuples])


def fit_volume_scale(tables: Sequence[CaseTable], groups: Mapping[str, str] | None = None) -> float:
    """r at which spread and error of the volumes agree best, shrunk to 1 where groups of cases are few or unlike.

    Args:
        tables: one for each case.
        groups: case -> group; a case that is not in it is a group of its own.

    Returns:
        A number from :data:`SMALLEST` to :data:`LARGEST`; 1 with one sample, fewer than two groups or where nothing differs.
    """
    log_r = candidates(SMALLEST, LARGEST)
    sums: dict[str, NDArray] = {}  # group -> spread and error (2, candidates, K)
    for table in tables:
        if table.sampled_ml.shape[1] > 1:
            group = (groups or {}).get(table.case, table.case)
            sums[group] = sums.get(group, 0) + _distances(table, np.exp(log_r))
    if not sums:
        return 1.0
    each = np.stack(list(sums.values()))  # (groups, 2, candidates, K)
    without = each.sum(0) - each  # the sums with one group left out
    known = (without > 0).all((0, 1, 2))  # structures that two groups at least have, and whose samples differ
    if not known.any():
        return 1.0
    ratios = _log_ratios(each.sum(0)[..., known]).mean(1)  # (candidates,)
    left_out = _log_ratios(without[..., known])[:, log_r == 0][:, 0].mean(1)  # (groups,), at r = 1
    return math.exp(map_log_scale(log_r, ratios, left_out, PRIOR_SD))


def floored_sd(volumes: NDArray) -> NDArray[np.float64]:
    """Standard deviation of the volumes ``(..., N)`` of N samples, at least :data:`FLOOR` of their mean ``(...)``."""
    return np.maximum(volumes.std(-1, ddof=1), FLOOR * volumes.mean(-1))


def fit_volume_quantiles(tables: Sequence[CaseTable], groups: Sequence[str]) -> tuple[float | None, ...]:
    """q of each structure, such that mean +- q sd holds the volume of 90 % of new cases.

    Args:
        tables: one for each case; of several annotations each is a truth of its own.
        groups: of the cases.

    Returns:
        None where no interval can be promised; nothing with one sample.
    """
    if not tables or tables[0].sampled_ml.shape[1] < 2:
        return ()
    if not any(table.complete for table in tables):
        return (None,) * len(tables[0].true_ml)
    scores, names = [], []
    for table, group in zip(tables, groups, strict=True):
        if not table.complete:
            continue
        error = np.abs(table.true_ml - table.sampled_ml.mean(1, keepdims=True))  # (K, M)
        sd = floored_sd(table.sampled_ml)[:, None]
        ratio = np.full(error.shape, np.inf)  # a structure that no sample has and the truth does
        scores.append(np.divide(error, sd, out=np.where(error > 0, ratio, 0.0), where=sd > 0))
        names += [group] * error.shape[1]
    quantiles = (conformal_quantile(row, names) for row in np.concatenate(scores, 1))
    return tuple(q if q is not None and q < LARGEST_QUANTILE else None for q in quantiles)


def _distances(table: CaseTable, r: NDArray) -> NDArray:
    """Mean distance of two samples' volumes, and of a sample's and the true one's ``(2, candidates, K)``."""
    mean = table.sampled_ml.mean(1, keepdims=True)
    apart = table.sampled_ml - mean  # (K, N)
    samples = apart.shape[1]
    spread = np.abs(apart[:, :, None] - apart[:, None]).sum((1, 2)) / (samples * (samples - 1))  # (K,)
    to_truth = table.true_ml - mean  # (K, M)
    error = np.abs(r[:, None, None, None] * apart[..., None] - to_truth[:, None]).mean((2, 3))  # (candidates, K)
    return np.stack([r[:, None] * spread, error])


def _log_ratios(sums: NDArray) -> NDArray:
    """``(..., 2, candidates, K)`` -> log(spread / error) ``(..., candidates, K)``."""
    return np.log(sums[..., 0, :, :] / sums[..., 1, :, :])
