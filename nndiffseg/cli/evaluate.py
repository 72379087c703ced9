"""``nndiffseg_evaluate -i out/ -r labelsTs/``: predictions against the labels of one or several annotators."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nndiffseg.cli.common import Parser, run, user_path
from nndiffseg.errors import UserError

#: what the command writes
FILES = ("evaluation.json", "evaluation.csv", "evaluation.html")
#: so many names are printed; evaluation.json has all
SHOWN = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; returns the exit code."""
    return run(_main, argv)


def _parser() -> Parser:
    parser = Parser("Evaluates a folder of predictions: segmentations, volumes, probabilities, uncertainty maps and samples.")
    parser.add_argument(
        "-i", required=True, type=user_path, metavar="FOLDER", help="output of nndiffseg_predict or nnUNetv2_predict"
    )
    parser.add_argument(
        "-r",
        required=True,
        nargs="+",
        type=user_path,
        metavar="FOLDER",
        help="true labels, named as the segmentations; for several annotators a folder each, or one with CASE/ANNOTATOR files",
    )
    parser.add_argument(
        "-o", type=user_path, metavar="FOLDER", help=f"where {', '.join(FILES)} go; default: the predictions' folder"
    )
    parser.add_argument("-djfile", type=user_path, metavar="FILE", help="default: dataset.json in the predictions' folder")
    parser.add_argument(
        "-pfile", type=user_path, metavar="FILE", help="default: plans.json in the predictions' folder, if it is there"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1.0, metavar="MM", help="of the normalised surface distance (default: %(default)s)"
    )
    parser.add_argument("-np", type=int, default=1, help="worker processes; 0 and 1: in this process (default: %(default)s)")
    parser.add_argument("--disable_progress_bar", action="store_true")
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    predictions, output = args.i, args.o or args.i
    _check(args, predictions, output)
    # nnU-Net takes seconds to load, so wrong flags are told before.
    from nndiffseg.data.check import read_label_definition
    from nndiffseg.report.evaluation_report import write_evaluation
    from nndiffseg.uncertainty.evaluation import evaluate_predictions
    from nndiffseg.uncertainty.evaluation_table import format_table

    evaluation = evaluate_predictions(
        predictions,
        args.r,
        dataset_json=read_label_definition(args.djfile or predictions / "dataset.json"),
        plans=args.pfile,
        tolerance=args.tolerance,
        processes=args.np,
        progress=not args.disable_progress_bar,
    )
    output.mkdir(parents=True, exist_ok=True)
    write_evaluation(evaluation, output)
    print(format_table(evaluation))
    for sentence in _remarks(evaluation):
        print(sentence)
    print(f"Written to {output}: {', '.join(FILES)}.")


def _check(args: argparse.Namespace, predictions: Path, output: Path) -> None:
    if not predictions.is_dir():
        raise UserError(f"There is no folder {predictions}; give the output of nndiffseg_predict with -i.")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; give a folder with -o.")
    if not (math.isfinite(args.tolerance) and args.tolerance >= 0):
        raise UserError(f"--tolerance must be a number of mm from 0, not {args.tolerance}.")
    if args.np < 0:
        raise UserError(f"-np must be 0 or more, not {args.np}.")
    if args.pfile and not args.pfile.is_file():
        raise UserError(f"There is no file {args.pfile}; give the model's plans.json with -pfile, or leave it out.")


def _remarks(evaluation: Mapping[str, Any]) -> list[str]:
    """What was left out, and which cases do not match."""
    matching, remarks = evaluation["matching"], list(evaluation["summary"]["left_out"])
    for names, what in (
        (matching["without_reference"], "Segmentations without a reference, not evaluated"),
        (matching["without_prediction"], "References without a segmentation"),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more (evaluation.json names them)" if len(names) > SHOWN else ""
            remarks.append(f"{what}: {', '.join(names[:SHOWN])}{more}.")
    differing = [case["remark"] for case in evaluation["cases"].values() if case["remark"]]
    if differing:
        more = f" (cases like this: {len(differing)})" if len(differing) > 1 else ""
        remarks.append(f"Warning: compared voxel by voxel, although {differing[0]}{more}.")
    return remarks


if __name__ == "__main__":
    raise SystemExit(main())
