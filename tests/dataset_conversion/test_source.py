"""Files of a dataset are found by name wherever they lie, and foreign names cannot lead anywhere else."""

from __future__ import annotations

import os

import pytest

from nndiffseg.dataset_conversion import source as module
from nndiffseg.dataset_conversion.source import Part, find_cases, list_files, parts_present
from nndiffseg.errors import UserError

PART = Part("images", images=r"(?P<case>[^/]+)\.png", labels=r"(?P<case>[^/]+)_(?P<rater>\d)\.txt", count=(2,), example="a.png")


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_paths_begin_with_the_name_of_the_folder_and_leave_hidden_files_out(tmp_path):
    folder = files(
        tmp_path / "Set", "b.png", "deep/a.png", ".b.png", ".git/c.png", "__MACOSX/._b.png", "raw/Dataset504_MoNuSeg/a.png"
    )
    found = list_files(folder)
    assert list(found) == ["Set/b.png", "Set/deep/a.png"]
    assert found["Set/deep/a.png"].read_text() == "deep/a.png"


def test_a_link_to_a_folder_above_ends(tmp_path):
    folder = files(tmp_path / "Set", "a.png")
    os.symlink(folder, folder / "again")
    os.symlink(files(tmp_path / "other", "b.png"), folder / "linked")
    assert list(list_files(folder)) == ["Set/a.png", "Set/linked/b.png"]


def test_folders_of_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_FILES", 3)
    with pytest.raises(UserError, match="holds more than 3 files; give the dataset's own folder"):
        list_files(files(tmp_path, "a", "b", "c", "d"))


def test_raters_of_a_case_are_sorted_and_upper_case_does_not_matter(tmp_path):
    part = Part(
        "images", r"set/(?P<case1>\w)/(?P<case2>\d+)\.png", r"set/(?P<case1>\w)/(?P<case2>\d+)_(?P<rater>\d)\.png", (1,), ""
    )
    folder = files(tmp_path / "Set", "A/7.PNG", "a/7_2.png", "A/7_1.png")
    (case,), remarks = find_cases("X", (part,), folder, 2)
    assert case.name == "A_7"
    assert [p.name for (p,) in case.labels.values()] == ["7_1.png", "7_2.png"]
    assert list(case.labels) == ["rater1", "rater2"]
    assert remarks == []


def test_missing_annotations_are_told(tmp_path):
    folder = files(tmp_path / "Set", "a.png", "a_1.txt", "a_2.txt", "b.png", "b_2.txt")
    _, remarks = find_cases("X", (PART,), folder, 2)
    assert remarks == ["b has 1 of 2 annotations; those that are there are used."]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("a.png", "b.png", "b_1.txt"), r"a\.png has no label; complete the download, or take the image out"),
        (("a.png", "a_1.txt", "b_1.txt"), r"b_1\.txt has no image; add the image, or take the label out"),
        (("a.png", "a_1.txt", "A.PNG"), r"are the same image twice"),
        (("a_1.txt",), r"has no image"),
        (("c.txt",), r"holds no images of X, such as a\.png; give the folder that holds them"),
        (("x_seg.png", "x_seg_1.txt"), r"names a case .*_seg, and nnU-Net would take"),
    ],
)
def test_what_does_not_fit_together_is_refused(names, sentence, tmp_path):
    part = Part("images", r"(?P<case>\w+)\.png", r"(?P<case>\w+)_(?P<rater>\d)\.txt", (2,), "a.png")
    with pytest.raises(UserError, match=sentence):
        find_cases("X", (part,), files(tmp_path / "Set", *names), 1)


def test_a_name_that_cannot_be_a_file_is_refused(tmp_path):
    folder = files(tmp_path / "Set", "deep\\x.png", "deep\\x_1.txt")
    with pytest.raises(UserError, match="cannot be part of a file's name"):
        find_cases("X", (PART,), folder, 1)


def test_only_parts_with_an_image_are_present(tmp_path):
    other = Part("slices", r"(?P<case>\d+)\.dcm", None, (1,), "1.dcm")
    assert parts_present((PART, other), files(tmp_path / "Set", "a.png")) == [PART]
