"""Calibrates a trained model, stock nnU-Net's or nndiffseg's, and writes what was found beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nndiffseg.calibration import Calibration, CaseTable, cross_fit, fit, read_tables
from nndiffseg.calibration.coherent_fit import fit_coherent
from nndiffseg.calibration.sampler_choice import ChosenSampler, choose_sampler
from nndiffseg.calibration.tables import FOLDER as TABLES
from nndiffseg.calibration.voxels import LabelKind
from nndiffseg.calibration.voxels_file import FOLDER as VOXELS
from nndiffseg.calibration.voxels_file import read_voxels
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.files import write_json
from nndiffseg.data.folds import check_unseen
from nndiffseg.data.groups import read_groups
from nndiffseg.data.names import is_plain_name
from nndiffseg.errors import UserError
from nndiffseg.inference.coherent import finest_edge
from nndiffseg.inference.model_folder import DEFAULT_CHECKPOINT, LoadedModel, load_model
from nndiffseg.inference.stock_model import load_stock_model
from nndiffseg.inference.stock_predictor import StockPredictor
from nndiffseg.inference.validation_cases import ValidationCases
from nndiffseg.report.calibration_page import write_calibration_report
from nndiffseg.uncertainty.calibration_check import check_coherent, check_tables

#: of a model folder, with the report and its numbers
OUTPUT = "calibration"


@dataclass(frozen=True)
class Calibrated:
    """What a calibration found: the value, figures on cases it was not fitted to, names of the structures, the report."""

    calibration: Calibration
    check: dict[str, Any]
    structures: tuple[str, ...]
    report: Path


def calibrate_stock_model(
    folder: Path,
    preprocessed: Path,
    folds: Sequence[str] | None = None,
    checkpoint: str = DEFAULT_CHECKPOINT,
    *,
    device: torch.device,
    seed: int = 0,
    progress: bool = True,
) -> Calibrated:
    """Calibrates a stock nnU-Net on the validation cases of its folds.

    Writes ``calibration.json`` and ``calibration/`` into the model folder. nnU-Net's own files stay as they are.

    Args:
        folder: of the model.
        preprocessed: nnU-Net's folder of preprocessed data.
        folds, checkpoint: see :func:`~nndiffseg.inference.model_folder.open_folder`.
        device: for cases whose probabilities were not kept.
        seed: of the samples that the fits draw.
        progress: show a progress bar.

    Raises:
        UserError: files are missing or damaged; the model is no stock nnU-Net; a fold has seen every case.
    """
    predictor = StockPredictor(load_stock_model(folder, folds, checkpoint), device)
    check_unseen(predictor.folds)
    data = preprocessed / _dataset_name(predictor)
    cases = ValidationCases(predictor, folder, data)
    kind, names, groups = cases.kind(), cases.names(), read_groups(data)
    if missing := cases.missing():
        print(f"{len(missing)} of {len(names)} validation cases have no kept probabilities and are predicted.")
    with tqdm(total=2 * len(names), desc="calibrate", disable=not progress, dynamic_ncols=True) as bar:
        observed = []
        for case in cases.observe():
            observed.append(case)
            bar.update()
        finest = finest_edge(predictor.configuration)
        fitted = fit_coherent(observed, kind, groups, predictor.folds, finest, seed=seed, on_case=bar.update)
    check = check_coherent(observed, kind, groups, fitted)
    return _write(folder, fitted.calibration, check, tuple(structures_of(predictor.dataset_json)))


def calibrate_own_model(
    folder: Path,
    preprocessed: Path,
    folds: Sequence[str] | None = None,
    checkpoint: str = DEFAULT_CHECKPOINT,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Calibrated:
    """Calibrates an nndiffseg model on what the validations of its folds wrote; nothing is predicted.

    Args:
        folder, preprocessed, folds, checkpoint, progress: see :func:`calibrate_stock_model`.
        seed: of the coherent samples that the fits draw.

    Raises:
        UserError: files are missing or damaged, or a fold has seen every case.
    """
    model = load_model(folder, folds, checkpoint)
    used = tuple(fold.name for fold in model.folds)
    check_unseen(used)
    tables = [t for fold in used for t in read_tables(_validation(folder, fold) / TABLES)]
    name = model.plans.dataset_name
    if not is_plain_name(name):
        raise UserError(f"The plans in {folder} name no dataset; the model folder is mixed up.")
    groups, structures = read_groups(preprocessed / name), tuple(structures_of(model.dataset_json))
    if any(len(t.true_ml) != len(structures) for t in tables):
        raise UserError(f"The tables in {folder} are of other structures than its dataset.json; validate the folds again.")
    chosen = _choose_sampler(model, folder, tables, groups, seed, progress)
    if chosen is not None:
        print(f"samples: {chosen.in_words()}")
        check = check_tables(list(chosen.tables.values()), chosen.crossed) | {"sampler_scores": chosen.scores}
        return _write(folder, chosen.calibration, check, structures)
    check = check_tables(tables, cross_fit(tables, groups, used))
    return _write(folder, fit(tables, groups, used), check, structures)


def _validation(folder: Path, fold: str) -> Path:
    return folder / f"fold_{fold}" / "validation"


def _choose_sampler(
    model: LoadedModel, folder: Path, tables: Sequence[CaseTable], groups: Mapping[str, str], seed: int, progress: bool
) -> ChosenSampler | None:
    """None where samples are always the trained sampler's: of published methods, of few cases, of older validations."""
    if not model.method.chooses_sampler:
        return None
    kind, cases = LabelKind.of(model.plans.get_label_manager(model.dataset_json), model.dataset_json), []
    for fold in (f.name for f in model.folds):
        names = [t.case for t in read_tables(_validation(folder, fold) / TABLES)]
        if (observed := read_voxels(_validation(folder, fold) / VOXELS, names, kind)) is None:
            print(f"Fold {fold} was validated by an older version; validate it again (--val) to have its sampler chosen.")
            return None
        cases += observed
    folds, finest = tuple(f.name for f in model.folds), finest_edge(model.plans.get_configuration(model.configuration))
    with tqdm(total=len(cases), desc="calibrate", disable=not progress, dynamic_ncols=True) as bar:
        return choose_sampler(cases, tables, kind, groups, folds, finest, seed=seed, on_case=bar.update)


def _dataset_name(predictor: StockPredictor) -> str:
    return str(predictor.plans.dataset_name)  # checked with the plans


def _write(folder: Path, calibration: Calibration, check: dict[str, Any], structures: tuple[str, ...]) -> Calibrated:
    output = folder / OUTPUT
    write_json({"calibration": calibration.to_json(), "structures": list(structures), **check}, output / "check.json")
    report = write_calibration_report(output / "report.html", folder.name, calibration, check, structures)
    calibration.write(folder)  # last: where it is, all is there
    return Calibrated(calibration, check, structures, report)
