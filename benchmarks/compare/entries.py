"""Trains, predicts and evaluates entries of a comparison, each training and prediction in a process of its own."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import write_per_case
from benchmarks.compare import table
from benchmarks.compare.data import Data
from benchmarks.compare.flags import Budget, add_result_flags, check_positive, passed_on
from benchmarks.compare.pooling import Interval
from benchmarks.compare.processes import clock_name, run_module
from benchmarks.compare.trainers import Entry, class_name
from nndiffseg.uncertainty.evaluation_table import number


@dataclass(frozen=True)
class Row:
    """One row of a table of entries.

    Attributes:
        metrics: by the names of :mod:`benchmarks.compare.table`.
        training, prediction: what they took, see :mod:`benchmarks.compare.training` and
            :mod:`benchmarks.compare.predictions`.
        seconds_per_case: median.
        difference: of the Dice to the first row, with its interval over groups of cases; None in that row.
    """

    metrics: dict[str, float | None]
    training: dict[str, Any]
    prediction: dict[str, Any]
    seconds_per_case: float
    difference: Interval | None = None

    def cell(self, column: str) -> str:
        """Text of one of :data:`COLUMNS`."""
        if column in COSTS:
            return COSTS[column](self)
        name, digits = COLUMNS[column]
        return number(self.metrics.get(name), digits)


#: heads of columns -> metric and digits; where a dataset has one structure, there is no mean over structures
COLUMNS = {
    "Dice": ("Dice, mean", 4),
    "IoU": ("IoU, mean", 4),
    "determ.": ("Dice: deterministic part", 4),
    "mean of s.": ("Dice: mean of samples", 4),
    "one s.": ("Dice: one sample", 4),
    "NSD": ("NSD, mean", 4),
    "energy": ("energy score, 1 - IoU", 3),
    "GED^2": ("GED^2", 3),
    "d(S,Y)": ("GED^2: E d(sample, truth)", 3),
    "d(S,S')": ("GED^2: E d(sample, sample)", 3),
    "d(Y,Y')": ("GED^2: E d(truth, truth)", 3),
    "NLL": ("NLL, mean", 4),
    "ECE": ("ECE, mean", 4),
    "ECE, T": ("ECE, fitted temperature", 4),
    "AUROC": ("AUROC of uncertainty for errors", 3),
}
COSTS = {
    "Dice - first": lambda row: "" if row.difference is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row.difference),
    "s/case": lambda row: number(row.seconds_per_case, 2),
    "GB": lambda row: number(row.prediction.get("peak_gpu_gb") or row.prediction.get("peak_gb"), 2),
    "M param.": lambda row: number(row.prediction["parameters"] / 1e6, 2),
    "s/iter.": lambda row: number(row.training["seconds_per_iteration"], 3),
    "iterations": lambda row: str(row.training["iterations"]),
}


def add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """How to predict and evaluate, and where the results go."""
    parser.add_argument("--samples", type=int, default=8, help="per case (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, default=1.0, help="of NSD, in mm (default: %(default)s)")
    add_result_flags(parser)


def settings_of(args: argparse.Namespace, data: Data, budget: Budget) -> dict[str, Any]:
    """What all rows of a table have in common, for the JSON file."""
    check_positive(args, "samples", "tolerance")
    return {
        **data.describe(),
        "iterations": budget.iterations,
        "minutes": budget.minutes,
        "seed": args.seed,
        "samples": args.samples,
        "tolerance_mm": args.tolerance,
        "mirroring": not args.disable_tta,
        "device": args.device,
        "clock": clock_name(args.device),
    }


def make(args: argparse.Namespace, data: Data, budget: Budget, entry: Entry) -> bool:
    """Trains and predicts what is missing; False where that failed, whose message then stands above."""
    from benchmarks.compare.library import Options
    from benchmarks.compare.predictions import folder_of, remember
    from benchmarks.compare.training import check_record, finished_training

    folder = entry.of(data).fold_folder(class_name(entry.trainer))
    if (record := finished_training(folder)) is not None:
        check_record(record, budget, args.seed, folder)
        print(f"{entry.name}: trained already, {record['iterations']} iterations.", flush=True)
    else:
        print(f"{entry.name}: training, {budget}.", flush=True)
        flags = passed_on(args, "iterations", "minutes")
        code, _ = run_module("benchmarks.compare.training", [*flags, *entry.flags])
        if code != 0 or finished_training(folder) is None:
            return False
    code, peak = run_module("benchmarks.compare.predictions", [*passed_on(args, "samples"), *entry.flags])
    if code != 0:
        return False
    remember(folder_of(data, entry, Options(args.samples, args.seed, not args.disable_tta)), "peak_gb", peak)
    return True


def evaluate(args: argparse.Namespace, data: Data, entries: Mapping[str, Entry]) -> dict[str, Row]:
    """Metrics of entries that are trained and predicted, on the same voxels; in their order, by their keys."""
    from benchmarks.compare.evaluation import Comparison, Side, Source
    from benchmarks.compare.library import Options
    from benchmarks.compare.predictions import about
    from benchmarks.compare.training import finished_training

    options = Options(args.samples, args.seed, not args.disable_tta)
    comparison = Comparison([Side(k, k, (Source(data, e),)) for k, e in entries.items()], options, args.tolerance)
    comparison.fit()
    cases = {case: comparison.evaluate(case) for case in data.cases}
    first = next(iter(entries))
    found = table.metrics(list(data.structures), list(cases.values()), first)
    summary = table.summary(found)
    (dice,) = (m.differences for m in found if m.name in ("Dice, mean", *_only("Dice", data)))
    if len(data.structures) == 1:  # the structure is the mean
        (only,) = data.structures
        summary |= {f"{m}, mean": summary[f"{m}, {only}"] for m in ("Dice", "IoU", "NSD", *table.POOLED)}
    write_per_case(args.per_case, table.by_case(cases))
    return {
        key: Row(
            {name: values.get(key) for name, values in summary.items()},
            finished_training(entry.of(data).fold_folder(class_name(entry.trainer))) or {},
            about(data, entry, options),
            float(np.median([c.sides[key].seconds for c in cases.values()])),
            Interval(-dice[key].value, -dice[key].high, -dice[key].low) if key in dice else None,
        )
        for key, entry in entries.items()
    }


def _only(metric: str, data: Data) -> list[str]:
    """Name of a metric of the only structure; nothing where there are several."""
    return [f"{metric}, {name}" for name in data.structures] if len(data.structures) == 1 else []


def plainly(rows: Mapping[str, Row]) -> dict[str, Any]:
    """JSON-ready: metric -> row -> value, and what each row's training and prediction took."""
    first = next(iter(rows.values()))
    return {
        "metrics": {name: {key: row.metrics[name] for key, row in rows.items()} for name in first.metrics},
        "costs": {
            key: {**row.training, **row.prediction, "seconds_per_case": row.seconds_per_case} for key, row in rows.items()
        },
        "dice_minus_first": {k: [round(v, 5) for v in row.difference] for k, row in rows.items() if row.difference is not None},
    }
