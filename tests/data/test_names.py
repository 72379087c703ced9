"""Names of cases become names of files: one that leads elsewhere is refused wherever it comes from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nndiffseg.data.cases import find_cases
from nndiffseg.data.check import read_dataset_json, training_cases
from nndiffseg.data.names import check_case_id, is_plain_name
from nndiffseg.data.splits import read_splits
from nndiffseg.errors import UserError

BAD = ("", ".", "..", ".hidden", "/", "a/b", "../a", "a/..", "/etc", "a\\b", "a\0b", "a\nb", "x\x1b[31m")


@pytest.mark.parametrize("name", ["case_000", "a", "a.b", "a..b", "a b", "Fälle_1", "患者1", "-1", "~", "a$(b)", "con"])
def test_names_of_files_are_plain(name: str) -> None:
    assert is_plain_name(name)
    check_case_id(name, "The folder")


@pytest.mark.parametrize("name", [*BAD, None, 3, ["a"]])
def test_names_that_lead_elsewhere_are_not(name: str) -> None:
    assert not is_plain_name(name)
    with pytest.raises(UserError, match="The folder") as error:
        check_case_id(name, "The folder")
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value) and "\0" not in str(error.value)


# ---- images to predict ------------------------------------------------------------------------------------------------


@pytest.fixture
def images(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    return make_dataset(tmp_path, cases=2, shape=(8, 8, 8)) / "imagesTr"


DATASET = {"channel_names": {"0": "a"}, "file_ending": ".nii.gz"}


@pytest.mark.parametrize("name", ["..", ".", "._case_000", ".hidden"])
def test_hidden_files_are_no_images(images: Path, name: str) -> None:
    shutil.copy(images / "case_000_0000.nii.gz", images / f"{name}_0000.nii.gz")
    assert [case.id for case in find_cases(images, DATASET)] == ["case_000", "case_001"]
    for file in images.glob("case_*"):
        file.unlink()
    with pytest.raises(UserError, match="holds no images"):
        find_cases(images, DATASET)


@pytest.mark.parametrize("name", ["a\\b", "a\nb"])
def test_an_image_that_is_not_named_like_a_file_is_told(images: Path, name: str) -> None:
    shutil.copy(images / "case_000_0000.nii.gz", images / f"{name}_0000.nii.gz")
    with pytest.raises(UserError, match=r"'a(\\\\|\\n)b'"):
        find_cases(images, DATASET)


# ---- training cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_a_training_case_in_dataset_json_that_leads_elsewhere_is_refused(
    make_dataset: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    raw = make_dataset(tmp_path, cases=1, shape=(8, 8, 8))
    content = json.loads((raw / "dataset.json").read_text())
    entry = {"images": ["imagesTr/case_000_0000.nii.gz"], "label": "labelsTr/case_000.nii.gz"}
    content["dataset"] = {name: entry, "sound": entry}
    (raw / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"dataset\.json"):
        training_cases(raw, read_dataset_json(raw))


def test_a_training_image_that_is_not_named_like_a_file_is_refused(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = make_dataset(tmp_path, cases=1, shape=(8, 8, 8))
    shutil.copy(raw / "imagesTr" / "case_000_0000.nii.gz", raw / "imagesTr" / "a\\b_0000.nii.gz")
    shutil.copy(raw / "labelsTr" / "case_000.nii.gz", raw / "labelsTr" / "a\\b.nii.gz")
    with pytest.raises(UserError, match="imagesTr"):
        training_cases(raw, read_dataset_json(raw))


@pytest.mark.parametrize("ending", ["/../x.nii.gz", "nii.gz/", ".nii.gz\\x", "/", ".nii.gz\0"])
def test_a_file_ending_that_leads_elsewhere_is_refused(make_dataset: Callable[..., Path], tmp_path: Path, ending: str) -> None:
    raw = make_dataset(tmp_path, cases=1, shape=(8, 8, 8))
    content = json.loads((raw / "dataset.json").read_text()) | {"file_ending": ending}
    (raw / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="file_ending"):
        read_dataset_json(raw)


@pytest.mark.parametrize("name", ["..", "../a", 3])
def test_splits_with_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["a"], "val": [name]}]))
    with pytest.raises(UserError, match=r"splits_final\.json"):
        read_splits(file, ["a", "..", "../a", "3"])
