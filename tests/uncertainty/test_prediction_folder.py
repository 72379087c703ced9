"""Which segmentations have which references."""

from __future__ import annotations

from pathlib import Path

import pytest

from nndiffseg.errors import UserError
from nndiffseg.uncertainty.prediction_folder import match_references, sample_files, uncertainty_map


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_annotators_come_from_several_folders_and_from_folders_of_cases(tmp_path):
    out = touch(tmp_path / "out", "a.png", "b.png", "c.png")
    single, raters = touch(tmp_path / "one", "a.png", "d.png"), touch(tmp_path / "raters", "a/x.png", "a/y.png", "b/x.png")
    found = match_references(out, [single, raters], ".png")
    assert found.cases == {
        "a": (single / "a.png", raters / "a" / "x.png", raters / "a" / "y.png"),
        "b": (raters / "b" / "x.png",),
    }
    assert (found.without_reference, found.without_prediction) == (("c",), ("d",))


def test_a_file_counts_before_a_folder_of_the_same_name(tmp_path):
    out, labels = touch(tmp_path / "out", "a.png"), touch(tmp_path / "labels", "a.png", "a/x.png")
    assert match_references(out, [labels], ".png").cases == {"a": (labels / "a.png",)}


def test_hidden_files_and_other_formats_are_left_out(tmp_path):
    out = touch(tmp_path / "out", "a.png", "._a.png", ".png", "b.nii.gz", "dataset.json")
    labels = touch(tmp_path / "labels", "a.png", "._a.png", ".hidden/x.png", "empty/notes.txt")
    found = match_references(out, [labels], ".png")
    assert found.cases == {"a": (labels / "a.png",)}
    assert found.without_reference == found.without_prediction == ()


def test_no_match_names_all_folders(tmp_path):
    out, one, two = (touch(tmp_path / name, f"{name}.png") for name in ("out", "one", "two"))
    with pytest.raises(UserError, match=r"one or .*two; give the folder"):
        match_references(out, [one, two], ".png")


def test_files_of_a_case_are_not_those_of_one_whose_name_goes_on(tmp_path):
    touch(tmp_path, "samples/a_s00.png", "samples/a_s1_s00.png", "samples/a_s01.png", "uncertainty/a[1]_total.nii.gz")
    assert [f.name for f in sample_files(tmp_path, "a", ".png")] == ["a_s00.png", "a_s01.png"]
    assert uncertainty_map(tmp_path, "a[1]", "total") == tmp_path / "uncertainty" / "a[1]_total.nii.gz"
    assert uncertainty_map(tmp_path, "a1", "total") is None
