"""Volumes and agreement of a case's samples, as written to its JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from nndiffseg.data.dataset_json import structures_of
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.uncertainty import PairwiseOverlap, expected_dice, volume_statistics
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
        ``samples``; ``expected_dice``, the mean pairwise Dice of the samples, mean over structures; and per structure
        ``segmentation_ml``, ``expected_dice`` and what :func:`nndiffseg.uncertainty.volume_statistics` returns.
    """
    structures = structures_of(dataset_json)
    overlap = PairwiseOverlap(len(statistics.labels), list(structures.values()))
    for part in np.array_split(statistics.labels, max(1, statistics.labels.shape[1] // 16), axis=1):
        overlap.add(part)
    counts = dict(zip(structures, overlap.counts, strict=True))
    scales = [c.volume_scale for c in statistics.calibrations]
    volumes = volume_statistics(counts, geometry.voxel_volume(statistics.labels.shape[1:]), scales)
    per_structure = mean_pairwise_dice(overlap)
    for i, (name, labels) in enumerate(structures.items()):
        voxels = int(np.isin(segmentation, labels).sum())
        own = {"segmentation_ml": voxels * geometry.voxel_volume() / MM3_PER_ML}
        agreement = {"expected_dice": None if per_structure is None else float(per_structure[i])}
        volumes[name] = own | volumes[name] | agreement
    summary: dict[str, Any] = {
        "samples": len(statistics.labels),
        "expected_dice": expected_dice(overlap),
        "structures": volumes,
    }
    if geometry.is_2d:
        summary["note"] = "2D image: volumes assume a thickness of 1 mm."
    return summary
