"""A training does not go on with labels that were corrected since they were preprocessed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nndiffseg.data import records
from nndiffseg.data.check import read_dataset_json, training_cases
from nndiffseg.data.raw_changes import check_raw_unchanged
from nndiffseg.data.records import CaseKey, Records, write_case_key
from nndiffseg.errors import UserError

NAMES = [f"case_{i:03d}" for i in range(4)]


@pytest.fixture
def folders(tmp_path: Path, make_dataset, monkeypatch) -> tuple[Path, Path]:
    """A raw dataset, and the records of its preprocessed cases."""
    raw = make_dataset(tmp_path / "raw", shape=(4, 6, 6))
    preprocessed = tmp_path / "preprocessed" / raw.name
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    kept = Records(preprocessed)
    for case in training_cases(raw, read_dataset_json(raw)):
        write_case_key(CaseKey(kept.content(case.images, case.label), "s", "l"), kept.case_file("data", case.name))
    kept.save()
    return raw, preprocessed


def label(raw: Path, case: str) -> Path:
    return raw / "labelsTr" / f"{case}.nii.gz"


def test_unchanged_files_are_not_even_read(folders, monkeypatch) -> None:
    os.chmod(label(folders[0], "case_001"), 0o600)  # its ctime changes, its content does not
    monkeypatch.setattr(records, "hash_file", lambda _: pytest.fail("a thousand cases would take minutes to read"))
    check_raw_unchanged(folders[1], "data", NAMES)


def test_a_corrected_label_is_one_sentence(folders) -> None:
    shutil.copy(label(folders[0], "case_000"), label(folders[0], "case_002"))
    with pytest.raises(UserError, match=r"label of case_002 have changed .*; run nndiffseg_plan_and_preprocess for Dataset901"):
        check_raw_unchanged(folders[1], "data", NAMES)
    check_raw_unchanged(folders[1], "data", NAMES[:2])  # this training does not use it


def test_a_file_that_was_written_again_with_the_same_content_is_no_change(folders) -> None:
    os.utime(label(folders[0], "case_001"))
    check_raw_unchanged(folders[1], "data", NAMES)


def test_a_raw_folder_that_is_absent_or_lies_elsewhere_is_not_needed(folders, tmp_path: Path, monkeypatch) -> None:
    raw, preprocessed = folders
    (tmp_path / "elsewhere").mkdir()
    moved = raw.rename(tmp_path / "elsewhere" / raw.name)
    check_raw_unchanged(preprocessed, "data", NAMES)
    label(moved, "case_001").write_bytes(b"another")
    for place in (str(moved.parent), ""):
        monkeypatch.setenv("nnUNet_raw", place)
        check_raw_unchanged(preprocessed, "data", NAMES)
