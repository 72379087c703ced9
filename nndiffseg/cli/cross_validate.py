"""``nndiffseg_cross_validate DATASET CONFIGURATION``: all folds trained, validated, calibrated, evaluated, in one report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nndiffseg.cli.cluster_flags import add_cluster_flags, resources_from
from nndiffseg.cli.common import DEVICES, Parser, add_folder_flags, folders_from, run, user_path
from nndiffseg.cli.train import find_trainer, read_plans, resolved, set_options
from nndiffseg.cli.training_flags import add_length_flags, add_mirroring_flags, check_numbers, fold_of
from nndiffseg.errors import UserError
from nndiffseg.stopping import raised

if TYPE_CHECKING:
    from nndiffseg.data.folders import Folders
    from nndiffseg.launch.fold_task import FoldTask

DESCRIPTION = (
    "Trains what is missing of a cross-validation, goes on with what was interrupted, validates, calibrates on all folds, "
    "evaluates, and writes one report. Called again, it does only what is missing."
)
#: handed on to every nndiffseg_train: flag and name in the parsed arguments
HANDED_ON = (
    ("-tr", "tr"),
    ("-p", "p"),
    ("--epochs", "epochs"),
    ("--iterations_per_epoch", "iterations_per_epoch"),
    ("--minutes", "minutes"),
    ("--seed", "seed"),
    ("-device", "device"),
    ("-num_threads", "num_threads"),
    ("-num_gpus", "num_gpus"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser(DESCRIPTION)
    add = parser.add_argument
    add("dataset", help="id or name, such as 4 or Dataset004_Hippocampus")
    add("configuration", nargs="+", help="2d, 3d_lowres or 3d_fullres, as the plans name them; one or several")
    add("--folds", nargs="+", metavar="FOLD", help="default: all that splits_final.json has, nnU-Net's 0 to 4")
    add("-tr", default="nnDiffSegTrainer", metavar="TRAINER", help="default: %(default)s")
    add("-p", default="nnDiffSegPlans", metavar="PLANS", help="default: %(default)s")
    add(
        "-pretrained_weights",
        "--pretrained_weights",
        type=user_path,
        metavar="FILE",
        help="where every training that is missing begins",
    )
    add_mirroring_flags(parser)
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the method; see nndiffseg_train")
    add_length_flags(parser, "1000")
    add("-num_gpus", "--num_gpus", type=int, metavar="N", help="processes of each training; see nndiffseg_train")
    add("--report_only", action="store_true", help="train nothing: calibrate and evaluate the folds that are validated")
    add("-np", type=int, default=1, help="worker processes of the evaluation; 0 and 1: in this process (default: %(default)s)")
    add("-device", "--device", choices=DEVICES, help="default: the best one available where a fold is trained")
    add("-num_threads", type=int, metavar="N", help="threads of computations on the processor; see nndiffseg_train")
    add_cluster_flags(parser)
    add_folder_flags(parser)
    return parser


@dataclass(frozen=True)
class Model:
    """One configuration: its folder, and a task for each fold."""

    configuration: str
    folder: Path
    tasks: dict[str, FoldTask]


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    check_numbers(args)
    resources = resources_from(args)
    if args.np < 0:
        raise UserError(f"-np must be 0 or more, not {args.np}.")
    if len(set(args.configuration)) < len(args.configuration):
        raise UserError("A configuration is given twice; give each once.")
    given = None if args.folds is None else [_numbered(fold) for fold in args.folds]
    folders = folders_from(args)
    # torch and nnU-Net take seconds to load, so wrong flags are told before.
    dataset = folders.dataset(args.dataset, "preprocessed")
    models = [_model(args, folders, dataset, configuration, given) for configuration in args.configuration]
    _tell(models)
    if resources is not None:
        _submit(args, folders, dataset, models, resources)
        return
    with raised("SIGUSR1"):
        failures = [] if args.report_only else _train(models)
        for model in models:
            _finish(model, folders.raw / dataset, folders.preprocessed / dataset, args)
    _refuse_unfinished(models, failures)


def _numbered(text: str) -> str:
    fold = str(fold_of(text))
    if fold == "all":
        raise UserError(
            "Fold all leaves no case out, so it cannot be part of a cross-validation; train it with nndiffseg_train."
        )
    return fold


def _model(args: argparse.Namespace, folders: Folders, dataset: str, configuration: str, given: Sequence[str] | None) -> Model:
    """Checks all that a training would refuse, before the first one starts."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    from nndiffseg.data.names import is_plain_name
    from nndiffseg.data.splits import SPLITS, all_folds
    from nndiffseg.launch.fold_task import FoldTask
    from nndiffseg.training.cross_validation import OUTPUT
    from nndiffseg.training.mirroring import asked_axes

    plans, _ = read_plans(folders, argparse.Namespace(**{**vars(args), "configuration": configuration}))
    trainer = find_trainer(args.tr)
    set_options(plans, configuration, trainer.method_class, args.option)
    planned = resolved(plans, configuration)
    asked_axes(args.mirror_axes, args.disable_mirroring, len(planned["patch_size"]))
    base = folders.preprocessed / dataset
    data = str(base / planned["data_identifier"])
    cases = [name for name in infer_dataset_class(data).get_identifiers(data) if is_plain_name(name)]
    number = len(all_folds(base, cases))
    folds = [str(n) for n in range(number)] if given is None else list(dict.fromkeys(given))
    if unknown := [fold for fold in folds if int(fold) >= number]:
        raise UserError(f"There is no fold {unknown[0]}, {base / SPLITS} has {number}; choose others with --folds.")
    folder = folders.results / dataset / f"{args.tr}__{plans['plans_name']}__{configuration}"
    tasks = {
        fold: FoldTask(
            f"{configuration}, fold {fold}",
            folder / f"fold_{fold}",
            (args.dataset, configuration, fold, *_words(args, folders)),
            folder / OUTPUT / f"fold_{fold}.log",
            _beginning(args),
            args.npz,
        )
        for fold in folds
    }
    return Model(configuration, folder, tasks)


def _words(args: argparse.Namespace, folders: Folders) -> list[str]:
    """What every training of this command is called with, beside dataset, configuration and fold."""
    given = [(flag, getattr(args, name)) for flag, name in HANDED_ON]
    words = [word for flag, value in given if value is not None for word in (flag, str(value))]
    words += [word for option in args.option for word in ("--option", option)]
    return [*words, *(["--npz"] if args.npz else []), "--disable_progress_bar", *_folder_words(folders)]


def _beginning(args: argparse.Namespace) -> tuple[str, ...]:
    """What a training that begins is called with besides; one that goes on knows it."""
    weights = ("-pretrained_weights", str(args.pretrained_weights.absolute())) if args.pretrained_weights else ()
    axes = () if args.mirror_axes is None else ("--mirror_axes", *map(str, args.mirror_axes))
    return (*weights, *axes, *(("--disable_mirroring",) if args.disable_mirroring else ()))


def _folder_words(folders: Folders) -> list[str]:
    return [f"--{kind}={getattr(folders, kind)}" for kind in ("raw", "preprocessed", "results")]


def _tell(models: Sequence[Model]) -> None:
    for model in models:
        print(f"Model: {model.folder}")
        for task in model.tasks.values():
            print(f"{task.name}: {task.state().value}.")


def _left(models: Sequence[Model]) -> list[FoldTask]:
    from nndiffseg.training.fold_state import FoldState

    return [task for model in models for task in model.tasks.values() if task.state() is not FoldState.COMPLETE]


def _train(models: Sequence[Model]) -> list[str]:
    """Trains one fold after another; what failed, in words."""
    failures = []
    for task in _left(models):
        print(f"{task.name}: runs; {task.log} has what it says.", flush=True)
        if code := task.run():
            failures.append(task.failure(code))
            print(f"Failed: {failures[-1]}", flush=True)
    return failures


def _finish(model: Model, raw: Path, preprocessed: Path, args: argparse.Namespace) -> None:
    """Calibration, evaluation and report of the folds that are complete; nothing where there are none."""
    from nndiffseg.cli.calibrate import table_of
    from nndiffseg.data.images import unit_of_model
    from nndiffseg.training.cross_validation import finish, is_current, report_of
    from nndiffseg.training.fold_state import FoldState
    from nndiffseg.uncertainty.evaluation_table import aligned, format_table

    folds = [fold for fold, task in model.tasks.items() if task.state() is FoldState.COMPLETE]
    if not folds:
        return
    if is_current(model.folder, folds):
        print(f"{model.configuration}: calibration, evaluation and report are up to date: {report_of(model.folder)}")
        return
    found = finish(model.folder, raw, preprocessed, folds, processes=args.np, progress=not args.disable_progress_bar)
    calibrated = found.calibrated
    print(format_table(found.evaluation))
    print()
    print(table_of(calibrated.calibration, calibrated.check, calibrated.structures, unit_of_model(model.folder)))
    print()
    print("\n".join(aligned(found.folds)))
    print(f"Report: {found.report}")
    print(f"Predict with: nndiffseg_predict -m {model.folder} -i IN -o OUT -f {' '.join(folds)}")


def _refuse_unfinished(models: Sequence[Model], failures: Sequence[str]) -> None:
    """Raises UserError where folds are not complete."""
    if left := _left(models):
        number = sum(len(model.tasks) for model in models)
        names = ", ".join(task.name for task in left)
        reasons = f" ({'; '.join(failures)})" if failures else ""
        raise UserError(
            f"{len(left)} of {number} folds are not complete: {names}{reasons}; the same command goes on with them."
        )


def _submit(args: argparse.Namespace, folders: Folders, dataset: str, models: Sequence[Model], resources: Any) -> None:
    from nndiffseg.launch.slurm import FinishTask, check_not_queued, submit
    from nndiffseg.training.cross_validation import is_current, report_of

    for model in models:
        check_not_queued(model.folder)
    tasks = [] if args.report_only else _left(models)
    unfinished = {str(task.folder.parent) for task in tasks}
    finish = {}
    for model in models:
        if str(model.folder) not in unfinished and is_current(model.folder, list(model.tasks)):
            print(f"{model.configuration}: everything is up to date: {report_of(model.folder)}")
            continue
        flags = ["--folds", *model.tasks, "-tr", args.tr, "-p", args.p, "-np", str(args.np), *(["--npz"] if args.npz else [])]
        words = (args.dataset, model.configuration, *flags, *_folder_words(folders))
        finish[model.folder] = FinishTask((*words, "--report_only", "--disable_progress_bar"))
    if not finish:
        return
    folder = folders.results / dataset / "slurm"
    for place, submitted in submit(tasks, finish, folder, resources, f"nndiffseg_{args.dataset}").items():
        first = f"{len(tasks)} folds as job {submitted.folds}, then " if submitted.folds else ""
        print(f"{place.name}: {first}calibration, evaluation and report as job {submitted.finish}: {report_of(place)}")
    print(f"Follow them with squeue; logs: {folder}, and {models[0].folder / 'cross_validation'}/fold_*.log")


if __name__ == "__main__":
    raise SystemExit(main())
