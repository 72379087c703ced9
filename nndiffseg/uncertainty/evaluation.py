"""Evaluates a prediction folder against reference labels: accuracy, uncertainty maps, probabilities and volumes.

What is measured:

- Dice per structure, as nnU-Net's own evaluation computes it.
- AUROC of the total-uncertainty map as a detector of wrong voxels, in the dilated foreground: the union of reference
  and predicted foreground, dilated by :data:`DILATION` voxels. Elsewhere nearly all voxels are right and certain, so
  counting them would flatter every map.
- NLL, Brier score and expected calibration error in the same region, where ``--save_probabilities`` kept the
  probabilities.
- The volumes' calibrated spread: coverage of the 90 % interval, and measured over known standard deviation where
  a ``truth.json`` tells the known one (:mod:`nndiffseg.data.phantom`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, region_or_label_to_mask
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    determine_reader_writer_from_file_ending,
)
from numpy.typing import NDArray

from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.files import read_json, write_json
from nndiffseg.data.plan_names import check_reader
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.reliability import ReliabilityAccumulator, region_of_interest
from nndiffseg.uncertainty.volumes import error_bars

DILATION = 3  # voxels
BINS = 4096  # of an uncertainty map, for the AUROC


@dataclass
class ErrorHistogram:
    """Counts of uncertainty values in [0, 1] at right and at wrong voxels, summed over cases."""

    right: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    wrong: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, uncertainty: NDArray, wrong: NDArray[np.bool_]) -> None:
        """``uncertainty`` and ``wrong`` of the same voxels, any equal shape."""
        bins = np.clip((uncertainty * BINS).astype(np.int64), 0, BINS - 1)
        self.right += np.bincount(bins[~wrong], minlength=BINS)
        self.wrong += np.bincount(bins[wrong], minlength=BINS)

    def auroc(self) -> float:
        """P(uncertainty at a wrong voxel > at a right voxel), ties count half (Mann-Whitney); NaN if one is absent."""
        if not self.right.any() or not self.wrong.any():
            return float("nan")
        below = np.cumsum(self.right) - self.right
        return float(np.sum(self.wrong * (below + 0.5 * self.right)) / (self.right.sum() * self.wrong.sum()))


def evaluate_predictions(
    predictions: str | os.PathLike[str],
    references: str | os.PathLike[str],
    *,
    dataset_json: dict[str, Any],
    truth: str | os.PathLike[str] | None = None,
    output_file: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Evaluates what ``nndiffseg_predict`` wrote; parts of the output that are absent give None.

    Args:
        predictions: folder with segmentations and, where there is one, its ``uncertainty`` folder.
        references: folder with the true label of each case under the same file name.
        dataset_json: content of the dataset's ``dataset.json``.
        truth: a phantom's ``truth.json``, or None.
        output_file: where to write the result as JSON, or None.

    Returns:
        ``{"summary": {...}, "cases": {case: {...}}}``, JSON-ready. In the summary ``dice_mean`` is the mean over
        structures of the mean over cases, ``error_auroc`` pools the voxels of all cases, ``volume_spread_ratio`` is,
        per structure, the mean over cases of the measured over that of the known standard deviation of the volume.

    Raises:
        UserError: no segmentation in ``predictions`` has a reference.
    """
    predictions, references = Path(predictions), Path(references)
    names = matching_cases(predictions, references, dataset_json["file_ending"])
    known = read_json(truth)["cases"] if truth is not None else {}
    evaluator = _Evaluator(predictions, references, dataset_json, example=names[0])
    cases = {name: evaluator.case(name, known.get(name, {})) for name in names}
    result = {"summary": evaluator.summary(cases), "cases": cases}
    if output_file is not None:
        write_json(result, output_file)
    return result


def matching_cases(predictions: Path, references: Path, file_ending: str) -> list[str]:
    """Names of the cases that both folders hold, sorted.

    Raises:
        UserError: there is none.
    """
    names = sorted(p.name[: -len(file_ending)] for p in predictions.glob(f"*{file_ending}") if (references / p.name).is_file())
    if not names:
        raise UserError(
            f"No segmentation in {predictions} has a reference of the same name in {references}; "
            "give the folder that holds the true labels of these cases."
        )
    return names


class _Evaluator:
    """Reads case after case; pools what is pooled over voxels."""

    def __init__(self, predictions: Path, references: Path, dataset_json: dict[str, Any], example: str) -> None:
        self.predictions, self.references = predictions, references
        self.structures, self.ending = structures_of(dataset_json), dataset_json["file_ending"]
        self.ignore: int | None = dataset_json["labels"].get("ignore")
        check_reader(dataset_json)
        example_file = str(references / f"{example}{self.ending}")
        self.reader = determine_reader_writer_from_dataset_json(dataset_json, example_file, verbose=False)()
        self.errors = ErrorHistogram()
        # With regions the probabilities need one reference mask each; labels alone do not tell their order.
        regions = any(len(labels) > 1 for labels in self.structures.values())
        self.reliability = None if regions else ReliabilityAccumulator(1 + len(self.structures))

    def case(self, name: str, known: dict[str, Any]) -> dict[str, Any]:
        """One case's numbers; ``known`` holds the true standard deviation of each structure's volume, or nothing."""
        reference_file, prediction_file = (
            str(folder / f"{name}{self.ending}") for folder in (self.references, self.predictions)
        )
        labels = list(self.structures.values())
        metrics = compute_metrics(reference_file, prediction_file, self.reader, labels, self.ignore)["metrics"]
        reference, properties = self.reader.read_seg(reference_file)
        auroc = self._voxels(name, reference, self.reader.read_seg(prediction_file)[0])
        report = case_report(self.predictions, name)
        voxel_ml = float(np.prod(properties["spacing"])) / 1000
        volumes = {
            s: _volume_row(report, s, voxel_ml * float(region_or_label_to_mask(reference, v).sum()), known.get(s))
            for s, v in self.structures.items()
        }
        dice = {structure: float(metrics[v]["Dice"]) for structure, v in self.structures.items()}
        return {
            "dice": dice,
            "dice_mean": nanmean(dice.values()),
            "error_auroc": auroc,
            "expected_dice": report.get("expected_dice"),
            "volumes": volumes,
        }

    def _voxels(self, name: str, reference: NDArray, prediction: NDArray) -> float:
        """Pools a case's voxels, segmentations ``(1, *spatial)``; returns the AUROC of this case alone."""
        region, own = dilated_foreground(reference, prediction, self.ignore), ErrorHistogram()
        if (map_file := uncertainty_map(self.predictions, name, "total")) is not None:
            own.add(read_array(map_file, self.reader)[region], (prediction[0] != reference[0])[region])
            self.errors.right += own.right
            self.errors.wrong += own.wrong
        if (file := self.predictions / f"{name}.npz").is_file() and self.reliability is not None:
            with np.load(file) as content:
                self.reliability.add(content["probabilities"], reference[0], region)
        return own.auroc()

    def summary(self, cases: dict[str, Any]) -> dict[str, Any]:
        """Means over cases, and the pooled figures."""
        dice = {s: nanmean(case["dice"][s] for case in cases.values()) for s in self.structures}
        volumes = {s: _summarise_volumes([case["volumes"][s] for case in cases.values()]) for s in self.structures}
        ratios = {s: v["spread_ratio"] for s, v in volumes.items()}
        known = [r for r in ratios.values() if r is not None]
        return {
            "cases": len(cases),
            "dice": dice,
            "dice_mean": nanmean(dice.values()),
            "error_auroc": self.errors.auroc(),
            "error_auroc_case_mean": nanmean(case["error_auroc"] for case in cases.values()),
            "dilation_voxels": DILATION,
            "calibration": _calibration(self.reliability),
            "volumes": volumes,
            "volume_spread_ratio": {**ratios, "mean": nanmean(known)} if known else None,
        }


def dilated_foreground(reference: NDArray, prediction: NDArray, ignore: int | None = None) -> NDArray[np.bool_]:
    """Reference or predicted foreground ``(1, *spatial)``, dilated, without ignored voxels -> ``(*spatial)``."""
    region = region_of_interest(((reference > 0) | (prediction > 0))[0] & (reference[0] != ignore), DILATION)
    return region & (reference[0] != ignore)


def uncertainty_map(predictions: Path, name: str, kind: str) -> Path | None:
    """The file of a ``total``, ``aleatoric`` or ``epistemic`` map of a case, whatever its format; None if absent."""
    return next(iter(sorted((predictions / "uncertainty").glob(f"{name}_{kind}.*"))), None)


def read_array(file: Path, reader: BaseReaderWriter) -> NDArray:
    """First channel ``(*spatial)`` of a file; ``reader`` reads the dataset's format, others are looked up by ending."""
    ending = ".nii.gz" if file.name.endswith(".nii.gz") else file.suffix
    if ending not in reader.supported_file_endings:
        reader = determine_reader_writer_from_file_ending(ending, verbose=False)()
    return reader.read_images([str(file)])[0][0]


def case_report(predictions: Path, name: str) -> dict[str, Any]:
    """``uncertainty/CASE.json``, or an empty dictionary where there is none."""
    file = predictions / "uncertainty" / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _volume_row(report: dict, structure: str, reference_ml: float, known: dict | None) -> dict[str, Any]:
    measured = report.get("structures", {}).get(structure, {})
    sd, interval = error_bars(measured)
    return {
        "reference_ml": reference_ml,
        "mean_ml": measured.get("mean_ml"),
        "sd_ml": sd,
        "interval_90_ml": interval,
        "covered": bool(interval[0] <= reference_ml <= interval[1]) if interval else None,
        "known_sd_ml": known["sd_ml"] if known else None,
    }


def _calibration(reliability: ReliabilityAccumulator | None) -> dict[str, Any] | None:
    """NLL, Brier, ECE and the reliability diagram pooled over the foreground classes; None without probabilities."""
    if reliability is None or not reliability.voxels.any():
        return None
    voxels, confidence, frequency = (
        a[1:].sum(axis=0) for a in (reliability.voxels, reliability.confidence, reliability.frequency)
    )
    used = voxels > 0
    bins = {
        "voxels": voxels[used].tolist(),
        "probability": (confidence[used] / voxels[used]).tolist(),
        "frequency": (frequency[used] / voxels[used]).tolist(),
    }
    return {**reliability.summary(), "bins": bins}


def _summarise_volumes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    measured = [row for row in rows if row["sd_ml"] is not None]
    known = [row for row in measured if row["known_sd_ml"]]
    ratio = None
    if known:
        ratio = float(np.mean([row["sd_ml"] for row in known]) / np.mean([row["known_sd_ml"] for row in known]))
    present = [row for row in measured if row["reference_ml"] > 0]
    relative_errors = [abs(row["mean_ml"] - row["reference_ml"]) / row["reference_ml"] for row in present]
    return {
        "mean_sd_ml": nanmean(row["sd_ml"] for row in measured),
        "mean_known_sd_ml": nanmean(row["known_sd_ml"] for row in known),
        "spread_ratio": ratio,
        "relative_error": nanmean(relative_errors),
        "coverage_90": nanmean(row["covered"] for row in measured),
    }


def nanmean(values: Iterable[float | None]) -> float:
    """Mean of the numbers that are there; NaN when there is none."""
    numbers = [float(v) for v in values if v is not None and not np.isnan(v)]
    return float(np.mean(numbers)) if numbers else float("nan")


def format_table(evaluation: dict[str, Any]) -> str:
    """The summary as a small table for a terminal."""
    summary = evaluation["summary"]
    rows = [("structure", "Dice", "volume error", "90 % coverage", "spread, ml", "known, ml", "ratio")]
    for structure, dice in summary["dice"].items():
        v = summary["volumes"][structure]
        rows.append(
            (
                structure,
                number(dice),
                number(v["relative_error"]),
                number(v["coverage_90"], 2),
                number(v["mean_sd_ml"]),
                number(v["mean_known_sd_ml"]),
                number(v["spread_ratio"], 2),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)) for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines.append(
        f"{summary['cases']} cases, mean Dice {number(summary['dice_mean'])}, AUROC of total uncertainty "
        f"against errors {number(summary['error_auroc'])} (dilated foreground)"
    )
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    """``0.123``, or ``-`` for None and NaN."""
    return "-" if value is None or np.isnan(value) else f"{value:.{digits}f}"
