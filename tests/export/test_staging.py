"""What is removed before and after a case is written lies in the staging folder. Nothing here may remove anything for real."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nndiffseg.export import writer

ELSEWHERE = ("", ".", "..", "/", "/etc", "../x", "a/../../x", "a/b", "a\\b", "a\0b", ".hidden")


@pytest.fixture(autouse=True)
def removed(monkeypatch) -> list[Path]:
    """Records what would be removed."""
    paths: list[Path] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, *_, **__: paths.append(Path(path)))
    return paths


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_name_that_leads_elsewhere_removes_nothing(tmp_path, removed, case):
    with pytest.raises(ValueError, match="no plain name"):
        writer.staging_folder(tmp_path, case)
    with pytest.raises(ValueError, match="no plain name"):
        writer.remove_staging(tmp_path, [case])
    job = writer.ExportJob(tmp_path, {}, "2d", {"file_ending": ".nii.gz"})
    with pytest.raises(ValueError, match="no plain name"), writer._staged(job, case):
        pass
    assert removed == []


def test_a_staging_folder_that_is_a_link_is_not_followed(tmp_path, removed):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / writer.STAGING).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        writer.remove_staging(tmp_path, ["case_000"])
    assert removed == []


def test_the_own_leftovers_of_a_case_are_removed(tmp_path, removed):
    writer.remove_staging(tmp_path, ["case_000", "a.b"])
    assert removed == [tmp_path / writer.STAGING / "case_000", tmp_path / writer.STAGING / "a.b"]
