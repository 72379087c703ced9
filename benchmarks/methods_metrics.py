"""Judges kept predictions: accuracy, surfaces, diversity, calibration, error detection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from benchmarks.methods_data import Data, references_of
from benchmarks.methods_prediction import CasePrediction, Model, Options, predict_case
from benchmarks.tables import table_of
from nndiffseg.calibration import CaseTable, cross_fit
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.groups import read_groups
from nndiffseg.uncertainty import (
    PairwiseOverlap,
    ReliabilityAccumulator,
    entropy,
    expected_dice,
    generalised_energy_distance,
    matched_iou,
)
from nndiffseg.uncertainty.evaluation import ErrorHistogram, dilated_foreground, nanmean
from nndiffseg.uncertainty.statistics import label_map

#: nnU-Net's readers give 2D images one slice of a huge thickness
THICK = 900


def dice_of(prediction: NDArray, reference: NDArray, structures: Iterable[Sequence[int]]) -> NDArray[np.float64]:
    """Dice of two label maps per structure ``(K,)``; NaN where both lack the structure, as in nnU-Net's evaluation."""
    values = []
    for labels in structures:
        a, b = np.isin(prediction, labels), np.isin(reference, labels)
        size = int(a.sum()) + int(b.sum())
        values.append(2 * int((a & b).sum()) / size if size else np.nan)
    return np.array(values)


def surface_dice(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: Sequence[float], tolerance: float) -> float:
    """Normalised surface distance: share of both surfaces that lies within ``tolerance`` mm of the other surface.

    Nikolov et al., arXiv 1809.04430, section "Surface Dice": (|S_a in B_b| + |S_b in B_a|) / (|S_a| + |S_b|). A surface
    is here the set of a mask's voxels with a face on the outside (or on the image's border), each of equal weight and at
    its centre. The authors' package, surface-distance 0.1, weighs patches of a marching-cubes surface instead: on 20 slightly
    wrong hippocampus structures at 1 mm it gave 0.995 where this gives 0.988 (largest difference 0.013).

    Args:
        a, b: masks of equal shape.
        spacing: mm along each axis.
        tolerance: mm.

    Returns:
        In [0, 1]; NaN where both are empty, 0 where one is.
    """
    if not (a.any() and b.any()):
        return np.nan if not (a.any() or b.any()) else 0.0
    box = tuple(slice(int(w.min()), int(w.max()) + 1) for w in np.nonzero(a | b))  # both surfaces lie in here
    surfaces = []
    for mask in (a, b):
        inside = np.pad(mask[box], 1)
        surfaces.append((inside & ~binary_erosion(inside))[(slice(1, -1),) * inside.ndim])
    to_a, to_b = (distance_transform_edt(~s, sampling=spacing) for s in surfaces)
    near = (to_b[surfaces[0]] <= tolerance).sum() + (to_a[surfaces[1]] <= tolerance).sum()
    return float(near / (surfaces[0].sum() + surfaces[1].sum()))


def mean_dice(data: Data, case: str, prediction: NDArray, references: NDArray | None = None) -> float:
    """Dice of one label map ``(*image)``, mean over the case's annotations and the structures."""
    if references is None:
        references, _ = references_of(data, case)
    structures = list(structures_of(data.dataset_json).values())
    return nanmean(value for r in references for value in dice_of(prediction, r, structures))


def dice_scores(data: Data, case: str, prediction: CasePrediction) -> dict[str, float | None]:
    """Dice of the deterministic prediction, of the mean of the samples, of a single sample, and between samples."""
    references, _ = references_of(data, case)
    manager = data.label_manager
    hard = {
        name: label_map(torch.from_numpy(p), manager).numpy()
        for name, p in (("deterministic", prediction.deterministic), ("samples", prediction.sampled))
    }
    overlap = PairwiseOverlap(len(prediction.labels), list(structures_of(data.dataset_json).values()))
    overlap.add(prediction.labels)
    return {
        **{name: mean_dice(data, case, labels, references) for name, labels in hard.items()},
        "single": nanmean(mean_dice(data, case, labels, references) for labels in prediction.labels),
        "between_samples": expected_dice(overlap),
        "seconds": prediction.seconds,
    }


def predicted_scores(model: Model, case: str, options: Options, change: Any = None) -> dict[str, float | None]:
    """:func:`dice_scores` of a fresh prediction; arguments as in :func:`benchmarks.methods_prediction.predict_case`."""
    return dice_scores(model.data, case, predict_case(model, case, options, change))


@dataclass
class Judge:
    """Collects the figures of one method over cases; each is a mean over a case's annotations first, if it has several.

    Attributes:
        data: dataset and cases.
        tolerance: of the surface distance, in mm.
        fuse: fit the weight of the deterministic probabilities on one half of the cases for the other, as
            :mod:`nndiffseg.training.validation` does; without it (nnU-Net) the deterministic ones are the prediction.
    """

    data: Data
    tolerance: float = 1.0
    fuse: bool = True
    cases: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manager = self.data.label_manager
        self.structures = structures_of(self.data.dataset_json)
        heads = self.manager.foreground_regions if self.manager.has_regions else self.manager.all_labels
        self.heads = [tuple(h) if isinstance(h, (tuple, list)) else (h,) for h in heads]
        self.reliability = ReliabilityAccumulator(len(self.heads), regions=self.manager.has_regions)
        self.errors = ErrorHistogram()

    def judge(self, predictions: Callable[[], Iterable[tuple[str, CasePrediction]]]) -> dict[str, Any]:
        """All figures, JSON-ready. ``predictions()`` goes through (case, prediction) and is called twice."""
        weights = self._cross_fitted(predictions()) if self.fuse else {}
        for case, prediction in predictions():
            self.cases.append({"case": case, **self._case(case, prediction, weights.get(case, 1.0))})
        return self.summary()

    # ---- fusion weight --------------------------------------------------------------------------------------------

    def _cross_fitted(self, predictions: Iterable[tuple[str, CasePrediction]]) -> dict[str, float]:
        """Weight of each case, fitted on the cases of other groups."""
        tables: list[CaseTable] = []
        for case, prediction in predictions:
            references, spacing = references_of(self.data, case)
            tables.append(table_of(self.data, case, prediction, references, spacing, self.heads))
        calibrations = cross_fit(tables, read_groups(self.data.preprocessed))
        return {case: calibration.fusion_weight for case, calibration in calibrations.items()}

    def _masks(self, reference: NDArray) -> NDArray[np.bool_]:  # (*image) -> (heads, *image)
        return np.stack([np.isin(reference, labels) for labels in self.heads])

    # ---- one case -------------------------------------------------------------------------------------------------

    def _case(self, case: str, prediction: CasePrediction, weight: float) -> dict[str, Any]:
        references, spacing = references_of(self.data, case)
        fused = weight * prediction.deterministic + (1 - weight) * prediction.sampled
        hard = {
            name: label_map(torch.from_numpy(p), self.manager).numpy()
            for name, p in (("fused", fused), ("deterministic", prediction.deterministic), ("samples", prediction.sampled))
        }
        row = {f"dice_{name}": self._mean_dice([labels], references) for name, labels in hard.items()}
        row["dice_single"] = self._mean_dice(prediction.labels, references)
        row |= {f"nsd_{name}": self._nsd(hard[name], references, spacing) for name in ("fused", "deterministic")}
        row |= self._diversity(prediction.labels, references)
        self._probabilities(fused, hard["fused"], references)
        return row | {"fusion_weight": weight, "seconds": prediction.seconds, "references": len(references)}

    def _mean_dice(self, predictions: Any, references: NDArray) -> dict[str, float]:
        """Mean over all pairs of a prediction and an annotation."""
        values = [dice_of(p, r, self.structures.values()) for p in predictions for r in references]
        return {name: nanmean(v[i] for v in values) for i, name in enumerate(self.structures)}

    def _nsd(self, prediction: NDArray, references: NDArray, spacing: Sequence[float]) -> dict[str, float]:
        flat = prediction.shape[0] == 1 and spacing[0] > THICK * max(spacing[1:])
        step = spacing[1:] if flat else spacing
        if flat:
            prediction, references = prediction[0], references[:, 0]
        return {
            name: nanmean(
                surface_dice(np.isin(prediction, labels), np.isin(r, labels), step, self.tolerance) for r in references
            )
            for name, labels in self.structures.items()
        }

    def _diversity(self, labels: NDArray, references: NDArray) -> dict[str, Any]:
        overlap = PairwiseOverlap(len(labels) + len(references), list(self.structures.values()))
        overlap.add(np.concatenate([labels.astype(np.int32), references.astype(np.int32)]))
        distance = generalised_energy_distance(overlap, len(labels))
        return {
            "ged2": distance.squared,
            "ged_cross": distance.cross,
            "ged_within_samples": distance.within_samples,
            "ged_within_references": distance.within_references,
            "matched_iou": matched_iou(overlap, len(labels)),
        }

    def _probabilities(self, fused: NDArray, labels: NDArray, references: NDArray) -> None:
        """Pools voxels in the dilated foreground: reliability against how often annotators agree, errors against each."""
        region = dilated_foreground(references.max(0)[None], labels[None])
        frequency = np.stack([self._masks(r) for r in references]).mean(axis=0, dtype=np.float32)
        self.reliability.add(fused, frequency, region)
        uncertainty = entropy(fused, regions=self.manager.has_regions)[region]
        for reference in references:
            self.errors.add(uncertainty, (labels != reference)[region])

    # ---- all cases ------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Means over cases, then over structures; the voxels of calibration and error detection are pooled."""
        result: dict[str, Any] = {}
        for name in ("dice_fused", "dice_deterministic", "dice_samples", "dice_single", "nsd_fused", "nsd_deterministic"):
            per_structure = {s: nanmean(case[name][s] for case in self.cases) for s in self.structures}
            result[name] = {**per_structure, "mean": nanmean(per_structure.values())}
        for name in ("ged2", "ged_cross", "ged_within_samples", "ged_within_references", "matched_iou", "fusion_weight"):
            result[name] = nanmean(case[name] for case in self.cases)
        calibration = self.reliability.summary()
        return {
            **result,
            "ece": calibration["ece"],
            "ece_per_class": calibration["ece_per_class"],
            "brier": calibration["brier"],
            "nll": calibration["nll"],
            "error_auroc": self.errors.auroc(),
            "seconds_per_case": float(np.median([case["seconds"] for case in self.cases])),
            "annotations_per_case": nanmean(case["references"] for case in self.cases),
            "per_case": self.cases,
        }
