"""Integrity check of a dataset in nnU-Net's raw format: reports the first defect in one sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nndiffseg.data.dataset_json import channel_names, check_region_order
from nndiffseg.data.dataset_schema import check_dataset_json
from nndiffseg.data.files import read_json
from nndiffseg.data.groups import read_groups
from nndiffseg.data.images import find_reader, geometry_mismatch, read_image
from nndiffseg.data.listing import TIFF, check_training_name, list_images, list_labels, side_file
from nndiffseg.data.names import check_case_id
from nndiffseg.data.parallel import map_cases
from nndiffseg.data.splits import SPLITS, read_splits
from nndiffseg.errors import UserError

#: the difference of geometry that only moves an image as a whole; nnU-Net bears it, since voxels match all the same
PLACE = "origin"
REQUIRED_KEYS = ("channel_names", "labels", "numTraining", "file_ending")


@dataclass(frozen=True)
class TrainingCase:
    """One training case: its image files, channel 0 first, and its label file."""

    name: str
    images: tuple[str, ...]
    label: str


def check_dataset(folder: Path, *, processes: int = 1, progress: bool = True) -> list[str]:
    """Checks a raw dataset thoroughly: dataset.json, the list of files, and every voxel.

    Args:
        folder: ``.../DatasetXXX_Name``.
        processes: worker processes.
        progress: show a progress bar.

    Returns:
        Warnings about what nnU-Net bears as well: a label that no case shows, images and labels of different
        origin.

    Raises:
        UserError: the first defect, in the order of the cases' names.
    """
    dataset_json = read_dataset_json(folder)
    cases = training_cases(folder, dataset_json)
    if dataset_json["numTraining"] != len(cases):
        raise UserError(
            f"dataset.json of {folder.name} says numTraining {dataset_json['numTraining']}, but {folder / 'imagesTr'} "
            f"holds {len(cases)} cases; set numTraining to {len(cases)} or complete the data."
        )
    splits = folder / SPLITS
    if splits.is_file():
        names = [c.name for c in cases]
        read_splits(splits, names, read_groups(folder, names))
    reader = reader_of(cases, dataset_json)
    expected = _label_values(dataset_json)
    arguments = [(c, reader, len(channel_names(dataset_json)), sorted(expected)) for c in cases]
    results = map_cases(
        _check_case, arguments, processes, description="Checking the dataset", progress=progress, flags="-npfp 1"
    )
    for problem, *_ in results:
        if problem:
            raise UserError(problem)
    found = set().union(*(labels for _, labels, _ in results))
    warnings = [
        f"dataset.json of {folder.name} names the label {name} ({value}), and no file in labelsTr holds it, so it is not learnt"
        for value, name in sorted(expected.items())
        if value not in found and value != 0 and name != "ignore"
    ]
    if moved := [remark for *_, remark in results if remark]:
        warnings.append(f"{moved[0]}; the voxels are taken to match (cases like this: {len(moved)})")
    return warnings


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """dataset.json with all that nnU-Net needs.

    Raises:
        UserError: it is missing, not JSON, lacks a key, asks for an unknown reader, or its labels are not 0, 1, 2, ...
    """
    file = folder / "dataset.json"
    if not file.is_file():
        raise UserError(f"{file} is missing; nnU-Net's dataset format needs it ({', '.join(REQUIRED_KEYS)}).")
    content = read_json(file, "correct it")
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object with the keys {', '.join(REQUIRED_KEYS)}.")
    if "channel_names" not in content and "modality" in content:  # nnU-Net still reads the old name
        content["channel_names"] = content["modality"]
    if missing := [k for k in REQUIRED_KEYS if k not in content]:
        raise UserError(f"{file} lacks the key {', '.join(missing)}; add it as nnU-Net's dataset format describes.")
    check_dataset_json(content, str(file))
    check_region_order(content, str(file))
    return content


def read_label_definition(file: Path) -> dict[str, Any]:
    """dataset.json as far as an evaluation needs it: labels, an ignore label among them, and file ending.

    Raises:
        UserError: it is missing, not JSON, lacks one of both, asks for an unknown reader, or its labels are not 0, 1, 2, ...
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; name the dataset.json of these predictions with -djfile.")
    content = read_json(file, "correct it")
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise UserError(f"{file} must hold a JSON object with labels; name the dataset.json of the dataset with -djfile.")
    check_dataset_json(content, str(file), channels=False)
    return content


def _label_values(dataset_json: Mapping[str, Any]) -> dict[int, str]:
    """Every label number with a name for it."""
    names: dict[int, str] = {}
    for name, value in dataset_json["labels"].items():
        for v in value if isinstance(value, (list, tuple)) else [value]:
            names.setdefault(int(v), name)
    return names


def training_cases(folder: Path, dataset_json: Mapping[str, Any]) -> list[TrainingCase]:
    """The training cases in the order of their names, as nnU-Net lists them.

    Raises:
        UserError: a folder, a channel or a label is missing, or there are no cases.
    """
    if "dataset" in dataset_json:
        cases = [_listed_case(folder, str(k), v) for k, v in sorted(dataset_json["dataset"].items())]
    else:
        cases = _cases_in_folders(folder, str(dataset_json["file_ending"]))
    if not cases:
        raise UserError(f"{folder} has no training cases; put images into imagesTr and labels into labelsTr.")
    for case in cases:
        check_training_name(case.name, str(folder))
        for file in (*case.images, case.label):
            if not os.path.isfile(file):
                raise UserError(f"The training case {case.name} lacks {file}; add it or take the case out.")
    return cases


def reader_of(cases: Sequence[TrainingCase], dataset_json: Mapping[str, Any]) -> type[BaseReaderWriter]:
    """The reader for all files of a dataset.

    Raises:
        UserError: see :func:`nndiffseg.data.images.find_reader`.
    """
    return find_reader(dataset_json, cases[0].images[0], [f for c in cases for f in (*c.images, c.label)])


def left_out(folder: Path, dataset_json: Mapping[str, Any]) -> list[str]:
    """Sentences that name the files of a checked dataset that are not trained on."""
    if "dataset" in dataset_json:
        return []
    images, ending = list_images(folder / "imagesTr", str(dataset_json["file_ending"])), str(dataset_json["file_ending"])
    alone = sorted(list_labels(folder / "labelsTr", ending).keys() - images.images.keys())
    remarks = [images.remark()]
    if alone:
        remarks.append(
            f"{len(alone)} label{'s' * (len(alone) > 1)} in {folder / 'labelsTr'} without an image, such as {alone[0]}."
        )
    return [r for r in remarks if r is not None]


def _listed_case(folder: Path, name: str, entry: Mapping[str, Any]) -> TrainingCase:
    check_case_id(name, f"dataset.json of {folder.name}")
    try:
        images, label = entry["images"], entry["label"]
    except (KeyError, TypeError):
        raise UserError(f"The case {name} in dataset.json of {folder.name} needs the keys images and label.") from None

    def resolve(path: str) -> str:
        return os.path.abspath(folder / os.path.expandvars(path))

    return TrainingCase(name, tuple(resolve(i) for i in images), resolve(label))


def _cases_in_folders(folder: Path, ending: str) -> list[TrainingCase]:
    images, labels = folder / "imagesTr", folder / "labelsTr"
    for needed in (images, labels):
        if not needed.is_dir():
            raise UserError(f"{needed} is missing; training images belong into imagesTr, their labels into labelsTr.")
    cases = []
    for name, found in list_images(images, ending).images.items():
        files = tuple(str(images / f"{name}_{i:04d}{ending}") for i in range(max(found) + 1))
        cases.append(TrainingCase(name, files, str(labels / f"{name}{ending}")))
    return cases


def _check_case(
    case: TrainingCase, reader_class: type[BaseReaderWriter], n_channels: int, expected: list[int]
) -> tuple[str | None, set[int], str | None]:
    """The first defect of one case, or None, the label numbers that it holds, and how image and label differ in place."""
    reader, moved = reader_class(), None
    try:
        label, label_properties = read_image(reader, case.label, label=True)
        count = 0
        for file in case.images:
            image, properties = read_image(reader, file)
            difference = geometry_mismatch(properties, label_properties, image.shape[1:], label.shape[1:])
            if difference and difference.startswith(PLACE):
                moved = moved or f"{file} and its label differ in {difference}"
            elif difference:
                return f"{file} and its label {case.label} differ in {difference}; {_remedy(case, difference)}.", set(), None
            count += image.shape[0]
    except UserError as error:
        return str(error), set(), None
    if count != n_channels:
        held = f" ({Path(case.images[0]).name} alone holds {count})" if len(case.images) == 1 and count > 1 else ""
        return (
            f"The training case {case.name} has {count} image channels{held}, but dataset.json names {n_channels}; add what "
            "is missing, save the channels as files of their own, or correct channel_names."
        ), set(), None  # fmt: skip
    values = np.unique(label)
    unknown = [v for v in values if v not in expected]
    if unknown:
        return (
            f"{case.label} holds the label {unknown[0]:g}, which dataset.json does not name (it names "
            f"{', '.join(map(str, expected))}); correct the file or dataset.json."
        ), set(), None  # fmt: skip
    return None, {int(v) for v in values}, moved


def _remedy(case: TrainingCase, difference: str) -> str:
    """What to do where image and label have different shapes or spacings."""
    if difference.startswith("shape"):
        return "bring the label onto the image's grid"
    label = Path(case.label)
    if difference.startswith("spacing") and label.suffix in TIFF and side_file(label, label=True) is None:
        return f"write the spacing of the label into {label.with_suffix('.json').name} beside it, as for the image"
    return "bring the label onto the image's grid, or take their voxels to match with --no_check"
