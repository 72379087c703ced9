"""Finished models of either kind, by the folders that a command names."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nndiffseg.calibration.voxels import CaseVoxels, LabelKind
from nndiffseg.calibration.voxels_file import FOLDER, read_voxels
from nndiffseg.inference.coherent import finest_edge
from nndiffseg.inference.model_folder import load_model
from nndiffseg.inference.stock_model import is_stock, load_stock_model
from nndiffseg.inference.stock_predictor import StockPredictor
from nndiffseg.inference.validation_cases import ValidationCases


def finished_models(description: str) -> tuple[str, list[tuple[str, Path, Path]]]:
    """Flags of a command that takes model folders.

    Returns:
        Name of the JSON file; of each model its name, its folder, and its dataset's preprocessed folder.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--preprocessed", type=Path, nargs="+", required=True, help="nnU-Net's preprocessed folders")
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--name", required=True, help="of the JSON file")
    args = parser.parse_args()
    models = []
    for folder in args.models:
        dataset = folder.parent.name
        data = next(p for p in args.preprocessed if (p / dataset).is_dir()) / dataset
        models.append((f"{dataset.split('_')[0]} {folder.name.split('__')[0]}", folder, data))
    return args.name, models


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
