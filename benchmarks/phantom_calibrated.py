"""Calibrated models on phantoms whose truth is known: voxel marginals and volume intervals against many true draws.

    python -m benchmarks.phantom_calibrated --raw DATASET_FOLDER --seed SEED --models MODEL_FOLDER [...] --name NAME

The dataset is one that ``write_phantom_dataset`` made with this seed. Its test cases are predicted, which no training, fit or
choice has seen. Models are stock nnU-Nets after ``nndiffseg_calibrate`` or nndiffseg's own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import report
from nndiffseg.data.phantom import STRUCTURES, case_generators, draw_geometry, draw_label
from nndiffseg.inference.case_predictor import CasePredictor
from nndiffseg.inference.predictor import Predictor
from nndiffseg.inference.stock_model import is_stock
from nndiffseg.inference.stock_predictor import StockPredictor
from nndiffseg.uncertainty.case_labels import near_structures

DRAWS, SAMPLES, BINS = 200, 32, 10


def truth_of(seed: int, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Of one case, over :data:`DRAWS` labels: marginals ``(2, *spatial)``, volumes in ml ``(draws, 2)``, voxels near."""
    for_geometry, _, _, for_truth = case_generators(seed, index)
    geometry = draw_geometry(for_geometry)
    labels = [draw_label(geometry, for_truth).transpose(2, 1, 0) for _ in range(DRAWS)]  # as the files are read
    masks = np.stack([[label == k for k in (1, 2)] for label in labels])  # (draws, 2, *spatial)
    near = near_structures(labels)
    return masks.mean(0), masks.sum((2, 3, 4)) * geometry.spacing**3 / 1000, near


def evaluate(predictor: CasePredictor, dataset: Path, seed: int) -> dict[str, Any]:
    """Means over cases and structures."""
    errors, sampled, covered, widths = [], [], [], []
    bins = np.zeros((3, BINS))  # voxels, probability, true marginal
    for file in sorted((dataset / "imagesTs").glob("*_0000.nii.gz")):
        case = file.name.removesuffix("_0000.nii.gz")
        marginal, volumes, near = truth_of(seed, int(case.rpartition("_")[2]))
        found = predictor.predict(file, case_id=case, return_samples=True)
        p, q = found.probabilities[1:][:, near], marginal[:, near]
        frequency = np.stack([(found.samples == k).mean(0)[near] for k in (1, 2)])
        errors.append(np.abs(p - q).mean())
        sampled.append(np.abs(frequency - q).mean())
        index = np.minimum((p * BINS).astype(int), BINS - 1).ravel()
        bins += [np.bincount(index, w, BINS) for w in (np.ones(p.size), p.ravel(), q.ravel())]
        for k, name in enumerate(STRUCTURES):
            low, high = found.volumes[name]["calibrated_interval_90_ml"]
            covered.append(((volumes[:, k] >= low) & (volumes[:, k] <= high)).mean())
            widths.append((high - low) / volumes[:, k].mean())
    some = bins[0] > 0
    gap = np.abs(bins[1] - bins[2])[some] / bins[0][some]
    return {
        "cases": len(errors),
        "marginal_error": float(np.mean(errors)),
        "sample_marginal_error": float(np.mean(sampled)),
        "largest_bin_gap": float(gap.max()),
        "ece": float((gap * bins[0][some]).sum() / bins[0].sum()),
        "volume_coverage_90": float(np.mean(covered)),
        "volume_width": float(np.mean(widths)),
    }


def load(folder: Path) -> CasePredictor:
    if is_stock(folder):
        return StockPredictor.from_folder(folder, device="cpu", samples=SAMPLES)
    return Predictor.from_folder(folder, device="cpu", samples=SAMPLES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True, help="of the dataset")
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--name", required=True, help="of the JSON file")
    args = parser.parse_args()
    rows, found = [], {}
    for folder in args.models:
        result = evaluate(load(folder), args.raw, args.seed)
        calibration = folder / "calibration.json"
        fitted = json.loads(calibration.read_text(encoding="utf8")) if calibration.is_file() else None
        found[folder.name] = {**{k: round(v, 4) for k, v in result.items()}, "calibration": fitted}
        rows.append([folder.name, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in result.values())])
    header = ["model", "cases", "|p - q|", "|samples - q|", "largest gap of ten bins", "ECE", "volumes in 90 %", "width"]
    report(args.name, rows, header, {"samples": SAMPLES, "draws": DRAWS, "models": found})


if __name__ == "__main__":
    main()
