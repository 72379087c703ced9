"""Fits how much the details of samples differ from the deterministic answer, on cases that the network was not trained on.

After training the latents' deviation from the latent of the deterministic segmentation is split in two,

    prior + smooth + d (z0 - prior - smooth),

where smooth is the mean of z0 - prior over a neighbourhood (:meth:`LatentDiffusionSegmenter.rescale`). The *detail scale* d
is to samples what temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2) is to a softmax, and does not touch
the deterministic segmentation: networks learn a variation that is common to a whole structure sooner than local ones.

A calibrated sampler's mean distance between two samples equals the mean distance between a sample and the truth
(:mod:`nndiffseg.methods.latent.scores`). d achieves that nearly for 1 - IoU of the hard labels; it is the mode of a
posterior, see :mod:`nndiffseg.calibration.shrinkage`. Volumes are no business of d: :mod:`nndiffseg.calibration.volumes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor
from torch.nn import functional as F

from nndiffseg.calibration.shrinkage import candidates, mode
from nndiffseg.data.groups import others
from nndiffseg.diffusion.noise.interpolation import PatchNoise
from nndiffseg.methods.latent.network import LatentDiffusionSegmenter
from nndiffseg.methods.latent.scores import jaccard_distances
from nndiffseg.nn.precision import autocast_for
from nndiffseg.training.loader import seed_of

if TYPE_CHECKING:
    from nndiffseg.training.trainer import DiffusionTrainer

#: values of d that are looked at
DETAILS = np.array([0.8, 1.0, 1.6, 2.8])
#: patches to look at: so many for each validation case, within these bounds. In 48 random patches of 39 cases only 29 of
#: the cases occur.
PATCHES_PER_CASE = 4
PATCHES = (48, 192)
#: standard deviation of log d that is expected before any case is seen; first fits on phantoms, cells and the hippocampus lay
#: between 0.9 and 2
PRIOR_SD = 0.7
#: log ratios of 1 - IoU so far from 0 are left alone. Multiplied details are no learned variation: they also bring error, so
#: full equality makes single samples worse than it makes them alike (docs/lab/sampling.md).
LEFT_ALONE = 0.07


@dataclass(frozen=True)
class SpreadTable:
    """One batch of patches under every value of ``DETAILS``.

    Attributes:
        cases: the patches' cases.
        error: 1 - IoU of a sample and the truth ``(patches, details)``.
        spread: that of two samples, of the same shape.
    """

    cases: tuple[str, ...]
    error: np.ndarray
    spread: np.ndarray


def spread_tables(
    trainer: DiffusionTrainer, network: LatentDiffusionSegmenter, patches: int | None = None
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


def _table(
    network: LatentDiffusionSegmenter, data: Tensor, onehot: Tensor, cases: tuple[str, ...], generator: torch.Generator
) -> SpreadTable:
    maps, regions = network.encode(data), bool(network.regions)
    grid = [n // s for n, s in zip(data.shape[2:], network.stride, strict=True)]
    draw = PatchNoise(len(data), grid, generator, data.device)
    fitted = network.detail_scale.clone()
    network.detail_scale.fill_(1.0)
    latents = [network.sample(maps, draw) for _ in range(2)]
    network.detail_scale.copy_(fitted)
    first = 0 if regions else 1  # without the background

    def distances(detail: float) -> np.ndarray:  # error and spread (2, items)
        logits = torch.stack([network.decode(network.rescale(z, maps, detail), maps) for z in latents]).float()
        hard = logits > 0 if regions else F.one_hot(logits.argmax(2), logits.shape[2]).movedim(-1, 2)
        overlap = jaccard_distances(hard[:, :, first:].float(), onehot[:, first:].float())
        return torch.cat([overlap.error, overlap.spread]).cpu().numpy()

    error, spread = np.stack([distances(float(d)) for d in DETAILS], -1)  # (items, details)
    return SpreadTable(cases, error, spread)


def fit_detail(
    tables: Sequence[SpreadTable], cases: Sequence[str] | None = None, groups: Mapping[str, str] | None = None
) -> float:
    """d at which spread and error nearly agree, nearer to 1 where few groups of cases or unlike ones say so.

    Args:
        tables: from :func:`spread_tables`.
        cases: only patches of these cases; None for all.
        groups: case -> group; a case that is not in it is a group of its own.

    Returns:
        A number within the range of :data:`DETAILS`; 1 with fewer than two groups or where nothing differs.
    """
    sums: dict[str, np.ndarray] = {}  # group -> error and spread (2, details)
    for t in tables:
        for case, error, spread in zip(t.cases, t.error, t.spread, strict=True):
            if cases is None or case in cases:
                group = (groups or {}).get(case, case)
                sums[group] = sums.get(group, 0) + np.stack([error, spread])
    if len(sums) < 2:
        return 1.0
    each = np.stack(list(sums.values()))
    without = each.sum(0) - each  # the sums with one group left out
    if not (without > 0).all():
        return 1.0
    log_d = candidates(DETAILS[0], DETAILS[-1])
    unscaled = log_ratio(without)[:, DETAILS == 1][:, 0]
    return math.exp(mode(log_d, interpolated(log_ratio(each.sum(0)), log_d), unscaled, PRIOR_SD, LEFT_ALONE))


def fit_detail_without_each(
    tables: Sequence[SpreadTable], cases: Sequence[str], groups: Mapping[str, str] | None = None
) -> dict[str, float]:
    """For each case d fitted on all other groups, so that no case is judged with a number that it helped to choose."""
    return {case: fit_detail(tables, others(case, cases, groups or {}), groups) for case in cases}


def log_ratio(sums: np.ndarray) -> np.ndarray:
    """Sums of error and spread ``(..., 2, details)`` -> log of spread / error ``(..., details)``."""
    return np.log(sums[..., 1, :] / sums[..., 0, :])


def interpolated(ratio: np.ndarray, log_details: np.ndarray) -> np.ndarray:
    """Log ratios at :data:`DETAILS` ``(details,)`` as a function of log d, at most quadratic in pieces."""
    return make_interp_spline(np.log(DETAILS), ratio, k=min(2, len(DETAILS) - 1))(log_details)
