"""Each defect of a dataset is one clear sentence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nndiffseg.data.check import check_dataset, read_dataset_json, training_cases
from nndiffseg.data.dataset_json import channel_names
from nndiffseg.errors import UserError

pytestmark = pytest.mark.seconds


@pytest.fixture
def dataset(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    return make_dataset(tmp_path, cases=3, shape=(10, 12, 10), channels=2, splits=True)


def edit_json(folder: Path, **changes: Any) -> None:
    file = folder / "dataset.json"
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_image(file: Path, change: Callable[[sitk.Image, np.ndarray], np.ndarray | None]) -> None:
    """``change`` alters the array in place or returns a new one; it may alter the image's geometry."""
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image)
    changed = change(image, array)
    new = sitk.GetImageFromArray(array if changed is None else changed)
    new.SetSpacing(image.GetSpacing())
    new.SetOrigin(image.GetOrigin())
    new.SetDirection(image.GetDirection())
    sitk.WriteImage(new, str(file))


def problem(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        check_dataset(folder, progress=False, **options)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_a_sound_dataset_passes(dataset: Path) -> None:
    check_dataset(dataset, progress=False)
    cases = training_cases(dataset, read_dataset_json(dataset))
    assert [c.name for c in cases] == ["case_000", "case_001", "case_002"]
    assert [Path(f).name for f in cases[0].images] == ["case_000_0000.nii.gz", "case_000_0001.nii.gz"]


def test_cases_are_those_that_nnunet_lists(dataset: Path) -> None:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    content = read_dataset_json(dataset)
    expected = get_filenames_of_train_images_and_targets(str(dataset), content)
    ours = training_cases(dataset, content)
    assert {c.name: (list(c.images), c.label) for c in ours} == {k: (v["images"], v["label"]) for k, v in expected.items()}


@pytest.mark.parametrize(
    "options",
    [
        {"file_ending": ".png", "shape": (32, 24)},
        {"file_ending": ".tif", "shape": (32, 24)},
        {"shape": (32, 24)},
        {"regions": True},
    ],
    ids=["png", "tif", "2D nifti", "regions"],
)
def test_other_kinds_of_dataset_pass(make_dataset: Callable[..., Path], tmp_path: Path, options: dict[str, Any]) -> None:
    check_dataset(make_dataset(tmp_path, cases=2, **options), progress=False)


def test_an_rgb_image_counts_as_three_channels(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    from skimage import io

    folder = make_dataset(tmp_path, cases=2, shape=(24, 16), file_ending=".png")
    for file in (folder / "imagesTr").iterdir():
        io.imsave(file, np.repeat(io.imread(file)[..., None], 3, -1))
    sentence = problem(folder)
    assert "3 image channels (case_000_0000.png alone holds 3), but dataset.json names 1" in sentence
    edit_json(folder, channel_names={"0": "R", "1": "G", "2": "B"})
    check_dataset(folder, progress=False)


def test_missing_dataset_json(dataset: Path) -> None:
    (dataset / "dataset.json").unlink()
    assert "dataset.json is missing" in problem(dataset)


def test_broken_json(dataset: Path) -> None:
    (dataset / "dataset.json").write_text('{"labels": ')
    assert "not valid JSON" in problem(dataset)


@pytest.mark.parametrize("key", ["labels", "channel_names", "numTraining", "file_ending"])
def test_missing_key(dataset: Path, key: str) -> None:
    edit_json(dataset, **{key: None})
    assert f"lacks the key {key}" in problem(dataset)


def test_the_old_name_of_channel_names_is_read(dataset: Path) -> None:
    edit_json(dataset, channel_names=None, modality={"0": "T1", "1": "T2"})
    assert channel_names(read_dataset_json(dataset)) == ["T1", "T2"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"shell": 1, "core": 2}, "Background label not declared"),
        ({"background": 0, "core": 2}, "without gaps"),
        (
            {"background": 0, "shell": 1, "core": 3, "ignore": 2},
            "ignore label 2, which must be the highest number, 4; number it",
        ),
        ({"background": 0, "shell": 1, "core": 2, "ignore": [3]}, "ignore label [3], which must be the highest number, 3"),
        ({"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order"),
        ([0, 1], "invalid labels"),
    ],
)
def test_invalid_labels(dataset: Path, labels: Any, expected: str) -> None:
    edit_json(dataset, labels=labels)
    assert expected in problem(dataset)


def test_file_ending_that_no_reader_knows(dataset: Path) -> None:
    for file in [*dataset.glob("imagesTr/*"), *dataset.glob("labelsTr/*")]:
        file.rename(file.with_name(file.name.replace(".nii.gz", ".jpg")))
    edit_json(dataset, file_ending=".jpg")
    assert "file_ending .jpg" in problem(dataset)


def test_label_that_dataset_json_does_not_name(dataset: Path) -> None:
    file = dataset / "labelsTr" / "case_001.nii.gz"
    edit_image(file, lambda image, array: np.where(array == 2, 7, array).astype(np.uint8))
    sentence = problem(dataset)
    assert str(file) in sentence
    assert "holds the label 7" in sentence


def test_a_label_that_no_file_holds_is_a_warning_as_in_nnunet(dataset: Path) -> None:  # third table
    edit_json(dataset, labels={"background": 0, "shell": 1, "core": 2, "lesion": 3})
    (warning,) = check_dataset(dataset, progress=False)
    assert "names the label lesion (3), and no file in labelsTr holds it" in warning


def _shift(image: sitk.Image, array: np.ndarray) -> None:
    image.SetOrigin((5.0, 0.0, 0.0))


def _stretch(image: sitk.Image, array: np.ndarray) -> None:
    image.SetSpacing((1.0, 1.0, 2.0))


def _flip(image: sitk.Image, array: np.ndarray) -> None:
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))


def _crop(image: sitk.Image, array: np.ndarray) -> np.ndarray:
    return array[1:]


@pytest.mark.parametrize(("change", "what"), [(_stretch, "spacing"), (_flip, "direction"), (_crop, "shape")])
def test_image_and_label_of_different_geometry(dataset: Path, change: Callable, what: str) -> None:
    edit_image(dataset / "labelsTr" / "case_001.nii.gz", change)
    sentence = problem(dataset)
    assert f"differ in {what}" in sentence
    assert "case_001_0000.nii.gz" in sentence
    assert ("--no_check" in sentence) == (what != "shape"), "without the check, a different shape is no better"


def test_image_and_label_at_different_origins_are_a_warning_as_in_nnunet(dataset: Path) -> None:  # third table
    for case in ("case_001", "case_002"):
        edit_image(dataset / "labelsTr" / f"{case}.nii.gz", _shift)
    (warning,) = check_dataset(dataset, progress=False)
    assert "case_001_0000.nii.gz and its label differ in origin" in warning and "cases like this: 2" in warning


def test_a_tiff_label_without_its_spacing_is_told(tmp_path: Path) -> None:  # row 16
    from tifffile import imwrite

    folder = write_tiffs(tmp_path)
    check_dataset(folder, progress=False)
    (folder / "labelsTr" / "cell0.json").unlink()
    assert "write the spacing of the label into cell0.json beside it" in problem(folder)
    imwrite(folder / "labelsTr" / "cell0.tif", np.zeros((6, 8), np.uint8))
    assert "cell0.tif cannot be read" in problem(folder)


def write_tiffs(folder: Path) -> Path:
    """Two 3D TIFFs with their spacings."""
    from tifffile import imwrite

    for case in range(2):
        label = np.zeros((6, 8, 10), np.uint8)
        label[2:4, 3:6, 3:6] = 1
        for sub, name, array in (("imagesTr", f"cell{case}_0000.tif", label * 100 + 5), ("labelsTr", f"cell{case}.tif", label)):
            (folder / sub).mkdir(exist_ok=True)
            imwrite(folder / sub / name, array)
            (folder / sub / f"cell{case}.json").write_text(json.dumps({"spacing": [0.5, 0.2, 0.2]}))
    content = {"channel_names": {"0": "light"}, "labels": {"background": 0, "cell": 1}, "numTraining": 2, "file_ending": ".tif"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_rounding_of_the_geometry_is_tolerated(dataset: Path) -> None:
    edit_image(dataset / "labelsTr" / "case_001.nii.gz", lambda image, array: image.SetOrigin((1e-3, 0, 0)))
    check_dataset(dataset, progress=False)


@pytest.mark.parametrize("kind", ["truncated gzip", "truncated inside", "wrong checksum", "empty", "text"])
def test_unreadable_files_are_named(dataset: Path, kind: str) -> None:
    file = dataset / "imagesTr" / "case_002_0001.nii.gz"
    content = file.read_bytes()
    broken = {
        "truncated gzip": content[: len(content) // 2],
        "truncated inside": gzip.compress(gzip.decompress(content)[:-100]),
        "wrong checksum": content[:-8] + b"\0\0\0\0" + content[-4:],
        "empty": b"",
        "text": b"not an image",
    }
    file.write_bytes(broken[kind])
    sentence = problem(dataset)
    assert str(file) in sentence
    assert "cannot be read" in sentence


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_invalid_voxels(dataset: Path, value: float) -> None:
    def spoil(image: sitk.Image, array: np.ndarray) -> None:
        array[2, 3, 4] = value

    file = dataset / "imagesTr" / "case_000_0001.nii.gz"
    edit_image(file, spoil)
    assert problem(dataset) == f"{file} holds 1 NaN or infinite voxels; replace them by a valid intensity."


@pytest.mark.parametrize("channel", [0, 1])
def test_missing_channel(dataset: Path, channel: int) -> None:
    (dataset / "imagesTr" / f"case_001_{channel:04d}.nii.gz").unlink()
    sentence = problem(dataset)
    assert "The training case case_001" in sentence


def test_missing_label(dataset: Path) -> None:
    (dataset / "labelsTr" / "case_001.nii.gz").unlink()
    assert "case_001 lacks" in problem(dataset)


def test_image_without_channel_number(dataset: Path) -> None:
    file = dataset / "imagesTr" / "case_001_0000.nii.gz"
    file.rename(file.with_name("case_001.nii.gz"))
    assert "lacks a channel number" in problem(dataset)


def test_no_training_cases(dataset: Path) -> None:
    for file in dataset.glob("imagesTr/*"):
        file.unlink()
    assert "no training cases" in problem(dataset)


def test_wrong_number_of_cases(dataset: Path) -> None:
    edit_json(dataset, numTraining=5)
    assert "numTraining 5" in problem(dataset)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ([{"train": ["case_000"], "val": ["case_009"]}], "unknown case case_009"),
        ([{"train": ["case_000", "case_001"], "val": ["case_001"]}], "in train and in val"),
        ([{"train": ["case_000"], "val": []}], "no validation cases"),
        ({"train": []}, "must be a JSON list"),
    ],
)
def test_bad_splits(dataset: Path, splits: Any, expected: str) -> None:
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    assert expected in problem(dataset)


def test_worker_processes_find_the_same_defect(dataset: Path) -> None:
    (dataset / "imagesTr" / "case_002_0001.nii.gz").write_bytes(b"")
    assert problem(dataset, processes=2) == problem(dataset, processes=1)
