"""A validation case as it is scored, and what of it the fits need: its table, its voxels, its prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nndiffseg.calibration.confidence import soft_dice
from nndiffseg.calibration.fusion import WEIGHTS, fusion_scores
from nndiffseg.calibration.tables import CaseTable
from nndiffseg.calibration.temperature import fused_curves
from nndiffseg.calibration.volumes import structure_voxels
from nndiffseg.calibration.voxels import CaseVoxels, LabelKind, observe, without
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.inference.coherent import grid_spacing
from nndiffseg.training.trained_fold import TrainedFold
from nndiffseg.uncertainty.case_labels import near_structures
from nndiffseg.uncertainty.statistics import CaseParts
from nndiffseg.uncertainty.volumes import MM3_PER_ML


@dataclass(frozen=True)
class ScoredCase:
    """A predicted case as it is scored: ignored voxels are background in prediction and reference alike.

    Attributes:
        name: of the case.
        parts: of the prediction.
        reference: label map ``(*spatial)``.
        ignored: voxels that the annotator left open ``(*spatial)``, bool.
        voxel_ml: volume of a voxel.
        predicted: foreground of the head's segmentation ``(*spatial)``, bool.
    """

    name: str
    parts: CaseParts
    reference: np.ndarray
    ignored: np.ndarray
    voxel_ml: float
    predicted: np.ndarray

    @classmethod
    def of(
        cls, trainer: TrainedFold, name: str, parts: CaseParts, label: np.ndarray, properties: Mapping[str, Any]
    ) -> ScoredCase:
        """Of a preprocessed label ``(*spatial)`` that may hold the ignore label."""
        heads = trainer.method.plan.heads
        geometry = CaseGeometry(dict(properties), trainer.plans_manager, trainer.configuration_manager)
        ignored = label == trainer.label_manager.ignore_label
        if ignored.any():
            deterministic, sampled = (without(p, ignored, heads) for p in (parts.deterministic, parts.sampled))
            parts = CaseParts(deterministic, sampled, np.where(ignored, 0, parts.labels), parts.regions)
            label = np.where(ignored, 0, label)
        predicted = heads.hard(parts.deterministic, 0)[heads.first_structure :].any(0).numpy()
        return cls(name, parts, label, ignored, geometry.voxel_volume(label.shape) / MM3_PER_ML, predicted)

    @property
    def near(self) -> np.ndarray:
        """Voxels near the structures of the reference or of the head's segmentation, bool ``(*spatial)``."""
        return near_structures([self.reference, self.predicted]) & ~self.ignored


def table_of(trainer: TrainedFold, case: ScoredCase) -> CaseTable:
    ml, structures = case.voxel_ml, structures_of(trainer.dataset_json).values()
    parts, reference = case.parts, case.reference
    onehot, heads = reference_onehot(trainer, reference), trainer.method.plan.heads
    dice, nll = fusion_scores(parts.deterministic, parts.sampled, onehot, heads, int((~case.ignored).sum()))
    near = torch.from_numpy(case.near)
    curves = fused_curves(parts.deterministic[:, near], parts.sampled[:, near], onehot[:, near], heads)
    sampled, true = (ml * structure_voxels(labels, structures) for labels in (parts.labels, reference[None]))
    mixtures = (torch.lerp(parts.sampled, parts.deterministic, float(w)) for w in WEIGHTS)
    confidence = np.stack([soft_dice(p, heads) for p in mixtures])
    return CaseTable(case.name, dice, nll, sampled, true, curves, confidence, not case.ignored.any())


def voxels_of(trainer: TrainedFold, case: ScoredCase) -> CaseVoxels:
    return observe(
        case.name,
        case.parts.deterministic,
        case.reference[None],
        case.near,
        near_structures([case.predicted]) & ~case.ignored,
        LabelKind.of(trainer.label_manager, trainer.dataset_json),
        spacing=grid_spacing(trainer.plans_manager, trainer.configuration_manager),
        voxel_ml=case.voxel_ml,
        sampled=case.parts.sampled,
        drawn=case.parts.labels,
        complete=not case.ignored.any(),
    )


def reference_onehot(trainer: TrainedFold, reference: np.ndarray) -> torch.Tensor:
    """Labels ``(*spatial)`` -> bool ``(heads, *spatial)``."""
    manager, labels = trainer.label_manager, torch.from_numpy(reference)
    if manager.has_regions:
        regions = [r if isinstance(r, (list, tuple)) else [r] for r in manager.foreground_regions]
        return torch.stack([torch.isin(labels, torch.tensor(r)) for r in regions])
    return torch.stack([labels == label for label in range(manager.num_segmentation_heads)])


def store_parts(parts: CaseParts, file: Path) -> None:
    """Probabilities in steps of 1 / 65535, compressed: most voxels are certain, so that little is left of them."""
    steps = {
        name: (getattr(parts, name) * 65535).round().int().numpy().astype(np.uint16) for name in ("deterministic", "sampled")
    }
    np.savez_compressed(file, **steps, labels=parts.labels, regions=parts.regions)


def restore_parts(file: Path) -> CaseParts:
    """Inverse of :func:`store_parts`, up to 1 / 131070."""
    with np.load(file) as saved:
        deterministic, sampled = (
            torch.from_numpy(saved[name].astype(np.float32) / 65535) for name in ("deterministic", "sampled")
        )
        return CaseParts(deterministic, sampled, saved["labels"], bool(saved["regions"]))
