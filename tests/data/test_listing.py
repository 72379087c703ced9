"""One rule for the files of a folder: images, what is left out and named, and what is an error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nndiffseg.data.cases import find_cases
from nndiffseg.data.check import left_out, read_dataset_json, training_cases
from nndiffseg.data.listing import copy_with_side_files, list_images, list_labels, side_file
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.prediction_folder import match_references, uncertainty_map

DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "file_ending": ".png"}


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def refused(call: Callable, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_hidden_files_and_other_endings_are_left_out_and_named(tmp_path: Path) -> None:  # rows 05 and 13
    touch(tmp_path, "b_0000.png", "a_0001.png", "a_0000.png", "._a_0000.png", ".DS_Store", "d_0000.PNG", "notes.txt")
    (tmp_path / "old").mkdir()
    listing = list_images(tmp_path, ".png")
    assert {case: list(files) for case, files in listing.images.items()} == {"a": [0, 1], "b": [0]}
    assert listing.remark() == f"Left out of {tmp_path}: 2 hidden files, such as .DS_Store; d_0000.PNG, notes.txt, old/."
    for name in ("._a_0000.png", ".DS_Store", "d_0000.PNG", "notes.txt"):
        (tmp_path / name).unlink()
    (tmp_path / "old").rmdir()
    assert list_images(tmp_path, ".png").remark() is None


@pytest.mark.parametrize(
    ("name", "proposed"), [("b.png", "b_0000.png"), ("c_000.png", "c_0000.png"), ("c_1.png", "c_0001.png")]
)
def test_an_image_with_another_name_is_an_error_of_training_and_of_prediction(
    tmp_path: Path, name: str, proposed: str
) -> None:  # row 13
    for folder in ("imagesTr", "labelsTr"):
        touch(tmp_path / folder)
    touch(tmp_path / "imagesTr", "a_0000.png", name)
    for call in (lambda: training_cases(tmp_path, DATASET), lambda: find_cases(tmp_path / "imagesTr", DATASET)):
        assert f"{name} lacks a channel number; rename it to {proposed}" in refused(call)


def test_a_folder_with_the_name_of_an_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a_0000.png").mkdir()
    assert "is a folder with the name of an image" in refused(list_images, tmp_path, ".png")


def test_training_names_that_end_like_preprocessed_labels_are_refused(  # row 04
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    raw = make_dataset(tmp_path, cases=2, shape=(8, 8), file_ending=".png")
    shutil.copy(raw / "imagesTr" / "case_000_0000.png", raw / "imagesTr" / "case_000_seg_0000.png")
    shutil.copy(raw / "labelsTr" / "case_000.png", raw / "labelsTr" / "case_000_seg.png")
    words = "names a case case_000_seg, and nnU-Net would take its preprocessed image for the label of case_000"
    assert words in refused(training_cases, raw, read_dataset_json(raw))
    assert "case_000_seg" in [c.id for c in find_cases(raw / "imagesTr", read_dataset_json(raw) | DATASET)]  # harmless there


def test_labels_without_an_image_are_named(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, cases=2, shape=(8, 8), file_ending=".png")
    content = read_dataset_json(raw)
    assert left_out(raw, content) == []
    (raw / "imagesTr" / "case_001_0000.png").unlink()
    touch(raw / "labelsTr", "._case_000.png")
    (remark,) = left_out(raw, content)
    assert "1 label in" in remark and "such as case_001." in remark


def test_references_and_predictions_leave_out_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path / "out", "a.png", "._a.png", "b.png")
    touch(tmp_path / "labels", "a.png", "._a.png", ".b.png")
    assert list(list_labels(tmp_path / "out", ".png")) == ["a", "b"]
    matching = match_references(tmp_path / "out", [tmp_path / "labels"], ".png")
    assert list(matching.cases) == ["a"] and matching.without_reference == ("b",)


@pytest.mark.parametrize("case", ["scan [1]", "a*", "x"])  # last row of the first table
def test_the_map_of_a_case_is_found_whatever_its_name(tmp_path: Path, case: str) -> None:
    touch(tmp_path / "uncertainty", f"{case}_total.json", f"{case}_total_total.nii.gz")  # of another case, CASE_total
    assert uncertainty_map(tmp_path, case, "total") is None
    touch(tmp_path / "uncertainty", f"{case}_total.nii.gz")
    assert uncertainty_map(tmp_path, case, "total") == tmp_path / "uncertainty" / f"{case}_total.nii.gz"


# ---- 3D TIFF ---------------------------------------------------------------------------------------------------------


def test_the_spacing_of_a_tiff_travels_with_it_and_is_no_stray_file(tmp_path: Path) -> None:  # row 16
    images, labels = (touch(tmp_path / name) for name in ("images", "labels"))
    touch(images, "a_0000.tif", "a_0001.tif", "a.json", "b_0000.tif", "c.json")
    touch(labels, "a.tif", "a.json", "a_0000.json")
    assert list_images(images, ".tif").others == ("c.json",)
    assert side_file(images / "a_0001.tif", label=False) == images / "a.json"
    assert side_file(images / "b_0000.tif", label=False) is None
    assert side_file(labels / "a.tif", label=True) == labels / "a.json"
    target = touch(tmp_path / "target")
    copy_with_side_files(images / "a_0001.tif", target, label=False)
    assert sorted(f.name for f in target.iterdir()) == ["a.json", "a_0001.tif"]


def test_a_tiff_whose_spacing_would_be_written_over_another_file_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "plans_0000.tif")
    assert "written over plans.json" in refused(list_images, tmp_path, ".tif")
    touch(tmp_path / "png", "plans_0000.png")
    assert list(list_images(tmp_path / "png", ".png").images) == ["plans"]
