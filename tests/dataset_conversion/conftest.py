"""Small sources laid out like the real ones, and what is true of every converted dataset."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nndiffseg.data.check import check_dataset

CELL_SUBSETS = {"ds1_rat_smc": ("b", 2, np.uint8), "ds2A_rabbit_smc": ("p", 3, np.uint8), "ds3_fibroblast": ("m", 3, np.uint16)}


def write(array: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def disc(shape: tuple[int, int], radius: float) -> np.ndarray:
    """A disc in the middle, 0 and 255."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    centre = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    return np.where((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2, 255, 0).astype(np.uint8)


@pytest.fixture(scope="session")
def cells_source(tmp_path_factory) -> Path:
    """Three subsets of 10 images with 2 or 3 annotations; all rat cells are one inferred group, the last five rabbit
    cells another; the fibroblasts have 16 bits."""
    source = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    rows = []
    for s, (subset, (letter, annotators, kind)) in enumerate(CELL_SUBSETS.items()):
        for i in range(10):
            name, side = f"{letter}{i + 1:02d}", 20 + 3 * i
            pixels = rng.integers(0, 4000 if kind == np.uint16 else 256, (side, side))
            write(pixels.astype(kind), source / subset / "images" / f"{name}.png")
            for a in range(annotators):
                write(disc((side, side), 4 + a), source / subset / f"labels_Person{a + 1}_Tool" / f"{name}.png")
            group = (0, 100 + min(i, 5), 200 + i // 2)[s]
            rows.append((subset, name, group))
    with (source / "crops.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("subset", "name", "inferred_group"), *rows])
    return source


@pytest.fixture(scope="session")
def chase_source(tmp_path_factory) -> Path:
    """Both eyes of 5 children, 40 pixels high and 44 wide."""
    source = tmp_path_factory.mktemp("chase")
    rng = np.random.default_rng(1)
    for child in range(1, 6):
        for eye in "LR":
            name = f"Image_{child:02d}{eye}"
            write(rng.integers(0, 256, (40, 44, 3)).astype(np.uint8), source / "images" / f"{name}.jpg")
            for rater in (1, 2):
                mask = np.zeros((40, 44), bool)
                mask[:, 10 * rater : 10 * rater + 4] = True
                write(mask, source / f"labels_rater{rater}" / f"{name}.png")
    return source


@pytest.fixture(scope="session")
def lidc_source(tmp_path_factory) -> Path:
    """12 slices of 6 groups, the first with 5, four raters; the fourth saw nothing in the first slice."""
    source = tmp_path_factory.mktemp("lidc")
    rng = np.random.default_rng(2)
    rows = []
    for i in range(12):
        name = f"training_{i:03d}"
        write(rng.integers(0, 256, (32, 32)).astype(np.uint8), source / "images" / f"{name}.jpg")
        for rater in range(1, 5):
            mask = disc((32, 32), 3 + rater) * np.uint8(i > 0 or rater < 4)
            write(mask, source / f"labels_rater{rater}" / f"{name}.png")
        rows.append((name, max(0, (i - 3) // 2 + 1) if i > 4 else 0))
    with (source / "groups.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("name", "inferred_group"), *rows])
    return source


@pytest.fixture(scope="session")
def check_converted() -> Callable[[Path], list[dict[str, str]]]:
    """Checks what holds for every converted dataset and returns the rows of its cases.csv."""
    return _check_converted


def _check_converted(folder: Path) -> list[dict[str, str]]:
    check_dataset(folder, progress=False)  # files, sizes, label values, numTraining, case names in the splits
    with (folder / "cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    case = {row["case"]: row for row in rows}
    folds = json.loads((folder / "splits_final.json").read_text())
    assert len(folds) == 5
    for k, fold in enumerate(folds):
        train, val = ([case[c] for c in fold[which]] for which in ("train", "val"))
        for key in ("group", "image"):
            assert not {row[key] for row in train} & {row[key] for row in val}
        # one case of each validation image, every case of all others
        assert sorted(row["image"] for row in val) == sorted({r["image"] for r in rows if int(r["fold"]) == k})
        assert sorted(fold["train"]) == sorted(c for c, row in case.items() if int(row["fold"]) != k)
    validated = [case[c]["image"] for fold in folds for c in fold["val"]]
    assert sorted(validated) == sorted({row["image"] for row in rows})
    assert {p.name for p in (folder / "ratersTr").iterdir()} == {c for fold in folds for c in fold["val"]}
    return rows
