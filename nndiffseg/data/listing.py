"""Which files of a folder are images of cases, which are left out and which are errors: one rule for all commands.

- Hidden files (``._CASE_0000.nii.gz`` and ``.DS_Store`` of macOS, files that are still being written) are left out.
- Files with the dataset's ending are images, called ``CASE_0000.nii.gz``, or labels and segmentations, called
  ``CASE.nii.gz``. Among images, another name is an error, and so is a folder that is named like one.
- The file that holds a 3D TIFF's spacing, ``CASE.json``, belongs to the images and labels of the case.
- Everything else is left out.

:meth:`Listing.remark` names what was left out.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from nndiffseg.data.names import check_case_id, is_plain_name
from nndiffseg.errors import UserError

#: endings of 3D TIFF, which keeps the spacing in a file of its own
TIFF = (".tif", ".tiff")
#: ends of names of preprocessed files: nnU-Net would take the image of such a case for the label of another one
RESERVED_SUFFIX = "_seg"
#: names of files that stand beside segmentations, and so cannot be those of a TIFF's spacing
RESERVED_BESIDE_TIFF = ("dataset", "plans", "predict_from_raw_data_args", "summary", "evaluation", "calibration")
#: so many names are printed
SHOWN = 5


@dataclass(frozen=True)
class Listing:
    """What a folder of images holds.

    Attributes:
        folder: that was listed.
        images: case -> channel -> file, sorted by case and channel.
        hidden: names of hidden files, sorted.
        others: names of other files and folders that are no images, sorted.
    """

    folder: Path
    images: dict[str, dict[int, Path]]
    hidden: tuple[str, ...]
    others: tuple[str, ...]

    def remark(self) -> str | None:
        """One sentence that names what was left out, or None."""
        parts = []
        if self.hidden:
            parts.append(f"{len(self.hidden)} hidden file{'s' * (len(self.hidden) > 1)}, such as {self.hidden[0]}")
        if self.others:
            more = f" and {len(self.others) - SHOWN} more" if len(self.others) > SHOWN else ""
            parts.append(f"{', '.join(self.others[:SHOWN])}{more}")
        return f"Left out of {self.folder}: {'; '.join(parts)}." if parts else None


def list_images(folder: Path, ending: str) -> Listing:
    """Images of a folder that exists.

    Raises:
        UserError: a name with this ending is not that of an image, cannot be part of a file's name, or is that of a folder.
    """
    images: dict[str, dict[int, Path]] = {}
    hidden, others = [], []
    for file in sorted(folder.iterdir()):
        if file.name.startswith("."):
            hidden.append(file.name)
        elif not file.name.endswith(ending):
            others.append(file.name + "/" * file.is_dir())
        elif (match := re.fullmatch(r"(.+)_(\d{4})", file.name[: -len(ending)], re.DOTALL)) is None:
            raise UserError(
                f"{ascii(str(file))[1:-1]} lacks a channel number; rename it to {ascii(_proposed(file.name, ending))[1:-1]}, "
                f"since images are called like CASE_0000{ending}, or move it elsewhere."
            )
        elif file.is_dir():
            raise UserError(f"{file} is a folder with the name of an image; rename it, or move the images in it up.")
        else:
            check_case_id(match[1], str(folder))
            check_beside_tiff(match[1], ending, str(folder))
            images.setdefault(match[1], {})[int(match[2])] = file
    sides = {f"{case}.json" for case in images} if ending in TIFF else set()
    return Listing(folder, dict(sorted(images.items())), tuple(hidden), tuple(n for n in others if n not in sides))


def _proposed(name: str, ending: str) -> str:
    """The name that a file with too few digits, or none, was probably meant to have."""
    stem = name[: -len(ending)]
    match = re.fullmatch(r"(.+)_(\d{1,3})", stem)
    return f"{match[1]}_{int(match[2]):04d}{ending}" if match else f"{stem}_0000{ending}"


def list_labels(folder: Path, ending: str) -> dict[str, Path]:
    """Labels or segmentations of a folder: case -> file, sorted. Hidden files, folders and other endings are left out."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.name.endswith(ending) and is_plain_name(name := file.name[: -len(ending)]) and file.is_file():
            found[name] = file
    return found


def check_training_name(name: str, where: str) -> None:
    """Checks the name of a training case beyond what :func:`nndiffseg.data.names.check_case_id` asks.

    Raises:
        UserError: nnU-Net would take its preprocessed image for the label of another case.
    """
    if name.endswith(RESERVED_SUFFIX):
        raise UserError(
            f"{where} names a case {name}, and nnU-Net would take its preprocessed image for the label of "
            f"{name[: -len(RESERVED_SUFFIX)]}; rename its image and label so that the name does not end in {RESERVED_SUFFIX}."
        )


def check_beside_tiff(name: str, ending: str, where: str) -> None:
    """Checks that the spacing file of a TIFF does not take the place of another JSON file.

    Raises:
        UserError: it would.
    """
    if ending in TIFF and name in RESERVED_BESIDE_TIFF:
        raise UserError(
            f"{where} names a case {name}, whose spacing would be written over {name}.json; rename its files to something else."
        )


def side_file(file: Path, *, label: bool) -> Path | None:
    """The file with the spacing of a 3D TIFF, where there is one.

    Args:
        file: ``CASE_0000.tif``, or with ``label`` ``CASE.tif``.
        label: whether its name has no channel number.
    """
    if file.suffix not in TIFF:
        return None
    stem = file.stem if label else re.sub(r"_\d{4}$", "", file.stem)
    side = file.with_name(f"{stem}.json")
    return side if side.is_file() else None


def with_side_files(files: list[Path], *, label: bool) -> list[Path]:
    """The files, and behind them the side files that they have."""
    sides = {side for file in files if (side := side_file(file, label=label)) is not None}
    return [*files, *sorted(sides)]


def copy_with_side_files(file: Path, folder: Path, *, label: bool) -> None:
    """Copies an image or label with what belongs to it."""
    for source in with_side_files([file], label=label):
        shutil.copy(source, folder)
