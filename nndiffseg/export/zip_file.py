"""A model folder as a zip file that ``nnUNetv2_install_pretrained_model_from_zip`` installs.

The files and their places are those of nnU-Net's own export (nnunetv2/model_sharing/model_export.py, 2.8.1), with the
calibration and the scores of the uncertainty besides. What tells of the machine stays behind: ``debug.json`` and the logs,
and the folders of the images in nnU-Net's ``summary.json``.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string

from nndiffseg.calibration.calibration import FILE as CALIBRATION
from nndiffseg.data.checkpoint import load_any_checkpoint
from nndiffseg.data.files import read_json, write_atomically
from nndiffseg.data.folds import check_fold, fold_files
from nndiffseg.data.model_json import ModelNames
from nndiffseg.data.names import is_plain_name
from nndiffseg.errors import UserError

#: name in the zip file, and a file or its content
Entry = tuple[str, Path | bytes]

MODEL_FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json", CALIBRATION)
FOLD_FILES = (CALIBRATION, "progress.png", "network_architecture.pdf", "validation/summary.json", "validation/uncertainty.json")
CROSS_VALIDATION_FILES = ("summary.json", "postprocessing.pkl", "postprocessing.json")


@dataclass(frozen=True)
class Survey:
    """What the checkpoints of a model say.

    Attributes:
        names: of the model.
        epochs: fold and file name -> number of epochs that this checkpoint was trained for.
        stock: no trainer of nndiffseg wrote them.
    """

    names: ModelNames
    epochs: Mapping[tuple[str, str], int]
    stock: bool


def survey(folder: Path, plans: Mapping[str, Any], folds: Sequence[str], checkpoints: Sequence[str]) -> Survey:
    """Reads all checkpoints that shall be packed, so that none is damaged or of another model.

    Args:
        folder: of the model.
        plans: of the model, checked.
        folds: names, see :func:`~nndiffseg.data.folds.check_fold`.
        checkpoints: file names, in the folder of each of these folds.

    Raises:
        UserError: one is missing, damaged, lies elsewhere, or is of another model than the first.
    """
    for name in checkpoints:
        if not is_plain_name(name):
            raise UserError(f"{name} is no name of a checkpoint in a fold's folder; give one such as checkpoint_final.pth.")
    for fold in folds:
        check_fold(fold)
    for name in MODEL_FILES:
        check_inside(folder, folder / name)
    files = {(fold, name): folder / f"fold_{fold}" / name for fold in folds for name in checkpoints}
    if not files or not all(file.is_file() for file in files.values()):
        there = [f"fold_{fold}/{file.name}" for fold, file in fold_files(folder, "checkpoint_*.pth")]
        lacking = [f"fold_{fold}/{name}" for (fold, name), file in files.items() if not file.is_file()] or checkpoints
        raise UserError(
            f"{folder} holds no {', '.join(lacking)}; it has {', '.join(there) or 'no checkpoint yet'}: choose folds with -f "
            "and another checkpoint with -chk."
        )
    found, epochs, stock = [], {}, True
    for key, file in files.items():
        check_inside(folder, file)
        content = load_any_checkpoint(file)
        found.append(ModelNames.of(content, plans, file))
        epochs[key], stock = int(content.get("current_epoch", 0)), "nndiffseg_version" not in content
        if found[-1] != found[0]:
            raise UserError(f"{file} is of another model than the folds before it; choose folds that belong together with -f.")
    return Survey(found[0], epochs, stock)


def model_entries(folder: Path, names: ModelNames, folds: Sequence[str], checkpoints: Sequence[str]) -> Iterator[Entry]:
    """What is packed of a model folder, its weights as they are.

    Args:
        folder: of the model.
        names: of the model.
        folds: names.
        checkpoints: file names, in the folder of each of these folds.

    Raises:
        UserError: a file lies, by a link, outside the folder.
    """
    wanted = list(MODEL_FILES)
    for fold in folds:
        wanted += [f"fold_{fold}/{name}" for name in (*checkpoints, *FOLD_FILES)]
    wanted += [f"crossval_results_folds_{folds_tuple_to_string(folds)}/{name}" for name in CROSS_VALIDATION_FILES]
    for name in wanted:
        if (file := folder / name).is_file():
            check_inside(folder, file)
            place = f"{names.folder}/{name}"
            yield (place, _without_folders(file)) if file.name == "summary.json" else (place, file)


def check_inside(folder: Path, file: Path) -> None:
    """Refuses what a link takes from elsewhere, whoever put it into the folder.

    Raises:
        UserError: the file lies outside the folder.
    """
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{file} is a link out of the model folder; put the file itself there.")


def _without_folders(file: Path) -> bytes:
    """nnU-Net's summary with the files' names alone: their folders tell of the machine and its users."""
    summary = read_json(file)
    cases = summary.get("metric_per_case") if isinstance(summary, dict) else None
    for case in cases if isinstance(cases, list) else []:
        for key in {"reference_file", "prediction_file"} & set(case if isinstance(case, dict) else ()):
            case[key] = re.split(r"[/\\]", str(case[key]))[-1]
    return as_bytes(summary)


def as_bytes(content: Any) -> bytes:
    """JSON as nnU-Net writes it: NaN stays NaN."""
    return json.dumps(content, indent=4).encode()


def write_zip(out: Path, entries: Iterable[Entry]) -> list[str]:
    """Writes the zip file whole or not at all.

    Returns:
        The names in it.
    """
    with write_atomically(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            if isinstance(content, Path):
                archive.write(content, name)
            else:
                archive.writestr(name, content)
        return archive.namelist()
