"""Stock nnU-Net and nndiffseg where every other pair of slices is ignored in training, evaluated on whole labels.

    python -m benchmarks.ignore_label --dataset 4 --configuration 3d_fullres --fold 0 --iterations 1000 [--planner S]

Makes a copy of the raw dataset, ``Dataset9.._NAMEHalf``, in which the training cases of the fold have the ignore label on the
slices 2, 3, 6, 7, ... Its validation cases keep their labels. Both sides then train on the same plans, batches and number of
iterations, as in :mod:`benchmarks.versus_nnunet`. What is made already is used again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import report
from benchmarks.compare.flags import add_result_flags, check_positive
from benchmarks.compare.planning import PLANNERS, PLANS, dataset_name, prepare
from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, choose, folders_from, pick_device, run
from nndiffseg.data.files import write_json
from nndiffseg.errors import UserError

FOLDER = "ignore_label"
NNUNET, HEAD, NNDIFFSEG = "nnunet", "head", "nndiffseg"
#: beginnings of the metrics that the table shows
SHOWN = ("Dice", "NSD, mean", "NLL, mean", "NLL, fitted", "energy score")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def parser() -> Parser:
    """The command's flags."""
    made = Parser("Trains with half of the slices ignored.", prog="python -m benchmarks.ignore_label")
    add = made.add_argument
    add("--dataset", required=True, help="id or name of the dataset with whole labels, such as 4")
    add("--configuration", default="3d_fullres", help="default: %(default)s")
    add("--fold", type=int, default=0, help="default: %(default)s")
    add("--iterations", type=int, required=True, help="length of both trainings")
    add("--planner", default="M", metavar="S|M|L", help="size of the plans, which both sides share (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--samples", type=int, default=16, help="of every side, for its metrics (default: %(default)s)")
    add("--cases", type=int, help="evaluate so many of the validation cases, evenly spread (default: all)")
    add("--same_precision", action="store_true", help="train nnU-Net in nndiffseg's precision on a CPU too")
    add_result_flags(made, per_case=False)
    add_device_flag(made)
    add_folder_flags(made)
    return made


def _main(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    choose("planner", args.planner, list(PLANNERS))
    check_positive(args, "iterations", "samples", "cases")
    folders = folders_from(args)
    copy = half_ignored(folders.raw / folders.dataset(args.dataset, "raw"), folders.preprocessed, args.fold)
    prepare(folders, dataset_name(folders, copy.name), args.planner, args.configuration)
    # torch takes seconds to load, so wrong flags are told before
    from benchmarks.compare.data import data_from
    from benchmarks.compare.flags import Budget
    from benchmarks.compare.trainers import OURS, STOCK, Entry
    from benchmarks.compare.training import train

    named = {**vars(args), "dataset": copy.name, "plans": PLANS[args.planner]}
    data, device = data_from(argparse.Namespace(**named)), pick_device(args.device)
    length = f"{args.iterations}_iterations{'_same_precision' * args.same_precision}"
    data = replace(data, results=data.results / FOLDER / length / f"seed_{args.seed}")
    trainings = {}
    for side, entry in ((NNUNET, Entry(STOCK)), (NNDIFFSEG, Entry(OURS))):
        print(f"Training of {entry.name}, {args.iterations} iterations.", flush=True)
        budget = Budget(args.iterations, None)
        trainings[side] = train(data, entry, budget, device, args.seed, bfloat16=args.same_precision)
    _compare(args, data, device, trainings)


# ---- the data -----------------------------------------------------------------------------------------------------


def half_ignored(source: Path, preprocessed: Path, fold: int) -> Path:
    """The copy's folder, beside the source; made where it is missing.

    Args:
        source: raw dataset without an ignore label.
        preprocessed: nnU-Net's folder, where the split is looked for if the raw dataset brings none.
        fold: whose training cases are masked.

    Raises:
        UserError: there is no split, or an ignore label already.
    """
    from nndiffseg.data.check import read_dataset_json, reader_of, training_cases
    from nndiffseg.data.splits import SPLITS, read_splits

    number, name = source.name.removeprefix("Dataset").split("_", 1)
    copy = source.with_name(f"Dataset9{int(number) % 100:02d}_{re.sub('[^A-Za-z0-9]', '', name)}Half{fold}")
    if (copy / "dataset.json").is_file():
        return copy
    dataset_json = read_dataset_json(source)
    if "ignore" in dataset_json["labels"]:
        raise UserError(f"{source.name} has an ignore label already; choose a dataset with whole labels.")
    file = next((f for f in (source / SPLITS, preprocessed / source.name / SPLITS) if f.is_file()), None)
    if file is None:
        raise UserError(f"{source} has no {SPLITS}; plan and preprocess it first.")
    splits, cases = read_splits(file), training_cases(source, dataset_json)
    if not 0 <= fold < len(splits):
        raise UserError(f"There is no fold {fold}; {file} has {len(splits)}, counted from 0.")
    reader, training = reader_of(cases, dataset_json)(), set(splits[fold]["train"])
    ignore = 1 + max(np.max(value) for value in dataset_json["labels"].values())
    for sub in ("imagesTr", "labelsTr"):
        (copy / sub).mkdir(parents=True, exist_ok=True)
    ending = dataset_json["file_ending"]
    for case in cases:
        for channel, image in enumerate(case.images):
            shutil.copyfile(image, copy / "imagesTr" / f"{case.name}_{channel:04d}{ending}")
        label, properties = reader.read_seg(case.label)  # (1, *image)
        if case.name in training:
            label[:, every_other_pair(label.shape[1])] = ignore
        reader.write_seg(label[0], str(copy / "labelsTr" / f"{case.name}{ending}"), properties)
    write_json(splits, copy / SPLITS)
    write_json(_declared(dataset_json, int(ignore)), copy / "dataset.json")  # last: where it is, all is there
    return copy


def every_other_pair(slices: int) -> np.ndarray:
    """Whether a slice is ignored: 2, 3, 6, 7, ..."""
    return np.arange(slices) // 2 % 2 == 1


def _declared(dataset_json: dict[str, Any], ignore: int) -> dict[str, Any]:
    rest = {key: value for key, value in dataset_json.items() if key != "dataset"}
    return {**json.loads(json.dumps(rest)), "labels": {**dataset_json["labels"], "ignore": ignore}}


# ---- the comparison -----------------------------------------------------------------------------------------------


def _compare(args: argparse.Namespace, data: Any, device: Any, trainings: dict[str, dict[str, Any]]) -> None:
    from benchmarks.compare import table
    from benchmarks.compare.evaluation import Comparison, Side, Source
    from benchmarks.compare.library import Options
    from benchmarks.compare.trainers import OURS, STOCK, Entry

    ours = Source(data, Entry(OURS))
    sides = [
        Side(NNUNET, "nnU-Net", (Source(data, Entry(STOCK)),)),
        Side(HEAD, "its head alone", (ours,), head_alone=True),
        Side(NNDIFFSEG, "nndiffseg", (ours,)),
    ]
    comparison = Comparison(sides, Options(args.samples, args.seed), raters=False)
    comparison.predict(device)
    comparison.fit()
    cases = [comparison.evaluate(case) for case in data.cases]
    found = [m for m in table.metrics(list(data.structures), cases, NNDIFFSEG) if m.name.startswith(SHOWN)]
    labels = {side.name: side.label for side in sides}
    title = f"{data.dataset}, {data.configuration}, fold {args.fold}, {len(cases)} cases, {args.iterations} iterations"
    result = {
        **data.describe(),
        **{flag: getattr(args, flag) for flag in ("planner", "iterations", "seed", "samples", "same_precision")},
        "trainings": trainings,
        "intervals": "percentile intervals over groups of cases, 95 %, paired",
        "metrics": table.summary(found),
        "nndiffseg_minus": table.differences(found),
    }
    rows, name = table.rows(found, list(labels), NNDIFFSEG), f"{data.dataset}_{data.configuration}_{args.planner}"
    report(
        args.name or f"ignore_label_{name}_{args.iterations}_seed{args.seed}{'_same_precision' * args.same_precision}",
        rows,
        table.header(title, labels, NNDIFFSEG),
        result,
    )


if __name__ == "__main__":
    raise SystemExit(main())
