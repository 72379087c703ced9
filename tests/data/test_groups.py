"""Cases that belong together stay together: the file and the folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nndiffseg.data.groups import (
    FILE,
    balanced_folds,
    contiguous_folds,
    copy_groups,
    grouped_folds,
    read_groups,
)
from nndiffseg.errors import UserError

PAIRS = {f"eye_{i:02d}": f"child_{i // 2}" for i in range(12)}


def write(folder: Path, *lines: str, encoding: str = "utf8") -> None:
    (folder / FILE).write_text("\n".join(lines), encoding=encoding)


def test_groups_are_read_whatever_else_the_file_holds(tmp_path):
    assert read_groups(tmp_path) == {}
    write(tmp_path, "fold,case,note,group", "0,a,,x", '1, b,"left, blurred",x ', "2,c,,y", encoding="utf-8-sig")
    assert read_groups(tmp_path) == read_groups(tmp_path, "abc") == {"a": "x", "b": "x", "c": "y"}


def test_a_file_of_another_meaning_says_nothing_about_groups(tmp_path):
    write(tmp_path, "case,age", "a,7")
    assert read_groups(tmp_path, ["a", "b"]) == {}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("a,x", "a,y"), "names the case a twice"),
        (("a,x", "b,"), "row without a group (b)"),
        (("a,x", "b"), "row without a group (b)"),
        (("a,x", ",y"), "row without a case (y)"),
        (("a,x",), "does not name the case b"),
        (("a,x", "b,x", "c,x"), "unknown case c"),
    ],
)
def test_a_defect_is_one_sentence(tmp_path, lines, words):
    write(tmp_path, "case,group", *lines)
    with pytest.raises(UserError) as error:
        read_groups(tmp_path, ["a", "b"])
    assert words in str(error.value) and FILE in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_text_is_told(tmp_path):
    (tmp_path / FILE).write_bytes(b"case,group\n\xff\xfe,x\n")
    with pytest.raises(UserError, match="not a text file"):
        read_groups(tmp_path)


def test_folds_divide_no_group_and_validate_every_case_once():
    groups = {**PAIRS, "large_0": "large", "large_1": "large", "large_2": "large", "large_3": "large"}
    folds = grouped_folds(groups)
    assert len(folds) == 5
    assert sorted(c for fold in folds for c in fold["val"]) == sorted(groups)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(groups)
        assert not {groups[c] for c in fold["train"]} & {groups[c] for c in fold["val"]}
        assert 2 <= len(fold["val"]) <= 4, "16 cases, of which four and pairs stay together"
    assert folds == grouped_folds(dict(reversed(groups.items())))


def test_the_copy_follows_the_raw_dataset(tmp_path):
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    raw.mkdir()
    copy_groups(raw, preprocessed)
    assert not preprocessed.exists()
    write(raw, "case,group", "a,x")
    copy_groups(raw, preprocessed)
    assert read_groups(preprocessed) == {"a": "x"} and [f.name for f in preprocessed.iterdir()] == [FILE]
    (raw / FILE).unlink()
    copy_groups(raw, preprocessed)
    assert not (preprocessed / FILE).exists()


def test_contiguous_folds_are_blocks_of_nearly_equal_length():
    folds = contiguous_folds([str(i) for i in range(32)])
    assert folds == sorted(folds)
    assert sorted(np.bincount(folds)) == [6, 6, 6, 7, 7]


def test_contiguous_folds_do_not_cut_groups():
    groups = list("aaabbbbbccdeeefghh")
    folds = contiguous_folds(groups)
    assert sorted(set(folds)) == [0, 1, 2, 3, 4]
    assert folds == sorted(folds)
    assert all(len({f for g, f in zip(groups, folds, strict=True) if g == name}) == 1 for name in set(groups))


def test_contiguous_folds_do_not_cut_a_group_whose_members_are_apart():
    groups = list("abacdefg")  # a stands around b
    folds = contiguous_folds(groups)
    assert folds[0] == folds[1] == folds[2]


def test_too_few_groups_are_refused():
    with pytest.raises(UserError, match="too few for 5 folds"):
        contiguous_folds(list("aabbccdd"))
    with pytest.raises(UserError, match="cannot be divided into 5 folds"):
        balanced_folds(list("aabbccdd"))


def test_balanced_folds_fill_the_smallest_fold_with_whole_groups():
    groups = ["x"] * 7 + ["a", "b", "c", "d"] * 2 + ["e"]
    folds = balanced_folds(groups)
    assert sorted(np.bincount(folds)) == [2, 2, 2, 3, 7]
    assert len(set(zip(groups, folds, strict=True))) == len(set(groups))
