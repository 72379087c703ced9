"""A dataset in nnU-Net's raw format, in a folder that appears whole or not at all."""

from __future__ import annotations

import csv
import filecmp
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nndiffseg.data.folders import Folders, dataset_id
from nndiffseg.dataset_conversion.pixels import write_png
from nndiffseg.errors import UserError

ENDING = ".png"
#: what a file is made of: a file to copy, pixels, or an image with a geometry
Writable = Path | np.ndarray | sitk.Image


@dataclass(frozen=True)
class Converter:
    """A conversion as ``nndiffseg_convert`` knows it.

    Attributes:
        name: that the command is given.
        number: of the dataset, unless the user gives another.
        task: what is segmented in what.
        licence: of the data.
        get: where the data are.
        convert: called with source, raw folder and, by name, ``dataset_id`` and ``overwrite``, and ``size`` if it has one.
        size: what ``--size`` means; None: images keep their size.
    """

    name: str
    number: int
    task: str
    licence: str
    get: str
    convert: Callable[..., Path]
    size: str | None = None


def folder_name(name: str, number: int) -> str:
    """``DatasetXXX_Name``."""
    return f"Dataset{number:03d}_{name}"


@contextmanager
def new_dataset(raw: Path, name: str, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; it becomes ``raw/name`` when the block ends well, and disappears when it does not.

    Where ``raw/name`` holds the very same files already, it stays as it is.

    Raises:
        UserError: the dataset exists, differs and is not to be overwritten, or its id belongs to another one.
    """
    target = raw / name
    number = dataset_id(name)
    here = Folders(raw, raw, raw).datasets("raw")
    if taken := [d for d in here if d != name and dataset_id(d) == number]:
        raise UserError(f"The dataset id {number} belongs to {taken[0]} in {raw}; choose another one with -d.")
    partial, old = (target.with_name(f".{name}.{what}") for what in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            if (difference := first_difference(target, partial)) is None:
                return
            if not overwrite:
                raise UserError(
                    f"{target} exists already and {difference}; add --overwrite to replace it, or choose another id with -d."
                )
            os.replace(target, old)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(old, ignore_errors=True)


def first_difference(old: Path, new: Path) -> str | None:
    """How the files of two folders differ, in words, or None; hidden files do not count."""
    mine, yours = (
        {p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file() and not p.name.startswith(".")} for f in (old, new)
    )
    if more := sorted(mine - yours):
        return f"holds {more[0]}, which this conversion does not write"
    if less := sorted(yours - mine):
        return f"lacks {less[0]}"
    for name in sorted(mine):
        if not filecmp.cmp(old / name, new / name, shallow=False):
            return f"its {name} is another"
    return None


def dataset_json(cases: Sequence[str], channels: Sequence[str], foreground: str, **about: str) -> dict[str, Any]:
    """nnU-Net's description of a binary dataset of PNG images."""
    return {
        "channel_names": {str(i): c for i, c in enumerate(channels)},
        "labels": {"background": 0, foreground: 1},
        "numTraining": len(cases),
        "file_ending": ENDING,
        **about,
    }


def write_file(content: Writable, target: Path) -> None:
    """Writes pixels as PNG, an image as NIfTI, or copies a file."""
    if isinstance(content, Path):
        shutil.copyfile(content, target)
    elif isinstance(content, np.ndarray):
        write_png(content, target)
    else:
        sitk.WriteImage(content, str(target), True)


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
    """The rows of a CSV file that has at least these columns; spaces around names and values are dropped.

    Raises:
        UserError: the file is missing, no text, empty or lacks a column.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; give the folder that holds it (docs/datasets.md shows the layout).")
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [{(k or "").strip(): (v or "").strip() for k, v in row.items() if k} for row in csv.DictReader(stream)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no table of text ({error}); download the dataset again (docs/datasets.md).") from None
    if missing := [c for c in columns if not rows or not all(row.get(c) for row in rows)]:
        raise UserError(f"{file} lacks the column {missing[0]}; download the dataset again (docs/datasets.md).")
    return rows
