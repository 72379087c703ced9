"""Predicts a fold's validation cases with every side of a comparison, and evaluates all sides on the same voxels.

A side is a column of the table: a trained model, a model's deterministic head alone, or an ensemble. All of them take the
same way: prediction cache, cross-fitted calibration (:mod:`benchmarks.compare.fits`), metrics
(:mod:`benchmarks.compare.metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.compare import predictions
from benchmarks.compare.coherence import coherent_samples, finest, label_kind, observed
from benchmarks.compare.data import Data, references_of
from benchmarks.compare.fits import case_table
from benchmarks.compare.library import CasePrediction, Options, independent_samples, labels_of
from benchmarks.compare.metrics import (
    Agreement,
    Reliability,
    agreement,
    error_histogram,
    reliability,
)
from benchmarks.compare.trainers import Entry
from nndiffseg.calibration import Calibration, CaseTable, cross_fit
from nndiffseg.calibration.coherent_fit import fit_coherent
from nndiffseg.calibration.fit import cross_fitted
from nndiffseg.calibration.isotonic import fit_isotonic, probability_histogram
from nndiffseg.calibration.temperature import tempered
from nndiffseg.calibration.voxels import CaseVoxels
from nndiffseg.data.groups import read_groups
from nndiffseg.data.images import is_flat
from nndiffseg.data.seeds import seed_of
from nndiffseg.nn.heads import Heads
from nndiffseg.uncertainty import entropy
from nndiffseg.uncertainty.agreement import dice_of
from nndiffseg.uncertainty.annotators import nanmean_rows
from nndiffseg.uncertainty.case_labels import near_structures
from nndiffseg.uncertainty.detection import ErrorHistogram
from nndiffseg.uncertainty.surfaces import surface_measures


@dataclass(frozen=True)
class Source:
    """One trained model: the fold in the results folder that holds it, and its trainer with options."""

    data: Data
    entry: Entry


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: in JSON files.
        label: in tables.
        sources: one model, or the members of an ensemble.
        head_alone: only the deterministic part of the model counts; samples are then independent per-voxel draws from it.
        coherent: the deterministic part alone, of an ensemble the mean, with samples of the coherent sampler
            (:mod:`nndiffseg.diffusion.coherent`).
    """

    name: str
    label: str
    sources: tuple[Source, ...]
    head_alone: bool = False
    coherent: bool = False


@dataclass(frozen=True)
class SideMetrics:
    """Metrics of one case and side.

    Attributes:
        dice, iou, nsd: of the segmentation, per structure, mean over annotations ``(K,)``; NaN where the structure is
            absent from both.
        parts: the same Dice of a side's parts: ``head``, ``samples`` (their mean), ``sample`` (a single one).
        plain, scaled, isotonic: probabilities as they come, with the fitted temperature, and with isotonic regression.
        errors: of the segmentation, against the entropy.
        agreement: of the samples; those of an ensemble are its members.
        seconds: of the prediction.
    """

    dice: NDArray[np.float64]
    iou: NDArray[np.float64]
    nsd: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]
    plain: Reliability
    scaled: Reliability
    isotonic: Reliability
    errors: ErrorHistogram
    agreement: Agreement
    seconds: float


@dataclass(frozen=True)
class CaseMetrics:
    """One case: its group, the number of its annotations, and the metrics of every side by name."""

    group: str
    annotations: int
    sides: dict[str, SideMetrics]


@dataclass
class Comparison:
    """The sides of a comparison on one fold.

    Attributes:
        sides: what is compared.
        options: of the prediction; the same mirroring for all.
        tolerance: of the surface distance, in mm (pixels where images have no spacing).
        raters: evaluate against all annotations in ``ratersTr`` where there are some, else against the label alone. Fits see
            the label alone, as in training.
        calibrations: side -> case -> numbers that were fitted without the case's group.
        isotonic: side -> case -> map of probabilities ``(heads, n)`` that was fitted without the case's group.
    """

    sides: Sequence[Side]
    options: Options
    tolerance: float = 1.0
    raters: bool = True
    calibrations: dict[str, dict[str, Calibration]] = field(default_factory=dict)
    isotonic: dict[str, dict[str, Callable[[Tensor], Tensor]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = self.sides[0].sources[0].data
        self.foreground = [self.data.heads.index(labels) for labels in self.data.structures.values()]
        self.regions = self.data.label_manager.has_regions
        self.groups = read_groups(self.data.preprocessed)

    # ---- predictions ----------------------------------------------------------------------------------------------

    def predict(self, device: torch.device) -> None:
        """Predicts what is not in the cache yet."""
        for side in self.sides:
            for source in side.sources:
                predictions.predict_missing(source.data, source.entry, self.options, device)

    def prediction(self, side: Side, case: str) -> CasePrediction:
        """A side's prediction of a case."""
        members = [predictions.load(s.data, s.entry, self.options, case) for s in side.sources]
        found = members[0]
        if len(members) > 1:
            mean = np.stack([m.deterministic for m in members]).mean(axis=0)
            labels = np.stack([labels_of(self.data, m.deterministic) for m in members])
            found = CasePrediction(mean, mean, labels, sum(m.seconds for m in members))
        p = found.deterministic
        if side.coherent:
            calibration, (_, spacing) = self.calibrations[side.name][case], self._label(case)
            labels = coherent_samples(self.data, case, p, calibration, spacing, self.options.samples, self.options.seed)
            return CasePrediction(p, p, labels, found.seconds)
        if side.head_alone:
            seed = seed_of(self.options.seed, case, side.name)
            return CasePrediction(p, p, independent_samples(self.data, p, self.options.samples, seed), found.seconds)
        return found

    def references(self, case: str) -> tuple[NDArray, tuple[float, ...]]:
        """Annotations ``(M, *image)`` and spacing in mm."""
        return references_of(self.data, case, self.raters)

    # ---- fits -----------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Gives every side a calibration for each case, cross-fitted over groups."""
        for side in self.sides:
            if side.coherent:
                cases = [self._observed(side, case) for case in self.data.cases]
                folds = (str(self.data.fold),)
                fitted = fit_coherent(
                    cases, label_kind(self.data), self.groups, folds, finest(self.data), seed=self.options.seed
                )
                self.calibrations[side.name] = fitted.crossed
            else:
                tables = [self._table(side, case) for case in self.data.cases]
                self.calibrations[side.name] = cross_fit(tables, self.groups)
            self.isotonic[side.name] = self._fit_isotonic(side)

    def _label(self, case: str) -> tuple[NDArray, tuple[float, ...]]:
        return references_of(self.data, case, raters=False)

    def _table(self, side: Side, case: str) -> CaseTable:
        return case_table(self.data, case, self.prediction(side, case), *self._label(case))

    def _observed(self, side: Side, case: str) -> CaseVoxels:
        p, (label, spacing) = self.prediction(replace(side, coherent=False), case).deterministic, self._label(case)
        return observed(self.data, case, p, label, spacing, near_structures([*label, labels_of(self.data, p)]))

    def _fit_isotonic(self, side: Side) -> dict[str, Callable[[Tensor], Tensor]]:
        histograms = {}
        for case in self.data.cases:
            label, _ = self._label(case)
            p = fused(self.prediction(side, case), self.calibrations[side.name][case].fusion_weight)
            near = near_structures([*label, labels_of(self.data, p)])
            truth = np.stack([np.isin(label, labels).mean(0) for labels in self.data.heads])
            histograms[case] = probability_histogram(torch.from_numpy(p[:, near]), torch.from_numpy(truth[:, near]))
        return cross_fitted(
            self.data.cases, self.groups, lambda others: fit_isotonic([histograms[c] for c in others], self.regions)
        )

    # ---- metrics --------------------------------------------------------------------------------------------------

    def evaluate(self, case: str) -> CaseMetrics:
        """All metrics of one case."""
        references, spacing = self.references(case)
        found = {side.name: self.prediction(side, case) for side in self.sides}
        p = {name: fused(f, self.calibrations[name][case].fusion_weight) for name, f in found.items()}
        region = near_structures([*references, *(labels_of(self.data, values) for values in p.values())])
        sides = {
            side.name: self._side(side, case, found[side.name], p[side.name], region, references, spacing)
            for side in self.sides
        }
        return CaseMetrics(self.groups.get(case, case), len(references), sides)

    def _side(
        self,
        side: Side,
        case: str,
        found: CasePrediction,
        p: NDArray,
        region: NDArray[np.bool_],
        references: NDArray,
        spacing: Sequence[float],
    ) -> SideMetrics:
        hard = labels_of(self.data, p)
        frequency = np.stack([np.isin(references, labels).mean(0) for labels in self.data.structures.values()])
        scaled, isotonic, calibration = np.zeros(p.shape), np.zeros(p.shape), self.calibrations[side.name][case]
        near = torch.from_numpy(p[:, region])
        scaled[:, region] = tempered(near.clone(), calibration.temperature, Heads(len(p), self.regions)).numpy()
        isotonic[:, region] = self.isotonic[side.name][case](near).numpy()
        uncertainty = np.asarray(entropy(p, regions=self.regions))
        return SideMetrics(
            self._dice([hard], references),
            self._iou(hard, references),
            self._nsd(hard, references, spacing),
            self._parts(found, references),
            reliability(p[self.foreground], frequency, region),
            reliability(scaled[self.foreground], frequency, region),
            reliability(isotonic[self.foreground], frequency, region),
            error_histogram(uncertainty, [hard != r for r in references], region),
            agreement(
                found.labels,
                references,
                list(self.data.structures.values()),
                calibration.volume_scale,
                calibration.volume_quantiles,
            ),
            found.seconds,
        )

    def _parts(self, found: CasePrediction, references: NDArray) -> dict[str, NDArray[np.float64]]:
        return {
            "head": self._dice([labels_of(self.data, found.deterministic)], references),
            "samples": self._dice([labels_of(self.data, found.sampled)], references),
            "sample": self._dice(found.labels, references),
        }

    def _dice(self, labels: Iterable[NDArray], references: NDArray) -> NDArray[np.float64]:
        """Mean over all pairs of a label map and an annotation ``(K,)``."""
        return nanmean_rows(np.stack([dice_of(p, r, list(self.data.structures.values())) for p in labels for r in references]))

    def _iou(self, labels: NDArray, references: NDArray) -> NDArray[np.float64]:
        """Mean over the annotations of D / (2 - D), with the Dice D of each ``(K,)``."""
        each = np.stack([dice_of(labels, r, list(self.data.structures.values())) for r in references])
        return nanmean_rows(each / (2 - each))

    def _nsd(self, labels: NDArray, references: NDArray, spacing: Sequence[float]) -> NDArray[np.float64]:
        if is_flat(references.shape[1:], spacing):
            labels, references, spacing = labels[0], references[:, 0], spacing[1:]
        structures = self.data.structures.values()
        values = [
            [surface_measures(np.isin(labels, s), np.isin(r, s), spacing, self.tolerance).nsd for s in structures]
            for r in references
        ]
        return nanmean_rows(np.array(values))

    def fits(self) -> dict[str, dict[str, Any]]:
        """Smallest and largest of every side's fitted numbers, JSON-ready."""
        found: dict[str, dict[str, Any]] = {}
        for name, of_case in self.calibrations.items():
            numbers = {
                "fusion_weight": [c.fusion_weight for c in of_case.values()],
                "volume_scale": [c.volume_scale for c in of_case.values()],
                "temperature": [t for c in of_case.values() for t in c.temperature],
            }
            found[name] = {k: [round(min(v), 3), round(max(v), 3)] for k, v in numbers.items()}
        return found


def fused(prediction: CasePrediction, weight: float) -> NDArray[np.float32]:
    """Deterministic and sampled part mixed ``(heads, *image)``."""
    if prediction.sampled is prediction.deterministic:
        return prediction.deterministic
    return weight * prediction.deterministic + (1 - weight) * prediction.sampled
