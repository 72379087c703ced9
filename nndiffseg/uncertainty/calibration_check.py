"""How good a calibration is on cases that it was not fitted to: before, after, and beside isotonic regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.coherence import CANDIDATES
from nndiffseg.calibration.coherent_fit import CoherentFit, index_of
from nndiffseg.calibration.fit import cross_fitted
from nndiffseg.calibration.isotonic import fit_isotonic, probability_histogram
from nndiffseg.calibration.tables import CaseTable
from nndiffseg.calibration.temperature import tempered
from nndiffseg.calibration.volumes import floored_sd
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind
from nndiffseg.uncertainty.detection import ErrorHistogram
from nndiffseg.uncertainty.maps import entropy
from nndiffseg.uncertainty.reliability import ReliabilityAccumulator

#: what the probabilities are corrected by
RAW, TEMPERATURE, ISOTONIC = "as they come", "temperature", "isotonic regression"
#: index of the candidate that draws every voxel alone
INDEPENDENT = int(np.flatnonzero(CANDIDATES[:, 0] == 1)[0])


def check_coherent(cases: Sequence[CaseVoxels], kind: LabelKind, groups: Mapping[str, str], fit: CoherentFit) -> dict[str, Any]:
    """Everything that a report shows of a calibrated nnU-Net, each case with numbers that were fitted without its group.

    Returns:
        JSON-ready: ``probabilities`` (NLL, Brier score, ECE near the structures, for :data:`RAW`, :data:`TEMPERATURE` and
        :data:`ISOTONIC`), ``reliability`` (bins before and after), ``error_auroc``, ``samples`` (energy scores of outlines and,
        in ml, of volumes, drawn voxel by voxel and coherently), and what :func:`check_tables` returns.
    """
    result = _probabilities(cases, kind, groups, fit.crossed)
    chosen = {name: index_of(c) for name, c in fit.crossed.items()}
    samples = {"voxel by voxel": dict.fromkeys(chosen, INDEPENDENT), "coherent": chosen}
    result["samples"] = {
        name: {
            "energy_outlines": _mean(fit.scores[c.case].outlines[index[c.case]] for c in cases),
            "energy_volumes_ml": _mean(fit.scores[c.case].volumes[index[c.case]] * c.voxel_ml for c in cases),
            "agreement": _mean(fit.scores[c.case].agreement[index[c.case]] for c in cases),
        }
        for name, index in samples.items()
    }
    result["regions"] = kind.heads.regions
    return result | check_tables(list(fit.tables.values()), fit.crossed)


def check_tables(tables: Sequence[CaseTable], crossed: Mapping[str, Calibration]) -> dict[str, Any]:
    """Volumes and expected Dice of the cases of a fit.

    Args:
        tables: of the cases; the row of the deterministic head is taken where there are several.
        crossed: case -> calibration that was fitted without its group.

    Returns:
        ``cases``, and how many of them are ``complete_cases``, without ignored voxels; ``volumes``: of those, per structure the
        share of true volumes in the promised interval and its mean width over the volume, None where none was promised;
        ``dice``: rank correlation of confidence and Dice over cases, share of cases in the interval.
    """
    structures = len(tables[0].true_ml)
    volumes = [_volumes(tables, crossed, k) for k in range(structures)]
    pairs, inside = [], []
    for table in tables:
        confidence, dice = (_at_weight(t, crossed[table.case]) for t in (table.confidence, table.dice))
        calibration = crossed[table.case].dice
        interval = (
            calibration.interval(confidence) if calibration is not None and np.isfinite([confidence, dice]).all() else None
        )
        pairs.append((confidence, dice))
        inside.append(interval[0] <= dice <= interval[1] if interval is not None else None)
    known = [i for i in inside if i is not None]
    varied = len({p[0] for p in pairs}) > 2
    return {
        "cases": len(tables),
        "complete_cases": sum(t.complete for t in tables),
        "volumes": volumes,
        "dice": {
            "spearman": float(spearmanr(*zip(*pairs, strict=True), nan_policy="omit").statistic) if varied else None,
            "coverage_90": float(np.mean(known)) if known else None,
            "points": [list(p) for p in pairs],
        },
    }


def _at_weight(rows: NDArray, calibration: Calibration) -> float:
    """Mean over structures of the row of the calibration's fusion weight ``(weights, K)``; NaN without any."""
    row = rows[round(calibration.fusion_weight * (len(rows) - 1))]
    return float(np.nanmean(row)) if np.isfinite(row).any() else float("nan")


def _volumes(tables: Sequence[CaseTable], crossed: Mapping[str, Calibration], k: int) -> dict[str, Any]:
    held, widths = [], []
    for table in (t for t in tables if t.complete):  # elsewhere the volume of the whole structure is unknown
        quantiles = crossed[table.case].volume_quantiles
        if not quantiles or (q := quantiles[k]) is None:
            return {"coverage_90": None, "width": None}
        drawn = table.sampled_ml[k]
        half = q * float(floored_sd(drawn))
        held += (np.abs(table.true_ml[k] - drawn.mean()) <= half).tolist()
        widths.append((min(half, drawn.mean()) + half) / max(float(table.true_ml[k].mean()), 1e-9))
    if not widths:
        return {"coverage_90": None, "width": None}
    return {"coverage_90": float(np.mean(held)), "width": float(np.median(widths))}


def _probabilities(
    cases: Sequence[CaseVoxels], kind: LabelKind, groups: Mapping[str, str], crossed: Mapping[str, Calibration]
) -> dict[str, Any]:
    bins = {c.case: probability_histogram(*_near(c, kind)) for c in cases}
    regions = kind.heads.regions
    isotonic = cross_fitted([c.case for c in cases], groups, lambda others: fit_isotonic([bins[c] for c in others], regions))
    sums = {name: ReliabilityAccumulator(kind.heads.number, regions=regions) for name in (RAW, TEMPERATURE, ISOTONIC)}
    errors = ErrorHistogram()
    for case in cases:
        p, y = _near(case, kind)
        scaled = tempered(p.clone(), crossed[case.case].temperature, kind.heads)
        everywhere = np.ones(p.shape[1], dtype=bool)
        for name, values in ((RAW, p), (TEMPERATURE, scaled), (ISOTONIC, isotonic[case.case](p))):
            sums[name].add(values.numpy(), y.numpy(), everywhere)
        hard = kind.hard(case.logits[:, case.near])
        uncertainty = entropy(scaled.numpy(), regions=regions)
        for labels in case.labels[:, case.near]:
            errors.add(np.asarray(uncertainty), (hard != labels).numpy())
    auroc = errors.auroc()
    return {
        "probabilities": {name: s.summary() for name, s in sums.items()},
        "reliability": {
            name: {k: getattr(s, k).tolist() for k in ("voxels", "confidence", "frequency")} for name, s in sums.items()
        },
        "error_auroc": auroc if np.isfinite(auroc) else None,
    }


def _near(case: CaseVoxels, kind: LabelKind) -> tuple[Tensor, Tensor]:
    """Probabilities as they come and annotators' choices near structures ``(heads, n)``."""
    return kind.heads.probabilities(case.logits[:, case.near], 0), case.frequency(kind)[:, case.near]


def _mean(values: Any) -> float:
    return float(np.mean([np.nanmean(v) for v in values]))
