"""The validation cases of a finished nnU-Net: what it predicts of those that each fold has not seen, and the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from numpy.typing import NDArray
from torch import Tensor

from nndiffseg.calibration.voxels import CaseVoxels, LabelKind, observe, without
from nndiffseg.data.groups import read_groups
from nndiffseg.data.images import read_image, voxel_volume
from nndiffseg.data.npz import NPZ_ERRORS, check_npz
from nndiffseg.data.splits import SPLITS, read_splits
from nndiffseg.errors import UserError
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.inference.stock_model import StockFold
from nndiffseg.inference.stock_predictor import StockPredictor
from nndiffseg.uncertainty.case_labels import near_structures
from nndiffseg.uncertainty.volumes import MM3_PER_ML


@dataclass(frozen=True)
class ValidationCases:
    """The cases of all folds of a model.

    Args:
        predictor: of the model.
        folder: of the model.
        preprocessed: the dataset's folder of preprocessed data.
    """

    predictor: StockPredictor
    folder: Path
    preprocessed: Path

    def names(self) -> dict[str, StockFold]:
        """Case -> the fold that left it out, by ``splits_final.json``.

        Raises:
            UserError: there is no such file, it lacks a fold, or it shares cases or groups between training and validation.
        """
        file = self.preprocessed / SPLITS
        if not file.is_file():
            raise UserError(
                f"{file} is missing, which says what each fold has not seen; give the folder that the model was trained in "
                "with --preprocessed."
            )
        folds = read_splits(file, groups=read_groups(self.preprocessed))
        found: dict[str, StockFold] = {}
        for fold in self.predictor.model.folds:
            number = int(fold.name) if fold.name.isdigit() else -1
            if not 0 <= number < len(folds):
                raise UserError(
                    f"{file} has no validation cases of fold {fold.name}, so nothing can be fitted on it; choose other folds "
                    "with -f."
                )
            found |= dict.fromkeys(folds[number]["val"], fold)
        return found

    def kind(self) -> LabelKind:
        """What the channels and labels of this model mean."""
        return LabelKind.of(self.predictor.label_manager, self.predictor.dataset_json)

    def missing(self) -> list[str]:
        """Cases whose probabilities nnU-Net's validation did not keep (``nnUNetv2_train --val --npz`` does)."""
        return [case for case, fold in self.names().items() if not self._kept(case, fold).is_file()]

    def observe(self) -> Iterator[CaseVoxels]:
        """Reads or predicts case after case.

        Raises:
            UserError: a file is missing, damaged or of another shape.
        """
        kind, ignore = self.kind(), self.predictor.label_manager.ignore_label
        known = {*self.predictor.label_manager.all_labels, *(() if ignore is None else (ignore,))}
        for case, fold in self.names().items():
            references, spacing = self.references(case)
            if unknown := sorted(set(np.unique(references).tolist()) - known):
                raise UserError(
                    f"The label of {case} holds {unknown[0]}, which dataset.json does not name; correct one of them."
                )
            kept = self._kept(case, fold)
            p = (
                _read_probabilities(kept, kind.heads.number * references[0].size)
                if kept.is_file()
                else self._predict(case, fold)
            )
            if p.shape != (kind.heads.number, *references.shape[1:]):
                raise UserError(
                    f"The probabilities of {case} are {tuple(p.shape)} and its label is {references.shape[1:]}; validate the "
                    "fold again with nnUNetv2_train --val --npz."
                )
            yield _observed(case, p, references, spacing, kind, (references == ignore).any(0))

    def references(self, case: str) -> tuple[NDArray, Sequence[float]]:
        """The label that the model was trained with ``(1, *image)``, and the image's spacing in mm."""
        file = self.preprocessed / "gt_segmentations" / f"{case}{self.predictor.dataset_json['file_ending']}"
        if not file.is_file():
            raise UserError(f"The label {file} is missing; plan and preprocess the dataset again.")
        label, properties = read_image(self.predictor.plans.image_reader_writer_class(), file, label=True)
        return label, properties["spacing"]

    def _kept(self, case: str, fold: StockFold) -> Path:
        return self.folder / f"fold_{fold.name}" / "validation" / f"{case}.npz"

    def _predict(self, case: str, fold: StockFold) -> Tensor:
        """Probabilities of a preprocessed validation case ``(heads, *image)``, as nnU-Net's own validation makes them."""
        predictor = self.predictor
        folder = self.preprocessed / str(predictor.configuration.data_identifier)
        if not any((folder / f"{case}{ending}").is_file() for ending in (".b2nd", ".npz", ".npy")):
            raise UserError(
                f"{folder} holds no {case}, and its probabilities were not kept either; preprocess the dataset again with "
                "nnUNetv2_preprocess."
            )
        data, _, _, properties = infer_dataset_class(str(folder))(str(folder), [case]).load_case(case)
        logits = predictor.logits(torch.from_numpy(np.asarray(data[:])), fold)
        geometry = CaseGeometry(dict(properties), predictor.plans, predictor.configuration)
        return torch.from_numpy(geometry.probabilities_of(logits, predictor.label_manager))


def _read_probabilities(file: Path, number: int) -> Tensor:
    try:
        check_npz(file, 8 * number)
        with np.load(file, allow_pickle=False) as content:
            p = np.asarray(content["probabilities"], dtype=np.float32)
    except NPZ_ERRORS:
        raise UserError(f"{file} cannot be read; validate the fold again with nnUNetv2_train --val --npz.") from None
    if not ((p >= 0) & (p <= 1)).all():  # NaN is neither
        raise UserError(f"{file} holds no probabilities from 0 to 1; validate the fold again with nnUNetv2_train --val --npz.")
    return torch.from_numpy(p)


def _observed(
    case: str, p: Tensor, references: NDArray, spacing: Sequence[float], kind: LabelKind, ignored: NDArray[np.bool_]
) -> CaseVoxels:
    p, references = without(p, ignored, kind.heads), np.where(ignored, 0, references)
    ml = voxel_volume(references.shape[1:], spacing) / MM3_PER_ML
    predicted = kind.hard(kind.heads.logits(p.flatten(1).clamp(1e-7, 1 - 1e-7))).view(p.shape[1:]).numpy()
    near, reach = (near_structures(labels) & ~ignored for labels in ([*references, predicted], [predicted]))
    complete = not ignored.any()
    return observe(case, p, references, near, reach, kind, spacing=spacing, voxel_ml=ml, complete=complete)
