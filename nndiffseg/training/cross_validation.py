"""What follows when the folds of a model are validated: one calibration, one evaluation and one report of all of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.calibration.calibration import FILE as CALIBRATION
from nndiffseg.data.check import training_cases
from nndiffseg.data.files import read_json, write_json
from nndiffseg.data.listing import list_labels, with_side_files
from nndiffseg.data.model_json import read_model_json
from nndiffseg.data.records import hash_file
from nndiffseg.errors import UserError
from nndiffseg.inference.calibrating import Calibrated, calibrate_own_model
from nndiffseg.report.evaluation_report import write_evaluation
from nndiffseg.report.report import write_cross_validation_report
from nndiffseg.training.fold_state import VALIDATED
from nndiffseg.training.summary import write_summary
from nndiffseg.uncertainty.evaluation import evaluate_predictions
from nndiffseg.uncertainty.evaluation_table import blocks, number
from nndiffseg.uncertainty.means import nanmean

#: of a model folder: evaluation, report, logs of the folds
OUTPUT = "cross_validation"
#: what the newest report was made from
RECORD = "record.json"
#: mm, of the normalised surface distance
TOLERANCE = 1.0
#: of a prediction: maps and volumes
UNCERTAINTY = "uncertainty"
Rows = list[list[str]]


@dataclass(frozen=True)
class CrossValidated:
    """What :func:`finish` found: the calibration, the evaluation of all cases, the table of folds, the report."""

    calibrated: Calibrated
    evaluation: dict[str, Any]
    folds: Rows
    report: Path


def report_of(model: Path) -> Path:
    """Where the report of a model's cross-validation stands."""
    return model / OUTPUT / "report.html"


def is_current(model: Path, folds: Sequence[str]) -> bool:
    """Whether calibration, evaluation and report were made from the validations of exactly these folds, as they are now."""
    file = model / OUTPUT / RECORD
    try:
        return report_of(model).is_file() and read_json(file) == _record(model, folds)
    except (OSError, UserError):
        return False


def _record(model: Path, folds: Iterable[str]) -> dict[str, Any]:
    of_folds = {fold: hash_file(model / f"fold_{fold}" / VALIDATED) for fold in folds}
    return {"folds": of_folds, "calibration": hash_file(model / CALIBRATION)}


def finish(
    model: Path, raw: Path, preprocessed: Path, folds: Sequence[str], *, processes: int = 1, progress: bool = True
) -> CrossValidated:
    """Calibrates a model on its validated folds, evaluates their predictions and writes the report.

    Args:
        model: its folder.
        raw: the raw dataset, for the pictures; it may be missing.
        preprocessed: the dataset's preprocessed folder.
        folds: their names.
        processes: of the evaluation.
        progress: show progress bars.

    Raises:
        UserError: files are missing or damaged, or two folds predicted the same case.
    """
    output = model / OUTPUT
    output.mkdir(exist_ok=True)
    (output / RECORD).unlink(missing_ok=True)
    calibrated = calibrate_own_model(model, preprocessed.parent, folds, progress=progress)
    predictions, references = pooled(model, folds), preprocessed / "gt_segmentations"
    plans, dataset_json = read_model_json(model)
    manager = PlansManager(plans)
    labels = manager.get_label_manager(dataset_json)
    metrics = write_summary(
        references,
        predictions,
        manager.image_reader_writer_class(),
        dataset_json["file_ending"],
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        labels.ignore_label,
    )
    evaluation = evaluate_predictions(
        predictions, references, dataset_json=dataset_json, tolerance=TOLERANCE, processes=processes, progress=progress
    )
    write_evaluation(evaluation, output)
    rows = fold_rows(model, folds, evaluation["summary"], metrics["foreground_mean"]["Dice"])
    tables = [("folds", rows), *blocks(evaluation["summary"]), ("calibration", _calibration_rows(calibrated))]
    images = _images(raw, dataset_json, evaluation["cases"])
    title = f"Cross-validation of {model.name}"
    report = write_cross_validation_report(output, title, predictions, images, references, evaluation, tables)
    write_json(_record(model, folds), output / RECORD)  # last: where it is, all is there
    return CrossValidated(calibrated, evaluation, rows, report)


def pooled(model: Path, folds: Sequence[str]) -> Path:
    """The validations of all folds in nnU-Net's folder ``crossval_results_folds_0_1_...``, made anew.

    Files are linked where the file system can do it, so that they take no more space.

    Raises:
        UserError: two folds predicted the same case.
    """
    folder = model / f"crossval_results_folds_{'_'.join(folds)}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / UNCERTAINTY).mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(model / name, folder / name)
    ending = read_json(model / "dataset.json")["file_ending"]
    for fold in folds:
        validation = model / f"fold_{fold}" / "validation"
        for case, file in list_labels(validation, ending).items():
            if (folder / file.name).exists():
                raise UserError(
                    f"Fold {fold} and an earlier one of {model} both predicted {case}; give each case to one fold in "
                    "splits_final.json, or choose folds with --folds."
                )
            files = [*with_side_files([file], label=True), validation / f"{case}.npz", validation / f"{case}.pkl"]
            _link([f for f in files if f.is_file()], folder)
        _link((validation / UNCERTAINTY).glob("*.*"), folder / UNCERTAINTY)
    return folder


def _link(files: Iterable[Path], folder: Path) -> None:
    for file in files:
        try:
            os.link(file, folder / file.name)
        except OSError:
            shutil.copy(file, folder / file.name)


def _images(raw: Path, dataset_json: Mapping[str, Any], cases: Iterable[str]) -> dict[str, Path]:
    """The first image file of each case; where the raw dataset is not here, the report says so in place of the picture."""
    try:
        known = {case.name: Path(case.images[0]) for case in training_cases(raw, dataset_json)}
    except (UserError, OSError):
        known = {}
    return {case: known.get(case, raw / "imagesTr" / f"{case}_0000{dataset_json['file_ending']}") for case in cases}


def fold_rows(model: Path, folds: Sequence[str], summary: Mapping[str, Any], dice: float) -> Rows:
    """The table of folds: headings, a row for each, and one of all cases together.

    Args:
        model: its folder.
        folds: their names.
        summary: of the evaluation of all cases.
        dice: nnU-Net's mean over structures, of all cases.
    """
    rows = [["fold", "cases", "Dice", "head alone", "error AUROC", "90 % coverage", "NLL", "ECE"]]
    validations = {fold: read_json(model / f"fold_{fold}" / VALIDATED, "validate the fold again") for fold in folds}
    for fold, found in validations.items():
        rows.append(_fold_row(fold, found, found["dice_fused_cross_fitted"], found["dice_deterministic"]))
    counts = [found["cases"] for found in validations.values()]
    heads = [found["dice_deterministic"] or 0.0 for found in validations.values()]
    head = sum(n * h for n, h in zip(counts, heads, strict=True)) / sum(counts)
    return [*rows, _fold_row("all", summary, dice, head)]


def _fold_row(name: str, summary: Mapping[str, Any], dice: float | None, head: float | None) -> list[str]:
    coverage = nanmean(volume["coverage_90"] for volume in summary["volumes"].values())
    probabilities = summary["calibration"] or {}
    values = [(dice, 3), (head, 3), (summary["error_auroc"], 3), (coverage, 2), (probabilities.get("nll"), 3)]
    shown = [number(value, digits) for value, digits in (*values, (probabilities.get("ece"), 3))]
    return [name, str(summary["cases"]), *shown]


def _calibration_rows(found: Calibrated) -> Rows:
    """What was fitted on all folds together, and how it holds on cases that had no part in it."""
    calibration, check = found.calibration, found.check
    rows = [
        ["fitted on all folds", ""],
        ["groups of cases", str(calibration.groups)],
        ["temperature", ", ".join(f"{t:.2f}" for t in calibration.temperature)],
        ["coherent share of the samples", f"{100 * calibration.coherent_share:.0f} %"],
    ]
    for name, row in zip(found.structures, check["volumes"], strict=True):
        promised = "not promised" if row["coverage_90"] is None else number(row["coverage_90"], 2)
        rows.append([f"true volumes in the 90 % interval, {name}", promised])
    return [*rows, ["rank correlation of expected and real Dice", number(check["dice"]["spearman"], 2)]]
