"""Stock nnU-Net and nndiffseg side by side: accuracy, calibration, samples, time and memory, in one table.

    python -m benchmarks.versus_nnunet --dataset 4 --configuration 3d_fullres --fold 0 --iterations 2000 [--planner S]
    python -m benchmarks.versus_nnunet --dataset 4 --configuration 3d_fullres --speed_only [--planner S]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import report
from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, choose, folders_from, pick_device, run
from nndiffseg.errors import UserError
from nndiffseg.folders import Folders

PLANNERS = {"S": "DiffSegPlannerS", "M": "DiffSegPlanner", "L": "DiffSegPlannerL"}
PLANS = {"S": "nnDiffSegPlansS", "M": "nnDiffSegPlans", "L": "nnDiffSegPlansL"}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser("Stock nnU-Net and nndiffseg side by side.", prog="python -m benchmarks.versus_nnunet")
    add = parser.add_argument
    add("--dataset", required=True, help="id or name, such as 4 or Dataset004_Hippocampus")
    add("--configuration", default="3d_fullres", help="default: %(default)s")
    add("--planner", default="M", metavar="S|M|L", help="size of the plans, which both sides share (default: %(default)s)")
    add("--speed_only", action="store_true", help="no training: time untrained networks in a few minutes")
    add("--name", help="of the JSON file in benchmarks/results")
    add_device_flag(parser)
    add_folder_flags(parser)
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    choose("planner", args.planner, list(PLANNERS))
    folders = folders_from(args)
    dataset = _dataset(folders, args.dataset)
    if args.speed_only:
        _speed_only(args, folders, dataset)


def _dataset(folders: Folders, name: str) -> str:
    """Full name of a dataset that is preprocessed, or else raw."""
    try:
        return folders.dataset(name, "preprocessed")
    except UserError:
        return folders.dataset(name, "raw")


# ---- speed ------------------------------------------------------------------------------------------------------------


def _speed_only(args: argparse.Namespace, folders: Folders, dataset: str) -> None:
    plans, dataset_json = planned(folders, dataset, args.planner, args.configuration)
    device = pick_device(args.device)
    from benchmarks import speed  # torch takes seconds to load, so wrong flags are told before

    result = speed.compare(plans, args.configuration, dataset_json, device)
    name = args.name or f"speed_{dataset}_{args.configuration}_{args.planner}_{device.type}"
    tell(name, speed.table(result), [f"{dataset}, {args.configuration}, planner {args.planner}, {device.type}", "seconds",
                                     "in nnU-Net's", "peak GB"], {"dataset": dataset, **_setup(args, plans), **result})
    for key in ("prediction_ratio_16", "sample_ratio", "training_ratio", "memory_ratio"):
        same = result["same_precision"].get(key)
        print(f"{key}: {result[key] if result[key] is None else round(result[key], 3)}"
              + (f" (with nnU-Net in the same precision {same:.3f})" if same is not None else ""))


def planned(folders: Folders, dataset: str, planner: str, configuration: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and dataset.json: those of the preprocessed dataset where they exist, else planned in a temporary folder.

    Raises:
        UserError: planning fails, or the plans lack the configuration.
    """
    base = folders.preprocessed / dataset
    if (base / f"{PLANS[planner]}.json").is_file():
        plans, dataset_json = (json.loads((base / n).read_text()) for n in (f"{PLANS[planner]}.json", "dataset.json"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / dataset
            copy.mkdir()
            if (base / "dataset_fingerprint.json").is_file():
                shutil.copy(base / "dataset_fingerprint.json", copy)
            plan(dataset, planner, ["--no_pp", "--no_check", "--preprocessed", folder])
            plans, dataset_json = (json.loads((copy / n).read_text()) for n in (f"{PLANS[planner]}.json", "dataset.json"))
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
    finished = subprocess.run([sys.executable, "-m", "nndiffseg.cli.plan_and_preprocess", "-d", dataset, "-pl",
                               PLANNERS[planner], *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=os.environ, check=False)
    if finished.returncode:
        reason = (finished.stdout.strip().splitlines() or ["no output"])[-1].removeprefix("error: ")
        raise UserError(f"{dataset} cannot be planned with {PLANNERS[planner]}: {reason}")


def _setup(args: argparse.Namespace, plans: dict[str, Any]) -> dict[str, Any]:
    """What was compared, for the JSON file."""
    configuration = plans["configurations"][args.configuration]
    return {"configuration": args.configuration, "planner": args.planner, "patch_size": configuration["patch_size"],
            "batch_size": configuration["batch_size"], "settings": configuration["diffusion"]["settings"]}


def tell(name: str, rows: list[list[str]], header: list[str], result: dict[str, Any]) -> None:
    """:func:`benchmarks.common.report`, without the machine's folders in the command."""
    words = ["python", "-m", "benchmarks.versus_nnunet", *sys.argv[1:]]
    for flag in ("--raw", "--preprocessed", "--results"):
        if flag in words[:-1]:
            words[words.index(flag) + 1] = f"${flag.replace('--', 'nnUNet_')}"
    report(name, rows, header, {"command": " ".join(words), **result})


if __name__ == "__main__":
    raise SystemExit(main())
