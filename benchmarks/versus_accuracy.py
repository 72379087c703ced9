"""Predicts a fold's validation cases with stock nnU-Nets and with nndiffseg, and judges all on the same voxels.

Used by :mod:`benchmarks.versus_nnunet`. nndiffseg's fitted numbers, the weight that fuses head and samples and the
scales of the samples' details and of their volumes, are cross-fitted as in :mod:`nndiffseg.training.validation`: no case
is judged with a number that it or another one of its group helped to choose. nnU-Nets are fused by the mean of their
probabilities.
"""

from __future__ import annotations

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
from benchmarks.methods_metrics import dice_of, surface_dice
from benchmarks.methods_prediction import CasePrediction, Options, load_model, predict_case
from benchmarks.methods_training import FINAL
from benchmarks.tables import is_flat, table_of
from nndiffseg.calibration import Calibration as Fitted
from nndiffseg.calibration import CaseTable, cross_fit
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.groups import read_groups
from nndiffseg.uncertainty import entropy, region_of_interest
from nndiffseg.uncertainty.evaluation import DILATION
from nndiffseg.uncertainty.statistics import label_map

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
        calibrations: of each side, for each case, fitted on the cases of other groups; the same fits for every side.
    """

    members: list[Data]
    device: torch.device
    options: Options
    tolerance: float = 1.0
    raters: bool = True
    more_steps: tuple[int, ...] = ()
    nnunets: int = 1
    calibrations: dict[str, dict[str, Fitted]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = self.members[0]
        self.data, self.manager = data, data.label_manager
        self.structures = structures_of(data.dataset_json)
        heads = self.manager.foreground_regions if self.manager.has_regions else self.manager.all_labels
        tuples = [tuple(h) if isinstance(h, (tuple, list)) else (int(h),) for h in heads]
        self.heads = tuples
        self.foreground = [tuples.index(labels) for labels in self.structures.values()]
        self.groups = read_groups(data.preprocessed)

    # ---- predictions, kept on disk --------------------------------------------------------------------------------

    def predict(self) -> None:
        """Predicts what is not predicted yet."""
        for data in self.members[: self.nnunets]:
            self._predict(data, STOCK, self.options)
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
        return fold / "versus_predictions" / "_".join(parts)

    def _predict(self, data: Data, trainer: str, options: Options) -> None:
        folder = self._folder(data, trainer, options)
        folder.mkdir(parents=True, exist_ok=True)
        missing = [case for case in data.cases if not (folder / f"{case}.npz").is_file()]
        if not missing:
            return
        model = load_model(data, trainer, self.device)
        for number, case in enumerate(missing, start=1):
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
        """Gives every side a calibration for each case, cross-fitted over groups."""
        tables: dict[str, list[CaseTable]] = {}
        for case in self.data.cases:
            references, spacing = self.references(case)
            for side, prediction in self._sides(case).items():
                table = table_of(self.data, case, prediction, references, spacing, self.heads)
                tables.setdefault(side, []).append(table)
        self.calibrations = {side: cross_fit(of_side, self.groups) for side, of_side in tables.items()}

    def _sides(self, case: str) -> dict[str, CasePrediction]:
        """The prediction of every side; the ensemble's samples are its members."""
        stock = [self.load(case, member) for member in range(self.nnunets)]
        sides = {"nndiffseg": self.load(case, trainer=OURS)}
        if stock:
            sides["nnunet"] = replace(stock[0], sampled=stock[0].deterministic)
        if len(stock) > 1:
            mean = np.stack([s.deterministic for s in stock]).mean(axis=0)
            labels = np.stack([self.labels(s.deterministic) for s in stock])
            sides["ensemble"] = replace(stock[0], deterministic=mean, sampled=mean, labels=labels)
        return sides

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
        sides, (references, spacing) = self._sides(case), self.references(case)
        ours, calibrations = sides["nndiffseg"], {side: self.calibrations[side][case] for side in sides}
        w = calibrations["nndiffseg"].fusion_weight
        p: dict[str, NDArray] = {name: side.deterministic for name, side in sides.items()}
        p["nndiffseg"] = w * ours.deterministic + (1 - w) * ours.sampled
        samples = {name: side.labels for name, side in sides.items()}
        hard = {name: self.labels(values) for name, values in p.items()}
        everything = {**hard, "head": self.labels(ours.deterministic), "samples": self.labels(ours.sampled)}
        dice = {name: self._dice([labels], references) for name, labels in everything.items()}
        dice["sample"] = self._dice(ours.labels, references)
        dice |= {
            f"steps_{n}": self._dice([self.labels(self.load(case, trainer=OURS, steps=n).sampled)], references)
            for n in self.more_steps
        }
        step = spacing[1:] if is_flat(references, spacing) else spacing
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
        scales = {name: calibration.volume_scale for name, calibration in calibrations.items()}
        return CaseResult(dice, nsd, counts, {n: agreement(s, references, structures, scales[n]) for n, s in samples.items()})

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


def _nanmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis of what is there, NaN where nothing is."""
    present = np.isfinite(values)
    count = present.sum(0)
    return np.where(count > 0, np.where(present, values, 0.0).sum(0) / np.maximum(count, 1), np.nan)
