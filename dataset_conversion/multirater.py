"""Images with several annotations in nnU-Net's raw format, so that its ordinary loader trains on them.

- Each annotation of an image is a case of its own, ``<image>_a00``, ``<image>_a01``, ..., the image file repeated. A
  case drawn at random is then a random annotator.
- In ``splits_final.json`` the train list of a fold holds all annotations of its images, its val list one of each image.
- ``ratersTr/<case>/<annotation>.png`` holds all annotations of the image of every case in a val list.
- ``cases.csv`` says for each case its image, group, annotation, and the fold that validates the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nndiffseg.data.files import write_json
from nndiffseg.data.parallel import map_cases
from nndiffseg.dataset_conversion.pixels import matching_mask, read_array, resize_image, resize_mask, write_png
from nndiffseg.dataset_conversion.raw_dataset import ENDING, link, write_csv
from nndiffseg.errors import UserError

#: seed of the draw of one annotation for each validation image
SEED = 12345


@dataclass(frozen=True)
class AnnotatedImage:
    """One image file with the label file of each annotation; images of one ``group`` must not be split apart."""

    name: str
    group: str
    image: Path
    annotations: Mapping[str, Path]


def annotation_folders(folder: Path) -> dict[str, Path]:
    """``{"Person1_Amira": folder/labels_Person1_Amira, ...}`` in the order of their names.

    Raises:
        UserError: ``folder`` lacks images or annotations.
    """
    needed = folder / "images"
    if not needed.is_dir():
        raise UserError(f"{needed} is missing; give the dataset's own folder (docs/datasets.md shows the layout).")
    found = {p.name.removeprefix("labels_"): p for p in sorted(folder.glob("labels_*")) if p.is_dir()}
    if not found:
        raise UserError(f"{folder} has no folders labels_*; give the dataset's own folder (see docs/datasets.md).")
    return found


def write_multirater(
    folder: Path,
    images: Sequence[AnnotatedImage],
    folds: Sequence[int],
    *,
    shape_of: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
    progress: bool = True,
) -> list[str]:
    """Writes everything but ``dataset.json``, in the layout that this module describes.

    Args:
        folder: see :func:`new_dataset`.
        folds: the fold that validates each image.
        shape_of: new height and width from the old ones; default: unchanged.

    Returns:
        The names of all cases.
    """
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir()
    arguments = [(folder, image, shape_of) for image in images]
    cases = map_cases(_write_image, arguments, 1, description="Converting", progress=progress)
    names, groups = [i.name for i in images], [i.group for i in images]
    finish_multirater(folder, names, groups, [tuple(i.annotations) for i in images], folds, ENDING)
    return [case for names in cases for case in names]


def finish_multirater(
    folder: Path,
    images: Sequence[str],
    groups: Sequence[str],
    annotations: Sequence[Sequence[str]],
    folds: Sequence[int] | None,
    ending: str,
) -> int:
    """Writes folds, ``cases.csv`` and ``ratersTr`` of images and labels that are there.

    The annotation of an image that stands in a val list is drawn with equal chances, in the order of ``images``, by
    ``numpy.random.default_rng(SEED)``.

    Args:
        folder: of the dataset.
        images: their names.
        groups: of each image.
        annotations: names of each image's, in the order of its cases.
        folds: the fold that validates each image; None: too few groups for folds, so ``ratersTr`` holds every image.
        ending: of the files.

    Returns:
        The number of cases.
    """
    rng = np.random.default_rng(SEED)
    drawn = [int(rng.integers(len(names))) for names in annotations]
    cases = [[f"{image}_a{i:02d}" for i in range(len(names))] for image, names in zip(images, annotations, strict=True)]
    for names, d, own in zip(annotations, drawn, cases, strict=True):
        raters = folder / "ratersTr" / own[d]
        raters.mkdir(parents=True)
        for annotation, case in zip(names, own, strict=True):
            link(folder / "labelsTr" / f"{case}{ending}", raters / f"{annotation}{ending}")
    if folds is not None:
        splits = [
            {
                "train": sorted(c for own, f in zip(cases, folds, strict=True) if f != fold for c in own),
                "val": sorted(own[d] for own, d, f in zip(cases, drawn, folds, strict=True) if f == fold),
            }
            for fold in range(max(folds) + 1)
        ]
        write_json(splits, folder / "splits_final.json")
    rows = [
        (case, image, group, annotation, fold)
        for image, own, group, names, fold in zip(images, cases, groups, annotations, folds or [0] * len(images), strict=True)
        for case, annotation in zip(own, names, strict=True)
    ]
    write_csv(folder / "cases.csv", ("case", "image", "group", "annotation", "fold"), rows)
    return len(rows)


def _write_image(
    folder: Path, image: AnnotatedImage, shape_of: Callable[[tuple[int, int]], tuple[int, int]] | None
) -> list[str]:
    """Writes the cases of one image; returns their names."""
    pixels = read_array(image.image)
    shape = shape_of(pixels.shape[:2]) if shape_of else None
    names = [f"{image.name}_a{i:02d}" for i in range(len(image.annotations))]
    first = folder / "imagesTr" / f"{names[0]}_0000{ENDING}"
    write_png(resize_image(pixels, shape), first)
    for name, file in zip(names, image.annotations.values(), strict=True):
        if name != names[0]:
            link(first, folder / "imagesTr" / f"{name}_0000{ENDING}")
        write_png(resize_mask(matching_mask(file, pixels), shape), folder / "labelsTr" / f"{name}{ENDING}")
    return names
