"""Folds: nnU-Net's own, fewer where there are few cases, by groups where ``cases.csv`` names some; and their checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.crossval_split import generate_crossval_split

from nndiffseg.data.files import read_json, write_json
from nndiffseg.data.groups import FILE as GROUPS
from nndiffseg.data.groups import FOLDS, grouped_folds, read_groups
from nndiffseg.data.names import check_case_id
from nndiffseg.data.records import Records, hash_of
from nndiffseg.errors import UserError

SPLITS = "splits_final.json"
Fold = dict[str, list[str]]


def make_folds(cases: Iterable[str], groups: Mapping[str, str] | None = None) -> list[Fold]:
    """Five folds, or as many as there are cases or groups; none for a single one.

    Without groups and with five cases or more they are nnU-Net's own.

    Args:
        cases: names.
        groups: case -> group; empty or None: each case stands alone.
    """
    names = sorted(cases)
    number = min(FOLDS, len({groups[n] for n in names} if groups else names))
    if number < 2:
        return []
    if groups:
        return grouped_folds({n: groups[n] for n in names}, number)
    folds = generate_crossval_split(names, n_splits=number)
    return [{side: [str(n) for n in fold[side]] for side in ("train", "val")} for fold in folds]


def read_splits(file: Path, known: Iterable[str] | None = None, groups: Mapping[str, str] | None = None) -> list[Fold]:
    """A checked ``splits_final.json``.

    Args:
        file: exists.
        known: names of the cases, or None where they are not known.
        groups: case -> group; no fold may divide one.

    Raises:
        UserError: it is not a list of ``{"train": [...], "val": [...]}``, holds no folds, names an unknown case or one twice,
            or a fold is empty, or trains on its own validation cases or on others of their groups.
    """
    splits = read_json(file, "correct or remove it")
    if not isinstance(splits, list) or not all(_is_fold(f) for f in splits):
        raise UserError(
            f'{file} must be a JSON list of {{"train": [...], "val": [...]}} with names of cases; correct or remove it.'
        )
    if not splits:
        raise UserError(f"{file} holds no folds; add some, or remove it to get nnU-Net's.")
    everyone = None if known is None else set(known)
    for number, fold in enumerate(splits):
        _check_fold(file, number, fold, everyone, groups or {})
    return [{"train": list(f["train"]), "val": list(f["val"])} for f in splits]


def _is_fold(fold: Any) -> bool:
    return isinstance(fold, dict) and all(
        isinstance(fold.get(side), list) and all(isinstance(case, str) for case in fold[side]) for side in ("train", "val")
    )


def _check_fold(file: Path, number: int, fold: Fold, known: set[str] | None, groups: Mapping[str, str]) -> None:
    for side in ("train", "val"):
        names = fold[side]
        for case in names:
            check_case_id(case, str(file))
        if known is not None and (unknown := sorted(set(names) - known)):
            raise UserError(f"Fold {number} of {file} names the unknown case {unknown[0]}; correct or remove the file.")
        if len(set(names)) < len(names):
            twice = next(case for case in names if names.count(case) > 1)
            raise UserError(f"Fold {number} of {file} names {twice} twice in {side}; leave one of them.")
        if not names:
            raise UserError(
                f"Fold {number} of {file} has no {'validation' if side == 'val' else 'training'} cases; correct the file."
            )
    if both := sorted(set(fold["train"]) & set(fold["val"])):
        raise UserError(f"Fold {number} of {file} has {both[0]} in train and in val; a case can be in one of them only.")
    train, val = ({groups.get(case, case): case for case in fold[side]} for side in ("train", "val"))
    if shared := sorted(set(train) & set(val)):
        name = shared[0]
        raise UserError(
            f"Fold {number} of {file} trains on {train[name]} and validates {val[name]}, both of the group {name} of {GROUPS}; "
            "remove the file and plan again to get folds by group."
        )


def plan_splits(raw: Path, preprocessed: Path, cases: Sequence[str], groups: Mapping[str, str]) -> list[str]:
    """Puts the folds where trainings look for them: those of the raw dataset, or those that are there, or new ones.

    New ones are written where they are not nnU-Net's own five, which a training makes itself. Folds that were made or copied
    here before are replaced where they no longer fit; others stay, or are refused.

    Returns:
        Sentences about what was done.

    Raises:
        UserError: a file of folds does not fit the dataset.
    """
    file, given, records = preprocessed / SPLITS, raw / SPLITS, Records(preprocessed)
    wanted = read_splits(given, cases, groups) if given.is_file() else make_folds(cases, groups)
    there = read_json(file, "correct or remove it") if file.is_file() else None
    own = there is not None and records.get("splits") == hash_of(there)
    if given.is_file():
        if there is not None and there != wanted and not own:
            if read_splits(file, cases, groups)[: len(wanted)] == wanted:
                return []  # nnU-Net allows folds to be added behind those of the raw dataset
            raise UserError(f"{given} and {file} hold different folds; remove the one that is not wanted.")
        return _write(
            records, file, wanted, [f"{file}: replaced by that of the raw dataset."] if own and there != wanted else []
        )
    if own and there != wanted:
        note = (
            f"{file}: made anew, because the cases or their groups have changed; models of the old folds do not belong to it."
        )
        return _write(records, file, wanted, [note])
    if there is not None:
        folds = read_splits(file, cases, groups)
        unused = set(cases).difference(*(f[side] for f in folds for side in ("train", "val")))
        if unused:
            return [
                f"Warning: {file} leaves out {len(unused)} of {len(cases)} cases, such as {min(unused)}; add them or remove it."
            ]
        return []
    if not groups and len(cases) >= FOLDS:
        return []
    return _write(records, file, wanted, [_new_folds(file, wanted, cases, groups)])


def _write(records: Records, file: Path, folds: list[Fold], notes: list[str]) -> list[str]:
    if folds:
        write_json(folds, file)
        records.put("splits", hash_of(folds))
    else:
        file.unlink(missing_ok=True)
    return notes


def _new_folds(file: Path, folds: Sequence[Fold], cases: Sequence[str], groups: Mapping[str, str]) -> str:
    units, what = (len(set(groups.values())), f"groups of {GROUPS}") if groups else (len(cases), "cases")
    if not folds:
        return f"Warning: {units} of the {what} cannot be divided into folds; train the fold all."
    if groups and len(folds) == FOLDS:
        return f"{file}: five folds that divide none of the {units} groups of {GROUPS}."
    last = len(folds) - 1
    return f"Warning: {units} {what} are too few for five folds; {file} has 0 to {last}, or train the fold all."


def cases_of_fold(preprocessed: Path, fold: int | str, known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training and validation cases of a fold; a missing ``splits_final.json`` is written.

    Args:
        preprocessed: the dataset's preprocessed folder.
        fold: a number, or ``all`` for all cases on both sides.
        known: names of the preprocessed cases.

    Raises:
        UserError: there are no cases, the folds do not fit them (:func:`read_splits`), or there is no such fold.
    """
    names = sorted(known)
    if fold == "all" and names:
        return names, list(names)
    folds, file = all_folds(preprocessed, names), preprocessed / SPLITS
    if not 0 <= int(fold) < len(folds):
        few = f"0 to {len(folds) - 1}" if len(folds) > 1 else "0"
        raise UserError(
            f"There is no fold {fold}, {file} has {len(folds)}: {few}; choose one of them, or all, or write more into the file."
        )
    return folds[int(fold)]["train"], folds[int(fold)]["val"]


def all_folds(preprocessed: Path, known: Sequence[str]) -> list[Fold]:
    """The folds of preprocessed cases; a missing ``splits_final.json`` is written.

    Args:
        preprocessed: the dataset's preprocessed folder.
        known: names of the preprocessed cases.

    Raises:
        UserError: there are no cases, one is too few for folds, or the folds do not fit them (:func:`read_splits`).
    """
    names = sorted(known)
    if not names:
        raise UserError(f"{preprocessed} holds no preprocessed cases; run nndiffseg_plan_and_preprocess.")
    file, groups = preprocessed / SPLITS, read_groups(preprocessed)
    if file.is_file():
        folds = read_splits(file, names, groups)
    else:
        folds = make_folds(names, {n: groups.get(n, n) for n in names} if groups else None)
        _write(Records(preprocessed), file, folds, [])
    if not folds:
        raise UserError(f"{len(names)} case is too few for folds; train the fold all, or write a splits_final.json.")
    return folds
