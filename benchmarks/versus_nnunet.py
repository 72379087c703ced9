"""Stock nnU-Net and nndiffseg side by side: accuracy, calibration, samples, time and memory, in one table.

    python -m benchmarks.versus_nnunet --dataset 4 --configuration 3d_fullres --fold 0 1 2 --iterations 2000 [--planner S]
    python -m benchmarks.versus_nnunet --dataset 4 --configuration 3d_fullres --speed_only [--planner S]

The first command makes what is missing (plans, preprocessed data, trainings, predictions) and reuses what is there, so it
goes on where it was interrupted. Trained are nnU-Net's own ``nnUNetTrainer``, once for each member of the ensemble, and
``nnDiffSegTrainer``: on the same plans (image network, patch, batch), the same batches in the same order, for the same
number of iterations, each with its own optimiser, loss and learning rate; nnU-Net's polynomial decay runs over exactly
these iterations. The cases of several folds make one table. Trainings land in
``nnUNet_results/versus_nnunet/N_iterations/seed_S``, in nnU-Net's own layout.

Sides are one nnU-Net, an ensemble of them (the mean of their probabilities), nndiffseg's deterministic head alone, and
nndiffseg. Samples of a nnU-Net and of the head are independent per-voxel draws, those of the ensemble its members. All
sides get the same fits on the same cases, cross-fitted over groups: a scale of the samples' volumes, and one temperature
for the rows that say so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.common import report, write_per_case
from benchmarks.compare.flags import add_result_flags, check_positive
from benchmarks.compare.planning import PLANNERS, PLANS, dataset_name, planned, prepare
from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, choose, folders_from, pick_device, run
from nndiffseg.data.folders import Folders
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.evaluation_table import number

if TYPE_CHECKING:  # torch takes seconds to load, so wrong flags are told before
    import torch

    from benchmarks.compare.data import Data
    from benchmarks.compare.evaluation import CaseMetrics, Side

FOLDER = "versus_nnunet"
NNUNET, ENSEMBLE, HEAD, NNDIFFSEG = SIDES = ("nnunet", "ensemble", "head", "nndiffseg")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def parser() -> Parser:
    """The command's flags."""
    made = Parser("Stock nnU-Net and nndiffseg side by side.", prog="python -m benchmarks.versus_nnunet")
    add = made.add_argument
    add("--dataset", required=True, help="id or name, such as 4 or Dataset004_Hippocampus")
    add("--configuration", default="3d_fullres", help="default: %(default)s")
    add("--fold", type=int, nargs="+", default=[0], help="one or several (default: 0)")
    add("--iterations", type=int, help="length of every training")
    add("--planner", default="M", metavar="S|M|L", help="size of the plans, which both sides share (default: %(default)s)")
    add("--seed", type=int, default=0, help="of both trainings; the ensemble's are SEED, SEED + 1, ... (default: 0)")
    add("--ensemble", type=int, default=3, metavar="N", help=ENSEMBLE_HELP)
    add("--samples", type=int, default=16, help="of every side, for its metrics (default: %(default)s)")
    add("--more_steps", type=int, nargs="*", default=[10], metavar="N", help=STEPS_HELP)
    add("--tolerance", type=float, default=1.0, help=TOLERANCE_HELP)
    add("--truth", default="raters", metavar="raters|label", help=TRUTH_HELP)
    add("--same_precision", action="store_true", help=PRECISION_HELP)
    add("--cases", type=int, help="evaluate so many of the validation cases, evenly spread (default: all)")
    add("--disable_tta", action="store_true", help="no mirroring, on either side")
    add("--only", metavar="nnunet|nndiffseg", help="train this side, if it is not trained yet, and stop")
    add("--speed_only", action="store_true", help="no training: time untrained networks in a few minutes")
    add("--no_speed", action="store_true", help="leave out time and memory")
    add_result_flags(made)
    add_device_flag(made)
    add_folder_flags(made)
    return made


ENSEMBLE_HELP = (
    "members of the ensemble; 1 for a single nnU-Net, 0 for none at all, to see what a change in nndiffseg does (default: 3)"
)
STEPS_HELP = "also the Dice of the mean of samples of so many sampling steps (default: 10)"
TOLERANCE_HELP = "of the surface distance, in mm, or in pixels where images have no spacing (default: %(default)s)"
TRUTH_HELP = (
    "raters: mean over all annotations in the raw dataset's ratersTr, where there are some (default); label: that alone"
)
PRECISION_HELP = (
    "train nnU-Net in nndiffseg's precision on a CPU too, where it would otherwise use float32 and take about twice as long"
)


def _main(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    _check(args)
    folders = folders_from(args)
    dataset = dataset_name(folders, args.dataset)
    if args.speed_only:
        _speed_only(args, folders, dataset)
        return
    prepare(folders, dataset, args.planner, args.configuration)
    folds, device = [_members(args, fold) for fold in args.fold], pick_device(args.device)
    trainings = [_train(args, members, device) for members in folds]
    if args.only is None:
        _compare(args, folds, device, trainings)


def _check(args: argparse.Namespace) -> None:
    choose("planner", args.planner, list(PLANNERS))
    choose("truth", args.truth, ["raters", "label"])
    if args.only is not None:
        choose("side", args.only, [NNUNET, NNDIFFSEG])
    if not args.speed_only and args.iterations is None:
        raise UserError("Give the length of the trainings with --iterations, or --speed_only to leave them out.")
    if args.ensemble < 0:
        raise UserError(f"--ensemble must not be negative, not {args.ensemble}.")
    if args.ensemble == 0 and not args.no_speed:
        raise UserError("With --ensemble 0 there is nothing to compare the time with; add --no_speed.")
    check_positive(args, "iterations", "samples", "cases", "tolerance")
    if len(set(args.fold)) < len(args.fold):
        raise UserError("--fold names a fold twice.")
    if any(n < 1 for n in args.more_steps):
        raise UserError("--more_steps takes numbers of sampling steps, 1 or more.")


# ---- trainings ----------------------------------------------------------------------------------------------------


def _members(args: argparse.Namespace, fold: int) -> list[Data]:
    """The fold in the results folder of each seed; the first one holds nndiffseg too."""
    from benchmarks.compare.data import data_from

    data = data_from(argparse.Namespace(**{**vars(args), "plans": PLANS[args.planner], "fold": fold}))
    folder = data.results / FOLDER / f"{args.iterations}_iterations{'_same_precision' * args.same_precision}"
    return [replace(data, results=folder / f"seed_{args.seed + i}") for i in range(max(1, args.ensemble))]


def _train(args: argparse.Namespace, members: Sequence[Data], device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """Trains what is not trained yet; returns the records of both sides."""
    from benchmarks.compare.flags import Budget
    from benchmarks.compare.trainers import OURS, STOCK, Entry
    from benchmarks.compare.training import train

    jobs = {
        NNDIFFSEG: [(Entry(OURS), args.seed, members[0])],
        NNUNET: [(Entry(STOCK), args.seed + i, data) for i, data in enumerate(members[: args.ensemble])],
    }
    done: dict[str, list[dict[str, Any]]] = {}
    for side, trainings in jobs.items():
        for entry, seed, data in trainings if args.only in (None, side) else []:
            print(f"Training of {entry.name}, seed {seed}, {args.iterations} iterations.", flush=True)
            record = train(data, entry, Budget(args.iterations, None), device, seed, bfloat16=args.same_precision)
            done.setdefault(side, []).append(record)
    return done


# ---- the comparison -----------------------------------------------------------------------------------------------


def sides_of(args: argparse.Namespace, members: Sequence[Data]) -> list[Side]:
    """The columns of the table; ``members`` is the fold in the results folder of each seed."""
    from benchmarks.compare.evaluation import Side, Source
    from benchmarks.compare.trainers import OURS, STOCK, Entry

    stock, ours = [Source(data, Entry(STOCK)) for data in members[: args.ensemble]], Source(members[0], Entry(OURS))
    return [
        *([Side(NNUNET, "nnU-Net", (stock[0],))] if stock else []),
        *([Side(ENSEMBLE, f"{len(stock)} nnU-Nets", tuple(stock))] if len(stock) > 1 else []),
        Side(HEAD, "its head alone", (ours,), head_alone=True),
        Side(NNDIFFSEG, "nndiffseg", (ours,), steps=tuple(args.more_steps)),
    ]


def _compare(
    args: argparse.Namespace, folds: list[list[Data]], device: torch.device, trainings: list[dict[str, list[dict[str, Any]]]]
) -> None:
    from benchmarks.compare import table
    from benchmarks.compare.evaluation import Comparison
    from benchmarks.compare.library import Options
    from benchmarks.compare.metrics import expected_coverage

    options = Options(args.samples, args.seed, not args.disable_tta)
    cases: dict[str, CaseMetrics] = {}
    fits = []
    for members in folds:
        comparison = Comparison(sides_of(args, members), options, args.tolerance, args.truth == "raters")
        comparison.predict(device)
        print(f"Evaluating fold {comparison.data.fold} ...", flush=True)
        comparison.fit()
        cases |= {case: comparison.evaluate(case) for case in comparison.data.cases}
        fits.append(comparison.fits())
    data, labels = folds[0][0], {side.name: side.label for side in comparison.sides}
    found = table.metrics(list(data.structures), list(cases.values()), NNDIFFSEG)
    rows = table.rows(found, list(labels), NNDIFFSEG)
    speed = {} if args.no_speed else {"speed": _timed(data, device)}
    rows += _speed_rows(speed["speed"], list(labels)) if speed else []
    numbers = ", ".join(map(str, args.fold))
    title = f"{data.dataset}, {data.configuration}, fold {numbers}, {len(cases)} cases, {args.iterations} iterations"
    name = args.name or _name(args, data)
    result = {
        **_described(folds),
        **_setup(args, data.plans),
        "trainings": trainings[0] if len(folds) == 1 else trainings,
        "fits": fits,
        "expected_coverage": expected_coverage(args.samples),
        "intervals": "percentile intervals over groups of cases, 95 %, paired",
        "groups": len({c.group for c in cases.values()}),
        "metrics": table.summary(found),
        "nndiffseg_minus": table.differences(found),
        **speed,
    }
    report(name, rows, table.header(title, labels, NNDIFFSEG), result)
    write_per_case(args.per_case, table.by_case(cases))


def _name(args: argparse.Namespace, data: Data) -> str:
    folds, variant = "".join(map(str, args.fold)), "_same_precision" * args.same_precision + "_alone" * (args.ensemble == 0)
    fold = f"{args.planner}_fold{folds}_{args.iterations}_seed{args.seed}{variant}"
    return f"versus_{data.dataset}_{data.configuration}_{fold}"


def _described(folds: list[list[Data]]) -> dict[str, Any]:
    """What the folds have in common, and a list of what they have not."""
    each = [members[0].describe() for members in folds]
    return {key: value if all(d[key] == value for d in each) else [d[key] for d in each] for key, value in each[0].items()}


def _setup(args: argparse.Namespace, plans: dict[str, Any]) -> dict[str, Any]:
    """What was compared, for the JSON file."""
    configuration = plans["configurations"][args.configuration]
    flags = ("configuration", "planner", "iterations", "seed", "ensemble", "samples", "tolerance", "truth", "same_precision")
    return {
        **{flag: getattr(args, flag) for flag in flags},
        "mirroring": not args.disable_tta,
        "patch_size": configuration["patch_size"],
        "batch_size": configuration["batch_size"],
    }


# ---- speed --------------------------------------------------------------------------------------------------------


def _timed(data: Data, device: torch.device) -> dict[str, Any]:
    """Time and memory of both trained models on the case in the middle."""
    import torch

    from benchmarks import speed
    from benchmarks.compare.library import FINAL, preprocessed
    from benchmarks.compare.trainers import OURS, STOCK

    files = {NNUNET: data.fold_folder(STOCK) / FINAL, NNDIFFSEG: data.fold_folder(OURS) / FINAL}
    image = torch.from_numpy(preprocessed(data, data.cases[len(data.cases) // 2])[0]).float()
    checkpoints = {k: str(v) for k, v in files.items()}
    return speed.compare(data.plans, data.configuration, data.dataset_json, device, data=image, checkpoints=checkpoints)


def _speed_rows(speed: dict[str, Any], sides: Sequence[str]) -> list[list[str]]:
    """Time and memory, in the columns of nnU-Net and nndiffseg and of their difference."""
    from benchmarks.speed_table import side_by_side

    columns = [*sides, *(f"- {s}" for s in sides if s != NNDIFFSEG)]
    places = {NNUNET: columns.index(NNUNET), NNDIFFSEG: columns.index(NNDIFFSEG), "ratio": columns.index(f"- {NNUNET}")}
    rows = []
    for what, cells in side_by_side(speed):
        row = [""] * len(columns)
        for column, text in cells.items():
            row[places[column]] = text
        rows.append([what, *row])
    return rows


def _speed_only(args: argparse.Namespace, folders: Folders, dataset: str) -> None:
    plans, dataset_json = planned(folders, dataset, args.planner, args.configuration)
    device = pick_device(args.device)
    from benchmarks import speed, speed_table  # torch takes seconds to load, so wrong flags are told before

    result = speed.compare(plans, args.configuration, dataset_json, device)
    title = f"{dataset}, {args.configuration}, planner {args.planner}, {device.type}"
    report(
        args.name or f"speed_{dataset}_{args.configuration}_{args.planner}_{device.type}",
        speed_table.table(result),
        [title, "seconds", "in nnU-Net's", "peak GB"],
        {"dataset": dataset, **_setup(args, plans), **result},
    )
    for key in ("prediction_ratio_16", "sample_ratio", "training_ratio", "memory_ratio"):
        words = {"same_precision": "with nnU-Net in the same precision", "processor_time": "in processor time"}
        more = [f"{text} {result[kind][key]:.3f}" for kind, text in words.items() if key in result[kind]]
        print(f"{key}: {number(result[key])}" + (f" ({', '.join(more)})" if more else ""))


if __name__ == "__main__":
    raise SystemExit(main())
