"""Folds: nnU-Net's own, fewer where cases are few, by groups; and files of folds that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nndiffseg.data.groups import FILE
from nndiffseg.data.splits import SPLITS, cases_of_fold, make_folds, plan_splits, read_splits
from nndiffseg.errors import UserError

CASES = [f"case_{i}" for i in range(6)]
PAIRS = {case: f"patient_{i // 2}" for i, case in enumerate(CASES)}


def write(folder: Path, folds: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPLITS).write_text(json.dumps(folds))
    return folder / SPLITS


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


# ---- making ----------------------------------------------------------------------------------------------------------


def test_with_five_cases_or_more_the_folds_are_nnunets() -> None:
    assert json.dumps(make_folds(reversed(CASES))) == json.dumps(generate_crossval_split(CASES))


@pytest.mark.parametrize("number", [2, 3, 4])  # row 03
def test_few_cases_get_as_many_folds_as_there_are_cases(number: int) -> None:
    folds = make_folds(CASES[:number])
    assert [len(f["val"]) for f in folds] == [1] * number
    assert sorted(c for f in folds for c in f["val"]) == CASES[:number]
    assert all(sorted(f["train"] + f["val"]) == CASES[:number] for f in folds)


def test_few_groups_get_as_many_folds_as_there_are_groups() -> None:
    folds = make_folds(CASES, PAIRS)
    assert len(folds) == 3
    assert all(not {PAIRS[c] for c in f["train"]} & {PAIRS[c] for c in f["val"]} for f in folds)


def test_a_single_case_or_group_has_no_folds() -> None:
    assert make_folds(CASES[:1]) == [] == make_folds(CASES, dict.fromkeys(CASES, "one"))


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(  # F13
    ("folds", "words"),
    [
        ([], "holds no folds"),
        ({}, "must be a JSON list"),
        ([{"train": "case_0", "val": ["case_1"]}], "must be a JSON list"),
        ([{"train": [["case_0"]], "val": ["case_1"]}], "must be a JSON list"),
        ([{"train": ["case_0", "case_1", "case_0"], "val": ["case_2"]}], "names case_0 twice in train"),
        ([{"train": ["case_0"], "val": ["case_2", "case_2"]}], "names case_2 twice in val"),
        ([{"train": ["case_0", "case_1"], "val": ["case_1"]}], "case_1 in train and in val"),
        ([{"train": ["case_0"], "val": []}], "no validation cases"),
        ([{"train": [], "val": ["case_0"]}], "no training cases"),
        ([{"train": ["case_9"], "val": ["case_0"]}], "unknown case case_9"),
    ],
)
def test_bad_folds_are_refused(tmp_path: Path, folds: Any, words: str) -> None:
    file = write(tmp_path, folds)
    assert words in refused(read_splits, file, CASES)
    assert words in refused(cases_of_fold, tmp_path, 0, CASES)  # at training


def test_folds_that_divide_a_group_are_refused_at_planning_and_at_training(tmp_path: Path) -> None:
    folds = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[1:], "val": CASES[:1]}]
    file = write(tmp_path, folds)
    (tmp_path / FILE).write_text("case,group\n" + "".join(f"{c},{g}\n" for c, g in PAIRS.items()))
    assert read_splits(file, CASES) == folds
    words = "Fold 1 of .* trains on case_1 and validates case_0, both of the group patient_0"
    for call in (
        lambda: read_splits(file, CASES, PAIRS),
        lambda: plan_splits(tmp_path / "raw", tmp_path, CASES, PAIRS),
        lambda: cases_of_fold(tmp_path, 0, CASES),
    ):
        with pytest.raises(UserError, match=words):
            call()


# ---- planning --------------------------------------------------------------------------------------------------------


def folds_in(folder: Path) -> Any:
    return json.loads((folder / SPLITS).read_text())


@pytest.mark.parametrize(("number", "words"), [(3, "3 cases are too few for five folds"), (1, "train the fold all")])  # row 03
def test_planning_tells_of_too_few_cases(tmp_path: Path, number: int, words: str) -> None:
    (note,) = plan_splits(tmp_path / "raw", tmp_path, CASES[:number], {})
    assert words in note
    assert (tmp_path / SPLITS).is_file() == (number > 1)


def test_folds_made_here_follow_the_cases_and_folds_of_others_stay(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    plan_splits(raw, tmp_path, CASES[:3], {})
    assert plan_splits(raw, tmp_path, CASES[:3], {}) == []
    (note,) = plan_splits(raw, tmp_path, CASES, {})
    assert "made anew" in note and len(folds_in(tmp_path)) == 5
    own = [{"train": CASES[:3], "val": CASES[3:5]}]
    write(tmp_path, own)
    (note,) = plan_splits(raw, tmp_path, CASES, {})
    assert "leaves out 1 of 6 cases, such as case_5" in note and folds_in(tmp_path) == own


def test_folds_of_the_raw_dataset_are_copied_and_followed(tmp_path: Path) -> None:
    raw, first, second = tmp_path / "raw", make_folds(CASES)[:2], make_folds(CASES)[2:]
    write(raw, first)
    assert plan_splits(raw, tmp_path, CASES, {}) == [] and folds_in(tmp_path) == first
    write(raw, second)
    (note,) = plan_splits(raw, tmp_path, CASES, {})
    assert "replaced by that of the raw dataset" in note and folds_in(tmp_path) == second
    write(tmp_path, second + first)  # nnU-Net allows more folds behind those of the raw dataset
    assert plan_splits(raw, tmp_path, CASES, {}) == [] and folds_in(tmp_path) == second + first
    write(tmp_path, first)
    assert "hold different folds" in refused(plan_splits, raw, tmp_path, CASES, {})


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [3, 5, -1])  # row 15
def test_a_fold_beyond_the_folds_is_refused(tmp_path: Path, fold: int) -> None:
    write(tmp_path, make_folds(CASES)[:3])
    assert f"There is no fold {fold}" in (text := refused(cases_of_fold, tmp_path, fold, CASES)) and "0 to 2" in text


def test_a_fold_is_read_or_made(tmp_path: Path) -> None:
    train, val = cases_of_fold(tmp_path, 1, CASES)
    assert folds_in(tmp_path)[1] == {"train": train, "val": val} == make_folds(CASES)[1]
    assert cases_of_fold(tmp_path, "all", CASES) == (CASES, CASES)


def test_too_few_cases_to_train_are_told(tmp_path: Path) -> None:
    assert "train the fold all" in refused(cases_of_fold, tmp_path, 0, CASES[:1])
    assert "no preprocessed cases" in refused(cases_of_fold, tmp_path, "all", [])
