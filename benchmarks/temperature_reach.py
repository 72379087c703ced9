"""Where the temperature of coherent samples holds: everywhere, or near the segmentation alone.

    python -m benchmarks.temperature_reach --preprocessed FOLDER [FOLDER ...] --models MODEL_FOLDER [...] --name NAME

Stock nnU-Nets are read as ``nndiffseg_calibrate`` reads them, nndiffseg's models by what their validation observed (their heads
alone). Temperature and lengths are fitted without a case's group, both ways. Scores are those of
:mod:`nndiffseg.calibration.coherence`, of outlines and, over the structure's mean volume, of volumes; less is better. The last
column is the paired difference of their sum, with a 95 % bootstrap interval over groups.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import report
from benchmarks.compare.pooling import interval, means, resamples
from nndiffseg.calibration.coherent_fit import fit_coherent, index_of
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind
from nndiffseg.calibration.voxels_file import FOLDER, read_voxels
from nndiffseg.data.groups import read_groups
from nndiffseg.inference.coherent import finest_edge
from nndiffseg.inference.model_folder import load_model
from nndiffseg.inference.stock_model import is_stock, load_stock_model
from nndiffseg.inference.stock_predictor import StockPredictor
from nndiffseg.inference.validation_cases import ValidationCases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preprocessed", type=Path, nargs="+", required=True, help="nnU-Net's preprocessed folders")
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--name", required=True, help="of the JSON file")
    args = parser.parse_args()
    rows, found = [], []
    for folder in args.models:
        data = next(p for p in args.preprocessed if (p / folder.parent.name).is_dir()) / folder.parent.name
        cases, kind, finest = observed_cases(folder, data)
        groups = read_groups(data)
        near = scores(cases, kind, groups, finest)
        everywhere = scores([replace(c, reach=torch.ones_like(c.reach)) for c in cases], kind, groups, finest)
        weights = resamples([groups.get(c.case, c.case) for c in cases])
        difference = interval(means(weights, (near - everywhere).sum(1, keepdims=True))[:, 0])
        name = f"{folder.parent.name.split('_')[0]} {folder.name.split('__')[0]}"
        shown = [f"{outlines:.4f} + {volumes:.4f}" for outlines, volumes in (everywhere.mean(0), near.mean(0))]
        rows.append([name, str(len(cases)), *shown, "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference)])
        found.append(
            {
                "model": name,
                "cases": len(cases),
                "everywhere": everywhere.mean(0).round(4).tolist(),
                "near": near.mean(0).round(4).tolist(),
                "difference": [round(float(d), 4) for d in difference],
            }
        )
        print(rows[-1], flush=True)
    header = ["outlines + volumes", "cases", "T everywhere", "T near the segmentation", "difference of the sums"]
    report(args.name, rows, header, {"models": found})


def scores(cases: Sequence[CaseVoxels], kind: LabelKind, groups: Mapping[str, str], finest: float) -> NDArray[np.float64]:
    """Scores of outlines and volumes of each case, mean over structures ``(cases, 2)``."""
    fitted = fit_coherent(cases, kind, groups, ("0",), finest)
    size = np.maximum(np.mean([c.true.mean(1).numpy() for c in cases], 0), 1)
    rows = []
    for case in cases:
        score, at = fitted.scores[case.case], index_of(fitted.crossed[case.case])
        rows.append([np.nanmean(score.outlines[at]), np.nanmean(score.volumes[at] / size)])
    return np.array(rows)


def observed_cases(folder: Path, data: Path) -> tuple[list[CaseVoxels], LabelKind, float]:
    """Validation cases of a model, what its channels mean, and the edge of the plans' finest voxels in mm."""
    if is_stock(folder):
        predictor = StockPredictor(load_stock_model(folder), torch.device("cpu"))
        source = ValidationCases(predictor, folder, data)
        return list(source.observe()), source.kind(), finest_edge(predictor.configuration)
    model = load_model(folder)
    kind = LabelKind.of(model.plans.get_label_manager(model.dataset_json), model.dataset_json)
    cases: list[CaseVoxels] = []
    for fold in model.folds:
        voxels = folder / f"fold_{fold.name}" / "validation" / FOLDER
        cases += read_voxels(voxels, sorted(f.stem for f in voxels.glob("*.npz")), kind) or []
    return cases, kind, finest_edge(model.plans.get_configuration(model.configuration))


if __name__ == "__main__":
    main()
