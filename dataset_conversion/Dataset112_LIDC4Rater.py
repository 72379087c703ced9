"""LIDC sample: 28 CT slices of 128x128 pixels around lung nodules, each with the masks of four radiologists.

A test fixture, not a benchmark: the slices are 8-bit JPEG, about half of them belong to one nodule, and there are only
about eight distinct groups. Report no results on it. A radiologist who saw no nodule has an empty mask.
The layout of the source and of what is written: docs/datasets.md and :mod:`nndiffseg.dataset_conversion.multirater`.

Consecutive slices look alike, so a group of groups.csv is never divided between training and validation: whole groups,
the largest first, go into the smallest of five folds. The folds' sizes differ much.

    nndiffseg_convert LIDC4Rater lidc_4rater_sample
"""

from __future__ import annotations

from pathlib import Path

from nndiffseg.data.files import write_json
from nndiffseg.data.groups import balanced_folds
from nndiffseg.data.names import check_case_id
from nndiffseg.dataset_conversion.multirater import AnnotatedImage, annotation_folders, write_multirater
from nndiffseg.dataset_conversion.raw_dataset import Converter, dataset_json, new_dataset, read_csv

NUMBER = 112


def convert(source: Path, raw: Path, *, dataset_id: int = NUMBER, overwrite: bool = False, progress: bool = True) -> Path:
    """Writes the dataset in nnU-Net's raw format, the images in their own size.

    Args:
        source: folder with groups.csv, ``images`` and ``labels_rater1`` to ``labels_rater4``.
        raw: nnU-Net's raw folder.
        dataset_id: number of the dataset.
        overwrite: replace the dataset if it exists.
        progress: show a progress bar.

    Returns:
        The dataset's folder.

    Raises:
        UserError: ``source`` is not this dataset, or the dataset exists.
    """
    rows = sorted(read_csv(source / "groups.csv", ("name", "inferred_group")), key=lambda row: row["name"])
    for row in rows:
        check_case_id(row["name"], str(source / "groups.csv"))
    raters = annotation_folders(source)
    images = [
        AnnotatedImage(
            row["name"],
            row["inferred_group"],
            source / "images" / f"{row['name']}.jpg",
            {rater: folder / f"{row['name']}.png" for rater, folder in raters.items()},
        )
        for row in rows
    ]
    folds = balanced_folds([image.group for image in images])
    name = f"Dataset{dataset_id:03d}_LIDC4Rater"
    with new_dataset(raw, name, overwrite=overwrite) as folder:
        cases = write_multirater(folder, images, folds, progress=progress)
        about = {
            "name": "LIDC sample with four raters",
            "description": "CT slices with a lung nodule; each case is one radiologist's mask. A test fixture.",
            "reference": "Armato et al., Med Phys 38(2):915, 2011",
            "licence": "CC BY 3.0",
        }
        # The grey values are a window of 8 bits, no Hounsfield units, so the channel must not be called CT.
        write_json(dataset_json(cases, ["windowed CT"], "nodule", **about), folder / "dataset.json")
    return raw / name


CONVERTERS = (
    Converter(
        "LIDC4Rater",
        NUMBER,
        "lung nodules in 28 CT slices, 4 readers: a test fixture",
        "CC BY 3.0",
        "slices of https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX",
        convert,
    ),
)
