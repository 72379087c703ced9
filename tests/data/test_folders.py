"""Folders by flag, environment variable or default; datasets by id or name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nndiffseg.data.folders import Folders, configure_folders, dataset_id
from nndiffseg.errors import UserError
from nndiffseg.ext_path import ext_path

NAMES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*NAMES, "nnUNet_extTrainer"):
        monkeypatch.setenv(name, "recorded, so that it is restored")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("no_variables")
def test_defaults_are_said_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folders = configure_folders()
    assert folders.raw == tmp_path / "nndiffseg_data" / "raw"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "nndiffseg_data" in lines[0]
    assert not (tmp_path / "nndiffseg_data").exists()


@pytest.mark.usefixtures("no_variables")
def test_a_flag_wins_over_the_variable_and_reaches_nnunet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, str(tmp_path / "variable" / name))
    folders = configure_folders(raw=tmp_path / "flag")
    assert folders.raw == tmp_path / "flag"
    assert folders.results == tmp_path / "variable" / "nnUNet_results"
    assert capsys.readouterr().out == ""
    from nnunetv2.paths import nnUNet_raw, nnUNet_results

    assert nnUNet_raw.require() == str(tmp_path / "flag")
    assert nnUNet_results.require() == str(tmp_path / "variable" / "nnUNet_results")


@pytest.mark.usefixtures("no_variables")
def test_relative_folders_become_absolute(tmp_path: Path) -> None:
    configure_folders(raw="here", preprocessed="there", results="elsewhere")
    assert os.environ["nnUNet_raw"] == str(tmp_path / "here")


@pytest.mark.usefixtures("no_variables")
def test_ext_trainer_is_appended_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", "/my/trainers")
    configure_folders("a", "b", "c")
    configure_folders("a", "b", "c")
    assert os.environ["nnUNet_extTrainer"] == os.pathsep.join(["/my/trainers", str(ext_path())])


def test_module_prints_the_shim_folder() -> None:
    out = subprocess.run([sys.executable, "-m", "nndiffseg.ext_path"], capture_output=True, text=True, check=True)
    assert list(Path(out.stdout.strip()).glob("nndiffseg_trainers.py"))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("raw/Dataset004_Heart", "raw/Dataset012_Lung", "preprocessed/Dataset012_Lungs", "raw/stuff"):
        (tmp_path / name).mkdir(parents=True)
    return Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")


@pytest.mark.parametrize("given", [4, "4", "004", "Dataset004_Heart"])
def test_dataset_by_id_or_name(folders: Folders, given: str | int) -> None:
    assert folders.dataset(given) == "Dataset004_Heart"


@pytest.mark.parametrize("given", ["5", "Dataset004_Liver", "heart", ""])
def test_no_such_dataset_lists_what_exists(folders: Folders, given: str) -> None:
    with pytest.raises(UserError, match=r"No such dataset.*Dataset004_Heart, Dataset012_Lung"):
        folders.dataset(given)


def test_an_id_with_two_names_is_refused(folders: Folders) -> None:
    with pytest.raises(UserError, match="several names: Dataset012_Lung, Dataset012_Lungs"):
        folders.dataset(12)


def test_dataset_id_reads_the_number() -> None:
    assert dataset_id("Dataset1234_Big") == 1234
    with pytest.raises(UserError):
        dataset_id("Dataset_4")
