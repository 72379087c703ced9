"""What the conversions share: reading and resizing images, folds by groups, and a dataset folder that appears whole.

A multi-rater dataset is written in nnU-Net's raw format, so that nnU-Net's ordinary loader trains on it:

- Each annotation of an image is a case of its own, ``<image>_a00``, ``<image>_a01``, ..., the image file repeated. A
  case drawn at random is then a random annotator.
- In ``splits_final.json`` the train list of a fold holds all annotations of its images, its val list one of each image.
- ``ratersTr/<case>/<annotation>.png`` holds all annotations of the image of every case in a val list.
- ``cases.csv`` says for each case its image, group, annotation, and the fold that validates the image.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nndiffseg.cli.common import Parser, run
from nndiffseg.errors import UserError
from nndiffseg.folders import Folders, configure_folders, dataset_id
from nndiffseg.groups import FOLDS
from nndiffseg.parallel import map_cases
from nndiffseg.preprocessing import write_json

#: seed of the draw of one annotation for each validation image
SEED = 12345
ENDING = ".png"


@dataclass(frozen=True)
class AnnotatedImage:
    """One image file with the label file of each annotation; images of one ``group`` must not be split apart."""

    name: str
    group: str
    image: Path
    annotations: Mapping[str, Path]


# ---------------------------------------------------------------------------------------------------------- images


def read_array(file: Path) -> NDArray:
    """Pixels of a grey or colour image, ``(H, W)`` or ``(H, W, 3)``, in the file's own bit depth.

    Raises:
        UserError: the file is missing or not an image.
    """
    try:
        with Image.open(file) as image:
            return np.asarray(image)
    except FileNotFoundError:
        raise UserError(f"{file} is missing; put it there or get the dataset anew (docs/datasets.md).") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read as an image ({reason}); replace it.") from None


def read_mask(file: Path) -> NDArray[np.uint8]:
    """A binary mask as 0 and 1, ``(H, W)``; the file may hold 0 and 1, or 0 and 255.

    Raises:
        UserError: it is not a binary grey image.
    """
    array = read_array(file)
    highest = array.max()
    if array.ndim != 2 or highest not in (0, 1, 255) or not ((array == 0) | (array == highest)).all():
        raise UserError(f"{file} is not a binary mask with the values 0 and 1 or 0 and 255; replace it.")
    return (array > 0).astype(np.uint8)


def area_resize(array: NDArray, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Every new pixel is the mean over the area that it covers, so the image's mean is kept and nothing aliases.

    Args:
        array: ``(H, W)`` or ``(H, W, C)``.
        shape: new height and width. Where it is larger than the old one, pixels are repeated.
    """
    rows, columns = (_coverage(old, new) for old, new in zip(array.shape[:2], shape, strict=True))
    partly = np.tensordot(rows, array.astype(np.float64), axes=(1, 0))  # (h, W, ...)
    return np.moveaxis(np.tensordot(columns, partly, axes=(1, 1)), 0, 1)  # (h, w, ...)


@lru_cache(maxsize=8)
def _coverage(old: int, new: int) -> NDArray[np.float64]:
    """``(new, old)``: the share of each old pixel in each new one; rows sum to 1."""
    step = old / new
    start = np.arange(new)[:, None] * step
    pixel = np.arange(old)[None]
    return np.clip(np.minimum(start + step, pixel + 1) - np.maximum(start, pixel), 0, None) / step


def resize_image(array: NDArray, shape: tuple[int, int] | None) -> NDArray:
    """:func:`area_resize` rounded to the image's own integer type; unchanged if ``shape`` is None or its own."""
    if shape is None or array.shape[:2] == shape:
        return array
    return np.rint(area_resize(array, shape)).astype(array.dtype)


def resize_mask(mask: NDArray[np.uint8], shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """A pixel is 1 where the mask covers at least half of its area."""
    if shape is None or mask.shape == shape:
        return mask
    return (area_resize(mask, shape) >= 0.5 - 1e-9).astype(np.uint8)  # ties survive rounding


def write_png(array: NDArray, file: Path) -> None:
    """Writes 8- or 16-bit grey or 8-bit colour."""
    Image.fromarray(np.ascontiguousarray(array)).save(file, format="PNG")


def link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# ----------------------------------------------------------------------------------------------------------- folds


def contiguous_folds(groups: Sequence[str], folds: int = FOLDS) -> list[int]:
    """Cuts a sequence into blocks of nearly equal length, one for each fold, never inside a group.

    Args:
        groups: group of each item, in the items' order.

    Returns:
        The fold of each item.

    Raises:
        UserError: the groups leave too few places to cut.
    """
    n = len(groups)
    places = [i for i in range(1, n) if not set(groups[:i]) & set(groups[i:])]
    if len(places) < folds - 1:
        raise UserError(f"{n} images in {len(set(groups))} groups are too few for {folds} folds; the dataset is incomplete.")
    cuts: list[int] = []
    for k in range(1, folds):
        left = [p for p in places if not cuts or p > cuts[-1]]
        # of the places that are left, each later cut needs one
        cuts.append(min(left[: len(left) - (folds - 1 - k)], key=lambda p: abs(p - k * n / folds)))
    return [sum(i >= c for c in cuts) for i in range(n)]


# --------------------------------------------------------------------------------------------------------- datasets


@contextmanager
def new_dataset(raw: Path, name: str, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; it becomes ``raw/name`` when the block ends well, and disappears when it does not.

    Raises:
        UserError: the dataset exists and is not to be overwritten, or its id belongs to another one.
    """
    target = raw / name
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; add --overwrite to replace it, or choose another --id.")
    number = dataset_id(name)
    here = Folders(raw, raw, raw).datasets("raw")
    if taken := [d for d in here if d != name and dataset_id(d) == number]:
        raise UserError(f"The dataset id {number} belongs to {taken[0]} in {raw}; choose another one with --id.")
    partial, old = (target.with_name(f".{name}.{what}") for what in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(old, ignore_errors=True)


def write_multirater(
    folder: Path,
    images: Sequence[AnnotatedImage],
    folds: Sequence[int],
    *,
    shape_of: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
    progress: bool = True,
) -> list[str]:
    """Writes everything but ``dataset.json``, in the layout that this module describes.

    The annotation of an image that stands in a val list is drawn with equal chances, in the order of ``images``, by
    ``numpy.random.default_rng(SEED)``.

    Args:
        folder: see :func:`new_dataset`.
        folds: the fold that validates each image.
        shape_of: new height and width from the old ones; default: unchanged.

    Returns:
        The names of all cases.
    """
    for sub in ("imagesTr", "labelsTr", "ratersTr"):
        (folder / sub).mkdir()
    rng = np.random.default_rng(SEED)
    drawn = [int(rng.integers(len(image.annotations))) for image in images]
    arguments = [(folder, image, d, shape_of) for image, d in zip(images, drawn, strict=True)]
    cases = map_cases(_write_image, arguments, 1, description="Converting", progress=progress)
    write_json(
        [
            {
                "train": sorted(c for names, f in zip(cases, folds, strict=True) if f != fold for c in names),
                "val": sorted(n[d] for n, d, f in zip(cases, drawn, folds, strict=True) if f == fold),
            }
            for fold in range(max(folds) + 1)
        ],
        folder / "splits_final.json",
    )
    rows = [
        (case, image.name, image.group, annotation, fold)
        for image, names, fold in zip(images, cases, folds, strict=True)
        for case, annotation in zip(names, image.annotations, strict=True)
    ]
    write_csv(folder / "cases.csv", ("case", "image", "group", "annotation", "fold"), rows)
    return [case for names in cases for case in names]


def _write_image(
    folder: Path, image: AnnotatedImage, drawn: int, shape_of: Callable[[tuple[int, int]], tuple[int, int]] | None
) -> list[str]:
    """Writes the cases of one image and, beside the drawn one, all annotations; returns the cases' names."""
    pixels = read_array(image.image)
    shape = shape_of(pixels.shape[:2]) if shape_of else None
    names = [f"{image.name}_a{i:02d}" for i in range(len(image.annotations))]
    first = folder / "imagesTr" / f"{names[0]}_0000{ENDING}"
    write_png(resize_image(pixels, shape), first)
    raters = folder / "ratersTr" / names[drawn]
    raters.mkdir()
    for name, (annotation, file) in zip(names, image.annotations.items(), strict=True):
        if name != names[0]:
            link(first, folder / "imagesTr" / f"{name}_0000{ENDING}")
        label = folder / "labelsTr" / f"{name}{ENDING}"
        write_png(resize_mask(matching_mask(file, pixels), shape), label)
        link(label, raters / f"{annotation}{ENDING}")
    return names


def matching_mask(file: Path, pixels: NDArray) -> NDArray[np.uint8]:
    """:func:`read_mask`, refusing a mask whose size is not the image's."""
    mask = read_mask(file)
    if mask.shape != pixels.shape[:2]:
        sizes = " against ".join(f"{h}x{w}" for h, w in (mask.shape, pixels.shape[:2]))
        raise UserError(f"{file} and its image differ in size ({sizes}); replace it by the mask of that image.")
    return mask


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Comma-separated values."""
    with file.open("w", newline="", encoding="utf8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def read_csv(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least these columns.

    Raises:
        UserError: the file is missing, empty or lacks a column.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; give -i the folder that holds it (docs/datasets.md shows the layout).")
    with file.open(newline="", encoding="utf8") as stream:
        rows = list(csv.DictReader(stream))
    if missing := [c for c in columns if not rows or rows[0].get(c) is None]:
        raise UserError(f"{file} lacks the column {missing[0]}; get the dataset anew (docs/datasets.md).")
    return rows


def annotation_folders(folder: Path) -> dict[str, Path]:
    """``{"Person1_Amira": folder/labels_Person1_Amira, ...}`` in the order of their names.

    Raises:
        UserError: ``folder`` lacks images or annotations.
    """
    needed = folder / "images"
    if not needed.is_dir():
        raise UserError(f"{needed} is missing; give -i the dataset's own folder (docs/datasets.md shows the layout).")
    found = {p.name.removeprefix("labels_"): p for p in sorted(folder.glob("labels_*")) if p.is_dir()}
    if not found:
        raise UserError(f"{folder} has no folders labels_*; give -i the dataset's own folder (see docs/datasets.md).")
    return found


def dataset_json(cases: Sequence[str], channels: Sequence[str], foreground: str, **about: str) -> dict[str, Any]:
    """nnU-Net's description of a binary dataset of PNG images."""
    return {
        "channel_names": {str(i): c for i, c in enumerate(channels)},
        "labels": {"background": 0, foreground: 1},
        "numTraining": len(cases),
        "file_ending": ENDING,
        **about,
    }


# ---------------------------------------------------------------------------------------------------------- command


def command(
    convert: Callable[..., Path],
    description: str,
    number: int,
    argv: Sequence[str] | None,
    *,
    size: tuple[int | None, str] | None = None,
) -> int:
    """The command line of one conversion.

    Args:
        convert: the conversion; gets ``dataset_id``, ``overwrite`` and, if there is such a flag, ``size`` by name.
        number: default of ``--id``.
        argv: arguments; None: those of the process.
        size: default and help text of ``--size``; None: no such flag.

    Returns:
        The exit code.
    """

    def body(words: Sequence[str] | None) -> None:
        parser = Parser(description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("-i", required=True, metavar="FOLDER", type=Path, help="the dataset as it was downloaded")
        parser.add_argument("--raw", metavar="FOLDER", help="overrides the environment variable nnUNet_raw; without "
                            "either, ./nndiffseg_data/raw")
        parser.add_argument("--id", metavar="N", type=int, default=number, help="number of the dataset (%(default)s)")
        parser.add_argument("--overwrite", action="store_true", help="replace the dataset if it exists")
        if size is not None:
            parser.add_argument("--size", metavar="PIXELS", type=int, default=size[0], help=size[1])
        args = parser.parse_args(words)
        options = {"dataset_id": args.id, "overwrite": args.overwrite}
        if not 0 < args.id < 1000:
            raise UserError("--id is the number of a dataset; give one from 1 to 999.")
        if size is not None:
            if args.size is not None and args.size < 8:
                raise UserError("--size is in pixels; give 8 or more.")
            options["size"] = args.size
        if not args.i.is_dir():
            raise UserError(f"{args.i} is not a folder; give -i the folder of the downloaded dataset.")
        target = convert(args.i, configure_folders(args.raw, quiet=True).raw, **options)
        with suppress(ValueError):  # the shorter way to say where
            target = target.relative_to(Path.cwd())
        print(f"Wrote {target}. Next: nndiffseg_plan_and_preprocess -d {args.id}")

    return run(body, argv)
