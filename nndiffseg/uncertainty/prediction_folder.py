"""Reads what ``nndiffseg_predict`` or ``nnUNetv2_predict`` wrote, and finds the references of its cases."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, determine_reader_writer_from_file_ending
from numpy.typing import NDArray

from nndiffseg.data.files import read_json
from nndiffseg.data.images import read_image
from nndiffseg.data.listing import list_labels
from nndiffseg.data.names import is_plain_name
from nndiffseg.data.npz import NPZ_ERRORS, check_npz
from nndiffseg.errors import UserError

#: endings of all formats that nnU-Net reads; that of nndiffseg's own maps first
IMAGES = (".nii.gz", *sorted({e for reader in LIST_OF_IO_CLASSES for e in reader.supported_file_endings} - {".nii.gz"}))


def uncertainty_map(predictions: Path, name: str, kind: str) -> Path | None:
    """The file of a ``total``, ``aleatoric`` or ``epistemic`` map of a case, whatever its format; None if absent."""
    files = (predictions / "uncertainty" / f"{name}_{kind}{ending}" for ending in IMAGES)
    return next((file for file in files if file.is_file()), None)


def read_array(file: Path, reader: BaseReaderWriter) -> NDArray:
    """First channel ``(*spatial)`` of a file; ``reader`` reads the dataset's format, others are looked up by ending."""
    ending = ".nii.gz" if file.name.endswith(".nii.gz") else file.suffix
    if ending not in reader.supported_file_endings:
        reader = determine_reader_writer_from_file_ending(ending, verbose=False)()
    return read_image(reader, file)[0][0]


def case_report(predictions: Path, name: str) -> dict[str, Any]:
    """``uncertainty/CASE.json``, or an empty dictionary where there is none.

    Raises:
        UserError: it is not as ``nndiffseg_predict`` writes it.
    """
    file = predictions / "uncertainty" / f"{name}.json"
    report = read_json(file, "predict again") if file.is_file() else {}
    structures = report.get("structures", {}) if isinstance(report, dict) else None
    if not isinstance(structures, dict) or not all(_is_structure(s) for s in (*structures.values(), report)):
        raise UserError(f"{file} does not hold the volumes of structures; predict again.")
    return report


def _is_structure(values: Any) -> bool:
    """Whether the numbers that are read here are numbers, where they are there."""
    if not isinstance(values, dict):
        return False
    interval = values.get("calibrated_interval_90_ml") or [0, 0]
    if not isinstance(interval, list) or len(interval) != 2:
        return False
    numbers = [*interval, *(values.get(key) for key in ("mean_ml", "calibrated_sd_ml", "expected_dice"))]
    return all(n is None or isinstance(n, (int, float)) for n in numbers)


def sample_files(predictions: Path, case: str, ending: str) -> list[Path]:
    """Label maps of a case's samples, in order."""
    name = re.compile(re.escape(case) + r"_s\d+" + re.escape(ending))
    folder = predictions / "samples"
    return sorted(f for f in folder.iterdir() if name.fullmatch(f.name)) if folder.is_dir() else []


def read_probabilities(predictions: Path, case: str, shape: Sequence[int]) -> NDArray | None:
    """Probabilities ``(heads, *spatial)`` from nnU-Net's ``CASE.npz``, or None where there is none.

    Args:
        predictions: the folder.
        case: its name.
        shape: expected, ``(heads, *spatial)``.

    Raises:
        UserError: the file is damaged, or of another shape.
    """
    file = predictions / f"{case}.npz"
    if not file.is_file():
        return None
    try:
        check_npz(file, 8 * math.prod(shape))
        with np.load(file, allow_pickle=False) as content:
            probabilities = content["probabilities"]
    except NPZ_ERRORS as error:
        raise UserError(f"{file} holds no probabilities ({' '.join(str(error).split())[:80]}); predict again.") from None
    if probabilities.shape != tuple(shape):
        raise UserError(
            f"The probabilities of {case} have the shape {shown(probabilities.shape)} instead of {shown(shape)}; give the "
            "dataset.json of the model with -djfile, or predict again."
        )
    return probabilities


def shown(shape: Sequence[int]) -> str:
    """A shape in words: ``3x20x24``."""
    return "x".join(str(n) for n in shape)


@dataclass(frozen=True)
class Matching:
    """Which segmentations have references.

    Attributes:
        cases: name -> the reference file of each annotator.
        without_reference: names of segmentations that have none.
        without_prediction: names of references that have no segmentation.
    """

    cases: dict[str, tuple[Path, ...]]
    without_reference: tuple[str, ...]
    without_prediction: tuple[str, ...]


def match_references(predictions: Path, references: Sequence[Path], ending: str) -> Matching:
    """Finds the references of every segmentation.

    A folder of references holds one annotator's labels, ``CASE<ending>``, or those of several, ``CASE/ANNOTATOR<ending>``
    (as ``ratersTr`` of the converted datasets); annotators of several folders are put together.

    Args:
        predictions: folder with ``CASE<ending>``.
        references: one or several folders.
        ending: of the files.

    Raises:
        UserError: a folder is missing or given twice, or no segmentation has a reference.
    """
    _check_folders(predictions, references)
    found: dict[str, list[Path]] = {}
    for folder in references:
        for name, files in _annotations(folder, ending):
            found.setdefault(name, []).extend(files)
    predicted = list(list_labels(predictions, ending))
    cases = {name: tuple(found[name]) for name in predicted if name in found}
    if not cases:
        where = " or ".join(str(folder) for folder in references)
        raise UserError(
            f"No segmentation in {predictions} has a reference of the same name in {where}; "
            "give the folder that holds the true labels of these cases."
        )
    without = tuple(name for name in predicted if name not in found)
    return Matching(cases, without, tuple(sorted(set(found) - set(predicted))))


def _check_folders(predictions: Path, references: Sequence[Path]) -> None:
    for folder in (predictions, *references):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; check its name.")
    places = [folder.resolve() for folder in references]
    if predictions.resolve() in places:
        raise UserError(f"{predictions} holds the predictions and cannot be the reference too; give the true labels' folder.")
    if len(set(places)) < len(places):
        raise UserError("The same folder of references is given twice; give each annotator's folder once.")


def _annotations(folder: Path, ending: str) -> Iterator[tuple[str, list[Path]]]:
    """Case and its files; where a case has a file and a folder, the file counts."""
    single = list_labels(folder, ending)
    for name, file in single.items():
        yield name, [file]
    for sub in folder.iterdir():
        case = sub.name not in single and is_plain_name(sub.name) and sub.is_dir()
        if case and (files := list(list_labels(sub, ending).values())):
            yield sub.name, files
