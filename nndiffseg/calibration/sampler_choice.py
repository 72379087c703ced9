"""Whose samples a prediction gets: the trained sampler's, the coherent sampler's around the head's map, or half of each.

All three are fitted and scored on validation cases by the proper scores of :mod:`nndiffseg.calibration.coherence`. The best
wins; a simpler one that is within one standard error of it wins instead (Breiman et al. 1984, Classification and Regression
Trees, section 3.4.3). Coherent samples alone are the simplest: no diffusion runs at all. They are a candidate only where
the head's segmentation has the Dice of the fused one, which would be lost with the diffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.calibration.calibration import SHARES, Calibration
from nndiffseg.calibration.coherence import coherent_labels, group_means, score_labels
from nndiffseg.calibration.coherent_fit import THIN, CoherentFits, index_of, normals_at, rounded
from nndiffseg.calibration.fit import cross_fitted, fit
from nndiffseg.calibration.fusion import TOLERANCE, mean_dice
from nndiffseg.calibration.tables import CaseTable
from nndiffseg.calibration.temperature import FLOOR
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind

NAMES = {1.0: "coherent", 0.5: "mixture", 0.0: "diffusion"}
#: groups of cases below which nothing is chosen: samples are the trained sampler's
FEWEST_GROUPS = 5


def coherent_members(samples: Sequence[int], share: float) -> list[int]:
    """Those of a fold's samples that the coherent sampler draws: all, every second from the second on, or none."""
    return list(samples) if share == 1 else list(samples[1::2]) if share > 0 else []


@dataclass(frozen=True)
class ChosenSampler:
    """What was chosen and fitted.

    Attributes:
        calibration: on all cases.
        crossed: case -> the one that was chosen and fitted without its group.
        tables: case -> what its crossed calibration gives.
        scores: of each of :data:`NAMES`, mean over groups of what it gives for cases it was not fitted to; lower is better.
    """

    calibration: Calibration
    crossed: dict[str, Calibration]
    tables: dict[str, CaseTable]
    scores: dict[str, float]

    def in_words(self) -> str:
        """Such as ``coherent (score 0.210; mixture 0.212, diffusion 0.230)``."""
        best = NAMES[self.calibration.coherent_share]
        others = ", ".join(f"{name} {score:.4f}" for name, score in self.scores.items() if name != best)
        return f"{best} (score {self.scores[best]:.4f}; {others})"


def choose_sampler(
    cases: Sequence[CaseVoxels],
    tables: Sequence[CaseTable],
    kind: LabelKind,
    groups: Mapping[str, str],
    folds: Sequence[str],
    finest: float,
    *,
    seed: int = 0,
    on_case: Callable[[], None] | None = None,
) -> ChosenSampler | None:
    """Chooses and fits.

    Args:
        cases: what was observed of each, with its trained samples; logits are the head's.
        tables: of the trained sampler, of the same cases.
        kind: what channels and labels mean.
        groups: case -> group; a case that is not in it is a group of its own.
        folds: whose validation cases these are, for the record.
        finest: edge of the finest voxels of the plans, in mm.
        seed: of the samples.
        on_case: called after each case, for a progress bar.

    Returns:
        None with fewer than :data:`FEWEST_GROUPS` groups.
    """
    if len({groups.get(c.case, c.case) for c in cases}) < FEWEST_GROUPS:
        return None
    head = CoherentFits({c.case: c for c in cases}, kind, groups, folds, finest, seed)
    fits = _Choice(head, {t.case: t for t in tables})
    names = list(head.cases)
    temperature = head.temperature(names)
    for name in names:  # most of the work
        head.scores(name, temperature)
        if on_case is not None:
            on_case()
    parts = cross_fitted(names, groups, fits.fit)
    crossed = {name: chosen for name, (chosen, _) in parts.items()}
    left_out = {name: fits.scores(name, candidates) for name, (_, candidates) in parts.items()}
    mean = group_means(left_out, groups).mean(0)
    return ChosenSampler(
        fits.fit(names)[0],
        crossed,
        {name: fits.table(name, c) for name, c in crossed.items()},
        {NAMES[share]: float(score) for share, score in zip(SHARES, mean, strict=True)},
    )


class _Choice:
    """The chain of fits on any of the cases; samples that were drawn are scored once.

    Args:
        head: fits of the coherent sampler to the cases.
        tables: case -> table of the trained sampler.
    """

    def __init__(self, head: CoherentFits, tables: dict[str, CaseTable]):
        self.head, self.tables = head, tables
        self.size = np.mean([c.true.mean(1).numpy() for c in head.cases.values()], 0)  # (K,)
        self._totals: dict[tuple, float] = {}
        self._volumes: dict[tuple, NDArray] = {}

    def fit(self, names: Sequence[str]) -> tuple[Calibration, list[Calibration]]:
        """The chosen calibration, and that of each of :data:`SHARES`."""
        coherent, diffusion = self.head.calibration(names), self._fit([self.tables[n] for n in names])
        candidates = [coherent, self._mixture(names, coherent, diffusion), diffusion]
        if not names:
            return diffusion, candidates
        dice = mean_dice([self.tables[n] for n in names])
        best = np.max(dice, where=np.isfinite(dice), initial=-np.inf)
        first = int(dice[-1] < best - TOLERANCE)  # the last weight is the head alone
        scores = group_means({name: self.scores(name, candidates[first:]) for name in names}, self.head.groups)
        return candidates[first + simplest_of_the_best(scores)], candidates

    def _fit(self, tables: Sequence[CaseTable]) -> Calibration:
        return fit(tables, self.head.groups, self.head.folds)

    def _mixture(self, names: Sequence[str], coherent: Calibration, diffusion: Calibration) -> Calibration:
        temperature, lengths = rounded(diffusion.temperature), coherent.length_weights
        mixture = replace(diffusion, temperature=temperature, length_weights=lengths, coherent_share=0.5)
        fitted = self._fit([self.table(n, mixture) for n in names])
        return replace(mixture, volume_scale=fitted.volume_scale, volume_quantiles=fitted.volume_quantiles)

    def scores(self, name: str, candidates: Sequence[Calibration]) -> NDArray[np.float64]:
        """Of each calibration's samples, on a part of the case's voxels ``(candidates,)``."""
        return np.array([self._total(name, c) for c in candidates])

    def _total(self, name: str, calibration: Calibration) -> float:
        if (key := _key(name, calibration)) not in self._totals:
            case = self.head.cases[name]
            if calibration.coherent_share == 1:
                every = self.head.scores(name, calibration.temperature).total(self.size)
                self._totals[key] = float(every[index_of(calibration)])
            else:
                thin = case.thinned(THIN)
                self._totals[key] = float(
                    score_labels([self._labels(thin, calibration)], thin, self.head.kind).total(self.size)[0]
                )
        return self._totals[key]

    def table(self, name: str, calibration: Calibration) -> CaseTable:
        """What a calibration gives for a case, of the samples it asks for."""
        if calibration.coherent_share == 1:
            return self.head.table(name, calibration.temperature, index_of(calibration))
        if calibration.coherent_share == 0:
            return self.tables[name]
        if (key := _key(name, calibration)) not in self._volumes:
            case = self.head.cases[name]
            scores = score_labels([self._labels(case, calibration)], case, self.head.kind)
            self._volumes[key] = scores.voxels[0] * case.voxel_ml
        return replace(self.tables[name], sampled_ml=self._volumes[key])

    def _labels(self, case: CaseVoxels, calibration: Calibration) -> Tensor:
        """Samples of a prediction with this calibration, of trained samplers in part ``(N, n)``."""
        drawn = case.drawn.long()
        members = coherent_members(range(len(drawn)), calibration.coherent_share)
        if not members:
            return drawn
        head, heads = self.head, self.head.kind.heads
        p = torch.lerp(case.sampled, heads.probabilities(case.logits, 0), calibration.fusion_weight)
        logits = case.scaled(heads.logits(p.clamp(FLOOR, 1 - FLOOR)), calibration.temperature)
        normals = normals_at(case, heads.number, head.finest, head.seed, members)
        mixed = drawn.clone()
        mixed[members] = coherent_labels(logits, normals, calibration.length_weights, head.kind)
        return mixed


def _key(name: str, c: Calibration) -> tuple:
    return (
        name,
        c.coherent_share,
        c.fusion_weight if c.coherent_share else 0,
        c.temperature if c.coherent_share else (),
        c.length_weights,
    )


def simplest_of_the_best(scores: NDArray) -> int:
    """Index of the first of several samplers whose mean score is within one standard error of the best one's.

    Args:
        scores: of each group of cases, the simplest sampler first ``(groups >= 2, samplers)``; lower is better.
    """
    best = int(scores.mean(0).argmin())
    worse = scores - scores[:, best : best + 1]  # paired
    error = worse.std(0, ddof=1) / np.sqrt(len(scores))
    return int(np.flatnonzero(worse.mean(0) <= error)[0])
