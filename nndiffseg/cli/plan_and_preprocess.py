"""``nndiffseg_plan_and_preprocess``: check a dataset, plan for it, preprocess it."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nndiffseg.cli.common import Parser, add_folder_flags, choose, folders_from, run
from nndiffseg.cli.planning_classes import EXTRACTOR, SAME, check_names, find_extractor, find_planner
from nndiffseg.data.folders import Folders
from nndiffseg.errors import UserError

if TYPE_CHECKING:
    from nndiffseg.data.preprocessing import Preprocessed

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
#: uses the data of 3d_fullres
CASCADE = "3d_cascade_fullres"
LATENTS = ("planned", "paper")
#: below this many bytes of images, starting worker processes takes longer than the work
SMALL_DATASET = 60_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser(__doc__.split(": ", 1)[1].capitalize(), prog="nndiffseg_plan_and_preprocess")
    add = parser.add_argument
    add("-d", nargs="+", required=True, metavar="DATASET", help="ids or names of datasets, such as 4 or Dataset004_X")
    add(
        "-c",
        nargs="+",
        metavar="CONFIGURATION",
        help=f"configurations to preprocess, of {', '.join(CONFIGURATIONS)}, or your own in the plans; default: these three",
    )
    add(
        "-pl",
        default="DiffSegPlanner",
        metavar="PLANNER",
        help="DiffSegPlanner (default, GPUs of 8 to 11 GB), DiffSegPlannerS (CPU, small data), DiffSegPlannerL (24 GB), "
        "DiffSegPlannerXL (40 GB), nnU-Net's name of one of them, or a class of your own in a folder of nnUNet_extTrainer",
    )
    add(
        "-fpe",
        default=EXTRACTOR,
        metavar="CLASS",
        help="extractor of the fingerprint, a class in nnunetv2.experiment_planning or in a folder of nnUNet_extTrainer "
        "(default: %(default)s)",
    )
    add(
        "--latent",
        default="planned",
        metavar="LATENT",
        help="paper: plan LDSeg's published latent for "
        "nnDiffSegTrainerLDSeg, one channel on a 16-fold coarser grid; default: planned, as for the other trainers",
    )
    add("-gpu_memory_target", type=float, metavar="GB", help="plan for this much memory instead of the planner's default")
    add(
        "-preprocessor_name",
        default="DefaultPreprocessor",
        metavar="NAME",
        help="one of nnU-Net's preprocessors (default: %(default)s)",
    )
    add("-overwrite_target_spacing", nargs=3, type=float, metavar="MM", help="target spacing of 3d_fullres")
    add("-overwrite_plans_name", metavar="NAME", help="name of the plans; recommended with any of the three flags above")
    add(
        "-np",
        nargs="+",
        type=int,
        metavar="N",
        help="processes for preprocessing, one number or one for each "
        "configuration; 1 starts none; default: the number of processors, at most 8",
    )
    add(
        "-npfp",
        type=int,
        metavar="N",
        help="processes for the dataset check and the fingerprint; default: as many as cores and memory allow",
    )
    add(
        "--verify_dataset_integrity",
        action="store_true",
        help="accepted for compatibility with nnU-Net; the dataset is always checked unless --no_check is given",
    )
    add("--no_check", action="store_true", help="skip the dataset check")
    add("--no_pp", action="store_true", help="plan only, do not preprocess")
    add("--clean", action="store_true", help="recompute the fingerprint and the preprocessed data")
    add("--no_pbar", action="store_true", help="no progress bars")
    add("--verbose", action="store_true", help="show what nnU-Net prints")
    add_folder_flags(parser)
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    for flag in ("np", "npfp"):
        value = getattr(args, flag)
        if any(n < 1 for n in ([value] if isinstance(value, int) else value or [])):
            raise UserError(f"-{flag} counts processes; give 1 or more.")
    if args.gpu_memory_target is not None and args.gpu_memory_target <= 0:
        raise UserError("-gpu_memory_target is in GB; give a number above 0.")
    if any(s <= 0 for s in args.overwrite_target_spacing or []):
        raise UserError("-overwrite_target_spacing is in mm; give three numbers above 0.")
    choose("latent", args.latent, LATENTS)
    if args.np and len(args.np) not in (1, len(args.c or CONFIGURATIONS)):
        raise UserError("-np takes one number, or one for each configuration of -c.")
    folders = folders_from(args)
    datasets = [folders.dataset(d) for d in args.d]  # all of them, before any work starts
    for dataset in datasets:
        known = [*CONFIGURATIONS, CASCADE, *_custom(folders.preprocessed / dataset, args)]
        for configuration in args.c or []:
            choose("configuration", configuration, known)
    for dataset in datasets:
        plan_and_preprocess(dataset, folders, args)


def _custom(preprocessed: Path, args: argparse.Namespace) -> list[str]:
    """Configurations that a user added to the plans that are made again."""
    from nndiffseg.planning.plans_file import custom_configurations

    if not set(args.c or []) - {*CONFIGURATIONS, CASCADE}:
        return []
    size = find_planner(args.pl).size
    return list(custom_configurations(preprocessed / f"{args.overwrite_plans_name or size.plans_name}.json"))


def plan_and_preprocess(dataset: str, folders: Folders, args: argparse.Namespace) -> None:
    """Runs all stages on one dataset; ``args`` are the parsed flags."""
    from nndiffseg.data import check as dataset_check
    from nndiffseg.data import files, groups, preprocessing, splits
    from nndiffseg.data.images import find_reader

    planner_class, extractor = find_planner(args.pl), find_extractor(args.fpe)
    check_names(planner_class, args)
    raw, preprocessed = folders.raw / dataset, folders.preprocessed / dataset
    print(f"{dataset}: {planner_class.__name__}")
    if args.pl in SAME:
        print(f"{args.pl} is {SAME[args.pl]} here: its kind of network for the same memory, with nndiffseg's networks in it.")
    files.check_space(preprocessed)
    dataset_json = dataset_check.read_dataset_json(raw)
    cases = dataset_check.training_cases(raw, dataset_json)
    workers = _workers(cases)
    first, progress = args.npfp or workers, not args.no_pbar
    if not args.no_check:
        for warning in dataset_check.check_dataset(raw, processes=first, progress=progress):
            print(f"Warning: {warning}.")
    names = [c.name for c in cases]
    belonging = groups.read_groups(raw, names)
    for note in dataset_check.left_out(raw, dataset_json):
        print(note)
    if dataset_check.reader_of(cases, dataset_json) is not find_reader(dataset_json, cases[0].images[0]):
        print("Some images have axes that are not at right angles, so all are read by nnU-Net's NibabelIO.")
    notes = splits.plan_splits(raw, preprocessed, names, belonging)
    preprocessing.extract_fingerprint(
        cases, dataset_json, preprocessed, processes=first, clean=args.clean, progress=progress, extractor=extractor
    )
    planner = _plan(planner_class, dataset, args)
    print(planner.report)
    print(f"Plans: {preprocessed / planner.plans_identifier}.json")
    for note in notes:
        print(note)
    if not belonging and (raw / groups.FILE).is_file():
        print(
            f"{raw / groups.FILE} has no columns {groups.CASE} and {groups.GROUP} separated by commas, or no rows: it groups "
            "no cases."
        )
    groups.copy_groups(raw, preprocessed)
    if not args.no_pp:
        _preprocess(planner.plans, cases, dataset_json, preprocessed, args, workers)


def _workers(cases: Sequence[Any]) -> int:
    from nndiffseg.data.parallel import default_processes

    size = sum(Path(file).stat().st_size for case in cases for file in case.images)
    return 1 if size < SMALL_DATASET else default_processes()


def _plan(planner_class: type, dataset: str, args: argparse.Namespace) -> Any:
    options: dict[str, Any] = {"preprocessor_name": args.preprocessor_name}
    if args.gpu_memory_target is not None:
        options["gpu_memory_target_in_gb"] = args.gpu_memory_target
    if args.overwrite_plans_name is not None:
        options["plans_name"] = args.overwrite_plans_name
    if args.overwrite_target_spacing is not None:
        options["overwrite_target_spacing"] = args.overwrite_target_spacing
    with contextlib.nullcontext() if args.verbose else contextlib.redirect_stdout(io.StringIO()):
        planner = planner_class(dataset, **options)
        planner.latent = args.latent
        planner.plan_experiment()
    return planner


def _preprocess(
    plans: dict[str, Any],
    cases: Sequence[Any],
    dataset_json: dict[str, Any],
    folder: Path,
    args: argparse.Namespace,
    workers: int,
) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nndiffseg.data import preprocessing

    wanted = args.c or list(CONFIGURATIONS)
    counts = args.np or [workers]
    for configuration, processes in zip(wanted, counts * (len(wanted) // len(counts)), strict=True):
        if configuration not in plans["configurations"]:
            if args.c:
                planned = ", ".join(plans["configurations"])
                print(f"{configuration}: not planned for this dataset (planned: {planned}).")
            continue
        if configuration == CASCADE:
            configuration = "3d_fullres"
            print(f"{CASCADE}: has the data of {configuration}.")
        done = preprocessing.preprocess_configuration(
            cases,
            dataset_json,
            plans,
            configuration,
            folder,
            processes=processes,
            clean=args.clean,
            progress=not args.no_pbar,
            verbose=args.verbose,
        )
        where = folder / PlansManager(plans).get_configuration(configuration).data_identifier
        reused = f", {len(cases) - done.made} were there" if done.made < len(cases) else ""
        print(f"{configuration}: {done.made} cases preprocessed{reused} ({where}).")
        for note in _changes(done, where, {c.name for c in cases}):
            print(f"  {note}")
    preprocessing.copy_ground_truth(cases, folder, dataset_json["file_ending"])


def _changes(done: Preprocessed, where: Path, known: set[str]) -> list[str]:
    """What was made anew or taken away, and what stays although it is not of this dataset."""
    notes = []
    if done.changed:
        notes.append(
            f"{len(done.changed)} of them, such as {done.changed[0]}, had been made from other images or labels or with other "
            "settings."
        )
    if done.removed:
        notes.append(f"{len(done.removed)} cases that the raw dataset no longer has were removed, such as {done.removed[0]}.")
    if strangers := sorted({p.stem for p in where.glob("*.pkl")} - known):
        notes.append(
            f"{where} also holds {len(strangers)} cases that the raw dataset lacks, such as {strangers[0]}; --clean removes "
            "them."
        )
    return notes


if __name__ == "__main__":
    sys.exit(main())
