"""Which cases belong together: two organs of one person, scans of one patient, annotations of one image.

``cases.csv`` in the raw dataset says so, with the columns ``case`` and ``group``; others are ignored. nnU-Net has no such
file: its random folds divide the two kidneys of a patient, and validation metrics are then optimistic. With it

- planning makes folds that divide no group, and folds that divide one are refused (:mod:`nndiffseg.data.splits`);
- what is fitted on validation cases takes a group as one observation, not as several
  (:mod:`nndiffseg.calibration.shrinkage`), and evaluates no case with numbers that its own group helped to choose
  (:mod:`nndiffseg.training.validation`).

A case that the file does not name is a group of its own.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sklearn.model_selection import GroupKFold

from nndiffseg.data.files import write_atomically
from nndiffseg.errors import UserError

FILE = "cases.csv"
CASE, GROUP = "case", "group"
FOLDS = 5


def read_groups(folder: Path, known: Iterable[str] | None = None) -> dict[str, str]:
    """Group of each case of ``folder/cases.csv``; empty where there is no such file or it has not the two columns.

    Args:
        folder: of the raw or the preprocessed dataset.
        known: names of the training cases; with them the file must name every one.

    Raises:
        UserError: it cannot be read, names a case twice or without a group, an unknown one, or not all of ``known``.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader) if {CASE, GROUP} <= set(reader.fieldnames or ()) else []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a text file with commas between its columns ({error}); correct or remove it.") from None
    groups: dict[str, str] = {}
    for row in rows:
        case, group = ((row[c] or "").strip() for c in (CASE, GROUP))
        if not case or not group:
            raise UserError(
                f"{file} has a row without a {CASE if not case else GROUP} ({case or group or 'empty'}); complete or remove it."
            )
        if case in groups:
            raise UserError(f"{file} names the case {case} twice; leave one of the rows.")
        groups[case] = group
    if known is not None and groups:
        if unknown := sorted(set(groups) - set(known)):
            raise UserError(f"{file} names the unknown case {unknown[0]}; take the row out or add the case.")
        if missing := sorted(set(known) - set(groups)):
            raise UserError(f"{file} does not name the case {missing[0]}; add a row with its group.")
    return groups


def copy_groups(raw: Path, preprocessed: Path) -> None:
    """Copies ``cases.csv`` to where trainings look for it, or takes an old one away."""
    source, target = raw / FILE, preprocessed / FILE
    if not source.is_file():
        target.unlink(missing_ok=True)
        return
    preprocessed.mkdir(parents=True, exist_ok=True)
    with write_atomically(target) as temporary:
        shutil.copyfile(source, temporary)


def balanced_folds(groups: Sequence[str], folds: int = FOLDS) -> list[int]:
    """Whole groups, the largest first, each into the fold that is the smallest so far.

    Returns:
        The fold of each item.

    Raises:
        UserError: there are fewer groups than folds.
    """
    if (number := len(set(groups))) < folds:
        raise UserError(f"{number} groups of images cannot be divided into {folds} folds; the dataset is incomplete.")
    fold_of = [0] * len(groups)
    for fold, (_, members) in enumerate(GroupKFold(folds).split(groups, groups=groups)):
        for i in members:
            fold_of[i] = fold
    return fold_of


def grouped_folds(groups: Mapping[str, str], folds: int = FOLDS) -> list[dict[str, list[str]]]:
    """Folds in the form of ``splits_final.json`` that divide no group, of similar numbers of cases.

    Raises:
        UserError: there are fewer groups than folds.
    """
    cases = sorted(groups)
    fold_of = dict(zip(cases, balanced_folds([groups[c] for c in cases], folds), strict=True))
    return [
        {"train": [c for c in cases if fold_of[c] != k], "val": [c for c in cases if fold_of[c] == k]} for k in range(folds)
    ]


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
