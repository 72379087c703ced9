"""Predicts a fold's validation cases with stock nnU-Nets and with nndiffseg, and judges all on the same voxels.

Used by :mod:`benchmarks.versus_nnunet`. nndiffseg's fitted numbers, the weight that fuses head and samples and the
scales of the samples' details and of their volumes, are cross-fitted as in :mod:`nndiffseg.training.validation`: no case
is judged with a number that it or another one of its group helped to choose. nnU-Nets are fused by the mean of their
probabilities.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.comparison_metrics import Agreement, Calibration, agreement, calibration
from benchmarks.methods_common import STOCK
from benchmarks.methods_data import Data, references_of
from benchmarks.methods_metrics import THICK, dice_of, surface_dice
from benchmarks.methods_prediction import CasePrediction, Options, load_model, predict_case
from benchmarks.methods_training import FINAL
from nndiffseg.calibration.fusion import FusionTable, fit_fusion_weight, fusion_table
from nndiffseg.calibration.volumes import VolumeTable, fit_volume_scales, structure_voxels
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.groups import halves_of, read_groups
from nndiffseg.errors import UserError
from nndiffseg.methods.fitted import set_fitted
from nndiffseg.training.detail_scale import SpreadTable, fit_detail_without_each, spread_tables
from nndiffseg.uncertainty import entropy, region_of_interest
from nndiffseg.uncertainty.evaluation import DILATION
from nndiffseg.uncertainty.statistics import label_map
from nndiffseg.uncertainty.volumes import MM3_PER_ML

OURS = "nnDiffSegTrainer"
METHODS = ("nnunet", "nndiffseg", "ensemble")


@contextmanager
def results_in(folder: Path) -> Iterator[None]:
    """nnU-Net's trainers read their results folder from the environment."""
    before = os.environ.get("nnUNet_results")
    os.environ["nnUNet_results"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["nnUNet_results"]
        else:
            os.environ["nnUNet_results"] = before


def tables_of(data: Data, device: torch.device, patches: int | None = None) -> list[SpreadTable]:
    """Distances in validation patches of the fold's finished training, by its averaged network.

    Raises:
        UserError: there is none.
    """
    from nndiffseg.trainers import nnDiffSegTrainer

    file = data.fold_folder(OURS) / FINAL
    if not file.is_file():
        raise UserError(
            f"There is no finished training of {OURS} for fold {data.fold} of {data.dataset}; run "
            f"`nndiffseg_train {data.dataset} {data.configuration} {data.fold} -p {data.plans['plans_name']}`."
        )
    with results_in(data.results):
        trainer = nnDiffSegTrainer(
            {**data.plans, "continue_training": True}, data.configuration, data.fold, data.dataset_json, device
        )
        trainer.load_checkpoint(str(file))
        assert trainer.average is not None
        return spread_tables(trainer, trainer.average.network, patches)


def volume_table(data: Data, case: str, labels: NDArray, references: NDArray, spacing: Sequence[float]) -> VolumeTable:
    """Volumes of samples ``(N, *image)`` and annotations ``(M, *image)``; a 2D image counts as 1 mm thick."""
    ml = np.prod(spacing[1:] if _is_flat(references, spacing) else spacing) / MM3_PER_ML
    structures = list(structures_of(data.dataset_json).values())
    return VolumeTable(case, ml * structure_voxels(labels, structures), ml * structure_voxels(references, structures))


@dataclass(frozen=True)
class CaseResult:
    """One case. Keys of the dictionaries are methods; of ``dice`` also ``head``, ``samples``, ``sample``.

    Attributes:
        dice, nsd: per structure, mean over annotations ``(K,)``; NaN where the structure is absent from both.
        calibration: counts in the same voxels for all methods.
        agreement: nnU-Net's samples draw every voxel by itself, the ensemble's are its members.
    """

    dice: dict[str, NDArray[np.float64]]
    nsd: dict[str, NDArray[np.float64]]
    calibration: dict[str, Calibration]
    agreement: dict[str, Agreement]


@dataclass
class Comparison:
    """What is compared.

    Attributes:
        members: the fold in the results folder of each seed; the first one holds nndiffseg.
        device: where to predict.
        options: of the prediction; the same mirroring for both sides.
        tolerance: of the surface distance, in mm (pixels where images have no spacing).
        raters: judge against all annotations in ``ratersTr`` where there are some, else against the label alone.
        more_steps: also predict with these numbers of sampling steps.
        nnunets: so many of the members hold an nnU-Net.
        fitted_weights, volume_scales: of the two halves of the cases, each fitted on the other half; a scale per structure.
        details: scale of the samples' details, for each case, fitted on all other groups.
    """

    members: list[Data]
    device: torch.device
    options: Options
    tolerance: float = 1.0
    raters: bool = True
    more_steps: tuple[int, ...] = ()
    nnunets: int = 1
    fitted_weights: tuple[float, ...] = ()
    volume_scales: tuple[tuple[float, ...], ...] = ()
    details: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = self.members[0]
        self.data, self.manager = data, data.label_manager
        self.structures = structures_of(data.dataset_json)
        heads = self.manager.foreground_regions if self.manager.has_regions else self.manager.all_labels
        tuples = [tuple(h) if isinstance(h, (tuple, list)) else (int(h),) for h in heads]
        self.heads = tuples
        self.foreground = [tuples.index(labels) for labels in self.structures.values()]
        self.groups = read_groups(data.preprocessed)
        self.halves = halves_of(data.cases, self.groups)

    # ---- predictions, kept on disk --------------------------------------------------------------------------------

    def predict(self) -> None:
        """Predicts what is not predicted yet."""
        for data in self.members[: self.nnunets]:
            self._predict(data, STOCK, self.options)
        self.details = fit_detail_without_each(tables_of(self.data, self.device), self.data.validation, self.groups)
        for steps in (None, *self.more_steps):
            self._predict(self.data, OURS, self._with_steps(steps))

    def _with_steps(self, steps: int | None) -> Options:
        return replace(self.options, steps=steps)

    def _folder(self, data: Data, trainer: str, options: Options) -> Path:
        fold = data.fold_folder(trainer)
        trained = int((fold / FINAL).stat().st_mtime)  # predictions of an older training are not reused
        parts = [
            f"samples_{options.samples}",
            f"seed_{options.seed}",
            *([] if options.mirroring else ["no_mirroring"]),
            *([] if options.steps is None else [f"steps_{options.steps}"]),
            str(trained),
        ]
        if trainer == OURS:  # nor those with other scales
            digest = hashlib.sha256(repr(sorted(self.details.items())).encode()).hexdigest()
            parts.append(f"details_{digest[:12]}")
        return fold / "versus_predictions" / "_".join(parts)

    def _predict(self, data: Data, trainer: str, options: Options) -> None:
        folder = self._folder(data, trainer, options)
        folder.mkdir(parents=True, exist_ok=True)
        missing = [case for case in data.cases if not (folder / f"{case}.npz").is_file()]
        if not missing:
            return
        model = load_model(data, trainer, self.device)
        for number, case in enumerate(missing, start=1):
            if trainer == OURS:
                set_fitted(model.network, {"detail_scale": self.details[case]})
            prediction = predict_case(model, case, options)
            prediction.save(folder / f"{case}.npz")
            steps = "" if options.steps is None else f", {options.steps} steps"
            print(f"{trainer}{steps}: {case}, {prediction.seconds:.1f} s ({number} of {len(missing)})", flush=True)

    def load(self, case: str, member: int = 0, trainer: str = STOCK, steps: int | None = None) -> CasePrediction:
        """A kept prediction."""
        data = self.members[member]
        options = self._with_steps(steps) if trainer == OURS else self.options
        return CasePrediction.load(self._folder(data, trainer, options) / f"{case}.npz")

    # ---- the fitted numbers -----------------------------------------------------------------------------------

    def fit(self) -> None:
        """For each half, the weight of the deterministic head and the scales of the volumes that fit the other half."""
        tables: list[list[FusionTable]] = [[], []]
        volumes: list[list[VolumeTable]] = [[], []]
        for half, cases in enumerate(self.halves):
            for case in cases:
                prediction = self.load(case, trainer=OURS)
                d, s = (torch.from_numpy(p) for p in (prediction.deterministic, prediction.sampled))
                references, spacing = self.references(case)
                volumes[half].append(volume_table(self.data, case, prediction.labels, references, spacing))
                for reference in references:
                    onehot = torch.from_numpy(np.stack([np.isin(reference, labels) for labels in self.heads]))
                    tables[half].append(fusion_table(d, s, onehot, regions=self.manager.has_regions))
        self.fitted_weights = fit_fusion_weight(tables[1] or tables[0]), fit_fusion_weight(tables[0])
        first, second = (fit_volume_scales(half, self.groups) for half in volumes)
        self.volume_scales = second, first

    def _half(self, case: str) -> int:
        return 0 if case in self.halves[0] else 1

    # ---- one case -------------------------------------------------------------------------------------------------

    def references(self, case: str) -> tuple[NDArray, tuple[float, ...]]:
        """Annotations ``(M, *image)`` and spacing in mm."""
        if self.raters:
            return references_of(self.data, case)
        reader, ending = self.data.plans_manager.image_reader_writer_class(), self.data.dataset_json["file_ending"]
        label, properties = reader.read_seg(str(self.data.preprocessed / "gt_segmentations" / f"{case}{ending}"))
        return label.astype(np.int16), tuple(float(s) for s in properties["spacing"])

    def labels(self, p: NDArray) -> NDArray:
        """Probabilities ``(heads, *image)`` -> label map."""
        return label_map(torch.from_numpy(p), self.manager).numpy()

    def judge(self, case: str) -> CaseResult:
        """All figures of one case."""
        stock = [self.load(case, member) for member in range(self.nnunets)]
        ours, (references, spacing) = self.load(case, trainer=OURS), self.references(case)
        w = self.fitted_weights[self._half(case)]
        p: dict[str, NDArray] = {"nndiffseg": w * ours.deterministic + (1 - w) * ours.sampled}
        samples = {"nndiffseg": ours.labels}
        if stock:
            p["nnunet"], samples["nnunet"] = stock[0].deterministic, stock[0].labels
        if len(stock) > 1:
            p["ensemble"] = np.stack([s.deterministic for s in stock]).mean(axis=0)
            samples["ensemble"] = np.stack([self.labels(s.deterministic) for s in stock])
        hard = {name: self.labels(values) for name, values in p.items()}
        everything = {**hard, "head": self.labels(ours.deterministic), "samples": self.labels(ours.sampled)}
        dice = {name: self._dice([labels], references) for name, labels in everything.items()}
        dice["sample"] = self._dice(ours.labels, references)
        dice |= {
            f"steps_{n}": self._dice([self.labels(self.load(case, trainer=OURS, steps=n).sampled)], references)
            for n in self.more_steps
        }
        step = spacing[1:] if _is_flat(references, spacing) else spacing
        nsd = {name: self._nsd(labels, references, step) for name, labels in everything.items()}
        region = region_of_interest(np.any([*references, *hard.values()], axis=0), DILATION)
        frequency = np.stack([np.isin(references, labels).mean(0) for labels in self.structures.values()])
        counts = {
            name: calibration(
                values[self.foreground],
                frequency,
                region,
                np.asarray(entropy(values, regions=self.manager.has_regions)),
                [hard[name] != r for r in references],
            )
            for name, values in p.items()
        }
        structures = list(self.structures.values())
        scales = {"nndiffseg": self.volume_scales[self._half(case)]}
        return CaseResult(
            dice, nsd, counts, {n: agreement(s, references, structures, scales.get(n, (1.0,))) for n, s in samples.items()}
        )

    def _dice(self, labels: Sequence[NDArray] | NDArray, references: NDArray) -> NDArray[np.float64]:
        values = np.stack([dice_of(p, r, self.structures.values()) for p in labels for r in references])
        return _nanmean(values)

    def _nsd(self, labels: NDArray, references: NDArray, spacing: Sequence[float]) -> NDArray[np.float64]:
        if len(spacing) == 2:
            labels, references = labels[0], references[:, 0]
        return _nanmean(
            np.array(
                [
                    [surface_dice(np.isin(labels, s), np.isin(r, s), spacing, self.tolerance) for s in self.structures.values()]
                    for r in references
                ]
            )
        )


def _is_flat(references: NDArray, spacing: Sequence[float]) -> bool:
    """Whether an image is 2D: nnU-Net's readers give it one slice of a huge thickness."""
    return references.shape[1] == 1 and spacing[0] > THICK * max(spacing[1:])


def _nanmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis of what is there, NaN where nothing is."""
    present = np.isfinite(values)
    count = present.sum(0)
    return np.where(count > 0, np.where(present, values, 0.0).sum(0) / np.maximum(count, 1), np.nan)
