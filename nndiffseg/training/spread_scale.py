"""Fits how far samples lie from the deterministic answer, on cases that the network was not trained on.

A calibrated sampler's mean distance between two samples equals the mean distance between a sample and the truth
(:mod:`nndiffseg.training.scores`), here of the volumes that samples have in a block. After training one number is
fitted to that: the latents are moved along the line through the latent of the deterministic segmentation,
``prior + s (z0 - prior)``. It is to samples what temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2)
is to a softmax: short trainings end too wide, overfitted ones too narrow, and a scale mends both without touching the
deterministic segmentation.

A case's error is one draw, so a few cases tell little: eight leave the scale uncertain by a quarter. The fit is therefore
shrunk towards 1 by its own standard error (normal prior and likelihood of log s; Gelman et al. 2013, Bayesian Data
Analysis, section 2.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nndiffseg.inference.precision import autocast_for
from nndiffseg.networks.model import LatentDiffusionSegmenter
from nndiffseg.networks.noise import PatchNoise
from nndiffseg.training.loader import seed_of
from nndiffseg.training.scores import energy_distances

if TYPE_CHECKING:
    from nndiffseg.training.trainer import DiffusionTrainer

SCALES = np.array([0.4, 0.6, 0.8, 1.0, 1.25])
#: block edges of the volumes that are compared, in voxels (0 = the whole patch): what users read off samples is how far a
#: volume may be off, and single voxels' uncertainty also lies in the probabilities
BLOCKS = (16, 0)
#: patches to look at, at least
PATCHES = 48
#: standard deviation of log s that is expected before any case is seen; fits on phantoms, cells and the hippocampus lay
#: between 0.79 and 1.25
PRIOR_SD = 0.2


@dataclass(frozen=True)
class SpreadTable:
    """One batch of patches under every candidate scale.

    Attributes:
        cases: the patches' cases.
        error: sum over patches of the distances between a sample and the truth ``(patches, scales, distances)``.
        spread: those between two samples ``(patches, scales, distances)``.
    """

    cases: tuple[str, ...]
    error: np.ndarray
    spread: np.ndarray


def spread_tables(trainer: DiffusionTrainer, network: LatentDiffusionSegmenter) -> list[SpreadTable]:
    """Random patches of the fold's validation cases, two samples each."""
    batches, tables = trainer.validation_batches(), []
    for index in range(math.ceil(PATCHES / trainer.batch_size)):
        batch = next(batches)
        generator = torch.Generator().manual_seed(seed_of(trainer.seed, "spread", index))
        data, onehot = batch["data"].to(trainer.device), trainer.onehot(batch["target"][0].to(trainer.device))
        with torch.no_grad(), autocast_for(trainer.device):
            tables.append(_table(network, data, onehot, tuple(map(str, batch["keys"])), generator))
    return tables


def _table(network: LatentDiffusionSegmenter, data: Tensor, onehot: Tensor, cases: tuple[str, ...],
           generator: torch.Generator) -> SpreadTable:
    maps, regions = network.encode(data), bool(network.regions)
    grid = [n // s for n, s in zip(data.shape[2:], network.stride, strict=True)]
    draw = PatchNoise(len(data), grid, generator, data.device)
    fitted = network.spread_scale.clone()
    network.spread_scale.fill_(1.0)
    latents = [network.sample(maps, draw) for _ in range(2)]
    network.spread_scale.copy_(fitted)
    first, error, spread = 0 if regions else 1, [], []  # the background's volume follows from the others
    for scale in SCALES:
        logits = torch.stack([network.decode(network.rescale(z, maps, float(scale)), maps) for z in latents]).float()
        hard = logits > 0 if regions else F.one_hot(logits.argmax(2), logits.shape[2]).movedim(-1, 2)
        distances = energy_distances(hard[:, :, first:].float(), onehot[:, first:], BLOCKS)
        error.append(distances.error.T.cpu().numpy())
        spread.append(distances.spread.T.cpu().numpy())
    return SpreadTable(cases, np.stack(error, 1), np.stack(spread, 1))


def fit_spread_scale(tables: Sequence[SpreadTable], cases: Sequence[str] | None = None) -> float:
    """The scale at which spread and error agree, shrunk towards 1 where few cases or unlike ones say so.

    The fit is the zero of the mean log ratio over the distances, interpolated; its standard error comes from leaving out
    one case at a time.

    Args:
        tables: from :func:`spread_tables`.
        cases: only patches of these cases; None for all.

    Returns:
        A number within the range of :data:`SCALES`; 1 with fewer than two cases or where nothing differs.
    """
    sums: dict[str, np.ndarray] = {}  # case -> error and spread (2, scales, distances)
    for t in tables:
        for case, error, spread in zip(t.cases, t.error, t.spread, strict=True):
            if cases is None or case in cases:
                sums[case] = sums.get(case, 0) + np.stack([error, spread])
    if len(sums) < 2:
        return 1.0
    each = np.stack(list(sums.values()))  # (cases, 2, scales, distances)
    without = each.sum(0) - each  # the sums with one case left out
    if not (without > 0).all():
        return 1.0
    log_scales, ratio = np.log(SCALES), _log_ratio(each.sum(0))
    # The ratio grows with the scale; rounding out noise keeps np.interp's abscissa increasing.
    fit = math.log(np.interp(0.0, np.maximum.accumulate(ratio), SCALES))
    slope = max(float(np.polyfit(log_scales, ratio, 1)[0]), 1e-6)
    left_out = _log_ratio(without)[:, np.abs(log_scales - fit).argmin()]
    variance = (len(each) - 1) * left_out.var() / slope**2  # jackknife
    return math.exp(fit * PRIOR_SD**2 / (PRIOR_SD**2 + variance))


def _log_ratio(sums: np.ndarray) -> np.ndarray:  # (..., 2, scales, distances) -> (..., scales)
    return np.log(sums[..., 1, :, :] / sums[..., 0, :, :]).mean(-1)
