"""Volumes and agreement of a case's samples, as written to its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nndiffseg.calibration import Calibration
from nndiffseg.calibration.confidence import mean_confidence
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.images import PIXELS, volume_unit
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.uncertainty import PairwiseOverlap, volume_statistics
from nndiffseg.uncertainty.agreement import expected_dice as agreement_of
from nndiffseg.uncertainty.agreement import mean_pairwise_dice
from nndiffseg.uncertainty.statistics import CaseStatistics
from nndiffseg.uncertainty.volumes import MM3_PER_ML


def case_summary(
    statistics: CaseStatistics, segmentation: np.ndarray, geometry: CaseGeometry, dataset_json: dict[str, Any]
) -> dict[str, Any]:
    """Volumes and agreement of the samples, JSON-ready.

    The samples' voxels are counted on the grid of the preprocessed image, where the samples were drawn; resampling
    sixteen label maps of a large image for their volumes would cost more than drawing them.

    Args:
        statistics: of the case.
        segmentation: as written, ``(*image)``.
        geometry: of the case.
        dataset_json: of the model.

    Returns:
        ``samples``; ``agreement``, the mean pairwise Dice of the samples, mean over structures; ``confidence``, the soft Dice
        confidence of the probabilities before their temperature; ``expected_dice`` of the segmentation, which is the agreement
        where the calibration has no map from the confidence, and its ``expected_dice_interval_90`` or None; and per structure
        ``segmentation_ml``, ``agreement`` and what :func:`nndiffseg.uncertainty.volume_statistics` returns. ``unit`` is there
        where volumes are areas in pixels, :func:`nndiffseg.data.images.volume_unit`.
    """
    structures = structures_of(dataset_json)
    overlap = PairwiseOverlap(len(statistics.labels), list(structures.values()))
    for part in np.array_split(statistics.labels, max(1, statistics.labels.shape[1] // 16), axis=1):
        overlap.add(part)
    counts = dict(zip(structures, overlap.counts, strict=True))
    scales = [c.volume_scale for c in statistics.calibrations]
    quantiles = dict(zip(structures, _quantiles(statistics.calibrations, len(structures)), strict=True))
    volumes = volume_statistics(counts, geometry.voxel_volume(statistics.labels.shape[1:]), scales, quantiles)
    per_structure = mean_pairwise_dice(overlap)
    for i, (name, labels) in enumerate(structures.items()):
        voxels = int(np.isin(segmentation, labels).sum())
        own = {"segmentation_ml": voxels * geometry.voxel_volume() / MM3_PER_ML}
        agreement = {"agreement": None if per_structure is None else float(per_structure[i])}
        volumes[name] = own | volumes[name] | agreement
    summary: dict[str, Any] = {
        "samples": len(statistics.labels),
        **_expected_dice(agreement_of(overlap), mean_confidence(statistics.confidence), statistics.calibrations),
        "structures": volumes,
    }
    if volume_unit(geometry.plans.image_reader_writer_class) == PIXELS:
        summary |= {"unit": PIXELS, "note": "Pixels of this image have no size in mm: 1 ml stands for 1000 pixels."}
    elif geometry.is_2d:
        summary["note"] = "2D image: volumes assume a thickness of 1 mm."
    return summary


def case_record(case_id: str, summary: dict[str, Any], statistics: CaseStatistics, settings: dict[str, Any]) -> dict[str, Any]:
    """What the JSON of a case holds: its :func:`case_summary`, and how it came about."""
    return {
        "case": case_id,
        **summary,
        "calibration": [c.to_json() for c in statistics.calibrations],
        "settings": settings,
    }


def _quantiles(calibrations: Sequence[Calibration], structures: int) -> list[float | None]:
    """Of each structure the largest of the folds' conformal quantiles; None where a fold has none."""
    columns = zip(*(c.volume_quantiles or (None,) * structures for c in calibrations), strict=True)
    return [None if any(q is None for q in column) else max(q for q in column if q is not None) for column in columns]


def _expected_dice(agreement: float | None, confidence: float | None, calibrations: Sequence[Calibration]) -> dict[str, Any]:
    """Mean over the folds' maps; the interval is the union of theirs."""
    maps = [c.dice for c in calibrations if c.dice is not None]
    known = {"agreement": agreement, "confidence": confidence}
    if confidence is None or len(maps) < len(calibrations):
        return {**known, "expected_dice": agreement, "expected_dice_interval_90": None}
    intervals = [i for m in maps if (i := m.interval(confidence)) is not None]
    return {
        **known,
        "expected_dice": float(np.mean([m.expected(confidence) for m in maps])),
        "expected_dice_interval_90": (
            [min(i[0] for i in intervals), max(i[1] for i in intervals)] if len(intervals) == len(maps) else None
        ),
    }
