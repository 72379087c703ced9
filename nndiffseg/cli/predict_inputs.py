"""What ``nndiffseg_predict -i`` and ``-o`` name: a folder, or files one by one, and where the results go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nndiffseg.data.dataset_json import channel_names
from nndiffseg.errors import UserError

#: what ``-i`` names: a folder, or the files of each case
Inputs = Path | list[list[Path]]


def inputs_of(given: Sequence[Sequence[Path]], dataset_json: dict[str, Any]) -> Inputs:
    """One folder; or cases, each the files of its channels in order.

    The files of one ``-i`` are put together by their names, ``CASE_0000.nii.gz``. Without channel numbers in them, each file is
    a case of a model with one channel, and all of them are the channels of one case of another model.

    Args:
        given: the paths behind each ``-i``.
        dataset_json: of the model.

    Raises:
        UserError: a folder with something else, or files that are not whole cases.
    """
    paths = [path for group in given for path in group]
    if folders := [path for path in paths if path.is_dir()]:
        if len(paths) > 1:
            raise UserError(
                f"{folders[0]} is a folder, and -i takes one folder or files; predict the others in a run of their own."
            )
        return folders[0]
    if len(paths) == 1 and not paths[0].exists():
        raise UserError(f"There is no folder or file {paths[0]}; give the folder that holds the images with -i, or an image.")
    return [case for group in given for case in _cases(group, dataset_json)]


def _cases(files: Sequence[Path], dataset_json: dict[str, Any]) -> list[list[Path]]:
    """The files of one ``-i``, case by case."""
    ending, channels = dataset_json["file_ending"], len(channel_names(dataset_json))
    numbers = [re.search(rf"_(\d{{4}}){re.escape(ending)}$", file.name) for file in files]
    if all(numbers):
        cases: dict[Path, list[Path]] = {}
        for file in sorted(files):
            cases.setdefault(file.with_name(file.name[: -len(ending) - 5]), []).append(file)
        return list(cases.values())
    if any(numbers):
        named = next(file for file, number in zip(files, numbers, strict=True) if number)
        raise UserError(
            f"{named.name} has a channel number and others have none; name all alike, or give each case its own -i."
        )
    return [[file] for file in files] if channels == 1 else [list(files)]


def output_file(out: Path, inputs: Inputs, flags: dict[str, bool]) -> Path | None:
    """The file that ``-o`` names for the segmentation of a single case; None where it names a folder.

    Args:
        out: as given.
        inputs: from :func:`inputs_of`.
        flags: whether flags were given that need a folder.

    Raises:
        UserError: it names a file where a folder is needed, or one of the images.
    """
    from nndiffseg.export.maps import LABEL_ENDINGS

    if out.is_dir() or not out.name.endswith(LABEL_ENDINGS):
        return None
    if isinstance(inputs, Path) or len(inputs) > 1:
        raise UserError(f"{out} is the name of one file; give a folder for the segmentations of several cases with -o.")
    if needs := [flag for flag, given in flags.items() if given]:
        raise UserError(f"{needs[0]} needs a folder; give one with -o instead of the file {out}.")
    if out.resolve() in [file.resolve() for file in inputs[0]]:
        raise UserError(f"{out} is the image itself; give another name for its segmentation with -o.")
    return out
