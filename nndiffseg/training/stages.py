"""Between the stages of a cascade: the first one's validation writes what the second one is trained and validated on.

``predicted_next_stage/STAGE/CASE.b2nd`` in the first stage's model folder is nnU-Net's file, and nnU-Net's loader reads it.
``samples/CASE.npz`` beside it holds the samples that the second stage's samples start from when that is validated. Both were
predicted by a fold that had not seen the case, and came to the second stage's grid as a prediction's do, by way of the image.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nndiffseg.data.files import full_disk_told, write_atomically
from nndiffseg.data.folds import holds_out
from nndiffseg.data.images import read_image
from nndiffseg.data.npz import NPZ_ERRORS, check_npz
from nndiffseg.data.splits import SPLITS, read_splits
from nndiffseg.errors import UserError
from nndiffseg.export.geometry import CaseGeometry
from nndiffseg.inference.stages import PreviousStage, evenly, on_grid, outcome
from nndiffseg.uncertainty.statistics import CaseStatistics

#: in the model folder of a first stage, as nnU-Net names it
FOLDER = "predicted_next_stage"
SAMPLES = "samples"


# ---- what the first stage writes --------------------------------------------------------------------------------------


def write_next_stages(
    trainer: Any, case: str, statistics: CaseStatistics, properties: dict[str, Any], segmentation: Path
) -> None:
    """Writes what a validation case becomes for the stages that come next in the plans and are nndiffseg's.

    A fold that has seen the case, such as ``all``, leaves alone what another one wrote that had not.

    Args:
        trainer: of the first stage.
        case: name.
        statistics: of the case.
        properties: of its preprocessed image.
        segmentation: file that the validation wrote.
    """
    for stage in trainer.configuration_manager.next_stage_names or []:
        if not _is_planned(trainer.plans_manager, stage):
            continue
        configuration = trainer.plans_manager.get_configuration(stage)
        source = Path(trainer.preprocessed_dataset_folder_base) / configuration.data_identifier
        folder = Path(trainer.output_folder_base) / FOLDER / stage
        if not source.is_dir():
            trainer.print_to_log_file(f"{case} is not written for {stage}, for which the dataset is not preprocessed.")
            continue
        if not holds_out(trainer.fold_name) and holds_out(_fold_of(folder, case)):
            continue
        data, _, _, next_properties = infer_dataset_class(str(source))(str(source), [case]).load_case(case)
        labels, _ = read_image(trainer.plans_manager.image_reader_writer_class(), segmentation, label=True)
        geometry = CaseGeometry(properties, trainer.plans_manager, trainer.configuration_manager)
        maps = outcome(statistics, labels[0], geometry, evenly(len(statistics.labels)))
        found = on_grid(maps, dict(next_properties), trainer.plans_manager, stage, data.shape[1:])
        with full_disk_told(folder.parent.parent, case):
            _save(folder, case, found, trainer.fold_name, configuration.patch_size, infer_dataset_class(str(source)))


def _is_planned(plans: PlansManager, stage: str) -> bool:
    return stage in plans.available_configurations and "diffusion" in plans.get_configuration(stage).configuration


def _fold_of(folder: Path, case: str) -> str:
    """The fold that wrote a case; ``all`` where there is none."""
    file = folder / SAMPLES / f"{case}.npz"
    try:
        with np.load(file, allow_pickle=False) as saved:  # that array alone is unpacked
            fold = saved["fold"]
            return str(fold) if fold.size == 1 else "all"
    except NPZ_ERRORS:
        return "all"


def _save(folder: Path, case: str, found: PreviousStage, fold: str, patch: Sequence[int], dataset_class: Any) -> None:
    """Each file whole, or not at all."""
    (folder / SAMPLES).mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / SAMPLES / f"{case}.npz") as temporary, open(temporary, "wb") as archive:
        np.savez_compressed(archive, samples=found.samples, fold=np.array(fold))
    labels, options = found.segmentation, {}
    if dataset_class is nnUNetDatasetBlosc2:
        sizes = comp_blosc2_params((1, *labels.shape), tuple(patch), bytes_per_pixel=labels.itemsize)
        options = {key: [int(n) for n in s[1:]] for key, s in zip(("blocks_seg", "chunks_seg"), sizes, strict=True)}
    stage = folder / f".{case}.{secrets.token_hex(8)}"
    stage.mkdir()
    try:
        dataset_class.save_seg(labels, str(stage / case), **options)
        for file in stage.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


# ---- what the second stage reads --------------------------------------------------------------------------------------


def read_previous(trainer: Any, case: str) -> PreviousStage:
    """What the first stage found of a case; no samples where another program wrote its predictions.

    Raises:
        UserError: the samples are damaged or of another grid.
    """
    folder = trainer.folder_with_segs_from_previous_stage
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, [case], folder)
    segmentation = np.asarray(dataset.load_case(case)[2][:])
    file = Path(folder) / SAMPLES / f"{case}.npz"
    if not file.is_file():
        return PreviousStage(segmentation, np.zeros((0, *segmentation.shape), segmentation.dtype))
    return PreviousStage(segmentation, _read_samples(file, segmentation))


def _read_samples(file: Path, segmentation: NDArray) -> NDArray:
    try:
        check_npz(file, 100 * segmentation.size * segmentation.itemsize)
        with np.load(file, allow_pickle=False) as saved:
            samples = saved["samples"]
        if samples.shape[1:] == segmentation.shape and samples.dtype in (np.uint8, np.uint16):
            return samples
    except NPZ_ERRORS:
        pass
    raise UserError(f"{file} is damaged or of other data; validate the folds of the first stage again with --val.")


def check_previous(trainer: Any, cases: Iterable[str]) -> None:
    """Checks that the first stage has segmented all of these cases, before anything else happens.

    Raises:
        UserError: it has not, or on another grid; or its validation does not write for this stage.
    """
    plans, stage = trainer.plans_manager, trainer.configuration_name
    first = trainer.configuration_manager.previous_stage_name
    if stage not in (plans.get_configuration(first).next_stage_names or []):
        raise UserError(
            f'The plans do not say that {stage} comes after {first}; add "next_stage": "{stage}" to {first} there, and '
            "validate its folds again with --val."
        )
    folder = Path(trainer.folder_with_segs_from_previous_stage)
    source = trainer.preprocessed_dataset_folder
    dataset_class = infer_dataset_class(source)
    missing, other = [], []
    for case in sorted(cases):
        if not any((folder / f"{case}{ending}").is_file() for ending in (".b2nd", ".npz", ".npy")):
            missing.append(case)
        else:
            data, _, previous, _ = dataset_class(source, [case], str(folder)).load_case(case)
            other += [case] if previous.shape != data.shape[1:] else []
    command = f"nndiffseg_train {_number(plans.dataset_name)} {first} FOLD -tr {type(trainer).__name__} -p {plans.plans_name}"
    if missing:
        raise UserError(
            f"{stage} needs the segmentations of {first}, and {len(missing)} cases have none in {folder}, such as "
            f"{missing[0]}; run {command} for FOLD {_folds_of(trainer, missing)}, with --val where that is trained already."
        )
    if other:
        raise UserError(
            f"{folder} holds {other[0]} on another grid than {source}, since the dataset was preprocessed anew; run {command} "
            f"for FOLD {_folds_of(trainer, other)}."
        )


def _number(dataset: str) -> str:
    """``4`` of ``Dataset004_X``."""
    digits = dataset.removeprefix("Dataset").split("_")[0]
    return str(int(digits)) if digits.isdigit() else dataset


def _folds_of(trainer: Any, cases: Sequence[str]) -> str:
    """The folds that hold out these cases, such as ``0, 2``; ``all`` where none does."""
    file = Path(trainer.preprocessed_dataset_folder_base) / SPLITS
    splits = read_splits(file) if file.is_file() else []
    folds = [str(n) for n, split in enumerate(splits) if not set(cases).isdisjoint(split["val"])]
    return ", ".join(folds) or "all"
