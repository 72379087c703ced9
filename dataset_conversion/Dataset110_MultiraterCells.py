"""Multi-rater cells: phase-contrast microscopy, one cell in each image, 9 or 10 annotations of each.

Three subsets of the BU-BIL collection (Gurari et al., WACV 2015): rat and rabbit smooth muscle cells and fibroblasts.
The layout of the source and of what is written: docs/datasets.md and :mod:`nndiffseg.dataset_conversion.multirater`.

Split by blocks. Neighbouring numbers can be frames of one movie, so each subset is cut, in the order of its numbers, into
five blocks of nearly equal length; fold k validates the k-th block of every subset. A cut never divides an
``inferred_group`` of crops.csv. That column is of no use for the rat cells, where it lumps 34 of 35 images together though
they show different cells on different substrates: in a subset with fewer such groups than folds, each image counts as a
group of its own, and only the blocks keep neighbours together.

Two tools of one person are two annotations, but no independent raters: ``cases.csv`` and the names in ``ratersTr`` tell
person and tool.

    nndiffseg_convert MultiraterCells multirater_cells
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nndiffseg.data.files import write_json
from nndiffseg.data.groups import FOLDS, contiguous_folds
from nndiffseg.data.names import check_case_id
from nndiffseg.dataset_conversion.multirater import AnnotatedImage, annotation_folders, write_multirater
from nndiffseg.dataset_conversion.raw_dataset import Converter, dataset_json, new_dataset, read_csv
from nndiffseg.errors import UserError

NUMBER = 110
SIZE = 96


def convert(
    source: Path,
    raw: Path,
    *,
    size: int = SIZE,
    dataset_id: int = NUMBER,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Writes the dataset in nnU-Net's raw format.

    Args:
        source: folder with crops.csv and, for each subset, ``images`` and ``labels_<person>_<tool>``.
        raw: nnU-Net's raw folder.
        size: height and width in pixels of all images, which the source has cropped to squares of different sizes (one
            image is no square and is squeezed). Images become area averages in their own bit depth.
        dataset_id: number of the dataset.
        overwrite: replace the dataset if it exists.
        progress: show a progress bar.

    Returns:
        The dataset's folder.

    Raises:
        UserError: ``source`` is not this dataset, or the dataset exists.
    """
    subsets = read_subsets(source)
    images = [image for subset in subsets.values() for image in subset]
    folds = [fold for subset in subsets.values() for fold in contiguous_folds([image.group for image in subset])]
    name = f"Dataset{dataset_id:03d}_MultiraterCells"
    with new_dataset(raw, name, overwrite=overwrite) as folder:
        cases = write_multirater(folder, images, folds, shape_of=lambda _: (size, size), progress=progress)
        about = {
            "name": "Multi-rater cells",
            "description": "Phase-contrast microscopy of single cells; each case is one annotation of an image.",
            "reference": "Gurari et al., How to Collect Segmentations for Biomedical Images, WACV 2015",
            "licence": "BSD-4-clause-style text of Boston University, see the source",
        }
        write_json(dataset_json(cases, ["phase contrast"], "cell", **about), folder / "dataset.json")
    return raw / name


def read_subsets(source: Path) -> dict[str, list[AnnotatedImage]]:
    """The images of each subset in the order of their names.

    Raises:
        UserError: the folder lacks a file that crops.csv lists, or two images have one name.
    """
    rows = read_csv(source / "crops.csv", ("subset", "name", "inferred_group"))
    names = [row["name"] for row in rows]
    for name in (*names, *{row["subset"] for row in rows}):
        check_case_id(name, str(source / "crops.csv"))
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UserError(f"{source / 'crops.csv'} lists {twice[0]} twice; download the dataset again (docs/datasets.md).")
    subsets: dict[str, list[AnnotatedImage]] = {}
    for row in sorted(rows, key=lambda row: (row["subset"], row["name"])):
        folder = source / row["subset"]
        file = f"{row['name']}.png"
        annotations = {a: labels / file for a, labels in annotation_folders(folder).items()}
        image = AnnotatedImage(row["name"], row["inferred_group"], folder / "images" / file, annotations)
        if missing := [p for p in (image.image, *annotations.values()) if not p.is_file()]:
            raise UserError(f"{missing[0]} is missing; put it there or download the dataset again (docs/datasets.md).")
        subsets.setdefault(row["subset"], []).append(image)
    return {subset: _with_usable_groups(images) for subset, images in subsets.items()}


def _with_usable_groups(images: list[AnnotatedImage]) -> list[AnnotatedImage]:
    """The images, each a group of its own where the inferred groups are fewer than the folds."""
    if len({image.group for image in images}) >= FOLDS:
        return images
    return [replace(image, group=image.name) for image in images]


CONVERTERS = (
    Converter(
        "MultiraterCells",
        NUMBER,
        "single cells in phase-contrast microscopy, 9 or 10 annotations",
        "BSD-4-clause-style text of Boston University",
        "http://www.cs.bu.edu/~betke/BiomedicalImageSegmentation",
        convert,
        "height and width of the images; default: 96",
    ),
)
