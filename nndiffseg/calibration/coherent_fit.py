"""Calibrates a network that has no samples of its own: temperature, then the coherent sampler's lengths, then all the rest.

Everything is cross-fitted over groups of cases: a case's numbers come from other groups alone. One exception is too small to
matter: the samples of other cases, by which a case's lengths are chosen, are drawn at temperatures that have seen nine tenths
of all groups, and so perhaps the case's own.
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
from nndiffseg.calibration.fit import cross_fitted, fit
from nndiffseg.calibration.fusion import WEIGHTS
from nndiffseg.calibration.tables import CaseTable
from nndiffseg.calibration.temperature import fit_temperature, likelihood_curves
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind
from nndiffseg.diffusion.coherent import LENGTHS, components
from nndiffseg.diffusion.noise.field import NoiseField

#: samples that the fits draw of each case
SAMPLES = 16
#: The lengths are chosen on so many logits of a case at most.
THIN = 40_000
#: values of noise that are drawn at once
CHUNK = 2**24


@dataclass(frozen=True)
class CoherentFit:
    """What was fitted.

    Attributes:
        calibration: on all cases.
        crossed: case -> the one that was fitted without its group.
        scores: case -> what each candidate of the lengths gave on a part of its voxels, at the case's own temperature.
        chosen: case -> index of the candidate that was chosen without its group.
        tables: case -> what the chosen candidate gave on all voxels.
    """

    calibration: Calibration
    crossed: dict[str, Calibration]
    scores: dict[str, SampleScores]
    chosen: dict[str, int]
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
    of = {c.case: c for c in cases}
    curves = {c.case: likelihood_curves(*_near(c, kind), kind.heads) for c in cases}
    names = list(of)
    temperatures = cross_fitted(names, groups, lambda others: fit_temperature([curves[c] for c in others]))
    scores = {}
    for name, case in of.items():
        thin = case.thinned(THIN)
        scores[name] = score_candidates(thin, normals_at(thin, kind.heads.number, finest, seed), temperatures[name], kind)
        if on_case is not None:
            on_case()
    size = np.mean([c.true.mean(1).numpy() for c in cases], 0)
    chosen = cross_fitted(names, groups, lambda others: fit_lengths({c: scores[c] for c in others}, size, groups))
    drawn = {}
    for name, case in of.items():
        normals = normals_at(case, kind.heads.number, finest, seed)
        one = CANDIDATES[[chosen[name]]]
        drawn[name] = score_candidates(case, normals, temperatures[name], kind, candidates=one)
    tables = {name: _table(of[name], drawn[name], curves[name]) for name in names}
    fitted = cross_fitted(names, groups, lambda others: fit([tables[c] for c in others], groups, folds))
    crossed = {name: _with_lengths(c, chosen[name]) for name, c in fitted.items()}
    whole = _with_lengths(fit(list(tables.values()), groups, folds), fit_lengths(scores, size, groups))
    return CoherentFit(whole, crossed, scores, chosen, tables)


def _with_lengths(calibration: Calibration, candidate: int) -> Calibration:
    return replace(calibration, fusion_weight=1.0, length_weights=tuple(CANDIDATES[candidate].tolist()))


def _near(case: CaseVoxels, kind: LabelKind) -> tuple[Tensor, Tensor]:
    """Probabilities and annotators' choices near structures, ``(heads, n)`` both."""
    return kind.heads.probabilities(case.logits[:, case.near], 0), case.frequency(kind)[:, case.near]


def normals_at(case: CaseVoxels, heads: int, finest: float, seed: int = 0, samples: int = SAMPLES) -> list[Tensor]:
    """The field of each length at a case's voxels ``(N, heads, n)``; of infinite length ``(N, heads, 1)``.

    They are those that a prediction of the case with this seed sees, where it is made on the same grid.
    """
    fields = [NoiseField(seed, case.case, n) for n in range(samples)]
    place = np.unravel_index(case.where, case.shape)
    low = [int(p.min(initial=0)) for p in place]
    high = [int(p.max(initial=0)) + 1 for p in place]
    finite = [i for i, length in enumerate(LENGTHS) if not math.isinf(length)]
    kept: list[list[Tensor]] = [[] for _ in finite]
    rows = max(1, CHUNK // (samples * heads * math.prod(h - a for a, h in zip(low[1:], high[1:], strict=True))))
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


def _table(case: CaseVoxels, drawn: SampleScores, curves: np.ndarray) -> CaseTable:
    """The table of a case without a fusion weight, every weight has the same row; ``drawn`` with one candidate."""
    weights = len(WEIGHTS)
    return CaseTable(
        case.case,
        np.broadcast_to(case.dice, (weights, len(case.dice))),
        np.zeros(weights),
        drawn.voxels[0] * case.voxel_ml,
        case.true.double().numpy() * case.voxel_ml,
        np.broadcast_to(curves, (weights, *curves.shape)),
        drawn.agreement[0],
    )
