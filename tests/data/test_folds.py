"""Names of folds and members: what is one, in which order they come, and that nnU-Net takes no member for a fold."""

from __future__ import annotations

import pytest
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nndiffseg.data.folds import check_fold, check_unseen, fold_files, holds_out, in_words, kind_of, member_of, split_of
from nndiffseg.errors import UserError

FINAL = "checkpoint_final.pth"


@pytest.fixture
def folder(tmp_path):
    for place in ("0", "2", "10", "all", "all/seed_1", "all/seed_10", "all/seed_2", "all/seed_x", "best", "0/seed_1"):
        (tmp_path / f"fold_{place}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"fold_{place}" / FINAL).write_bytes(b"")
    return tmp_path


def test_files_of_folds_come_by_number_then_all_and_its_members(folder):
    found = fold_files(folder, "checkpoint_*.pth")
    assert [fold for fold, _ in found] == ["0", "2", "10", "all", "all/seed_1", "all/seed_2", "all/seed_10"]
    assert all(file == folder / f"fold_{fold}" / FINAL for fold, file in found)
    assert fold_files(folder, "calibration.json") == []


def test_nnunet_takes_no_member_for_a_fold(folder):
    """It reads the number behind the last underscore, so that ``fold_all_seed_1`` would be a second fold 1."""
    (folder / "fold_best" / FINAL).unlink()
    assert sorted(nnUNetPredictor.auto_detect_available_folds(str(folder), FINAL)) == [0, 2, 10]


@pytest.mark.parametrize(
    "name", ["first", "-1", "all/", "all/seed_", "all/seed_1/..", "0/../fold_0", "0/seed_1", "", "all\n", "٣"]
)
def test_what_is_no_fold_is_told(name):
    with pytest.raises(UserError, match="The fold must be 0 to 4 or all"):
        check_fold(name)


@pytest.mark.parametrize("name", ["0", 12, "all", "all/seed_1", "all/seed_-3"])
def test_folds_and_members_are_names(name):
    assert check_fold(name) == str(name)


def test_only_all_with_another_seed_is_a_member():
    assert [member_of(*x) for x in ((0, 0), (0, 7), ("all", 0), ("all", 7))] == [0, 0, "all", "all/seed_7"]
    assert [split_of(x) for x in (0, "3", "all", "all/seed_7")] == [0, "3", "all", "all"]
    assert [holds_out(x) for x in ("0", "all", "all/seed_7")] == [True, False, False]


@pytest.mark.parametrize("seen", ["all", "all/seed_1"])
def test_a_fold_that_has_seen_all_cases_is_named(seen):
    check_unseen(["0", "1"])
    with pytest.raises(UserError, match=f"^Fold {seen} was trained on all cases, so none is left"):
        check_unseen(["0", seen])


def test_members_are_called_members_and_a_mixture_folds():
    assert kind_of(["all"]) == kind_of(["0", "all/seed_1"]) == kind_of([]) == "fold"
    assert in_words(["all"]) == "fold all" and in_words(["0", "1"]) == "folds 0, 1"
    assert in_words(["all/seed_1"]) == "member all/seed_1"
    assert in_words(["all", "all/seed_1"]) == "members all, all/seed_1"
