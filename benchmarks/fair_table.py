"""The fair table: all sides trained alike, or finished models, with the same fits on the same cases that none has seen.

    python -m benchmarks.fair_table --dataset 110 --configuration 2d --fold 0 1 --iterations 2000 [--planner S] [--seed 0]
    python -m benchmarks.fair_table --fold 0 --nnunet MODEL_FOLDER [...] [--ssn MODEL_FOLDER] [--attached MODEL_FOLDER]
        [--nndiffseg MODEL_FOLDER] --name NAME

The first command makes what is missing (plans, preprocessed data, trainings, predictions), reuses what is there, and goes on
where it was interrupted (:mod:`benchmarks.compare.fair_trainings`). All trainings have the same plans (image network, patch,
batch), the same batches in the same order, the same number of iterations and the same precision, each with its own optimiser,
loss and learning rate; nnU-Net's polynomial decay runs over exactly these iterations. They land in
``nnUNet_results/fair/N_iterations/seed_S``. The second command takes finished models, each a folder
``RESULTS/DATASET/TRAINER__PLANS__CONFIGURATION``. Rows of the result are metrics, columns are sides:

- nnU-Net: its softmax (or sigmoid); samples are independent per-voxel draws. Several make an ensemble as well.
- coherent: the same map; samples of the coherent sampler (:mod:`nndiffseg.diffusion.coherent`) at the fitted temperature.
- ssn: a stochastic segmentation network (:mod:`benchmarks.compare.ssn`) on the frozen nnU-Net.
- head: the deterministic head of nndiffseg's joint training alone, drawn voxel by voxel and coherently.
- attached, nndiffseg: the trained samplers.

Every side gets a temperature, an isotonic regression, conformal volume intervals and, where it has two parts, a fusion weight,
fitted on the one label of each case without the case's group, in each fold alone. With annotations in ``ratersTr`` of the raw
dataset all sides are judged by all of them. Intervals are 95 % bootstrap intervals over groups of cases, paired, of ``--base``
minus each other side; they do not cover the choice of the training's seed. Minutes of training are processor minutes of the
optimiser's steps (those of the network beneath included), seconds those of a prediction of 16 samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import report, write_per_case
from benchmarks.compare.flags import Budget, add_result_flags, check_positive
from benchmarks.compare.planning import PLANNERS, PLANS, dataset_name, prepare
from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, choose, folders_from, pick_device, run
from nndiffseg.data.folders import Folders
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.evaluation_table import number

if TYPE_CHECKING:  # torch takes seconds to load, so wrong flags are told before
    from benchmarks.compare.data import Data
    from benchmarks.compare.evaluation import CaseMetrics, Comparison, Side, Source

NNUNET, COHERENT, ENSEMBLE, ENSEMBLE_COHERENT = "nnunet", "nnunet coherent", "ensemble", "ensemble coherent"
SSN, ATTACHED, HEAD, HEAD_COHERENT, NNDIFFSEG = "ssn", "attached", "head", "head coherent", "nndiffseg"
LABELS = {
    NNUNET: "nnU-Net, voxel by voxel",
    COHERENT: "nnU-Net, coherent",
    ENSEMBLE: "ensemble of nnU-Nets",
    ENSEMBLE_COHERENT: "ensemble, coherent",
    SSN: "stochastic segmentation network",
    ATTACHED: "attached",
    HEAD: "our head, voxel by voxel",
    HEAD_COHERENT: "our head, coherent",
    NNDIFFSEG: "nndiffseg",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def parser() -> Parser:
    """The command's flags."""
    made = Parser(
        "All sides trained alike, or finished models, fitted and judged alike.", prog="python -m benchmarks.fair_table"
    )
    add = made.add_argument
    add("--fold", type=int, nargs="+", default=[0], help="one or several (default: 0)")
    add("--dataset", help="to train on: id or name, such as 4 or Dataset004_Hippocampus")
    add("--configuration", default="3d_fullres", help="of the plans (default: %(default)s)")
    add("--planner", default="S", metavar="S|M|L", help="size of the plans, which all sides share (default: %(default)s)")
    add("--iterations", type=int, help="length of every training")
    add("--ensemble", type=int, default=3, metavar="N", help="nnU-Nets to train (default: %(default)s)")
    add("--only", metavar="nnunet|nndiffseg|attached|ssn", help="train this alone, and compare later")
    add(
        "--nnunet",
        type=Path,
        nargs="+",
        default=[],
        metavar="MODEL_FOLDER",
        help="finished: one, or the members of an ensemble",
    )
    add("--ssn", type=Path, metavar="MODEL_FOLDER", help="finished stochastic segmentation network, see benchmarks.ssn")
    add("--attached", type=Path, metavar="MODEL_FOLDER", help="a finished sampler attached to the (first) nnU-Net")
    add("--nndiffseg", type=Path, metavar="MODEL_FOLDER", help="a finished joint training")
    add("--base", help="side that all others are compared with (default: the last one)")
    add("--samples", type=int, default=16, help="of every side (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the trainings and the samples; nnU-Nets have SEED, SEED + 1, ... (default: 0)")
    add("--tolerance", type=float, default=1.0, help="of the surface distance, in mm or pixels (default: %(default)s)")
    add("--disable_tta", action="store_true", help="no mirroring, for any side")
    add("--cases", type=int, help="so many of the validation cases, evenly spread (default: all)")
    add_folder_flags(made)
    add_result_flags(made)
    add_device_flag(made)
    return made


def _main(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    check_positive(args, "samples", "cases", "tolerance", "iterations", "ensemble")
    if len(set(args.fold)) < len(args.fold):
        raise UserError("--fold names a fold twice.")
    finished = any((args.nnunet, args.ssn, args.attached, args.nndiffseg))
    if finished and (args.dataset or args.iterations or args.only):
        raise UserError("Give either model folders or --dataset and --iterations, not both.")
    if not finished and not (args.dataset and args.iterations):
        raise UserError("Give --dataset and --iterations, or model folders with --nnunet, --ssn, --attached or --nndiffseg.")
    folders = folders_from(args)
    models = [_finished(args, folders, fold) for fold in args.fold] if finished else _trained(args, folders)
    if args.only is None:
        _compare(args, models)


@dataclass(frozen=True)
class Models:
    """What is compared on one fold."""

    nnunets: Sequence[Source]
    ssn: Source | None
    attached: Source | None
    joint: Source | None

    def sides(self) -> list[Side]:
        """The columns of the table, in order."""
        from benchmarks.compare.evaluation import Side

        def side(name: str, *sources: Source, **how: bool) -> Side:
            return Side(name, LABELS[name], sources, **how)

        first = self.nnunets[:1]
        sides = [side(NNUNET, *first), side(COHERENT, *first, coherent=True)] if first else []
        if len(self.nnunets) > 1:
            sides += [side(ENSEMBLE, *self.nnunets), side(ENSEMBLE_COHERENT, *self.nnunets, coherent=True)]
        sides += [side(SSN, self.ssn)] if self.ssn else []
        sides += [side(ATTACHED, self.attached)] if self.attached else []
        if self.joint:
            joint = self.joint
            sides += [side(HEAD, joint, head_alone=True), side(HEAD_COHERENT, joint, coherent=True), side(NNDIFFSEG, joint)]
        return sides

    def minutes(self) -> dict[str, float | None]:
        """Processor minutes of training by side; of what stands on a nnU-Net with those of that nnU-Net."""
        from benchmarks.compare.fair_trainings import processor_minutes

        found = {}
        for side in self.sides():
            below = self.nnunets[:1] if side.name in (SSN, ATTACHED) else []
            each = [processor_minutes(source) for source in (*side.sources, *below)]
            found[side.name] = None if None in each else round(sum(m for m in each if m is not None), 4)
        return found


def _trained(args: argparse.Namespace, folders: Folders) -> list[Models]:
    """Makes the plans, data and trainings that are missing."""
    choose("planner", args.planner, list(PLANNERS))
    dataset = dataset_name(folders, args.dataset)
    from benchmarks.compare.data import data_from
    from benchmarks.compare.fair_trainings import KINDS, Trainings

    if args.only is not None:
        choose("training", args.only, list(KINDS))
    prepare(folders, dataset, args.planner, args.configuration)
    device, found = pick_device(args.device), []
    for fold in args.fold:
        data = data_from(argparse.Namespace(**{**vars(args), "plans": PLANS[args.planner], "fold": fold}))
        place = data.results / "fair" / f"{args.iterations}_iterations"
        trainings = Trainings(replace(data, results=place), Budget(args.iterations, None), args.seed, args.ensemble)
        trainings.run(KINDS if args.only is None else [args.only], device)
        if args.only is None:
            found.append(Models(trainings.nnunets, trainings.ssn, trainings.attached, trainings.joint))
    return found


def _compare(args: argparse.Namespace, models: Sequence[Models]) -> None:
    from benchmarks.compare import table
    from benchmarks.compare.evaluation import Comparison
    from benchmarks.compare.library import Options
    from benchmarks.compare.metrics import expected_coverage

    sides = models[0].sides()
    labels = {side.name: side.label for side in sides}
    base = args.base or sides[-1].name
    choose("side", base, list(labels))
    options, cases = Options(args.samples, args.seed, not args.disable_tta), {}
    comparisons = [Comparison(m.sides(), options, args.tolerance) for m in models]
    for comparison in comparisons:
        comparison.predict(pick_device(args.device))
        cases |= _evaluated(comparison)
    data = comparisons[0].data
    found = table.metrics(list(data.structures), list(cases.values()), base)
    minutes = [m.minutes() for m in models]
    seconds = {n: round(sum(c.sides[n].seconds for c in cases.values()) / len(cases), 2) for n in labels}
    result = {
        "dataset": data.dataset,
        "configuration": data.configuration,
        "fold": args.fold,
        "iterations": args.iterations,
        "cases": len(cases),
        "groups": len({c.group for c in cases.values()}),
        "annotations": max(c.annotations for c in cases.values()),
        "samples": args.samples,
        "seed": args.seed,
        "mirroring": not args.disable_tta,
        "models": {side.name: [_described(s) for s in side.sources] for side in sides},
        "fits": [c.fits() for c in comparisons],
        "expected_coverage": expected_coverage(args.samples),
        "minutes": minutes[0] if len(minutes) == 1 else minutes,
        "seconds": seconds,
        "base": base,
        "metrics": table.summary(found),
        "base_minus": table.differences(found),
    }
    numbers = ", ".join(map(str, args.fold))
    title = f"{data.dataset}, {data.configuration}, fold {numbers}, {len(cases)} cases"
    rows = table.rows(found, list(labels), base)
    blank = [""] * (len(labels) - 1)
    rows.append(["processor minutes of training", *(number(_sum(m[n] for m in minutes), 1) for n in labels), *blank])
    rows.append([f"seconds for {args.samples} samples", *(number(seconds[n], 2) for n in labels), *blank])
    report(args.name or _name(args, data), rows, table.header(title, labels, base), result)
    write_per_case(args.per_case, table.by_case(cases))


def _evaluated(comparison: Comparison) -> dict[str, CaseMetrics]:
    """Fits and judges one fold."""
    print(f"Fitting, fold {comparison.data.fold} ...", flush=True)
    comparison.fit()
    cases: dict[str, CaseMetrics] = {}
    for done, case in enumerate(comparison.data.cases, start=1):
        cases[case] = comparison.evaluate(case)
        print(f"{case} ({done} of {len(comparison.data.cases)})", flush=True)
    return cases


def _sum(minutes: Iterable[float | None]) -> float | None:
    """Of all folds; None where one is not known."""
    each = list(minutes)
    return None if None in each else sum(m for m in each if m is not None)


def _name(args: argparse.Namespace, data: Data) -> str:
    length = f"_{args.iterations}_seed{args.seed}" if args.iterations else ""
    return f"fair_{data.dataset}_{data.configuration}_fold{''.join(map(str, args.fold))}{length}"


def _finished(args: argparse.Namespace, folders: Folders, fold: int) -> Models:
    """Models that are trained already, by their folders."""

    def one(folder: Path | None, trainer: str | None = None) -> Source | None:
        return None if folder is None else source_of(folder, args, folders, fold, trainer)

    nnunets = [source_of(folder, args, folders, fold) for folder in args.nnunet]
    ssn = one(args.ssn, "benchmarks.compare.ssn_model:StochasticSegmentation")
    return Models(nnunets, ssn, one(args.attached), one(args.nndiffseg))


def source_of(folder: Path, args: argparse.Namespace, folders: Folders, fold: int, trainer: str | None = None) -> Source:
    """The model of one fold in a model folder; ``trainer`` where its name alone does not say where its class is.

    Raises:
        UserError: the folder's name is not one of nnU-Net's, a file is missing or damaged, or there is no such fold.
    """
    from benchmarks.compare.data import finished_data
    from benchmarks.compare.evaluation import Source
    from benchmarks.compare.trainers import Entry

    data, name = finished_data(folder, folders.raw, folders.preprocessed, fold, args.cases)
    return Source(data, Entry(trainer or name))


def _described(source: Source) -> dict[str, Any]:
    """Trainer, plans and sizes, without a path of this machine."""
    configuration = source.data.plans["configurations"][source.data.configuration]
    return {
        "trainer": source.entry.name,
        "plans": source.data.plans["plans_name"],
        "patch_size": configuration["patch_size"],
        "batch_size": configuration["batch_size"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
