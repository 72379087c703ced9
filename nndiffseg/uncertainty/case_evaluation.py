"""One case against its references: every measure of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nndiffseg.data.images import is_flat
from nndiffseg.uncertainty.agreement import (
    PairwiseOverlap,
    best_dice,
    energy_score,
    expected_dice,
    generalised_energy_distance,
    matched_iou,
)
from nndiffseg.uncertainty.annotators import consensus_dice, disagreement_correlation, frequencies, thresholded_dice
from nndiffseg.uncertainty.case_labels import CaseLabels, Setting, check_shape, read_labels
from nndiffseg.uncertainty.detection import ErrorHistogram
from nndiffseg.uncertainty.maps import entropy
from nndiffseg.uncertainty.means import nanmean, nanmean_rows
from nndiffseg.uncertainty.prediction_folder import case_report, read_array, read_probabilities, uncertainty_map
from nndiffseg.uncertainty.reliability import ReliabilityAccumulator
from nndiffseg.uncertainty.surfaces import surface_measures
from nndiffseg.uncertainty.volumes import crps, error_bars

_SLAB = 16  # slices that are counted at once

Row = dict[str, float | None]  # measure -> value of one structure
#: measures that compare samples and annotators as sets
SETS = (
    *("energy_score", "ged_squared", "ged_cross", "ged_within_samples", "ged_within_annotators"),
    *("matched_iou", "best_dice"),
)
#: every measure of a structure beside its volumes; None where it could not be measured
MEASURES = (
    *("dice", "iou", "nsd", "hd95_mm", "hd95_undefined", "ece", "ace", "brier", "nll"),
    *SETS,
    *("consensus_dice", "thresholded_dice"),
)


@dataclass(frozen=True)
class CaseResult:
    """One case: its numbers, JSON-ready, and what is pooled over cases.

    Attributes:
        numbers: see :func:`nndiffseg.uncertainty.evaluation.evaluate_predictions`.
        errors: of the uncertainty; empty without a map.
        reliability: None without probabilities.
    """

    numbers: dict[str, Any]
    errors: ErrorHistogram
    reliability: ReliabilityAccumulator | None


def evaluate_case(setting: Setting, name: str, references: Sequence[Path], known: Mapping[str, Any]) -> CaseResult:
    """Measures one case.

    Args:
        setting: of the evaluation.
        name: of the case.
        references: the file of each annotator.
        known: structure -> ``{"sd_ml": ...}``, the true standard deviation of its volume; empty where unknown.

    Raises:
        UserError: a file is damaged or does not fit the others; the sentence names it.
    """
    labels = read_labels(setting, name, references)
    report = case_report(setting.predictions, name)
    shape = (len(setting.heads), *labels.segmentation.shape)
    stored = read_probabilities(setting.predictions, name, shape)
    region = labels.region
    errors, source = _errors(setting, name, labels, stored, region)
    reliability = _reliability(setting, labels, stored, region)
    overlap = _overlap(setting, labels)
    measured = [_accuracy(setting, labels, overlap), _surfaces(setting, labels), _calibration(setting, reliability)]
    sets: Row = dict.fromkeys((*SETS, "ncc"))
    if len(labels.samples):
        measured.append(_samples(setting, labels, overlap))
        sets |= _whole_case(labels, overlap)
    if len(references) > 1:
        measured.append(_several(setting, labels, stored))
        sets["ncc"] = _ncc(setting, labels, stored, region)
    rows: dict[str, Row] = {structure: dict.fromkeys(MEASURES) for structure in setting.structures}
    for structure, row in (item for part in measured for item in part.items()):
        rows[structure] |= row
    dice = {structure: row["dice"] for structure, row in rows.items()}
    numbers = {
        "annotators": len(references),
        "samples": len(labels.samples),
        "remark": labels.remark,
        "dice": dice,
        "dice_mean": nanmean(dice.values()),
        "error_auroc": errors.auroc(),
        "error_auprc": errors.auprc(),
        "uncertainty": source,
        "probabilities": stored is not None,
        "expected_dice": _expected_dice(report, labels, overlap),
        **sets,
        "volumes": _volumes(setting, labels, overlap, report, known),
        "structures": rows,
    }
    return CaseResult(numbers, errors, reliability)


def _overlap(setting: Setting, labels: CaseLabels) -> PairwiseOverlap:
    """Of the segmentation, the annotators and the samples, in this order."""
    members = [labels.segmentation[None], labels.references, labels.samples]
    overlap = PairwiseOverlap(sum(len(m) for m in members), list(setting.structures.values()))
    for start in range(0, labels.segmentation.shape[0], _SLAB):
        overlap.add(np.concatenate([m[:, start : start + _SLAB] for m in members]))
    return overlap


# ---- segmentation and volumes -------------------------------------------------------------------------------------------


def _accuracy(setting: Setting, labels: CaseLabels, overlap: PairwiseOverlap) -> dict[str, Row]:
    """Dice and IoU, mean over annotators; None where segmentation and annotator lack the structure."""
    m = len(labels.references)
    dice, iou = (nanmean_rows(values[:, 0, 1 : 1 + m].T) for values in (overlap.dice(np.nan), overlap.iou(np.nan)))
    return {s: {"dice": float(d), "iou": float(i)} for s, d, i in zip(setting.structures, dice, iou, strict=True)}


def _surfaces(setting: Setting, labels: CaseLabels) -> dict[str, Row]:
    """NSD and HD95, mean over annotators, and for how many of them HD95 is undefined, because one of both is empty."""
    if setting.tolerance is None:
        return {}
    segmentation, references, spacing = labels.segmentation, labels.references, labels.spacing
    if is_flat(segmentation.shape, spacing):
        segmentation, references, spacing = segmentation[0], references[:, 0], spacing[1:]
    rows: dict[str, Row] = {}
    for structure, values in setting.structures.items():
        mask = np.isin(segmentation, values)
        found = [surface_measures(mask, np.isin(r, values), spacing, setting.tolerance) for r in references]
        nsd, hd95 = nanmean_rows(np.array(found))
        half_empty = sum(measures.nsd == 0 and measures.hd95_mm != measures.hd95_mm for measures in found)
        rows[structure] = {"nsd": float(nsd), "hd95_mm": float(hd95), "hd95_undefined": half_empty}
    return rows


def _volumes(
    setting: Setting, labels: CaseLabels, overlap: PairwiseOverlap, report: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Volumes of the segmentation, the references and the samples; what CASE.json says cannot leave out ignored voxels."""
    m, ml, complete = len(labels.references), labels.voxel_ml, not labels.ignored.any()
    rows = {}
    for structure, counts in zip(setting.structures, overlap.counts * ml, strict=True):
        measured = report.get("structures", {}).get(structure, {}) if complete else {}
        sd, interval = error_bars(measured)
        references, segmented, mean = counts[1 : 1 + m], float(counts[0]), float(counts[1 : 1 + m].mean())
        rows[structure] = {
            "reference_ml": mean,
            "segmentation_ml": segmented,
            "segmentation_error_ml": segmented - mean,
            "segmentation_relative_error": abs(segmented - mean) / mean if mean else None,
            "mean_ml": measured.get("mean_ml"),
            "sd_ml": sd,
            "interval_90_ml": interval,
            "covered": float(((interval[0] <= references) & (references <= interval[1])).mean()) if interval else None,
            "known_sd_ml": known[structure]["sd_ml"] if structure in known else None,
            "crps_ml": crps(counts[1 + m :], references),
        }
    return rows


# ---- uncertainty and probabilities ---------------------------------------------------------------------------------------


def _errors(
    setting: Setting, name: str, labels: CaseLabels, stored: NDArray | None, region: NDArray[np.bool_]
) -> tuple[ErrorHistogram, str | None]:
    """Histogram of the uncertainty at right and wrong voxels, once per annotator; and where the uncertainty came from."""
    file = uncertainty_map(setting.predictions, name, "total")
    histogram = ErrorHistogram()
    if file is not None:
        uncertainty = read_array(file, setting.reader())
        check_shape(name, file, uncertainty.shape, labels.segmentation.shape)
        uncertainty = uncertainty[region]
    elif stored is not None:
        uncertainty = np.asarray(entropy(stored[:, region].astype(np.float32), regions=setting.regions))
    else:
        return histogram, None
    for reference in labels.references:
        histogram.add(uncertainty, (labels.segmentation != reference)[region])
    return histogram, "total map" if file is not None else "entropy of the probabilities"


def _reliability(
    setting: Setting, labels: CaseLabels, stored: NDArray | None, region: NDArray[np.bool_]
) -> ReliabilityAccumulator | None:
    if stored is None:
        return None
    accumulator = ReliabilityAccumulator(len(setting.heads), regions=setting.regions)
    frequency = frequencies(labels.references[:, region], setting.heads)
    accumulator.add(stored[:, region], frequency, np.ones(frequency.shape[1], bool))
    return accumulator


def _calibration(setting: Setting, reliability: ReliabilityAccumulator | None) -> dict[str, Row]:
    """ECE, ACE, Brier score and NLL of each structure against the rest."""
    return {} if reliability is None else per_structure(reliability, setting)


def per_structure(reliability: ReliabilityAccumulator, setting: Setting) -> dict[str, Row]:
    """:meth:`ReliabilityAccumulator.per_class` by structure."""
    values = reliability.per_class()
    channels = zip(setting.structures, setting.channels, strict=True)
    return {structure: {measure: float(of[k]) for measure, of in values.items()} for structure, k in channels}


# ---- samples and annotators ----------------------------------------------------------------------------------------------


def _samples_first(labels: CaseLabels, overlap: PairwiseOverlap) -> PairwiseOverlap:
    """Samples, then annotators."""
    m, n = len(labels.references), len(labels.samples)
    return overlap.subset([*range(1 + m, 1 + m + n), *range(1, 1 + m)])


def _samples(setting: Setting, labels: CaseLabels, overlap: PairwiseOverlap) -> dict[str, Row]:
    """Of each structure alone: energy score; with several annotators also what compares two sets."""
    both, n = _samples_first(labels, overlap), len(labels.samples)
    rows: dict[str, Row] = {}
    for k, structure in enumerate(setting.structures):
        own = both.structure(k)
        rows[structure] = {"energy_score": energy_score(own, n), **(_sets(own, n) if len(labels.references) > 1 else {})}
    return rows


def _whole_case(labels: CaseLabels, overlap: PairwiseOverlap) -> Row:
    """The same over all structures: distances are their means over structures."""
    both, n = _samples_first(labels, overlap), len(labels.samples)
    return {"energy_score": energy_score(both, n), **(_sets(both, n) if len(labels.references) > 1 else {})}


def _sets(overlap: PairwiseOverlap, samples: int) -> Row:
    distance = generalised_energy_distance(overlap, samples)
    return {
        "ged_squared": distance.squared,
        "ged_cross": distance.cross,
        "ged_within_samples": distance.within_samples,
        "ged_within_annotators": distance.within_references,
        "matched_iou": matched_iou(overlap, samples),
        "best_dice": best_dice(overlap, samples),
    }


def _several(setting: Setting, labels: CaseLabels, stored: NDArray | None) -> dict[str, Row]:
    """Dice with the annotators' majority, and of probability and frequency at several cuts."""
    structures = list(setting.structures.values())
    frequency = frequencies(labels.references, structures)
    consensus = consensus_dice(labels.segmentation, frequency, structures)
    rows: dict[str, Row] = {s: {"consensus_dice": float(d)} for s, d in zip(setting.structures, consensus, strict=True)}
    if stored is not None or len(labels.samples):
        p = stored[setting.channels] if stored is not None else frequencies(labels.samples, structures)
        if labels.ignored.any():
            p = np.where(labels.ignored, 0, p)
        for s, d in zip(setting.structures, thresholded_dice(p, frequency, structures), strict=True):
            rows[s]["thresholded_dice"] = float(d)
    return rows


def _ncc(setting: Setting, labels: CaseLabels, stored: NDArray | None, region: NDArray[np.bool_]) -> float | None:
    if stored is None and not len(labels.samples):
        return None
    p = stored[:, region] if stored is not None else frequencies(labels.samples[:, region], setting.heads)
    uncertainty = np.asarray(entropy(p.astype(np.float32), regions=setting.regions))
    masks = [frequencies(reference[None][:, region], setting.heads) for reference in labels.references]
    return disagreement_correlation(p, uncertainty, masks)


def _expected_dice(report: Mapping[str, Any], labels: CaseLabels, overlap: PairwiseOverlap) -> float | None:
    """What the prediction says; without its JSON, from the saved samples."""
    m, n = len(labels.references), len(labels.samples)
    if "expected_dice" in report or n < 2:
        return report.get("expected_dice")
    return expected_dice(overlap.subset(range(1 + m, 1 + m + n)))
