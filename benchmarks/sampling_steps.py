"""Dice against the number of sampling steps (LDSeg, arXiv 2407.12952, figure 5), for any trained method.

    python -m benchmarks.sampling_steps --dataset 4 --configuration 2d --cases 12
        [--trainers nnDiffSegTrainerLDSeg ...] [--steps 1 2 3 5 10 15 20 50] [--samples 4]

Predicts the same cases with the same noise under every number of steps, with each method's own sampler (or --sampler).
Every case is kept as soon as it is predicted: the same command goes on where it was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.common import report
from benchmarks.compare.data import data_from, measurements_of, result_name
from benchmarks.compare.flags import add_result_flags, add_trainers_flag, check_positive, data_parser
from benchmarks.compare.plots import colour_of, new_figure, plain_ticks, save_figure
from benchmarks.compare.trainers import TRAINERS, Entry, class_name, label_of
from nndiffseg.cli.common import pick_device, run
from nndiffseg.diffusion.samplers import SAMPLERS
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.evaluation_table import number

STEPS = (1, 2, 3, 5, 10, 15, 20, 50)


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    from benchmarks.compare.library import Options, load_model
    from benchmarks.compare.scores import means, predicted_scores

    parser = data_parser(__doc__.splitlines()[0])
    add_trainers_flag(parser, TRAINERS[1:])
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=4, help="per case (default: %(default)s)")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the method's own")
    add_result_flags(parser, per_case=False)
    args = parser.parse_args(argv)
    check_positive(args, "samples")
    if min(args.steps) < 1:
        raise UserError("--steps must be at least 1.")
    data, device = data_from(args), pick_device(args.device)
    models = {trainer: load_model(data, Entry(trainer), device) for trainer in args.trainers}
    if stock := [t for t, m in models.items() if m.is_stock]:
        raise UserError(f"{stock[0]} takes no sampling steps; leave it out of --trainers.")
    settings = {
        "samples": args.samples,
        "sampler": args.sampler,
        "seed": args.seed,
        "mirroring": not args.disable_tta,
        "device": args.device,
    }
    kept = measurements_of("sampling_steps", data, **settings)
    curves: dict[str, dict[str, dict[str, float]]] = {}
    for trainer, model in models.items():
        for steps in sorted(set(args.steps)):
            options = Options(args.samples, args.seed, not args.disable_tta, steps, args.sampler)
            rows = [
                kept.get(f"{model.identity}, {steps} steps, {case}", partial(predicted_scores, model, case, options))
                for case in data.cases
            ]
            curves.setdefault(class_name(trainer), {})[str(steps)] = means(rows)
    name = args.name or result_name("sampling_steps", data)
    defaults = {class_name(t): m.network.default_steps for t, m in models.items()}
    report(name, *table(curves), {"settings": {**data.describe(), **settings}, "default_steps": defaults, "curves": curves})
    draw(name, curves, defaults)


def table(curves: dict[str, dict[str, dict[str, float]]]) -> tuple[list[list[str]], list[str]]:
    """Rows and header, one row per method and number of steps."""
    rows = [
        [
            label_of(trainer),
            steps,
            *(number(row[k], 4) for k in ("samples", "single", "deterministic", "between_samples")),
            number(row["seconds"], 2),
        ]
        for trainer, curve in curves.items()
        for steps, row in curve.items()
    ]
    return rows, ["method", "steps", "mean of samples", "one sample", "deterministic", "between samples", "s/case"]


def draw(name: str, curves: dict[str, dict[str, dict[str, float]]], defaults: dict[str, int]) -> None:
    """Dice of the mean of samples and of one sample; rings mark each method's default number of steps."""
    figure, (left, right) = new_figure(2)
    for trainer, curve in curves.items():
        steps, colour = [int(n) for n in curve], colour_of(trainer)
        left.plot(steps, [r["samples"] for r in curve.values()], "o-", markersize=4, color=colour, label=label_of(trainer))
        left.plot(steps, [r["single"] for r in curve.values()], "--", color=colour)
        right.plot(steps, [r["seconds"] for r in curve.values()], "o-", markersize=4, color=colour, label=label_of(trainer))
        if (default := str(defaults[trainer])) in curve:
            left.plot(int(default), curve[default]["samples"], "o", markersize=11, fillstyle="none", color=colour)
    left.set(xlabel="sampling steps (ring: the default)", ylabel="Dice, mean of samples (dashed: one sample)", xscale="log")
    right.set(xlabel="sampling steps", ylabel="seconds per case", xscale="log", yscale="log")
    for axis in (left, right):
        plain_ticks(axis, sorted({int(n) for curve in curves.values() for n in curve}))
        axis.legend(fontsize=8)
    save_figure(figure, name)


if __name__ == "__main__":
    raise SystemExit(main())
