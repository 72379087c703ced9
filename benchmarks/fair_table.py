"""The fair table: finished models side by side, each with the same fits on the same cases it has not seen.

    python -m benchmarks.fair_table --raw FOLDER --preprocessed FOLDER --fold 0 --nnunet MODEL_FOLDER [...]
        [--ssn MODEL_FOLDER] [--attached MODEL_FOLDER] [--nndiffseg MODEL_FOLDER] --name NAME

A model folder is one of nnU-Net's results, ``RESULTS/DATASET/TRAINER__PLANS__CONFIGURATION``. Rows of the result are metrics,
columns are sides:

- nnU-Net: its softmax (or sigmoid); samples are independent per-voxel draws. Several folders make an ensemble as well.
- coherent: the same map; samples of the coherent sampler (:mod:`nndiffseg.diffusion.coherent`) at the fitted temperature.
- ssn: a stochastic segmentation network (:mod:`benchmarks.ssn`) on the frozen nnU-Net.
- head: the deterministic head of nndiffseg's joint training alone, drawn voxel by voxel and coherently.
- attached, nndiffseg: the trained samplers.

Every side gets a temperature, an isotonic regression, conformal volume intervals and, where it has two parts, a fusion weight,
fitted on the one label of each case without the case's group. With annotations in ``ratersTr`` of the raw dataset all sides are
judged by all of them. Intervals are 95 % bootstrap intervals over groups of cases, paired, of ``--base`` minus each other side;
they do not cover the choice of the training's seed. Predictions are kept beside the models and not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import report, write_per_case
from benchmarks.compare.flags import add_result_flags, check_positive
from nndiffseg.cli.common import Parser, add_device_flag, choose, pick_device, run
from nndiffseg.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to load, so wrong flags are told before
    from benchmarks.compare.evaluation import CaseMetrics, Side, Source

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
    made = Parser("Finished models side by side, fitted and judged alike.", prog="python -m benchmarks.fair_table")
    add = made.add_argument
    add("--raw", type=Path, required=True, help="nnU-Net's raw folder")
    add("--preprocessed", type=Path, required=True, help="nnU-Net's preprocessed folder")
    add("--fold", type=int, default=0, help="default: %(default)s")
    add("--nnunet", type=Path, nargs="+", default=[], metavar="MODEL_FOLDER", help="one, or the members of an ensemble")
    add("--ssn", type=Path, metavar="MODEL_FOLDER", help="a stochastic segmentation network, see benchmarks.ssn")
    add("--attached", type=Path, metavar="MODEL_FOLDER", help="a sampler attached to the (first) nnU-Net")
    add("--nndiffseg", type=Path, metavar="MODEL_FOLDER", help="joint training")
    add("--base", help="side that all others are compared with (default: the last one)")
    add("--samples", type=int, default=16, help="of every side (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    add("--tolerance", type=float, default=1.0, help="of the surface distance, in mm or pixels (default: %(default)s)")
    add("--disable_tta", action="store_true", help="no mirroring, for any side")
    add("--cases", type=int, help="so many of the validation cases, evenly spread (default: all)")
    add_result_flags(made)
    add_device_flag(made)
    return made


def _main(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    check_positive(args, "samples", "cases", "tolerance")
    from benchmarks.compare import table
    from benchmarks.compare.evaluation import Comparison
    from benchmarks.compare.library import Options
    from benchmarks.compare.metrics import expected_coverage

    sides = sides_of(args)
    if not sides:
        raise UserError("Give model folders with --nnunet, --ssn, --attached or --nndiffseg.")
    labels = {side.name: side.label for side in sides}
    base = args.base or sides[-1].name
    choose("side", base, list(labels))
    comparison = Comparison(sides, Options(args.samples, args.seed, not args.disable_tta), args.tolerance)
    comparison.predict(pick_device(args.device))
    print("Fitting ...", flush=True)
    comparison.fit()
    cases: dict[str, CaseMetrics] = {}
    for number, case in enumerate(comparison.data.cases, start=1):
        cases[case] = comparison.evaluate(case)
        print(f"{case} ({number} of {len(comparison.data.cases)})", flush=True)
    data = comparison.data
    found = table.metrics(list(data.structures), list(cases.values()), base)
    result = {
        "dataset": data.dataset,
        "configuration": data.configuration,
        "fold": args.fold,
        "cases": len(cases),
        "groups": len({c.group for c in cases.values()}),
        "annotations": max(c.annotations for c in cases.values()),
        "samples": args.samples,
        "seed": args.seed,
        "mirroring": not args.disable_tta,
        "models": {side.name: [_described(s) for s in side.sources] for side in sides},
        "fits": comparison.fits(),
        "expected_coverage": expected_coverage(args.samples),
        "seconds": {n: round(sum(c.sides[n].seconds for c in cases.values()) / len(cases), 2) for n in labels},
        "base": base,
        "metrics": table.summary(found),
        "base_minus": table.differences(found),
    }
    title = f"{data.dataset}, {data.configuration}, fold {args.fold}, {len(cases)} cases"
    name = args.name or f"fair_{data.dataset}_{data.configuration}_fold{args.fold}"
    report(name, table.rows(found, list(labels), base), table.header(title, labels, base), result)
    write_per_case(args.per_case, table.by_case(cases))


def sides_of(args: argparse.Namespace) -> list[Side]:
    """The columns of the table, in order."""
    from benchmarks.compare.evaluation import Side

    def side(name: str, *sources: Source, **how: bool) -> Side:
        return Side(name, LABELS[name], sources, **how)

    nnunets = [source_of(folder, args) for folder in args.nnunet]
    sides = [side(NNUNET, nnunets[0]), side(COHERENT, nnunets[0], coherent=True)] if nnunets else []
    if len(nnunets) > 1:
        sides += [side(ENSEMBLE, *nnunets), side(ENSEMBLE_COHERENT, *nnunets, coherent=True)]
    if args.ssn:
        sides.append(side(SSN, source_of(args.ssn, args, "benchmarks.compare.ssn_model:StochasticSegmentation")))
    if args.attached:
        sides.append(side(ATTACHED, source_of(args.attached, args)))
    if args.nndiffseg:
        joint = source_of(args.nndiffseg, args)
        sides += [side(HEAD, joint, head_alone=True), side(HEAD_COHERENT, joint, coherent=True), side(NNDIFFSEG, joint)]
    return sides


def source_of(folder: Path, args: argparse.Namespace, trainer: str | None = None) -> Source:
    """The model of one fold in a model folder; ``trainer`` where its name alone does not say where its class is.

    Raises:
        UserError: the folder's name is not one of nnU-Net's, a file is missing or damaged, or there is no such fold.
    """
    from benchmarks.compare.data import finished_data
    from benchmarks.compare.evaluation import Source
    from benchmarks.compare.trainers import Entry

    data, name = finished_data(folder, args.raw, args.preprocessed, args.fold, args.cases)
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
