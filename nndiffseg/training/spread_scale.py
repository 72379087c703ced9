"""Fits how far samples lie from the deterministic answer, on cases that the network was not trained on.

After training two numbers are fitted. The latents are moved along the line through the latent of the deterministic
segmentation,

    prior + s (smooth + d (z0 - prior - smooth)),

where smooth is the mean of z0 - prior over a neighbourhood (:meth:`LatentDiffusionSegmenter.rescale`). They are to samples
what temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2) is to a softmax, and do not touch the
deterministic segmentation.

A calibrated sampler's mean distance between two samples equals the mean distance between a sample and the truth
(:mod:`nndiffseg.training.scores`). The *spread scale* s, with d = 1, achieves that for volumes; then the *detail scale* d
nearly does for 1 - IoU of the hard labels: on the hippocampus networks learned a variation that is common to a whole structure
and hardly any local one, and one number cannot mend both. Fitted together, each would be bent to the other's purpose
(docs/ablations.md).

A case's error is one draw, so a few cases tell little. s and d are therefore modes of a posterior: a normal likelihood of
the log ratio of spread and error, with its standard error from leaving out one case at a time, and a normal prior of the
logarithm around 0 (Gelman et al. 2013, Bayesian Data Analysis, sections 2.5 and 4.1). Cases of one person are alike in
their errors too, so a group of cases (:mod:`nndiffseg.groups`) is left out as one. Two groups may agree by chance, so their
variance has a prior as well (scaled inverse chi squared, the same book, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from scipy.stats import norm
from scipy.stats import t as student_t
from torch import Tensor
from torch.nn import functional as F

from nndiffseg.groups import others
from nndiffseg.inference.precision import autocast_for
from nndiffseg.networks.model import LatentDiffusionSegmenter
from nndiffseg.networks.noise import PatchNoise
from nndiffseg.training.loader import seed_of
from nndiffseg.training.scores import energy_distances, jaccard_distances

if TYPE_CHECKING:
    from nndiffseg.training.trainer import DiffusionTrainer

#: candidates of s and of d; all pairs are looked at, for what d does depends on s
SCALES = np.array([0.6, 1.0, 1.3])
DETAILS = np.array([0.8, 1.0, 1.6, 2.8])
#: block edges of the volumes that are compared, in voxels (0 = the whole patch): what users read off samples is how far a
#: volume may be off
BLOCKS = (16, 0)
#: patches to look at: so many for each validation case, within these bounds. In 48 random patches of 39 cases only 29 of
#: the cases occur.
PATCHES_PER_CASE = 4
PATCHES = (48, 192)
#: standard deviations of log s and log d that are expected before any case is seen; first fits on phantoms, cells and the
#: hippocampus lay between 0.79 and 1.25 for s, between 0.9 and 2 for d
SCALE_PRIOR_SD = 0.2
DETAIL_PRIOR_SD = 0.7
#: log ratios of 1 - IoU so far from 0 are left alone. Multiplied details are no learned variation: they also bring error, so
#: full equality makes single samples worse than it makes them alike (docs/ablations.md).
LEFT_ALONE = 0.07
#: standard error of the log ratios, at least; keeps the priors alive where many cases agree
TOLERANCE = 0.02
#: standard deviation of the log ratios between groups that is expected, and as how many groups that counts; it was 0.19 to
#: 0.34 on fold 3 of the hippocampus, which no table reports
GROUP_SD = 0.25
PRIOR_GROUPS = 4
#: of log s and log d, where the mode is looked for
STEP = 0.01


@dataclass(frozen=True)
class SpreadTable:
    """One batch of patches under every pair of candidates.

    Attributes:
        cases: the patches' cases.
        error: distances between a sample and the truth ``(patches, scales, details, distances)``: of volumes, one for each of
            ``BLOCKS``, and 1 - IoU.
        spread: those between two samples, of the same shape.
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

    found = np.stack([np.stack([distances(float(s), float(d)) for d in DETAILS], 2) for s in SCALES], 2)
    error, spread = found  # (items, scales, details, distances)
    return SpreadTable(cases, error, spread)


def fit_spread(tables: Sequence[SpreadTable], cases: Sequence[str] | None = None, groups: Mapping[str, str] | None = None
               ) -> dict[str, float]:
    """s and d at which spread and error agree best, nearer to 1 where few groups of cases or unlike ones say so.

    Args:
        tables: from :func:`spread_tables`.
        cases: only patches of these cases; None for all.
        groups: case -> group; a case that is not in it is a group of its own.

    Returns:
        ``spread_scale`` and ``detail_scale`` within the ranges of :data:`SCALES` and :data:`DETAILS`; 1 with fewer than two
        groups or where nothing differs.
    """
    sums: dict[str, np.ndarray] = {}  # group -> error and spread (2, scales, details, distances)
    for t in tables:
        for case, error, spread in zip(t.cases, t.error, t.spread, strict=True):
            if cases is None or case in cases:
                group = (groups or {}).get(case, case)
                sums[group] = sums.get(group, 0) + np.stack([error, spread])
    nothing = {"spread_scale": 1.0, "detail_scale": 1.0}
    if len(sums) < 2:
        return nothing
    each = np.stack(list(sums.values()))
    without = each.sum(0) - each  # the sums with one group left out
    if not (without > 0).all():
        return nothing
    unscaled = log_ratios(without)[:, :, SCALES == 1, DETAILS == 1][..., 0]  # (groups, 2)
    variance = standard_error(unscaled) ** 2 + TOLERANCE**2
    volumes, overlap = (spline(r) for r in log_ratios(each.sum(0)))
    log_s, log_d = _between(SCALES), _between(DETAILS)
    s = log_s[_cost(volumes(log_s, 0.0)[:, 0], variance[0], log_s / SCALE_PRIOR_SD).argmin()]
    apart = overlap(s, log_d)[0]
    d = log_d[_cost((np.abs(apart) - LEFT_ALONE).clip(0), variance[1], log_d / DETAIL_PRIOR_SD).argmin()]
    return {"spread_scale": math.exp(s), "detail_scale": math.exp(d)}


def standard_error(without: np.ndarray) -> np.ndarray:
    """Half the width of a 68 % interval around an estimate, from its values with one group left out ``(groups, ...)``.

    The jackknife gives the variance of a single group. It is drawn towards ``GROUP_SD``^2 as if ``PRIOR_GROUPS`` more had been
    seen (Gelman et al. 2013, section 3.3); Student's distribution widens the interval by what is then still unknown of it.
    """
    groups = len(without)
    freedom = PRIOR_GROUPS + groups - 1
    of_one = groups * (groups - 1) * without.var(0)  # the jackknife's variance of the estimate, times the groups
    variance = (PRIOR_GROUPS * GROUP_SD**2 + (groups - 1) * of_one) / freedom / groups
    return student_t.ppf(norm.cdf(1), freedom) * np.sqrt(variance)


def _cost(ratio: np.ndarray, variance: float, standardised: np.ndarray) -> np.ndarray:
    """Twice the negative log posterior, up to a constant."""
    return ratio**2 / variance + standardised**2


def fit_spread_without_each(tables: Sequence[SpreadTable], cases: Sequence[str], groups: Mapping[str, str] | None = None
                            ) -> dict[str, dict[str, float]]:
    """For each case s and d fitted on all other groups, so that no case is judged with numbers that it helped to choose."""
    return {case: fit_spread(tables, others(case, cases, groups or {}), groups) for case in cases}


def log_ratios(sums: np.ndarray) -> np.ndarray:
    """Sums of error and spread ``(..., 2, scales, details, distances)`` -> log ratios ``(..., 2, scales, details)``.

    That of the volumes, mean over :data:`BLOCKS`, and that of 1 - IoU.
    """
    ratio = np.log(sums[..., 1, :, :, :] / sums[..., 0, :, :, :])
    return np.stack([ratio[..., : len(BLOCKS)].mean(-1), ratio[..., -1]], -3)


def _between(candidates: np.ndarray) -> np.ndarray:
    """Logarithms to choose from, 0 among them."""
    first, last = np.log(candidates[[0, -1]])
    return np.unique([first, last, *STEP * np.arange(math.ceil(first / STEP), last / STEP)])


def spline(ratio: np.ndarray) -> RectBivariateSpline:
    """Log ratios ``(scales, details)`` of the candidates as a function of log s and log d, at most quadratic in pieces."""
    degrees = (min(2, len(a) - 1) for a in (SCALES, DETAILS))
    return RectBivariateSpline(np.log(SCALES), np.log(DETAILS), ratio, kx=next(degrees), ky=next(degrees))
