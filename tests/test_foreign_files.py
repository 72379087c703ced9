"""Whatever a foreign model or dataset names, no command runs it, and nothing is written or deleted outside."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from stock_folder import DATASET, PLANS, write_stock_folder

from nndiffseg.calibration import Calibration
from nndiffseg.diffusion.coherent import LENGTHS

NAME = PLANS["dataset_name"]
COMMANDS = ("predict", "calibrate", "attach", "export", "export --nnunet", "info", "info --card", "train", "evaluate", "pfile")


class World:
    """A foreign model with its data, predictions and references, below one temporary folder."""

    def __init__(self, root: Path):
        self.root, self.canary = root, root / "canary"
        self.model = write_stock_folder(root / "results")
        for sub in ("in", "pred", "ref", f"preprocessed/{NAME}/gt_segmentations", f"preprocessed/{NAME}/nnUNetPlans_2d"):
            (root / sub).mkdir(parents=True)
        image = sitk.GetImageFromArray(np.ones((4, 8, 8), np.uint8))
        for file in ("in/case_0000", "pred/case", "ref/case"):
            sitk.WriteImage(image, str(root / f"{file}.nii.gz"))
        self.write(PLANS, DATASET)

    def write(self, plans: Any, dataset_json: Any) -> None:
        data = self.root / "preprocessed" / NAME
        for folder in (self.model, self.root / "pred", data):
            (folder / "plans.json").write_text(json.dumps(plans))
            (folder / "dataset.json").write_text(json.dumps(dataset_json))
        (data / "plans.json").rename(data / "nnUNetPlans.json")

    def run(self, command: str) -> int:
        root, model = self.root, str(self.model)
        folders = [f"--{kind}={root / kind}" for kind in ("raw", "preprocessed", "results")]
        arguments = {
            "predict": ["-m", model, "-i", str(root / "in"), "-o", str(root / "out"), *folders],
            "calibrate": [model, *folders],
            "attach": [model, *folders],
            "export": [model, str(root / "out.zip")],
            "export --nnunet": [model, str(root / "out.zip"), "--nnunet"],
            "info": [model],
            "info --card": [model, "--card", str(root / "card.md")],
            "train": [NAME, "2d", "0", "-p", "nnUNetPlans", *folders],
            "evaluate": ["-i", str(root / "pred"), "-r", str(root / "ref")],
            "pfile": ["-i", str(root / "pred"), "-r", str(root / "ref"), "-pfile", str(self.model / "plans.json")],
        }[command]
        name = {"pfile": "evaluate"}.get(command, command.split()[0])
        return importlib.import_module(f"nndiffseg.cli.{name}").main(arguments)

    def files(self) -> dict[str, int]:
        return {str(f.relative_to(self.root)): f.stat().st_mtime_ns for f in self.root.rglob("*") if f.is_file()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "a" / "b" / "c")


def popen(plans: dict[str, Any], canary: Path) -> None:
    """What made ``nndiffseg_predict -m`` run a command."""
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments |= {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": ["touch", str(canary)]}}


def reader(plans: dict[str, Any], canary: Path) -> None:
    plans["image_reader_writer"] = "subprocess.Popen"


@pytest.mark.parametrize("attack", [popen, reader])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_foreign_plans_name(world: World, capsys, command: str, attack: Callable[..., None]) -> None:
    plans = copy.deepcopy(PLANS)
    attack(plans, world.canary)
    world.write(plans, DATASET)
    before = world.files()
    assert world.run(command) == 2
    message = capsys.readouterr().err
    assert "subprocess.Popen" in message and "which no planner writes" in message and "Traceback" not in message
    assert world.files() == before and not world.canary.exists()


@pytest.mark.parametrize("key", ["dataset_name", "plans_name"])
@pytest.mark.parametrize("name", ["../../EVIL", "..", "a/b"])
@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("evaluate", "pfile")])
def test_no_command_writes_where_foreign_plans_lead(world: World, capsys, command: str, key: str, name: str) -> None:
    world.write(PLANS | {key: name}, DATASET)
    before = world.files()
    assert world.run(command) == 2
    assert key in capsys.readouterr().err
    assert world.files() == before and not list(world.root.parents[2].rglob("*EVIL*"))


@pytest.mark.parametrize("content", [{"file_ending": "/../../EVIL"}, {"overwrite_image_reader_writer": "os.system"}])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_follows_a_foreign_dataset_json(world: World, capsys, command: str, content: dict[str, str]) -> None:
    plans = copy.deepcopy(PLANS)
    plans["configurations"]["2d"]["diffusion"] = {}  # so that a training reads on
    world.write(plans, DATASET | content)
    before = world.files()
    assert world.run(command) == 2
    message = capsys.readouterr().err
    assert "file_ending" in message or "unknown reader" in message
    assert world.files() == before


@pytest.mark.parametrize("command", ["predict", "calibrate", "attach", "export", "export --nnunet", "info"])
@pytest.mark.parametrize(
    "change",
    [
        {"trainer_name": "../../EVIL"},
        {"trainer_name": "subprocess.Popen"},
        {"init_args": {"configuration": "../../EVIL"}},
        {"init_args": []},
    ],
    ids=str,
)
def test_no_command_follows_a_foreign_checkpoint(world: World, capsys, command: str, change: dict[str, Any]) -> None:
    file = world.model / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False) | change, file)
    before = world.files()
    assert world.run(command) == 2
    assert "Traceback" not in capsys.readouterr().err and world.files() == before


def test_listed_cases_that_lead_elsewhere_write_nothing(tmp_path: Path, make_dataset, capsys) -> None:
    from nndiffseg.cli.plan_and_preprocess import main

    root = tmp_path / "a" / "b"
    raw = make_dataset(root / "raw")
    content = json.loads((raw / "dataset.json").read_text())
    image, label = str(next((raw / "imagesTr").iterdir())), str(next((raw / "labelsTr").iterdir()))
    flags = [f"--{kind}={root / kind}" for kind in ("raw", "preprocessed", "results")]
    for name in ("../../../EVIL", str(tmp_path / "EVIL")):
        listed = {"dataset": {name: {"images": [image], "label": label}}, "numTraining": 1}
        (raw / "dataset.json").write_text(json.dumps(content | listed))
        assert main(["-d", "901", "-pl", "DiffSegPlannerS", "--no_pbar", "--no_check", *flags]) == 2
        assert "cannot be part of a file's name" in capsys.readouterr().err
    assert not (root / "preprocessed").exists() and not list(tmp_path.rglob("*EVIL*"))


def test_an_image_called_like_the_folder_above_deletes_nothing(world: World, capsys) -> None:
    weights = [1 / len(LENGTHS)] * len(LENGTHS)
    Calibration(length_weights=weights, folds=["0"]).write(world.model)
    (world.root / "in" / "case_0000.nii.gz").rename(world.root / "in" / ".._0000.nii.gz")
    (world.root / "out").mkdir()
    (world.root / "out" / "precious.txt").write_text("kept")
    before = world.files()
    assert world.run("predict") == 2
    assert "holds no images" in capsys.readouterr().err
    assert world.files() == before
