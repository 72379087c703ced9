"""A finished nnU-Net before and after ``nndiffseg_calibrate``: is the map right, and what are its samples worth?

    python -m benchmarks.calibrated_nnunet MODEL_FOLDER --preprocessed FOLDER [--raters FOLDER] --name NAME

All rows are the same network. Everything fitted comes from cases of other groups. With ``--raters`` (``CASE/ANNOTATION``, the
raw dataset's ``ratersTr``) samples are scored against all annotations; fits use the one label of each case, as in training.
Intervals are 95 % bootstrap intervals over groups of cases; they do not cover the choice of the seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import report
from benchmarks.compare.pooling import Interval, interval, means, resamples
from nndiffseg.calibration.coherence import CANDIDATES, SampleScores, score_candidates
from nndiffseg.calibration.coherent_fit import SAMPLES, fit_coherent, index_of, normals_at
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind
from nndiffseg.data.groups import read_groups
from nndiffseg.inference.coherent import finest_edge
from nndiffseg.inference.stock_model import load_stock_model
from nndiffseg.inference.stock_predictor import StockPredictor
from nndiffseg.inference.validation_cases import ValidationCases
from nndiffseg.uncertainty.calibration_check import INDEPENDENT, check_coherent

RAW, SCALED, COHERENT = "T = 1, voxel by voxel", "T, voxel by voxel", "T, coherent"


@dataclass(frozen=True)
class RatedCases(ValidationCases):
    """The cases with all annotations in ``raters`` where there are some."""

    raters: Path

    def references(self, case: str) -> tuple[NDArray, Sequence[float]]:
        label, spacing = super().references(case)
        files = sorted((self.raters / case).iterdir()) if (self.raters / case).is_dir() else []
        reader = self.predictor.plans.image_reader_writer_class()
        return (np.concatenate([reader.read_seg(str(f))[0] for f in files]) if files else label), spacing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--preprocessed", type=Path, required=True)
    parser.add_argument("--raters", type=Path)
    parser.add_argument("--name", required=True, help="of the JSON file")
    args = parser.parse_args()
    predictor = StockPredictor(load_stock_model(args.model), torch.device("cpu"))
    data = args.preprocessed / str(predictor.plans.dataset_name)
    cases, groups = ValidationCases(predictor, args.model, data), read_groups(data)
    kind, finest = cases.kind(), finest_edge(predictor.configuration)
    observed = list(cases.observe())
    fitted = fit_coherent(observed, kind, groups, predictor.folds, finest)
    judged = list(RatedCases(predictor, args.model, data, args.raters).observe()) if args.raters else observed
    scores: dict[str, list[SampleScores]] = {RAW: [], SCALED: [], COHERENT: []}
    for case in judged:
        crossed = fitted.crossed[case.case]
        normals = normals_at(case, kind.heads.number, finest)
        one = (1.0,) * len(crossed.temperature)
        for name, temperature, index in (
            (RAW, one, INDEPENDENT),
            (SCALED, crossed.temperature, INDEPENDENT),
            (COHERENT, crossed.temperature, index_of(crossed)),
        ):
            scores[name].append(score_candidates(case, normals, temperature, kind, candidates=CANDIDATES[[index]]))
    weights = resamples([groups.get(c.case, c.case) for c in judged])
    rows = {name: _row(found, judged, weights) for name, found in scores.items()}
    result = {
        "model": args.model.name,
        "folds": list(predictor.folds),
        "cases": len(judged),
        "groups": fitted.calibration.groups,
        "samples": SAMPLES,
        "calibration": fitted.calibration.to_json(),
        "check": _check(judged, kind, fitted, groups),
        "rows": {name: {k: [round(v, 4) for v in i] for k, i in row.items()} for name, row in rows.items()},
        "difference": {
            other: {
                k: [round(v, 4) for v in i] for k, i in _difference(scores[COHERENT], scores[other], judged, weights).items()
            }
            for other in (RAW, SCALED)
        },
    }
    names = list(rows[RAW])
    for key, value in result["check"].items():
        print(key, value)
    report(args.name, [[name, *(_text(row[k]) for k in names)] for name, row in rows.items()], ["", *names], result)


def _check(cases: Sequence[CaseVoxels], kind: LabelKind, fitted: Any, groups: dict[str, str]) -> dict[str, Any]:
    found = check_coherent(cases, kind, groups, fitted)
    probabilities = {
        name: {k: round(row[k], 4) for k in ("nll", "brier", "ece")} for name, row in found["probabilities"].items()
    }
    dice = {k: found["dice"][k] for k in ("spearman", "coverage_90")}
    return {"probabilities": probabilities, "error_auroc": found["error_auroc"], "volumes": found["volumes"], "dice": dice}


def _values(scores: Sequence[SampleScores], cases: Sequence[CaseVoxels]) -> dict[str, NDArray]:
    """Metric -> value of each case, mean over structures."""
    size = np.mean([c.true.mean(1).numpy() for c in cases], 0)
    found = {
        "energy, 1 - IoU": [s.outlines[0].mean() for s in scores],
        "energy of volumes / volume": [(s.volumes[0] / size).mean() for s in scores],
        "Dice of two samples": [s.agreement[0].mean() for s in scores],
    }
    if any(c.labels.shape[0] > 1 for c in cases):
        found["GED^2"] = [2 * s.outlines[0].mean() - _between(c) for s, c in zip(scores, cases, strict=True)]
    return {k: np.array(v) for k, v in found.items()}


def _between(case: CaseVoxels) -> float:
    """Mean 1 - IoU of two annotations, all pairs, mean over structures."""
    members = case.members.float()  # (K, M, n); all foreground of all annotations is near, and so kept
    both = case.every * members @ members.transpose(1, 2)
    either = case.true[:, :, None] + case.true[:, None] - both
    return float(torch.where(either > 0, 1 - both / either.clamp_min(1), 0.0).mean())


def _row(scores: Sequence[SampleScores], cases: Sequence[CaseVoxels], weights: NDArray) -> dict[str, Interval]:
    return {k: interval(means(weights, v[:, None])[:, 0]) for k, v in _values(scores, cases).items()}


def _difference(
    first: Sequence[SampleScores], second: Sequence[SampleScores], cases: Sequence[CaseVoxels], weights: NDArray
) -> dict[str, Interval]:
    a, b = _values(first, cases), _values(second, cases)
    return {k: interval(means(weights, (a[k] - b[k])[:, None])[:, 0]) for k in a}


def _text(value: Interval) -> str:
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


if __name__ == "__main__":
    main()
