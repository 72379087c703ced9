"""Finds the cases of an input folder, checks their headers, reads and preprocesses them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nndiffseg.data.dataset_json import channel_names
from nndiffseg.data.file_kind import READ_ERRORS, refusal
from nndiffseg.data.images import geometry_mismatch, read_image
from nndiffseg.data.listing import check_beside_tiff, list_images
from nndiffseg.data.names import check_case_id
from nndiffseg.data.nifti import nifti_image
from nndiffseg.data.normalization import preprocessor_of
from nndiffseg.errors import UserError

#: the files of several cases, in the order of the model's channels; of a model with one channel a file may stand alone
Files = Sequence[str | Path | Sequence[str | Path]]
#: a folder of images, or files
Inputs = str | Path | Files


@dataclass(frozen=True)
class Case:
    """One case to predict. Its id, the stem of its files' names, is part of the key of its noise.

    ``previous``: what the stage before predicted, for the second stage of a cascade (:mod:`nndiffseg.inference.stages`).
    """

    id: str
    files: tuple[Path, ...]
    previous: tuple[Path, ...] = ()


def cases_of(inputs: Inputs, dataset_json: dict[str, Any]) -> list[Case]:
    """The cases of a folder (:func:`find_cases`), or those whose files are named one by one (:func:`cases_of_files`)."""
    if isinstance(inputs, (str, Path)):
        return find_cases(Path(inputs).expanduser(), dataset_json)
    return cases_of_files(inputs, dataset_json)


def find_cases(folder: str | Path, dataset_json: dict[str, Any]) -> list[Case]:
    """The cases of a folder, sorted by id.

    Raises:
        UserError: no such folder, no images in it, a name that is no plain file name, or a case lacks a channel or has one too
            many.
    """
    folder, ending = Path(folder), dataset_json["file_ending"]
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give the folder that holds the images with -i.")
    found = list_images(folder, ending).images
    if not found:
        raise UserError(f"{folder} holds no images; the model expects files named like CASE_0000{ending}.")
    cases = [Case(name, tuple(files[c] for c in sorted(files))) for name, files in found.items()]
    for case in cases:
        _check_channels(case, found[case.id], len(channel_names(dataset_json)), ending)
    return cases


def cases_of_files(groups: Files, dataset_json: dict[str, Any]) -> list[Case]:
    """Cases whose files were named one by one.

    Args:
        groups: of each case its files in the order of the model's channels, or the only one. A case is called as the first of
            its files, without the channel number.
        dataset_json: of the model.

    Raises:
        UserError: a file is missing or ends otherwise than the model's images, a case has a channel too few or too many, or
            two cases would be called the same.
    """
    ending, channels = dataset_json["file_ending"], len(channel_names(dataset_json))
    cases: dict[str, Case] = {}
    for group in groups:
        files = [Path(f).expanduser() for f in ([group] if isinstance(group, (str, Path)) else group)]
        if not files:
            raise UserError("A case without files cannot be predicted; give the files of its channels.")
        for file in files:
            if not file.is_file():
                raise UserError(f"There is no file {file}; give images that exist, or one folder of them.")
            if not file.name.endswith(ending):
                raise UserError(f"{file} does not end in {ending}, as the images of this model do; convert it first.")
        stems = [file.name[: -len(ending)] for file in files]
        name = re.sub(r"_\d{4}$", "", stems[0])
        check_case_id(name, str(files[0]))
        check_beside_tiff(name, ending, str(files[0]))
        if name in cases:
            raise UserError(f"{files[0]} and {cases[name].files[0]} would both be called {name}; rename one of them.")
        if len(files) != channels and not (len(files) == 1 and _channels_in_file(files[0]) > 1):
            raise UserError(f"The case {name} has {len(files)} files, but the model was trained with {channels} channels.")
        if {re.sub(r"_\d{4}$", "_", stem) for stem in stems} == {f"{name}_"}:
            for channel, stem in enumerate(stems):
                if stem != f"{name}_{channel:04d}":
                    raise UserError(f"The case {name} needs {name}_{channel:04d}{ending} where {stem}{ending} stands.")
        cases[name] = Case(name, tuple(files))
    if not cases:
        raise UserError("There are no files to predict; give those of one case at least.")
    return list(cases.values())


def _check_channels(case: Case, files: dict[int, Path], channels: int, ending: str) -> None:
    # One file may hold several channels (colour photographs, 4D NIfTI); then headers or the reader tell.
    expected = 1 if list(files) == [0] and _channels_in_file(files[0]) > 1 else channels
    for channel in range(expected):
        if channel not in files:
            raise UserError(
                f"The case {case.id} has no file {case.id}_{channel:04d}{ending}; the model needs {channels} "
                f"channel{'s' * (channels > 1)} per case."
            )
    if len(files) > expected:
        raise UserError(f"The case {case.id} has {len(files)} channels, but the model was trained with {channels}.")


def _channels_in_file(file: Path) -> int:
    if file.suffix in (".png", ".bmp", ".tif", ".tiff"):
        return 3  # grey or colour, the reader will tell
    header = _header(file)
    return header[3] if header is not None and len(header) == 4 else 1


def _header(file: Path) -> tuple[int, ...] | None:
    """The size along x, y, z from the file's header; None for formats without a cheap header.

    Raises:
        UserError: unreadable.
    """
    try:
        if file.name.endswith((".nii", ".nii.gz")):
            return tuple(int(n) for n in nifti_image(str(file)).shape)
        if file.suffix in (".nrrd", ".mha", ".gipl"):
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(file))
            reader.ReadImageInformation()
            return tuple(int(n) for n in reader.GetSize())
    except READ_ERRORS as error:
        raise refusal(str(file), error) from None
    return None


def check_headers(cases: Iterable[Case]) -> None:
    """Finds what headers tell about bad cases, before any prediction starts.

    Raises:
        UserError: an unreadable file, or channels of different size.
    """
    for case in cases:
        sizes = {file: _header(file) for file in case.files}
        first = case.files[0]
        for file, size in sizes.items():
            if size != sizes[first]:
                raise UserError(f"{file} has {size} voxels, but {first.name} has {sizes[first]}; a case must lie on one grid.")


def read_case(reader: BaseReaderWriter, case: Case, channels: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Image ``(C, *spatial)`` and properties, as nnU-Net's reader gives them.

    Raises:
        UserError: unreadable, truncated, NaN or infinite voxels, channels of different geometry or number.
    """
    images, properties = [], []
    for file in case.files:
        image, image_properties = read_image(reader, file)
        images.append(image)
        properties.append(image_properties)
        if (problem := geometry_mismatch(properties[0], image_properties, images[0].shape[1:], image.shape[1:])) is not None:
            raise UserError(f"{file} and {case.files[0].name} differ in geometry ({problem}); resample them to one grid.")
    data = np.vstack(images, dtype=np.float32, casting="unsafe") if len(images) > 1 else images[0].astype(np.float32)
    if len(data) != channels:
        raise UserError(f"The case {case.id} has {len(data)} channels, but the model was trained with {channels}.")
    return data, properties[0]


def preprocess(
    data: np.ndarray, properties: dict[str, Any], plans: PlansManager, configuration: str, dataset_json: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """nnU-Net's preprocessing: image ``(C, *image)`` -> ``(C, *grid)`` and the properties that lead back.

    Raises:
        UserError: the image is all zero.
    """
    if not data.any():
        raise UserError("All voxels of the image are 0; there is nothing to segment.")
    manager = plans.get_configuration(configuration)
    preprocessor = preprocessor_of(manager)
    data, _, properties = preprocessor.run_case_npy(data, None, properties, plans, manager, dataset_json)
    return np.ascontiguousarray(data, dtype=np.float32), properties


def read_and_preprocess(
    case: Case, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """:func:`read_case`, then :func:`preprocess`; plain arguments, so that worker processes can run it.

    Raises:
        UserError: what is wrong with the case.
    """
    manager = PlansManager(plans)
    data, properties = read_case(manager.image_reader_writer_class(), case, len(channel_names(dataset_json)))
    try:
        return preprocess(data, properties, manager, configuration, dataset_json)
    except UserError as error:
        raise UserError(f"The case {case.id} cannot be used: {error}") from None
