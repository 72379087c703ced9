"""CT series in DICOM folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nndiffseg.data.nifti import MOST_VOXELS
from nndiffseg.errors import UserError

SERIES, IMAGE, PATIENT, MODALITY = "0020|000e", "0008|0018", "0010|0020", "0008|0060"
#: largest difference of distances between slices, of their mean
UNEVEN = 0.02


@dataclass(frozen=True)
class Series:
    """A folder that holds one CT series."""

    folder: Path
    uid: str
    patient: str


def find_series(files: Mapping[str, Path], *, progress: bool) -> list[Series]:
    """The CT series among files, by the first file of each folder.

    Raises:
        UserError: a DICOM file is damaged, or its patient's name cannot be part of a file's name.
    """
    first: dict[Path, Path] = {}
    for path, file in files.items():
        if path.lower().endswith(".dcm"):
            first.setdefault(file.parent, file)
    found = []
    for folder, file in tqdm(first.items(), desc="Reading series", disable=not progress, dynamic_ncols=True):
        header = _header(file)
        patient = _tag(header, PATIENT)
        if _tag(header, MODALITY) != "CT":
            continue
        if not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", patient):
            raise UserError(f"{file} names a patient {ascii(patient)[:40]}, which cannot be part of a file's name; replace it.")
        found.append(Series(folder, _tag(header, SERIES), patient))
    return found


def read_series(folder: Path) -> tuple[sitk.Image, list[str]]:
    """The volume in Hounsfield units with 16 bits, slices in the order of their places, and the id of the image in each.

    Raises:
        UserError: slices are missing or damaged, differ in size, or are too many.
    """
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    if not names:
        raise UserError(f"{folder} holds no series of DICOM images; download it again.")
    headers = [_header(Path(n)) for n in names]
    if np.prod([*map(float, headers[0].GetSize()[:2]), len(names)]) > MOST_VOXELS:
        raise UserError(f"{folder} holds more voxels than a scan has; download it again.")
    if len({h.GetSize() for h in headers}) > 1:
        raise UserError(f"{folder} holds images of several sizes; download it again.")
    heights = np.array([h.GetOrigin()[2] for h in headers])
    steps = np.diff(heights)
    if len(steps) and np.abs(steps - steps.mean()).max() > UNEVEN * np.abs(steps.mean()) + 1e-3:
        raise UserError(
            f"{folder} lacks a slice: distances between them are {steps.min():g} to {steps.max():g} mm; complete it."
        )
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise UserError(f"{folder} cannot be read ({' '.join(str(error).split())[-120:]}); download it again.") from None
    return sitk.Cast(image, sitk.sitkInt16), [_tag(h, IMAGE) for h in headers]


def _header(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise UserError(f"{file} cannot be read as DICOM; download it again.") from None
    return reader


def _tag(reader: sitk.ImageFileReader, tag: str) -> str:
    return reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""
