"""All methods on the same data, split and iterations: nnU-Net and nndiffseg's four trainers in one table.

    python -m benchmarks.methods --dataset 4 --configuration 2d --fold 0 --planner S --iterations 1000
    python -m benchmarks.methods ... --trainers nnDiffSegTrainerLDSeg     (adds its row to the others)

Trains what is not trained yet, predicts the validation cases that are not predicted yet, and judges; an interrupted run
goes on where it stopped when the same command is given again. nnU-Net's own trainer gets the same plans, network,
batches and number of iterations, with its polynomial learning rate over exactly these. Its "samples" draw every voxel by
itself from the softmax. ``--minutes`` gives every training the same time instead.

Columns: Dice (mean over cases, then structures) of the fused prediction, the deterministic one, the mean of the samples
and a single sample; normalised surface distance; GED^2 = 2 E d(S,Y) - E d(S,S') - E d(Y,Y') with d = 1 - IoU over the
annotations Y of a case; expected calibration error in the dilated foreground; AUROC of the entropy against wrong voxels
there; median seconds of a prediction; peak memory of the predicting process (on a GPU: of its tensors); parameters;
seconds per optimiser step. On a CPU seconds are processor seconds, so that other programs do not count.
With one annotation per case, more spread lowers GED^2 by itself: read it with its three terms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.common import report
from benchmarks.methods_common import (
    STOCK,
    TRAINERS,
    Budget,
    add_budget_flags,
    add_trainers_flag,
    budget_from,
    class_name,
    clock_name,
    data_parser,
    earlier_result,
    find_class,
    label_of,
    passed_on,
    run_module,
    stop_cleanly_on_terminate,
)
from benchmarks.methods_data import Data, data_from, result_name
from benchmarks.methods_figures import colour_of, new_figure, plain_ticks, save_figure
from nndiffseg.cli.common import run
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.evaluation import number


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser(__doc__.splitlines()[0])
    add_trainers_flag(parser)
    add_budget_flags(parser)
    add_judging_flags(parser)
    args = parser.parse_args(argv)
    data, budget = data_from(args), budget_from(args)
    for trainer in args.trainers:
        find_class(trainer)  # a typo is told before the first training
    name = args.name or result_name("methods", data)
    settings = comparison_settings(args, data, budget)
    rows = earlier_rows(name, settings)
    failed = []
    for trainer in args.trainers:
        row = train_and_judge(args, data, budget, trainer)
        if row is None:
            failed.append(class_name(trainer))
            continue
        rows[class_name(trainer)] = row
        publish(name, rows, settings)
    if failed:
        raise UserError(f"{', '.join(failed)} failed, see above; give the same command again to go on.")


def add_judging_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=8, help="per case (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, default=1.0, help="of NSD, in mm (default: %(default)s)")
    parser.add_argument("--name", help="of the files in benchmarks/results and docs/images")


def comparison_settings(args: argparse.Namespace, data: Data, budget: Budget) -> dict[str, Any]:
    """What all rows of a table have in common."""
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


def earlier_rows(name: str, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows that other runs with the same settings made.

    Raises:
        UserError: the file of this name has other settings.
    """
    known = earlier_result(name)
    differing = [k for k, v in settings.items() if known and known.get("settings", {}).get(k) != v]
    if differing:
        raise UserError(
            f"benchmarks/results/{name}.json was made with other settings ({', '.join(differing)}); choose "
            "another --name, or delete it."
        )
    return dict(known.get("methods", {}))


def train_and_judge(args: argparse.Namespace, data: Data, budget: Budget, trainer: str) -> dict[str, Any] | None:
    """One row; None where the training or the prediction failed, whose message then stands above."""
    from benchmarks.methods_metrics import Judge
    from benchmarks.methods_prediction import SETTINGS, Options, kept_predictions, remember_memory
    from benchmarks.methods_training import check_record, finished_training

    folder, cls = data.fold_folder(class_name(trainer)), class_name(trainer)
    if (record := finished_training(folder)) is not None:
        check_record(record, budget, args.seed, folder)
        print(f"{cls}: trained already, {record['iterations']} iterations.", flush=True)
    else:
        print(f"{cls}: training, {budget}.", flush=True)
        code, _ = run_module("benchmarks.methods_training", [*passed_on(args, "iterations", "minutes"), "--trainer", trainer])
        record = finished_training(folder)
        if code != 0 or record is None:
            return None
    code, peak = run_module("benchmarks.methods_prediction", [*passed_on(args, "samples"), "--trainer", trainer])
    if code != 0:
        return None
    predictions = Options(args.samples, args.seed, not args.disable_tta).folder(data, cls)
    remember_memory(predictions, peak)
    figures = Judge(data, args.tolerance, fuse=trainer != STOCK).judge(lambda: kept_predictions(predictions, data.cases))
    return {**figures, "training": record, "prediction": json.loads((predictions / SETTINGS).read_text())}


def publish(name: str, rows: dict[str, dict[str, Any]], settings: dict[str, Any]) -> None:
    """Table, JSON and figure of all rows so far."""
    header, table = assemble(rows)
    report(name, table, header, {"settings": settings, "methods": rows})
    draw(name, rows)


def assemble(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table."""
    structures = [s for s in next(iter(rows.values()))["dice_fused"] if s != "mean"]
    header = [
        "method",
        "Dice",
        *structures,
        "determ.",
        "mean of s.",
        "one s.",
        "NSD",
        "GED^2",
        "d(S,Y)",
        "d(S,S')",
        "d(Y,Y')",
        "ECE",
        "AUROC",
        "s/case",
        "GB",
        "M param.",
        "s/iter.",
        "iterations",
    ]
    return header, [[label_of(n), *_cells(row, structures)] for n, row in in_order(rows).items()]


def in_order(rows: dict[str, Any]) -> dict[str, Any]:
    """Rows in the order of :data:`~benchmarks.methods_common.TRAINERS`, others behind them."""
    order = sorted(rows, key=lambda n: (TRAINERS.index(n) if n in TRAINERS else len(TRAINERS), n))
    return {name: rows[name] for name in order}


def _cells(row: dict[str, Any], structures: Sequence[str]) -> list[str]:
    prediction, training = row["prediction"], row["training"]
    return [
        number(row["dice_fused"]["mean"], 4),
        *(number(row["dice_fused"][s], 4) for s in structures),
        *(number(row[f"dice_{kind}"]["mean"], 4) for kind in ("deterministic", "samples", "single")),
        number(row["nsd_fused"]["mean"], 4),
        *(number(row[k]) for k in ("ged2", "ged_cross", "ged_within_samples", "ged_within_references")),
        number(row["ece"], 4),
        number(row["error_auroc"]),
        number(row["seconds_per_case"], 2),
        number(prediction.get("peak_gpu_gb") or prediction.get("peak_gb"), 2),
        number(prediction["parameters"] / 1e6, 2),
        number(training["seconds_per_iteration"], 3),
        str(training["iterations"]),
    ]


def draw(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """Dice of each method's predictions, and Dice against the seconds that a case takes."""
    rows = in_order(rows)
    figure, (left, right) = new_figure(2)
    kinds = {
        "dice_fused": "fused",
        "dice_deterministic": "deterministic",
        "dice_samples": "mean of samples",
        "dice_single": "one sample",
    }
    for i, (kind, label) in enumerate(kinds.items()):
        left.bar([x + 0.2 * (i - 1.5) for x in range(len(rows))], [r[kind]["mean"] for r in rows.values()], 0.2, label=label)
    left.set_xticks(range(len(rows)), [label_of(n) for n in rows], rotation=15)
    lowest = min(r[kind]["mean"] for r in rows.values() for kind in kinds)
    left.set(ylabel="Dice", ylim=(max(0.0, lowest - 0.1), None))
    left.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    for method, row in rows.items():
        right.plot(row["seconds_per_case"], row["dice_fused"]["mean"], "o", color=colour_of(method), label=label_of(method))
    right.set(xlabel="seconds per case", ylabel="Dice, fused", xscale="log")
    plain_ticks(right)
    right.legend(fontsize=8)
    save_figure(figure, name)


if __name__ == "__main__":
    stop_cleanly_on_terminate()
    raise SystemExit(main())
