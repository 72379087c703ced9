"""Plans and preprocessed data of a comparison, made where they are missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nndiffseg.cli.common import choose
from nndiffseg.data.folders import Folders
from nndiffseg.errors import UserError

PLANNERS = {"S": "DiffSegPlannerS", "M": "DiffSegPlanner", "L": "DiffSegPlannerL"}
PLANS = {"S": "nnDiffSegPlansS", "M": "nnDiffSegPlans", "L": "nnDiffSegPlansL"}


def dataset_name(folders: Folders, name: str) -> str:
    """Full name of a dataset that is preprocessed, or else raw."""
    try:
        return folders.dataset(name, "preprocessed")
    except UserError:
        return folders.dataset(name, "raw")


def prepare(folders: Folders, dataset: str, planner: str, configuration: str) -> None:
    """Plans and preprocesses, unless that is done; a split that the raw dataset brings is used.

    Raises:
        UserError: planning fails, or the plans lack the configuration.
    """
    base, raw = folders.preprocessed / dataset, folders.raw / dataset
    file = base / f"{PLANS[planner]}.json"
    if not file.is_file():
        plan(dataset, planner, ["--no_pp"])
    plans = json.loads(file.read_text())
    check_configuration(plans, configuration)
    data = base / plans["configurations"][configuration]["data_identifier"]
    if not (data.is_dir() and any(data.iterdir())):
        plan(dataset, planner, ["-c", configuration, "--no_check"])
    # nnU-Net's own random split may divide what belongs together, such as two images of one person.
    if (raw / "splits_final.json").is_file() and not (base / "splits_final.json").is_file():
        shutil.copyfile(raw / "splits_final.json", base / "splits_final.json")


def planned(folders: Folders, dataset: str, planner: str, configuration: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and dataset.json: those of the preprocessed dataset where they exist, else planned in a temporary folder.

    A configuration that is named must be among them.

    Raises:
        UserError: planning fails, or the plans lack the configuration.
    """
    base, names = folders.preprocessed / dataset, (f"{PLANS[planner]}.json", "dataset.json")
    if (base / names[0]).is_file():
        plans, dataset_json = (json.loads((base / n).read_text()) for n in names)
    else:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / dataset
            copy.mkdir()
            if (base / "dataset_fingerprint.json").is_file():
                shutil.copy(base / "dataset_fingerprint.json", copy)
            plan(dataset, planner, ["--no_pp", "--no_check", "--preprocessed", folder])
            plans, dataset_json = (json.loads((copy / n).read_text()) for n in names)
    if configuration is not None:
        check_configuration(plans, configuration)
    return plans, dataset_json


def check_configuration(plans: dict[str, Any], configuration: str) -> None:
    """Raises a UserError unless the plans have the configuration, with diffusion settings."""
    known = [name for name, c in plans["configurations"].items() if "diffusion" in c]
    choose("configuration", configuration, known)


def plan(dataset: str, planner: str, flags: Sequence[str]) -> None:
    """Runs nndiffseg_plan_and_preprocess, which makes only what is missing.

    Raises:
        UserError: it failed.
    """
    print(f"nndiffseg_plan_and_preprocess -d {dataset} -pl {PLANNERS[planner]} ...", flush=True)
    finished = subprocess.run(
        [sys.executable, "-m", "nndiffseg.cli.plan_and_preprocess", "-d", dataset, "-pl", PLANNERS[planner], *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
        check=False,
    )
    if finished.returncode:
        reason = (finished.stdout.strip().splitlines() or ["no output"])[-1].removeprefix("error: ")
        raise UserError(f"{dataset} cannot be planned with {PLANNERS[planner]}: {reason}")
