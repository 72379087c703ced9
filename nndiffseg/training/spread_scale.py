"""Fits how far samples lie from the deterministic answer, on cases that the network was not trained on.

After training two numbers are fitted. The latents are moved along the line through the latent of the deterministic
segmentation,

    prior + s (smooth + d (z0 - prior - smooth)),

where smooth is the mean of z0 - prior over a neighbourhood (:meth:`LatentDiffusionSegmenter.rescale`). They are to samples
what temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2) is to a softmax, and do not touch the
deterministic segmentation.

A calibrated sampler's mean distance between two samples equals the mean distance between a sample and the truth
(:mod:`nndiffseg.training.scores`). The *spread scale* s achieves that for volumes. The *detail scale* d brings it within
5 % for 1 - IoU of the hard labels and is left alone there: on the hippocampus networks learned a variation that is common to
a whole structure and hardly any local one, and one number cannot mend both; but the error also holds what no sample can
follow, and full equality moved single samples farther from the truth (docs/ablations.md).

A case's error is one draw, so a few cases tell little: eight leave s uncertain by a quarter. Each fit is therefore
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
from nndiffseg.training.scores import energy_distances, jaccard_distances

if TYPE_CHECKING:
    from nndiffseg.training.trainer import DiffusionTrainer

#: candidates of s, with d = 1
SCALES = np.array([0.4, 0.6, 0.8, 1.0, 1.25])
#: candidates of d, with s = 1
DETAILS = np.array([0.7, 1.0, 1.4, 2.0, 2.8, 4.0])
#: block edges of the volumes that s is fitted to, in voxels (0 = the whole patch): what users read off samples is how far a
#: volume may be off
BLOCKS = (16, 0)
#: patches to look at: so many for each validation case, within these bounds. In 48 random patches of 39 cases only 29 of
#: the cases occur, and the shrinkage below takes what is uncertain for unnecessary.
PATCHES_PER_CASE = 4
PATCHES = (48, 192)
#: standard deviation of log s that is expected before any case is seen; fits on phantoms, cells and the hippocampus lay
#: between 0.79 and 1.25
SCALE_PRIOR_SD = 0.2
#: the same of log d; distances change a third as fast with d
DETAIL_PRIOR_SD = 0.5
#: spread below or above the error by this share is left alone in 1 - IoU
TOLERANCE = 0.05


@dataclass(frozen=True)
class SpreadTable:
    """One batch of patches under every candidate: first those of s, then those of d.

    Attributes:
        cases: the patches' cases.
        error: distances between a sample and the truth ``(patches, candidates, distances)``: of volumes, one for each of
            ``BLOCKS``, and 1 - IoU.
        spread: those between two samples ``(patches, candidates, distances)``.
    """

    cases: tuple[str, ...]
    error: np.ndarray
    spread: np.ndarray


def spread_tables(trainer: DiffusionTrainer, network: LatentDiffusionSegmenter, patches: int | None = None
                  ) -> list[SpreadTable]:
    """Random patches of the fold's validation cases, two samples each; how many follows from the number of cases."""
    _, cases = trainer.do_split()
    number = patches or int(np.clip(PATCHES_PER_CASE * len(cases), *PATCHES))
    trainer.print_to_log_file(f"comparing the spread of samples with their error in {number} patches")
    batches, tables = trainer.validation_batches(), []
    for index in range(math.ceil(number / trainer.batch_size)):
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
    fitted = network.spread_scale.clone(), network.detail_scale.clone()
    network.spread_scale.fill_(1.0)
    network.detail_scale.fill_(1.0)
    latents = [network.sample(maps, draw) for _ in range(2)]
    network.spread_scale.copy_(fitted[0])
    network.detail_scale.copy_(fitted[1])
    first = 0 if regions else 1  # the background's volume follows from the others

    def distances(scale: float, detail: float) -> tuple[np.ndarray, np.ndarray]:  # error and spread (items, distances)
        logits = torch.stack([network.decode(network.rescale(z, maps, scale, detail), maps) for z in latents]).float()
        hard = logits > 0 if regions else F.one_hot(logits.argmax(2), logits.shape[2]).movedim(-1, 2)
        x, y = hard[:, :, first:].float(), onehot[:, first:].float()
        volumes, overlap = energy_distances(x, y, BLOCKS), jaccard_distances(x, y)
        error, spread = torch.cat([volumes.error, overlap.error]), torch.cat([volumes.spread, overlap.spread])
        return error.T.cpu().numpy(), spread.T.cpu().numpy()

    candidates = [*((float(s), 1.0) for s in SCALES), *((1.0, float(d)) for d in DETAILS)]
    found = {c: distances(*c) for c in dict.fromkeys(candidates)}  # (1, 1) is in both lists
    return SpreadTable(cases, np.stack([found[c][0] for c in candidates], 1), np.stack([found[c][1] for c in candidates], 1))


def fit_spread(tables: Sequence[SpreadTable], cases: Sequence[str] | None = None) -> dict[str, float]:
    """s and d at which spread and error agree (d: nearly), shrunk towards 1 where few cases or unlike ones say so.

    A fit is the zero of the mean log ratio over its distances, interpolated; its standard error comes from leaving out
    one case at a time. What s does to 1 - IoU is taken to add to what d does to it.

    Args:
        tables: from :func:`spread_tables`.
        cases: only patches of these cases; None for all.

    Returns:
        ``spread_scale`` and ``detail_scale`` within the ranges of :data:`SCALES` and :data:`DETAILS`; 1 with fewer than two
        cases or where nothing differs.
    """
    sums: dict[str, np.ndarray] = {}  # case -> error and spread (2, candidates, distances)
    for t in tables:
        for case, error, spread in zip(t.cases, t.error, t.spread, strict=True):
            if cases is None or case in cases:
                sums[case] = sums.get(case, 0) + np.stack([error, spread])
    nothing = {"spread_scale": 1.0, "detail_scale": 1.0}
    if len(sums) < 2:
        return nothing
    each = np.stack(list(sums.values()))  # (cases, 2, candidates, distances)
    without = each.sum(0) - each  # the sums with one case left out
    if not (without > 0).all():
        return nothing
    subsets = np.concatenate([each.sum(0)[None], without])  # of all cases, then without each
    ratio = np.log(subsets[:, 1] / subsets[:, 0])  # (subsets, candidates, distances)
    by_scale, by_detail = np.split(ratio, [len(SCALES)], axis=1)
    scale = _zero(SCALES, by_scale[..., : len(BLOCKS)].mean(-1), SCALE_PRIOR_SD)
    overlap = by_detail[..., -1] + np.interp(scale, SCALES, by_scale[0, :, -1]) - np.interp(1, SCALES, by_scale[0, :, -1])
    wanted = np.clip(np.interp(1, DETAILS, overlap[0]), math.log(1 - TOLERANCE), -math.log(1 - TOLERANCE))
    return {"spread_scale": scale, "detail_scale": _zero(DETAILS, overlap - wanted, DETAIL_PRIOR_SD)}


def _zero(candidates: np.ndarray, ratio: np.ndarray, prior_sd: float) -> float:
    """Where the log ratio of the first subset ``(subsets, candidates)`` is 0, shrunk; the others lack one case each."""
    log_candidates = np.log(candidates)
    # The ratio grows with the candidate; rounding out noise keeps np.interp's abscissa increasing.
    fit = math.log(np.interp(0.0, np.maximum.accumulate(ratio[0]), candidates))
    slope = max(float(np.polyfit(log_candidates, ratio[0], 1)[0]), 1e-6)
    nearest = ratio[1:, np.abs(log_candidates - fit).argmin()]
    variance = (len(nearest) - 1) * nearest.var() / slope**2  # jackknife
    return math.exp(fit * prior_sd**2 / (prior_sd**2 + variance))
