"""``nndiffseg_train``: foreign plans are refused before anything is made from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_model import model_folder, raw_images, results  # noqa: F401

from nndiffseg.cli.train import main


@pytest.fixture
def preprocessed(model_folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A dataset's folder with plans and dataset.json, as if it were preprocessed."""
    folder = tmp_path / "preprocessed" / "Dataset901_Tiny"
    folder.mkdir(parents=True)
    for name, source in (("nnDiffSegPlans.json", "plans.json"), ("dataset.json", "dataset.json")):
        shutil.copy(model_folder / source, folder / name)
    for configuration in json.loads((folder / "nnDiffSegPlans.json").read_text())["configurations"].values():
        (folder / configuration["data_identifier"]).mkdir()
    return folder


def spoil(folder: Path, **changes: Any) -> None:
    file = folder / "nnDiffSegPlans.json"
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        configuration["architecture"]["arch_kwargs"].update(changes)
    file.write_text(json.dumps(plans))


def test_a_command_in_foreign_plans_is_not_run(preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "mark"
    spoil(preprocessed, nonlin="subprocess.Popen", nonlin_kwargs={"args": ["touch", str(mark)]})
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    code = main(["901", "3d_fullres", "0", "-device", "cpu", "--epochs", "1", *flags])
    error = capsys.readouterr().err
    assert code == 2 and "subprocess.Popen" in error and error.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "results").exists()


def test_a_trainer_that_is_no_trainer_is_told(preprocessed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    for name in ("os", "Path", "subprocess.Popen"):
        assert main(["901", "3d_fullres", "0", "-tr", name, "-device", "cpu", *flags]) == 2
        error = capsys.readouterr().err
        assert f"no nndiffseg trainer {name}" in error and error.count("\n") == 1
