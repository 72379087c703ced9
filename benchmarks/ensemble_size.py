"""Dice against the number of samples, fused by their mean and by STAPLE (MedSegDiff-V2, arXiv 2301.11798).

    python -m benchmarks.ensemble_size --dataset 4 --configuration 2d --cases 12
        [--trainers nnDiffSegTrainerMedSegDiffV2 ...] [--sizes 1 2 4 8 16]

Draws as many samples of each case as the largest size, without mirroring, so that all of them come from one
distribution. A smaller ensemble's Dice is the mean over the disjoint ensembles of that size. Kept case by case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common import report
from benchmarks.compare.data import Data, data_from, measurements_of, result_name
from benchmarks.compare.flags import add_result_flags, add_trainers_flag, data_parser
from benchmarks.compare.plots import colour_of, new_figure, plain_ticks, save_figure
from benchmarks.compare.trainers import TRAINERS, Entry, class_name, label_of
from nndiffseg.cli.common import pick_device, run
from nndiffseg.errors import UserError
from nndiffseg.export.staple import FUSIONS, staple
from nndiffseg.uncertainty.evaluation_table import number
from nndiffseg.uncertainty.means import nanmean

SIZES = (1, 2, 4, 8, 16)


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    from benchmarks.compare.library import load_model

    parser = data_parser(__doc__.splitlines()[0])
    add_trainers_flag(parser, TRAINERS[1:])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="of the ensembles (default: %(default)s)")
    add_result_flags(parser, per_case=False)
    args = parser.parse_args(argv)
    if min(args.sizes) < 1:
        raise UserError("--sizes must be at least 1.")
    sizes = sorted(set(args.sizes))
    data, device = data_from(args), pick_device(args.device)
    models = {trainer: load_model(data, Entry(trainer), device) for trainer in args.trainers}
    settings = {"sizes": sizes, "seed": args.seed, "mirroring": False, "device": args.device}
    kept = measurements_of("ensemble_size", data, **settings)
    curves: dict[str, dict[str, dict[str, float]]] = {}
    deterministic: dict[str, float] = {}
    for trainer, model in models.items():
        rows = [
            kept.get(f"{model.identity}, {case}", partial(measure, data, model, case, sizes, args.seed)) for case in data.cases
        ]
        curves[class_name(trainer)] = {
            str(n): {fusion: nanmean(r[fusion][str(n)] for r in rows) for fusion in FUSIONS} for n in sizes
        }
        deterministic[class_name(trainer)] = nanmean(r["deterministic"] for r in rows)
    name = args.name or result_name("ensemble_size", data)
    report(
        name,
        *table(curves, deterministic),
        {"settings": {**data.describe(), **settings}, "curves": curves, "deterministic": deterministic},
    )
    draw(name, curves, deterministic)


def measure(data: Data, model: Any, case: str, sizes: Sequence[int], seed: int) -> dict[str, Any]:
    """Dice of each fusion at each size, and of the deterministic prediction, of one case."""
    from benchmarks.compare.library import Options, labels_of, predict_case
    from benchmarks.compare.scores import mean_dice

    # One sample a time under its own seed: its probabilities are then at hand, not only their sum.
    predictions = [predict_case(model, case, Options(1, 1000 * seed + i, mirroring=False)) for i in range(max(sizes))]
    probabilities = [p.sampled for p in predictions]
    labels = np.concatenate([p.labels for p in predictions])
    result: dict[str, Any] = {fusion: {} for fusion in FUSIONS}
    for n in sizes:
        scores: dict[str, list[float]] = {fusion: [] for fusion in FUSIONS}
        for members in blocks(len(labels), n):
            mean = labels_of(data, np.mean(probabilities[members], axis=0))
            scores["mean"].append(mean_dice(data, case, mean))
            scores["staple"].append(mean_dice(data, case, staple(labels[members], mean) if n > 1 else labels[members][0]))
        for fusion, values in scores.items():
            result[fusion][str(n)] = nanmean(values)
    head = labels_of(data, predictions[0].deterministic)
    return {**result, "deterministic": mean_dice(data, case, head)}


def blocks(total: int, size: int) -> list[slice]:
    """The disjoint ensembles of ``size`` among ``total`` samples; what is left over belongs to none."""
    return [slice(start, start + size) for start in range(0, total - size + 1, size)]


def table(curves: dict[str, dict[str, dict[str, float]]], deterministic: dict[str, float]) -> tuple[list[list[str]], list[str]]:
    """Rows and header: one row per method and fusion."""
    sizes = list(next(iter(curves.values())))
    rows = [
        [label_of(trainer), fusion, *(number(curve[n][fusion], 4) for n in sizes), number(deterministic[trainer], 4)]
        for trainer, curve in curves.items()
        for fusion in FUSIONS
    ]
    return rows, ["method", "fusion", *(f"{n} sample{'s' * (n != '1')}" for n in sizes), "deterministic"]


def draw(name: str, curves: dict[str, dict[str, dict[str, float]]], deterministic: dict[str, float]) -> None:
    figure, (axis,) = new_figure()
    for trainer, curve in curves.items():
        sizes, colour = [int(n) for n in curve], colour_of(trainer)
        axis.plot(sizes, [r["mean"] for r in curve.values()], "o-", markersize=4, color=colour, label=label_of(trainer))
        axis.plot(sizes, [r["staple"] for r in curve.values()], "s--", markersize=4, color=colour)
        axis.axhline(deterministic[trainer], linestyle=":", color=colour, linewidth=1)
    axis.set(xlabel="samples", ylabel="Dice (dashed: STAPLE, dotted: deterministic)", xscale="log")
    plain_ticks(axis, sizes)
    axis.legend(fontsize=8)
    save_figure(figure, name)


if __name__ == "__main__":
    raise SystemExit(main())
