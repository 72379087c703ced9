"""Samples of the coherent sampler for a side: nothing but a map, its temperature and the weights of a few lengths."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.compare.data import Data
from benchmarks.compare.library import labels_of
from nndiffseg.calibration import Calibration
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind, observe
from nndiffseg.data.images import voxel_volume
from nndiffseg.inference.coherent import draw_coherent, finest_edge
from nndiffseg.uncertainty.case_labels import near_structures
from nndiffseg.uncertainty.volumes import MM3_PER_ML


def label_kind(data: Data) -> LabelKind:
    """What channels and labels mean."""
    return LabelKind.of(data.label_manager, data.dataset_json)


def finest(data: Data) -> float:
    """Edge of the finest voxels of the plans, in mm."""
    return finest_edge(data.plans_manager.get_configuration(data.configuration))


def observed(
    data: Data, case: str, p: NDArray, references: NDArray, spacing: tuple[float, ...], near: NDArray[np.bool_]
) -> CaseVoxels:
    """What the fits need of a case; ``p`` as it comes ``(heads, *image)``."""
    ml = voxel_volume(references.shape[1:], spacing) / MM3_PER_ML
    probabilities = torch.from_numpy(p).float()
    reach = near_structures([labels_of(data, p)])
    return observe(case, probabilities, references, near, reach, label_kind(data), spacing=spacing, voxel_ml=ml)


def coherent_samples(
    data: Data, case: str, p: NDArray, calibration: Calibration, spacing: tuple[float, ...], count: int, seed: int
) -> NDArray[np.uint8]:
    """Label maps ``(count, *image)`` with the calibrated marginals of ``p`` ``(heads, *image)``."""
    labels = np.zeros((count, *p.shape[1:]), dtype=np.uint8)
    draw_coherent(
        torch.from_numpy(p).float(),
        case,
        range(count),
        calibration,
        labels,
        spacing=spacing,
        finest=finest(data),
        seed=seed,
        label_manager=data.label_manager,
    )
    return labels
