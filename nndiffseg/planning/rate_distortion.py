"""Rate-distortion curve of a dataset's labels: how many numbers per block a latent needs to carry the boundaries.

A latent grid of stride s describes each block of s voxels (``prod(s)`` of them) by k numbers. Blocks inside one
structure are trivial. For the blocks that hold a boundary the best linear code of k numbers is known in closed form:
the first k principal components of their one-hot vectors (Eckart & Young 1936). Reconstruct, take the argmax, and the
Dice of the result is a bound that a convolutional encoder, which sees neighbouring blocks, can only exceed. So the
curve ranks the candidate latents before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

CHANNELS = (1, 2, 4, 8, 16, 32)
MAX_ELEMENTS = 30_000_000  # floats in one matrix of one-hot blocks (120 MB)
MAX_BLOCKS = 20_000
EXACT_DIMENSION = 1024  # larger covariances are handled by randomised subspace iteration


@dataclass(frozen=True)
class RateDistortion:
    """One point of the curve.

    Attributes:
        stride: voxels per latent cell along each axis.
        channels: numbers per latent cell.
        dice_mean: mean Dice over cases and structures of the labels' reconstruction.
        worst: the structure with the lowest 5th percentile.
        worst_mean: its mean Dice over cases.
        worst_p5: 5th percentile over cases of its Dice.
    """

    stride: tuple[int, ...]
    channels: int
    dice_mean: float
    worst: str
    worst_mean: float
    worst_p5: float


@dataclass(frozen=True)
class _Blocks:
    """Boundary blocks of one case ``(n, prod(stride))`` and, for each label, the number of voxels in uniform blocks.

    Each row stands for ``weight`` blocks where the case held more blocks than are kept.
    """

    rows: np.ndarray
    uniform: np.ndarray
    weight: float


def rate_distortion(
    labels: Sequence[np.ndarray],
    stride: Sequence[int],
    structures: Mapping[str, Sequence[int]],
    *,
    channels: Sequence[int] = CHANNELS,
    seed: int = 0,
) -> list[RateDistortion]:
    """The curve at one stride.

    The components are fitted on one half of the cases and evaluated on the other and vice versa, so that a small
    dataset with large blocks does not look better than it is.

    Args:
        labels: label maps ``(*spatial)`` at target spacing, background 0.
        stride: voxels per latent cell; with fewer entries than axes the leading axes are not pooled.
        structures: name of each structure -> the label numbers that make it up (several for a region).
        channels: numbers per cell to evaluate.
        seed: of the subsampling of blocks.

    Returns:
        One point per entry of ``channels`` (those not above the block's dimension), in that order.
    """
    n_labels = 1 + max(max(int(a.max()) for a in labels), max(max(v) for v in structures.values()))
    full_stride = (1,) * (labels[0].ndim - len(stride)) + tuple(int(s) for s in stride)
    dimension = int(np.prod(full_stride)) * n_labels
    channels = [k for k in channels if k <= dimension]
    rng = np.random.default_rng(seed)
    cap = max(64, min(MAX_BLOCKS, MAX_ELEMENTS // dimension))
    blocks = [_boundary_blocks(a, full_stride, n_labels, cap, rng) for a in labels]
    dice = np.full((len(channels), len(labels), len(structures)), np.nan)
    halves = [range(0, len(labels), 2), range(1, len(labels), 2)] if len(labels) > 1 else [range(1), range(1)]
    for fit, test in (halves, halves[::-1]):
        rows = np.concatenate([blocks[i].rows for i in fit])
        if len(rows) > cap:
            rows = rows[rng.choice(len(rows), cap, replace=False)]
        mean, components = _principal_components(rows, n_labels, max(channels), rng)
        for i in test:
            dice[:, i] = _case_dice(blocks[i], mean, components, channels, n_labels, list(structures.values()))
    names = list(structures)
    return [_summary(tuple(int(s) for s in stride), k, d, names) for k, d in zip(channels, dice, strict=True)]


def _boundary_blocks(array: np.ndarray, stride: tuple[int, ...], n_labels: int, cap: int, rng: np.random.Generator) -> _Blocks:
    array = np.pad(array, [(0, -n % s) for n, s in zip(array.shape, stride, strict=True)])
    split = [v for n, s in zip(array.shape, stride, strict=True) for v in (n // s, s)]
    dim = array.ndim
    cut = array.reshape(split).transpose(*range(0, 2 * dim, 2), *range(1, 2 * dim, 2)).reshape(-1, int(np.prod(stride)))
    boundary = cut.max(1) != cut.min(1)
    uniform = np.bincount(cut[~boundary, 0], minlength=n_labels) * cut.shape[1]
    rows = cut[boundary]
    weight = 1.0
    if len(rows) > cap:
        weight = len(rows) / cap
        rows = rows[rng.choice(len(rows), cap, replace=False)]
    return _Blocks(rows, uniform, weight)


def _one_hot(rows: np.ndarray, n_labels: int) -> np.ndarray:  # (n, voxels) -> (n, voxels * labels)
    return np.eye(n_labels, dtype=np.float32)[rows].reshape(len(rows), rows.shape[1] * n_labels)


def _principal_components(rows: np.ndarray, n_labels: int, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(D,)`` and the first k principal components ``(D, k)`` of the one-hot blocks, fewer where there are fewer rows."""
    x = _one_hot(rows, n_labels)
    if len(x) < 2:
        return (x[0] if len(x) else np.zeros(x.shape[1], np.float32)), np.zeros((x.shape[1], 0), np.float32)
    if x.shape[1] <= EXACT_DIMENSION:
        pca = PCA(min(k, len(x)), svd_solver="covariance_eigh")
    else:
        seed = int(rng.integers(2**31))
        pca = PCA(min(k, len(x)), svd_solver="randomized", n_oversamples=16, iterated_power=4, random_state=seed)
    pca.fit(x)
    return pca.mean_, np.ascontiguousarray(pca.components_.T)


def _case_dice(
    blocks: _Blocks,
    mean: np.ndarray,
    components: np.ndarray,
    channels: Sequence[int],
    n_labels: int,
    structures: Sequence[Sequence[int]],
) -> np.ndarray:
    """Dice ``(channels, structures)`` of one case; NaN where the case lacks the structure."""
    truth = blocks.rows
    code = (_one_hot(truth, n_labels) - mean) @ components  # (n, k)
    estimate = np.broadcast_to(mean, (len(truth), len(mean))).copy()
    dice, done = np.full((len(channels), len(structures)), np.nan), 0
    for row, k in enumerate(channels):
        estimate += code[:, done:k] @ components[:, done:k].T
        done = k
        predicted = estimate.reshape(*truth.shape, n_labels).argmax(-1)
        confusion = blocks.weight * np.bincount(
            (truth.astype(np.int64) * n_labels + predicted).ravel(), minlength=n_labels**2
        ).reshape(n_labels, n_labels) + np.diag(blocks.uniform)
        for column, members in enumerate(structures):
            m = list(members)
            both, true, said = confusion[np.ix_(m, m)].sum(), confusion[m].sum(), confusion[:, m].sum()
            if true > 0:
                dice[row, column] = 2 * both / (true + said)
    return dice


def _summary(stride: tuple[int, ...], k: int, dice: np.ndarray, names: Sequence[str]) -> RateDistortion:
    present = [j for j in range(len(names)) if np.isfinite(dice[:, j]).any()]
    mean = {j: float(np.nanmean(dice[:, j])) for j in present}
    p5 = {j: float(np.nanpercentile(dice[:, j], 5)) for j in present}
    worst = min(present, key=lambda j: p5[j])
    return RateDistortion(stride, k, float(np.nanmean(dice)), names[worst], mean[worst], p5[worst])
