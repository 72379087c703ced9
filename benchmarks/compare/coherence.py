"""Samples of the coherent sampler for a side: nothing but a map, its temperature and the weights of a few lengths."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.compare.data import Data
from nndiffseg.calibration import Calibration
from nndiffseg.calibration.temperature import tempered
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind, observe
from nndiffseg.data.images import voxel_volume
from nndiffseg.inference.coherent import draw_coherent, finest_edge
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty.volumes import MM3_PER_ML


def label_kind(data: Data) -> LabelKind:
    """What channels and labels mean."""
    manager = data.label_manager
    order = tuple(int(v) for v in manager.regions_class_order) if manager.has_regions else ()
    heads = Heads(len(data.heads), manager.has_regions)
    return LabelKind(heads, order, tuple(data.heads), tuple(data.structures.values()))


def finest(data: Data) -> float:
    """Edge of the finest voxels of the plans, in mm."""
    return finest_edge(data.plans_manager.get_configuration(data.configuration))


def observed(
    data: Data, case: str, p: NDArray, references: NDArray, spacing: tuple[float, ...], near: NDArray[np.bool_]
) -> CaseVoxels:
    """What the fits need of a case; ``p`` as it comes ``(heads, *image)``."""
    ml = voxel_volume(references.shape[1:], spacing) / MM3_PER_ML
    probabilities = torch.from_numpy(p).float()
    return observe(case, probabilities, references, near, label_kind(data), spacing=spacing, voxel_ml=ml)


def coherent_samples(
    data: Data, case: str, p: NDArray, calibration: Calibration, spacing: tuple[float, ...], count: int, seed: int
) -> NDArray[np.uint8]:
    """Label maps ``(count, *image)`` with the calibrated marginals of ``p`` ``(heads, *image)``."""
    heads = Heads(len(data.heads), data.label_manager.has_regions)
    labels = np.zeros((count, *p.shape[1:]), dtype=np.uint8)
    draw_coherent(
        tempered(torch.from_numpy(p).float().clone(), calibration.temperature, heads),
        case,
        range(count),
        calibration.length_weights,
        labels,
        spacing=spacing,
        finest=finest(data),
        seed=seed,
        label_manager=data.label_manager,
    )
    return labels
