"""All methods on the same data, split and iterations: nnU-Net and nndiffseg's four trainers in one table.

    python -m benchmarks.methods --dataset 4 --configuration 2d --fold 0 --planner S --iterations 1000

Trains what is not trained yet, predicts the validation cases that are not predicted yet, and evaluates; an interrupted run
goes on where it stopped when the same command is given again. nnU-Net's own trainer gets the same plans, network, batches
and number of iterations, with its polynomial learning rate over exactly these. Its samples are independent per-voxel draws
from its softmax. ``--minutes`` gives every training the same time instead.

Columns: Dice (mean over cases, then structures) of the fused prediction, the deterministic one, the mean of the samples
and a single sample; normalised surface distance; energy score, E d(S,Y) - E d(S,S') / 2 with d = 1 - IoU over distinct
samples S and the annotations Y of a case; GED^2 = 2 E d(S,Y) - E d(S,S') - E d(Y,Y') with its three terms (with one
annotation per case, more spread lowers it by itself); NLL and expected calibration error near the structures, the latter
also with a temperature that is fitted on other cases; AUROC of the entropy against wrong voxels there; median seconds of a
prediction; peak memory of the predicting process (on a GPU: of its tensors); parameters; seconds per optimiser step. On a
CPU seconds are processor seconds, so that other programs do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.common import report
from benchmarks.compare.data import data_from, result_name
from benchmarks.compare.entries import (
    COLUMNS,
    COSTS,
    Row,
    add_evaluation_flags,
    evaluate,
    make,
    plainly,
    settings_of,
)
from benchmarks.compare.flags import add_budget_flags, add_trainers_flag, budget_from, data_parser
from benchmarks.compare.plots import colour_of, new_figure, plain_ticks, save_figure
from benchmarks.compare.processes import stop_cleanly_on_terminate
from benchmarks.compare.table import part_words
from benchmarks.compare.trainers import Entry, find_class, label_of
from nndiffseg.cli.common import run
from nndiffseg.errors import UserError

#: metric of :mod:`benchmarks.compare.table` -> words of the plot
BARS = {"Dice, mean": "fused", **{f"Dice: {part_words(p)}": part_words(p) for p in ("head", "samples", "sample")}}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser("All methods on the same data, split and iterations.")
    add_trainers_flag(parser)
    add_budget_flags(parser)
    add_evaluation_flags(parser)
    args = parser.parse_args(argv)
    data, budget = data_from(args), budget_from(args)
    settings = settings_of(args, data, budget)
    entries = {trainer: Entry(trainer) for trainer in args.trainers}
    for trainer in entries:
        find_class(trainer)  # a typo is told before the first training
    failed = [trainer for trainer, entry in entries.items() if not make(args, data, budget, entry)]
    if done := {t: e for t, e in entries.items() if t not in failed}:
        rows = {label_of(trainer): row for trainer, row in evaluate(args, data, done).items()}
        name = args.name or result_name("methods", data)
        header, cells = assemble(rows, list(data.structures))
        report(name, cells, header, {"settings": settings, **plainly(rows)})
        draw(name, rows)
    if failed:
        raise UserError(f"{', '.join(failed)} failed, see above; give the same command again to go on.")


def assemble(rows: Mapping[str, Row], structures: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table; ``rows`` by what they are called."""
    each = [(s, f"Dice, {s}") for s in structures] if len(structures) > 1 else []
    first, *others = COLUMNS
    header = ["method", first, *(s for s, _ in each), *others, *COSTS]
    cells = []
    for label, row in rows.items():
        dice = [f"{row.metrics[name]:.4f}" for _, name in each]
        cells.append([label, row.cell(first), *dice, *(row.cell(c) for c in (*others, *COSTS))])
    return header, cells


def draw(name: str, rows: Mapping[str, Row]) -> None:
    """Dice of each method's predictions, and Dice against the seconds that a case takes."""
    figure, (left, right) = new_figure(2)
    for i, (metric, label) in enumerate(BARS.items()):
        places = [x + 0.2 * (i - 1.5) for x in range(len(rows))]
        left.bar(places, [r.metrics[metric] or 0.0 for r in rows.values()], 0.2, label=label)
    left.set_xticks(range(len(rows)), list(rows), rotation=15)
    lowest = min(r.metrics[metric] or 0.0 for r in rows.values() for metric in BARS)
    left.set(ylabel="Dice", ylim=(max(0.0, lowest - 0.1), None))
    left.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    for label, row in rows.items():
        right.plot(row.seconds_per_case, row.metrics["Dice, mean"], "o", color=colour_of(label), label=label)
    right.set(xlabel="seconds per case", ylabel="Dice, fused", xscale="log")
    plain_ticks(right)
    right.legend(fontsize=8)
    save_figure(figure, name)


if __name__ == "__main__":
    stop_cleanly_on_terminate()
    raise SystemExit(main())
