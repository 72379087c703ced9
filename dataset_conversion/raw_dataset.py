"""A binary dataset of PNG images in nnU-Net's raw format, in a folder that appears whole or not at all."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nndiffseg.data.folders import Folders, dataset_id
from nndiffseg.errors import UserError

ENDING = ".png"


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


def dataset_json(cases: Sequence[str], channels: Sequence[str], foreground: str, **about: str) -> dict[str, Any]:
    """nnU-Net's description of a binary dataset of PNG images."""
    return {
        "channel_names": {str(i): c for i, c in enumerate(channels)},
        "labels": {"background": 0, foreground: 1},
        "numTraining": len(cases),
        "file_ending": ENDING,
        **about,
    }


def link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


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
        raise UserError(f"{file} lacks the column {missing[0]}; download the dataset again (docs/datasets.md).")
    return rows
