"""Calibrates a network that has no samples of its own: temperature, then the coherent sampler's lengths, then all the rest.

The whole chain is cross-fitted over groups of cases. The samples of other cases are then needed at the temperature that was
fitted without a case's group, which costs little: temperatures are rounded to steps of 5 %, over which the likelihood is flat,
so that most parts share one and its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.coherence import CANDIDATES, SampleScores, fit_lengths, score_candidates
from nndiffseg.calibration.confidence import soft_dice
from nndiffseg.calibration.fit import cross_fitted, fit
from nndiffseg.calibration.fusion import WEIGHTS
from nndiffseg.calibration.tables import CaseTable
from nndiffseg.calibration.temperature import fit_temperature, likelihood_curves
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind
from nndiffseg.diffusion.coherent import LENGTHS, components
from nndiffseg.diffusion.noise.field import NoiseField

#: samples that the fits draw of each case of a model without a trained sampler
SAMPLES = 16
#: The lengths are chosen on so many logits of a case at most.
THIN = 20_000
#: values of noise that are drawn at once
CHUNK = 2**24


#: of the logarithm of a temperature
TEMPERATURE_STEP = 0.05


@dataclass(frozen=True)
class CoherentFit:
    """What was fitted.

    Attributes:
        calibration: on all cases.
        crossed: case -> the one that was fitted without its group.
        scores: case -> what each candidate of the lengths gives on a part of its voxels, at the crossed temperature.
        tables: case -> what the crossed calibration gives on all of them.
    """

    calibration: Calibration
    crossed: dict[str, Calibration]
    scores: dict[str, SampleScores]
    tables: dict[str, CaseTable]


def fit_coherent(
    cases: Sequence[CaseVoxels],
    kind: LabelKind,
    groups: Mapping[str, str],
    folds: Sequence[str],
    finest: float,
    *,
    seed: int = 0,
    on_case: Callable[[], None] | None = None,
) -> CoherentFit:
    """Fits a calibration to validation cases.

    Args:
        cases: what was observed of each.
        kind: what channels and labels mean.
        groups: case -> group; a case that is not in it is a group of its own.
        folds: whose validation cases these are, for the record.
        finest: edge of the finest voxels of the plans, in mm.
        seed: of the samples.
        on_case: called after each case, for a progress bar.
    """
    fits = CoherentFits({c.case: c for c in cases}, kind, groups, folds, finest, seed)
    names = list(fits.cases)
    whole = fits.temperature(names)
    for name in names:  # nearly all parts have this temperature
        fits.scores(name, whole)
        if on_case is not None:
            on_case()
    crossed = cross_fitted(names, groups, fits.calibration)
    scores = {name: fits.scores(name, c.temperature) for name, c in crossed.items()}
    tables = {name: fits.table(name, c.temperature, index_of(c)) for name, c in crossed.items()}
    return CoherentFit(fits.calibration(names), crossed, scores, tables)


def index_of(calibration: Calibration) -> int:
    """Which of the candidates a calibration's lengths are."""
    return int(np.abs(CANDIDATES - np.array(calibration.length_weights)).sum(1).argmin())


class CoherentFits:
    """The chain of fits on any of the cases; samples that were drawn and scored are kept."""

    def __init__(
        self,
        cases: dict[str, CaseVoxels],
        kind: LabelKind,
        groups: Mapping[str, str],
        folds: Sequence[str],
        finest: float,
        seed: int,
    ):
        self.cases, self.kind, self.groups, self.folds, self.finest, self.seed = cases, kind, groups, folds, finest, seed
        self.curves = {name: likelihood_curves(*_near(case, kind), kind.heads) for name, case in cases.items()}
        self._scores: dict[tuple, SampleScores] = {}
        self._tables: dict[tuple, CaseTable] = {}

    def calibration(self, names: Sequence[str]) -> Calibration:
        """Of these cases alone."""
        if not names:
            weights = tuple(CANDIDATES[-1].tolist())
            return Calibration(fusion_weight=1.0, length_weights=weights, coherent_share=1.0, folds=tuple(self.folds))
        temperature = self.temperature(names)
        size = np.mean([self.cases[n].true.mean(1).numpy() for n in names], 0)
        chosen = fit_lengths({n: self.scores(n, temperature) for n in names}, size, self.groups)
        fitted = fit([self.table(n, temperature, chosen) for n in names], self.groups, self.folds)
        weights = tuple(CANDIDATES[chosen].tolist())
        return replace(fitted, fusion_weight=1.0, temperature=temperature, length_weights=weights, coherent_share=1.0)

    def temperature(self, names: Sequence[str]) -> tuple[float, ...]:
        """Fitted to these cases and rounded."""
        exact = fit_temperature([self.curves[n] for n in names])
        return rounded(exact)

    def scores(self, name: str, temperature: tuple[float, ...]) -> SampleScores:
        """Of all candidates, on a part of the case's voxels."""
        if (key := (name, temperature)) not in self._scores:
            thin = self.cases[name].thinned(THIN)
            self._scores[key] = score_candidates(thin, self._normals(thin), temperature, self.kind)
        return self._scores[key]

    def table(self, name: str, temperature: tuple[float, ...], chosen: int) -> CaseTable:
        """Of one candidate, on all voxels."""
        if (key := (name, temperature, chosen)) not in self._tables:
            case, one = self.cases[name], CANDIDATES[[chosen]]
            drawn = score_candidates(case, self._normals(case), temperature, self.kind, candidates=one)
            self._tables[key] = _table(case, self.kind, drawn, self.curves[name])
        return self._tables[key]

    def _normals(self, case: CaseVoxels) -> list[Tensor]:
        samples = range(len(case.drawn) or SAMPLES)  # as many as a trained sampler drew: more of them score better
        return normals_at(case, self.kind.heads.number, self.finest, self.seed, samples)


def rounded(temperature: Sequence[float]) -> tuple[float, ...]:
    """To steps of 5 %."""
    return tuple(math.exp(TEMPERATURE_STEP * round(math.log(t) / TEMPERATURE_STEP)) for t in temperature)


def _near(case: CaseVoxels, kind: LabelKind) -> tuple[Tensor, Tensor]:
    """Probabilities and annotators' choices near structures, ``(heads, n)`` both."""
    return kind.heads.probabilities(case.logits[:, case.near], 0), case.frequency(kind)[:, case.near]


def normals_at(
    case: CaseVoxels, heads: int, finest: float, seed: int = 0, samples: Sequence[int] = range(SAMPLES)
) -> list[Tensor]:
    """The field of each length at a case's voxels, for some samples ``(N, heads, n)``; of infinite length ``(N, heads, 1)``.

    They are those that a prediction of the case with this seed sees, where it is made on the same grid.
    """
    fields = [NoiseField(seed, case.case, n) for n in samples]
    place = np.unravel_index(case.where, case.shape)
    low = [int(p.min(initial=0)) for p in place]
    high = [int(p.max(initial=0)) + 1 for p in place]
    finite = [i for i, length in enumerate(LENGTHS) if not math.isinf(length)]
    kept: list[list[Tensor]] = [[] for _ in finite]
    rows = max(1, CHUNK // (len(samples) * heads * math.prod(h - a for a, h in zip(low[1:], high[1:], strict=True))))
    for start in range(low[0], high[0], rows):
        origin = [start, *low[1:]]
        shape = [min(rows, high[0] - start), *(h - a for a, h in zip(low[1:], high[1:], strict=True))]
        here = (place[0] >= start) & (place[0] < start + shape[0])
        index = torch.from_numpy(np.ravel_multi_index([p[here] - o for p, o in zip(place, origin, strict=True)], shape))
        parts = components(fields, heads, shape, case.spacing, finest, which=finite, origin=origin)
        for values, part in zip(kept, parts, strict=True):
            values.append(part.flatten(2)[:, :, index])
    at = {i: torch.cat(values, 2) for i, values in zip(finite, kept, strict=True)}
    infinite = [i for i in range(len(LENGTHS)) if i not in at]
    whole = components(fields, heads, (1,) * len(case.shape), case.spacing, finest, which=infinite)
    at |= {i: part.flatten(2) for i, part in zip(infinite, whole, strict=True)}
    return [at[i] for i in range(len(LENGTHS))]


def _table(case: CaseVoxels, kind: LabelKind, drawn: SampleScores, curves: np.ndarray) -> CaseTable:
    """The table of a case without a fusion weight, every weight has the same row; ``drawn`` with one candidate."""
    weights = len(WEIGHTS)
    confidence = soft_dice(kind.heads.probabilities(case.logits, 0), kind.heads, case.every, case.certain)
    return CaseTable(
        case.case,
        np.broadcast_to(case.dice, (weights, len(case.dice))),
        np.zeros(weights),
        drawn.voxels[0] * case.voxel_ml,
        case.true.double().numpy() * case.voxel_ml,
        np.broadcast_to(curves, (weights, *curves.shape)),
        np.broadcast_to(confidence, (weights, len(confidence))),
        case.complete,
    )
