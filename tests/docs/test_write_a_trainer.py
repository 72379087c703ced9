"""The how-to's trainer, taken from the page as it stands, trains, validates and predicts from outside the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "write-a-trainer.md"
TRAINER = "nnDiffSegTrainerToy"


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_dataset):
    """Runs one of the commands on a tiny dataset with the page's file in a folder of ``nnUNet_extTrainer``."""
    base = tmp_path_factory.mktemp("toy")
    make_dataset(base / "raw", cases=4, splits=True)
    (base / "ext").mkdir()
    code, variant = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (base / "ext" / f"{TRAINER}.py").write_text(code)
    (base / "ext" / "nnDiffSegTrainerDA5.py").write_text(variant)  # imported on the way to the other one
    environment = os.environ | {"nnUNet_extTrainer": str(base / "ext")}
    flags = [f"--{kind}={base / kind}" for kind in ("raw", "preprocessed", "results")]

    def command(name: str, *arguments: str) -> Path:
        line = [sys.executable, "-m", f"nndiffseg.cli.{name}", *arguments, *flags]
        finished = subprocess.run(line, env=environment, capture_output=True, text=True, encoding="utf8", timeout=500)
        assert finished.returncode == 0, finished.stderr + finished.stdout
        return base

    return command


def test_the_trainer_of_the_page_trains_validates_and_predicts(run, tmp_path):
    run("plan_and_preprocess", "-d", "901", "-pl", "DiffSegPlannerS", "-c", "3d_fullres", "-np", "1", "-npfp", "1", "--no_pbar")
    common = ["-p", "nnDiffSegPlansS", "-tr", TRAINER, "-device", "cpu", "--disable_progress_bar"]
    length = ["--epochs", "1", "--iterations_per_epoch", "2", "--option", "width=8"]
    base = run("train", "901", "3d_fullres", "0", *common, *length)
    (model,) = base.glob(f"results/*/{TRAINER}__*")
    assert (model / "fold_0" / "validation" / "summary.json").is_file()
    assert json.loads((model / "fold_0" / "calibration.json").read_text())["groups"] == 2
    plans = json.loads((model / "plans.json").read_text())["configurations"]["3d_fullres"]["diffusion"]
    assert plans["options"] == {"toy": {"width": 8}}
    images = base / "raw" / "Dataset901_Tiny" / "imagesTr"
    run(
        "predict",
        "-i",
        str(images),
        "-o",
        str(tmp_path),
        "-m",
        str(model),
        "-num_parts",
        "4",
        "--samples",
        "2",
        "-device",
        "cpu",
    )
    assert (tmp_path / "case_000.nii.gz").is_file()
    settings = json.loads((tmp_path / "uncertainty" / "case_000.json").read_text())["settings"]
    assert settings["sampler"] == "ancestral" and settings["steps"] == 4
