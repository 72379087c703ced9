"""Stock nnU-Net and nndiffseg side by side: accuracy, calibration, samples, time and memory, in one table.

    python -m benchmarks.versus_nnunet --dataset 4 --configuration 3d_fullres --fold 0 1 2 --iterations 2000 [--planner S]
    python -m benchmarks.versus_nnunet --dataset 4 --configuration 3d_fullres --speed_only [--planner S]

The first command makes what is missing (plans, preprocessed data, trainings, predictions) and reuses what is there, so it
goes on where it was interrupted. Trained are nnU-Net's own ``nnUNetTrainer``, once for each member of the ensemble, and
``nnDiffSegTrainer``: on the same plans (image network, patch, batch), the same batches in the same order, for the same
number of iterations, each with its own optimiser, loss and learning rate; nnU-Net's polynomial decay runs over exactly
these iterations. The cases of several folds make one table. Trainings land in
``nnUNet_results/versus_nnunet/N_iterations/seed_S``, in nnU-Net's own layout.
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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import report
from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, choose, folders_from, pick_device, run
from nndiffseg.data.folders import Folders
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.evaluation import number

if TYPE_CHECKING:  # torch takes seconds to load, so wrong flags are told before
    import torch

    from benchmarks.methods_data import Data

PLANNERS = {"S": "DiffSegPlannerS", "M": "DiffSegPlanner", "L": "DiffSegPlannerL"}
PLANS = {"S": "nnDiffSegPlansS", "M": "nnDiffSegPlans", "L": "nnDiffSegPlansL"}
FOLDER = "versus_nnunet"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser("Stock nnU-Net and nndiffseg side by side.", prog="python -m benchmarks.versus_nnunet")
    add = parser.add_argument
    add("--dataset", required=True, help="id or name, such as 4 or Dataset004_Hippocampus")
    add("--configuration", default="3d_fullres", help="default: %(default)s")
    add("--fold", type=int, nargs="+", default=[0], help="one or several (default: 0)")
    add("--iterations", type=int, help="length of every training")
    add("--planner", default="M", metavar="S|M|L", help="size of the plans, which both sides share (default: %(default)s)")
    add("--seed", type=int, default=0, help="of both trainings; the ensemble's are SEED, SEED + 1, ... (default: 0)")
    add(
        "--ensemble",
        type=int,
        default=3,
        metavar="N",
        help="nnU-Nets in the third column; 1 for a single nnU-Net, 0 for none "
        "at all, to see what a change in nndiffseg does (default: 3)",
    )
    add("--samples", type=int, default=16, help="that are judged (default: %(default)s)")
    add(
        "--more_steps",
        type=int,
        nargs="*",
        default=[10],
        metavar="N",
        help="also the Dice of the mean of samples of so many sampling steps (default: 10)",
    )
    add(
        "--tolerance",
        type=float,
        default=1.0,
        help="of the surface distance, in mm, or in pixels where images have no spacing (default: %(default)s)",
    )
    add(
        "--truth",
        default="raters",
        metavar="raters|label",
        help="raters: figures are means over all annotations in the "
        "raw dataset's ratersTr, where there are some (default); label: the label alone",
    )
    add(
        "--same_precision",
        action="store_true",
        help="train nnU-Net in nndiffseg's precision on a CPU too, where it would "
        "otherwise use float32 and take about twice as long",
    )
    add("--cases", type=int, help="judge so many of the validation cases, evenly spread (default: all)")
    add("--disable_tta", action="store_true", help="no mirroring, on either side")
    add("--only", metavar="nnunet|nndiffseg", help="train this side, if it is not trained yet, and stop")
    add("--speed_only", action="store_true", help="no training: time untrained networks in a few minutes")
    add("--no_speed", action="store_true", help="leave out time and memory")
    add("--name", help="of the JSON file in benchmarks/results")
    add_device_flag(parser)
    add_folder_flags(parser)
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    _check(args)
    folders = folders_from(args)
    dataset = dataset_name(folders, args.dataset)
    if args.speed_only:
        _speed_only(args, folders, dataset)
        return
    prepare(folders, dataset, args)
    folds, device = [_members(args, fold) for fold in args.fold], pick_device(args.device)
    trainings = [_train(args, members, device) for members in folds]
    if args.only is None:
        _compare(args, folds, device, trainings)


def _check(args: argparse.Namespace) -> None:
    choose("planner", args.planner, list(PLANNERS))
    choose("truth", args.truth, ["raters", "label"])
    if args.only is not None:
        choose("side", args.only, ["nnunet", "nndiffseg"])
    if not args.speed_only and args.iterations is None:
        raise UserError("Give the length of the trainings with --iterations, or --speed_only to leave them out.")
    if args.ensemble < 0:
        raise UserError(f"--ensemble must not be negative, not {args.ensemble}.")
    if args.ensemble == 0 and not args.no_speed:
        raise UserError("With --ensemble 0 there is nothing to compare the time with; add --no_speed.")
    for flag in ("iterations", "samples", "cases", "tolerance"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise UserError(f"--{flag} must be positive, not {value}.")
    if len(set(args.fold)) < len(args.fold):
        raise UserError("--fold names a fold twice.")
    if any(n < 1 for n in args.more_steps):
        raise UserError("--more_steps takes numbers of sampling steps, 1 or more.")


def dataset_name(folders: Folders, name: str) -> str:
    """Full name of a dataset that is preprocessed, or else raw."""
    try:
        return folders.dataset(name, "preprocessed")
    except UserError:
        return folders.dataset(name, "raw")


# ---- plans, data and trainings ----------------------------------------------------------------------------------------


def prepare(folders: Folders, dataset: str, args: argparse.Namespace) -> None:
    """Plans and preprocesses, unless that is done; a split that the raw dataset brings is used.

    Raises:
        UserError: planning fails, or the plans lack the configuration.
    """
    base, raw = folders.preprocessed / dataset, folders.raw / dataset
    file = base / f"{PLANS[args.planner]}.json"
    if not file.is_file():
        plan(dataset, args.planner, ["--no_pp"])
    plans = json.loads(file.read_text())
    check_configuration(plans, args.configuration)
    data = base / plans["configurations"][args.configuration]["data_identifier"]
    if not (data.is_dir() and any(data.iterdir())):
        plan(dataset, args.planner, ["-c", args.configuration, "--no_check"])
    # nnU-Net's own random split may divide what belongs together, such as two images of one person.
    if (raw / "splits_final.json").is_file() and not (base / "splits_final.json").is_file():
        shutil.copyfile(raw / "splits_final.json", base / "splits_final.json")


def _members(args: argparse.Namespace, fold: int) -> list[Data]:
    """The fold in the results folder of each seed."""
    from benchmarks.methods_data import data_from

    data = data_from(argparse.Namespace(**{**vars(args), "plans": PLANS[args.planner], "fold": fold}))
    folder = data.results / FOLDER / f"{args.iterations}_iterations{'_same_precision' * args.same_precision}"
    return [replace(data, results=folder / f"seed_{args.seed + i}") for i in range(max(1, args.ensemble))]


def _train(args: argparse.Namespace, members: Sequence[Data], device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """Trains what is not trained yet; returns the records of both sides."""
    from benchmarks.methods_common import STOCK, Budget
    from benchmarks.methods_training import train
    from benchmarks.versus_accuracy import OURS, results_in

    jobs = {
        "nndiffseg": [(OURS, args.seed, members[0])],
        "nnunet": [(STOCK, args.seed + i, data) for i, data in enumerate(members[: args.ensemble])],
    }
    done: dict[str, list[dict[str, Any]]] = {}
    for side, trainings in jobs.items():
        for trainer, seed, data in trainings if args.only in (None, side) else []:
            print(f"Training of {trainer}, seed {seed}, {args.iterations} iterations.", flush=True)
            with results_in(data.results):
                done.setdefault(side, []).append(
                    train(data, trainer, Budget(args.iterations, None), device, seed, bfloat16=args.same_precision)
                )
    return done


# ---- the comparison ---------------------------------------------------------------------------------------------------


def _compare(
    args: argparse.Namespace, folds: list[list[Data]], device: torch.device, trainings: list[dict[str, list[dict[str, Any]]]]
) -> None:
    from benchmarks import versus_table
    from benchmarks.comparison_metrics import expected_coverage
    from benchmarks.methods_common import STOCK
    from benchmarks.methods_prediction import Options, preprocessed
    from benchmarks.methods_training import FINAL
    from benchmarks.versus_accuracy import OURS, Comparison

    comparisons = [
        Comparison(
            members,
            device,
            Options(args.samples, args.seed, not args.disable_tta),
            args.tolerance,
            args.truth == "raters",
            tuple(args.more_steps),
            args.ensemble,
        )
        for members in folds
    ]
    results, groups = {}, []
    for comparison in comparisons:
        comparison.predict()
        comparison.fit()
        print(f"Judging fold {comparison.data.fold} ...", flush=True)
        results |= {case: comparison.judge(case) for case in comparison.data.cases}
        groups += [comparison.groups.get(case, case) for case in comparison.data.cases]
    data, structures = comparisons[0].data, list(comparisons[0].structures)
    figures = versus_table.figures(structures, list(results.values()), groups)
    rows, result = versus_table.rows(figures), {"figures": versus_table.plain(figures)}
    if not args.no_speed:
        import torch

        from benchmarks import speed

        files = {"nnunet": data.fold_folder(STOCK) / FINAL, "nndiffseg": data.fold_folder(OURS) / FINAL}
        image = torch.from_numpy(preprocessed(data, data.cases[len(data.cases) // 2])[0]).float()
        result["speed"] = speed.compare(
            data.plans,
            data.configuration,
            data.dataset_json,
            device,
            data=image,
            checkpoints={k: str(v) for k, v in files.items()},
        )
        rows += versus_table.speed_rows(result["speed"])
    numbers = ", ".join(map(str, args.fold))
    header = [
        f"{data.dataset}, {data.configuration}, fold {numbers}, {len(results)} cases, {args.iterations} iterations",
        "nnU-Net" if args.ensemble else "-",
        "nndiffseg",
        f"{args.ensemble} nnU-Nets" if args.ensemble > 1 else "-",
        "nndiffseg - nnU-Net",
        "nndiffseg - nnU-Nets",
    ]
    variant = "_same_precision" * args.same_precision + "_alone" * (args.ensemble == 0)
    name = args.name or (
        f"versus_{data.dataset}_{data.configuration}_{args.planner}_fold{''.join(map(str, args.fold))}_"
        f"{args.iterations}_seed{args.seed}{variant}"
    )
    tell(
        name,
        rows,
        header,
        {
            **_described(folds),
            **_setup(args, data.plans),
            "iterations": args.iterations,
            "seed": args.seed,
            "ensemble": args.ensemble,
            "mirroring": not args.disable_tta,
            "samples": args.samples,
            "tolerance_mm": args.tolerance,
            "truth": args.truth,
            "same_precision": args.same_precision,
            "trainings": trainings[0] if len(folds) == 1 else trainings,
            "calibrations": [
                {side: {case: fitted.to_json() for case, fitted in each.items()} for side, each in c.calibrations.items()}
                for c in comparisons
            ],
            "expected_coverage": expected_coverage(args.samples),
            "bootstrap": "percentile intervals over groups of cases, 95 %, paired",
            "groups": len(set(groups)),
            **result,
            "cases": versus_table.by_case(results),
        },
    )


def _described(folds: list[list[Data]]) -> dict[str, Any]:
    """What the folds have in common, and a list of what they have not."""
    each = [members[0].describe() for members in folds]
    return {key: value if all(d[key] == value for d in each) else [d[key] for d in each] for key, value in each[0].items()}


# ---- speed ------------------------------------------------------------------------------------------------------------


def _speed_only(args: argparse.Namespace, folders: Folders, dataset: str) -> None:
    plans, dataset_json = planned(folders, dataset, args.planner, args.configuration)
    device = pick_device(args.device)
    from benchmarks import speed  # torch takes seconds to load, so wrong flags are told before

    result = speed.compare(plans, args.configuration, dataset_json, device)
    name = args.name or f"speed_{dataset}_{args.configuration}_{args.planner}_{device.type}"
    tell(
        name,
        speed.table(result),
        [f"{dataset}, {args.configuration}, planner {args.planner}, {device.type}", "seconds", "in nnU-Net's", "peak GB"],
        {"dataset": dataset, **_setup(args, plans), **result},
    )
    for key in ("prediction_ratio_16", "sample_ratio", "training_ratio", "memory_ratio"):
        words = {"same_precision": "with nnU-Net in the same precision", "processor_time": "in processor time"}
        more = [f"{text} {result[kind][key]:.3f}" for kind, text in words.items() if key in result[kind]]
        print(f"{key}: {number(result[key])}" + (f" ({', '.join(more)})" if more else ""))


def planned(folders: Folders, dataset: str, planner: str, configuration: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and dataset.json: those of the preprocessed dataset where they exist, else planned in a temporary folder.

    A configuration that is named must be among them.

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


def _setup(args: argparse.Namespace, plans: dict[str, Any]) -> dict[str, Any]:
    """What was compared, for the JSON file."""
    configuration = plans["configurations"][args.configuration]
    return {
        "configuration": args.configuration,
        "planner": args.planner,
        "patch_size": configuration["patch_size"],
        "batch_size": configuration["batch_size"],
        "settings": configuration["diffusion"]["settings"],
    }


def tell(name: str, rows: list[list[str]], header: list[str], result: dict[str, Any]) -> None:
    """:func:`benchmarks.common.report`, without the machine's folders in the command."""
    words = ["python", "-m", "benchmarks.versus_nnunet", *sys.argv[1:]]
    for flag in ("--raw", "--preprocessed", "--results"):
        if flag in words[:-1]:
            words[words.index(flag) + 1] = f"${flag.replace('--', 'nnUNet_')}"
    report(name, rows, header, {"command": " ".join(words), **result})


if __name__ == "__main__":
    raise SystemExit(main())
