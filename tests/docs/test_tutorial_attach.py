"""Every command of the tutorial runs, in its order, on a small model of stock nnU-Net."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stock_world import make_stock_world

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial-attach.md"
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TUTORIAL.read_text(), re.S) for line in block.splitlines()]


def test_the_tutorial_has_commands_of_every_rung():
    names = [line.split()[0] for line in COMMANDS]
    assert names == [
        *("nndiffseg_info", "nndiffseg_calibrate", "nndiffseg_predict", "nndiffseg_evaluate"),
        *("nndiffseg_attach", "nndiffseg_predict", "nndiffseg_evaluate", "nndiffseg_export"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_runs(make_dataset, tmp_path):
    world = make_stock_world(make_dataset, tmp_path, cases=10)
    world.keep_probabilities()
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for case in ("case_001", "case_006"):
        shutil.copy(world.images / f"{case}_0000.nii.gz", images)
        shutil.copy(world.raw / world.dataset / "labelsTr" / f"{case}.nii.gz", labels)
    folders = {f"nnUNet_{k}": str(getattr(world, k)) for k in ("raw", "preprocessed", "results")}
    environment = {**os.environ, **folders, "MODEL": str(world.model), "IMAGES": str(images), "LABELS": str(labels)}
    for line in COMMANDS:
        name, _, rest = line.partition(" ")
        module = f"{sys.executable} -m nndiffseg.cli.{name.removeprefix('nndiffseg_')}"
        quick = rest.replace("--minutes 10", "--minutes 0.05 --iterations_per_epoch 2")
        done = subprocess.run(
            ["bash", "-c", f"{module} {quick}"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    for out in ("out", "out_attached"):
        assert (tmp_path / out / "report.html").is_file() and (tmp_path / out / "evaluation.json").is_file()
    assert (tmp_path / "calibrated.zip").is_file()
