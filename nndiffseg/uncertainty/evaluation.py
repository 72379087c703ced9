"""Evaluates a prediction folder against the labels of one or several annotators.

Near the structures means in the dilated foreground: the union of reference and predicted foreground, dilated by
:data:`DILATION` voxels. Elsewhere nearly all voxels are right and certain, so counting them would flatter every map and every
probability. What each number is says ``docs/howto/evaluate.md``; the definitions stand where they are computed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nndiffseg.data.files import read_json, write_json
from nndiffseg.data.images import planned_reader, volume_unit
from nndiffseg.data.parallel import map_cases
from nndiffseg.data.plan_names import check_reader
from nndiffseg.uncertainty.case_evaluation import SETS, CaseResult, Row, evaluate_case, per_structure
from nndiffseg.uncertainty.case_labels import DILATION, Setting
from nndiffseg.uncertainty.detection import ErrorHistogram
from nndiffseg.uncertainty.means import nanmean
from nndiffseg.uncertainty.prediction_folder import (
    match_references,
)
from nndiffseg.uncertainty.reliability import ReliabilityAccumulator
from nndiffseg.uncertainty.risk_coverage import risk_coverage

Folder = str | os.PathLike[str]


def evaluate_predictions(
    predictions: Folder,
    references: Folder | Sequence[Folder],
    *,
    dataset_json: dict[str, Any],
    truth: Folder | None = None,
    output_file: Folder | None = None,
    reader: type[BaseReaderWriter] | None = None,
    plans: Folder | None = None,
    tolerance: float | None = None,
    processes: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates what ``nndiffseg_predict`` or ``nnUNetv2_predict`` wrote; parts of the output that are absent give None.

    Args:
        predictions: folder with segmentations and, where there are some, the folders ``uncertainty`` and ``samples`` and the
            probabilities ``CASE.npz``.
        references: one or several folders, see :func:`nndiffseg.uncertainty.prediction_folder.match_references`.
        dataset_json: content of the dataset's ``dataset.json``.
        truth: a phantom's ``truth.json``, or None.
        output_file: where to write the result as JSON, or None.
        reader: of the segmentations; default: that of the plans, or nnU-Net's choice where there are none.
        plans: the model's plans file; default: ``plans.json`` in ``predictions``.
        tolerance: of the normalised surface distance in mm; None leaves out all distances of surfaces.
        processes: worker processes; 0 and 1: none.
        progress: show a progress bar.

    Returns:
        ``{"summary": {...}, "cases": {case: {...}}, "matching": {...}}``, JSON-ready; ``docs/reference/files.md`` has the keys.
        In the summary ``dice_mean`` is the mean over structures of the mean over cases, ``error_auroc`` pools the voxels of all
        cases, ``volume_spread_ratio`` is, per structure, the mean over cases of the measured over that of the known standard
        deviation of the volume.

    Raises:
        UserError: no segmentation has a reference, or a file is damaged or does not fit.
    """
    check_reader(dataset_json)
    folder, folders = Path(predictions), [references] if isinstance(references, (str, os.PathLike)) else references
    ending = dataset_json["file_ending"]
    matching = match_references(folder, [Path(f) for f in folders], ending)
    names = list(matching.cases)
    reader = reader or planned_reader(Path(plans or folder / "plans.json"), dataset_json, folder / f"{names[0]}{ending}")
    known = read_json(truth)["cases"] if truth is not None else {}
    setting = Setting(folder, dataset_json, reader, tolerance)
    work = [(setting, name, files, known.get(name, {})) for name, files in matching.cases.items()]
    results = map_cases(evaluate_case, work, processes, description="Evaluating", progress=progress)
    cases = {name: result.numbers for name, result in zip(names, results, strict=True)}
    result = {
        "summary": _summary(setting, results),
        "cases": cases,
        "matching": {"without_reference": matching.without_reference, "without_prediction": matching.without_prediction},
    }
    if output_file is not None:
        write_json(result, output_file)
    return result


# ---- summary ------------------------------------------------------------------------------------------------------------


def _summary(setting: Setting, results: Sequence[CaseResult]) -> dict[str, Any]:
    """Means over cases, and the pooled figures."""
    cases, structures = [result.numbers for result in results], setting.structures
    errors = ErrorHistogram()
    for result in results:
        errors.merge(result.errors)
    volumes = {s: _summarise_volumes([case["volumes"][s] for case in cases]) for s in structures}
    ratios = {s: v["spread_ratio"] for s, v in volumes.items()}
    known = [r for r in ratios.values() if r is not None]
    calibration, pooled = _calibration(setting, results)
    rows = {s: _structure_row([case["structures"][s] for case in cases]) | pooled.get(s, {}) for s in structures}
    dice = {s: row["dice"] for s, row in rows.items()}
    return {
        "cases": len(cases),
        "annotators": [min(c["annotators"] for c in cases), max(c["annotators"] for c in cases)],
        "dice": dice,
        "dice_mean": nanmean(dice.values()),
        "structures": rows,
        "error_auroc": errors.auroc(),
        "error_auroc_case_mean": nanmean(case["error_auroc"] for case in cases),
        "error_auprc": errors.auprc(),
        "error_rate": errors.error_rate(),
        "dilation_voxels": DILATION,
        "tolerance_mm": setting.tolerance,
        "calibration": calibration,
        "expected_dice": _selection(cases),
        "sets": _means([{key: case[key] for key in (*SETS, "ncc")} for case in cases]),
        "unit": volume_unit(setting.reader),
        "volumes": volumes,
        "volume_spread_ratio": {**ratios, "mean": nanmean(known)} if known else None,
        "left_out": _left_out(cases),
    }


def _means(rows: Sequence[Mapping[str, float | None]]) -> Row:
    """Mean of every measure over the cases that have it; NaN where none has."""
    return {key: nanmean(row[key] for row in rows) for key in rows[0]}


def _structure_row(rows: Sequence[Row]) -> Row:
    """:func:`_means`, but how often HD95 is undefined is counted."""
    undefined = [row["hd95_undefined"] for row in rows if row["hd95_undefined"] is not None]
    return _means(rows) | {"hd95_undefined": sum(undefined) if undefined else None}


def _calibration(setting: Setting, results: Iterable[CaseResult]) -> tuple[dict[str, Any] | None, dict[str, Row]]:
    """NLL, Brier, ECE, ACE and the reliability diagram pooled over the foreground, and the same of each structure.

    Without probabilities, None and nothing.
    """
    pooled = ReliabilityAccumulator(len(setting.heads), regions=setting.regions)
    for result in results:
        if result.reliability is not None:
            pooled.merge(result.reliability)
    if not pooled.voxels.any():
        return None, {}
    first = 0 if setting.regions else 1
    voxels, confidence, frequency = (a[first:].sum(axis=0) for a in (pooled.voxels, pooled.confidence, pooled.frequency))
    used = voxels > 0
    bins = {
        "voxels": voxels[used].tolist(),
        "probability": (confidence[used] / voxels[used]).tolist(),
        "frequency": (frequency[used] / voxels[used]).tolist(),
    }
    return {**pooled.summary(), "bins": bins}, per_structure(pooled, setting)


def _selection(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Whether the expected Dice tells which cases are bad: risk 1 - Dice over coverage; None with fewer than two cases."""
    known = [c for c in cases if c["expected_dice"] is not None and c["dice_mean"] == c["dice_mean"]]
    if len(known) < 2:
        return None
    return risk_coverage([c["expected_dice"] for c in known], [1 - c["dice_mean"] for c in known])._asdict()


def _summarise_volumes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    measured = [row for row in rows if row["sd_ml"] is not None]
    known = [row for row in measured if row["known_sd_ml"]]
    ratio = None
    if known:
        ratio = nanmean(row["sd_ml"] for row in known) / nanmean(row["known_sd_ml"] for row in known)
    present = [row for row in measured if row["reference_ml"] > 0]
    relative_errors = [abs(row["mean_ml"] - row["reference_ml"]) / row["reference_ml"] for row in present]
    return {
        "mean_sd_ml": nanmean(row["sd_ml"] for row in measured),
        "mean_known_sd_ml": nanmean(row["known_sd_ml"] for row in known),
        "spread_ratio": ratio,
        "relative_error": nanmean(relative_errors),
        "coverage_90": nanmean(row["covered"] for row in measured),
        "segmentation_error_ml": nanmean(row["segmentation_error_ml"] for row in rows),
        "segmentation_relative_error": nanmean(row["segmentation_relative_error"] for row in rows),
        "crps_ml": nanmean(row["crps_ml"] for row in rows),
    }


def _left_out(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """What could not be measured, and which flag of the prediction gives it."""
    n = len(cases)
    parts = (
        ([c["uncertainty"] is not None for c in cases], "uncertainty maps or probabilities", "detection of errors", ""),
        (
            [c["probabilities"] for c in cases],
            "probabilities CASE.npz",
            "ECE, ACE, Brier score and NLL",
            "--save_probabilities",
        ),
        ([c["samples"] > 0 for c in cases], "samples", "energy score, CRPS and what compares sets", "--save_samples"),
        ([c["expected_dice"] is not None for c in cases], "expected Dice", "AURC and AUGRC", ""),
    )
    sentences = []
    for present, what, measures, flag in parts:
        if not all(present):
            having = f"only {sum(present)} of {n} cases have" if any(present) else "there are no"
            remedy = f" (predict with {flag})" if flag else ""
            limited = "over these cases only" if any(present) else "left out"
            sentences.append(f"{having[:1].upper()}{having[1:]} {what}: {measures} {limited}{remedy}.")
    if undefined := sum(row["hd95_undefined"] or 0 for c in cases for row in c["structures"].values()):
        sentences.append(
            f"HD95 is undefined {undefined} times, where either segmentation or annotator lacks a structure, and left out "
            "there; Dice and NSD are 0."
        )
    if max(c["annotators"] for c in cases) == 1:
        sentences.append("There is one annotator: GED, matched IoU, best Dice, consensus, thresholds and NCC left out.")
    return sentences
