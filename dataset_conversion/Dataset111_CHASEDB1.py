"""CHASE_DB1: colour fundus photographs of both eyes of children, vessels drawn by two observers.

Fraz et al., IEEE TBME 59(9):2538, 2012. The layout of the source and of what is written: docs/datasets.md.
As the field does, the first observer is the truth to train and score on. ``ratersTr/<case>/observer1.png`` and
``observer2.png`` hold both. The two eyes of a child are never divided: fold k validates the k-th fifth of the children.

    nndiffseg_convert CHASEDB1 chase_db1
    nndiffseg_convert CHASEDB1 chase_db1 --size 480 -d 113
"""

from __future__ import annotations

import re
from pathlib import Path

from nndiffseg.data.files import write_json
from nndiffseg.data.groups import contiguous_folds
from nndiffseg.data.parallel import map_cases
from nndiffseg.dataset_conversion.multirater import AnnotatedImage
from nndiffseg.dataset_conversion.pixels import matching_mask, read_array, resize_image, resize_mask, write_png
from nndiffseg.dataset_conversion.raw_dataset import ENDING, Converter, dataset_json, link, new_dataset, write_csv
from nndiffseg.errors import UserError

NUMBER = 111
LABEL = "observer1"


def convert(
    source: Path,
    raw: Path,
    *,
    size: int | None = None,
    dataset_id: int = NUMBER,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Writes the dataset in nnU-Net's raw format.

    Args:
        source: folder with ``images``, ``labels_rater1`` and ``labels_rater2``, or the files as they were published,
            ``Image_01L.jpg``, ``Image_01L_1stHO.png`` and ``Image_01L_2ndHO.png``, side by side.
        raw: nnU-Net's raw folder.
        size: length in pixels of the shorter side; default: unchanged. Images become area averages; a mask's pixel is 1
            where the mask covers half of it or more, so vessels thinner than half a new pixel are lost.
        dataset_id: number of the dataset.
        overwrite: replace the dataset if it exists.
        progress: show a progress bar.

    Returns:
        The dataset's folder.

    Raises:
        UserError: ``source`` is not this dataset, or the dataset exists.
    """
    images = read_images(source)
    folds = contiguous_folds([image.group for image in images])
    name = f"Dataset{dataset_id:03d}_CHASEDB1" + ("" if size is None else f"_{size}px")
    with new_dataset(raw, name, overwrite=overwrite) as folder:
        for sub in ("imagesTr", "labelsTr", "ratersTr"):
            (folder / sub).mkdir()
        arguments = [(folder, image, size) for image in images]
        map_cases(_write_image, arguments, 1, description="Converting", progress=progress)
        cases = [image.name for image in images]
        splits = [
            {
                which: [c for c, f in zip(cases, folds, strict=True) if (f == k) == (which == "val")]
                for which in ("train", "val")
            }
            for k in range(max(folds) + 1)
        ]
        write_json(splits, folder / "splits_final.json")
        rows = [(i.name, i.name, i.group, LABEL, fold) for i, fold in zip(images, folds, strict=True)]
        write_csv(folder / "cases.csv", ("case", "image", "group", "annotation", "fold"), rows)
        about = {
            "name": "CHASE_DB1",
            "description": "Vessels in colour fundus photographs; the label is the first observer's.",
            "reference": "Fraz et al., IEEE TBME 59(9):2538, 2012",
            "licence": "CC BY 4.0",
        }
        write_json(dataset_json(cases, ["R", "G", "B"], "vessel", **about), folder / "dataset.json")
    return raw / name


def read_images(source: Path) -> list[AnnotatedImage]:
    """The photographs in the order of their names, grouped by child.

    Raises:
        UserError: the folder holds none, or an observer is missing.
    """
    flat = not (source / "images").is_dir()
    images = []
    for photograph in sorted((source if flat else source / "images").glob("Image_*.jpg")):
        name = photograph.stem
        match = re.fullmatch(r"Image_(\d+)[LR]", name)
        if match is None:
            raise UserError(f"{photograph} is not named like Image_01L.jpg, by child and eye; rename it.")
        files = (
            {LABEL: source / f"{name}_1stHO.png", "observer2": source / f"{name}_2ndHO.png"}
            if flat
            else {LABEL: source / "labels_rater1" / f"{name}.png", "observer2": source / "labels_rater2" / f"{name}.png"}
        )
        if missing := [f for f in files.values() if not f.is_file()]:
            raise UserError(f"{missing[0]} is missing; put it there or download the dataset again (docs/datasets.md).")
        images.append(AnnotatedImage(name, match.group(1), photograph, files))
    if not images:
        raise UserError(f"{source} holds no photographs Image_*.jpg; give the dataset's folder (docs/datasets.md).")
    return images


def _write_image(folder: Path, image: AnnotatedImage, size: int | None) -> None:
    pixels = read_array(image.image)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise UserError(f"{image.image} is not a colour image; replace it.")
    shape = None
    if size is not None:
        height, width = pixels.shape[:2]
        scale = size / min(height, width)
        shape = (round(height * scale), round(width * scale))
    write_png(resize_image(pixels, shape), folder / "imagesTr" / f"{image.name}_0000{ENDING}")
    raters = folder / "ratersTr" / image.name
    raters.mkdir()
    for observer, file in image.annotations.items():
        write_png(resize_mask(matching_mask(file, pixels), shape), raters / f"{observer}{ENDING}")
    link(raters / f"{LABEL}{ENDING}", folder / "labelsTr" / f"{image.name}{ENDING}")


CONVERTERS = (
    Converter(
        "CHASEDB1",
        NUMBER,
        "retinal vessels in fundus photographs, 2 observers",
        "CC BY 4.0",
        "https://researchinnovation.kingston.ac.uk/en/datasets/chasedb1-retinal-vessel-reference-dataset-4/",
        convert,
        "length of the shorter side; default: unchanged",
    ),
)
