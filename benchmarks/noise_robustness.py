"""Dice against Gaussian noise of growing variance on the test images, beside nnU-Net (LDSeg, arXiv 2407.12952, figure 8).

    python -m benchmarks.noise_robustness --dataset 4 --configuration 2d --cases 12
        [--trainers nnUNetTrainer ...] [--variances 0 0.1 0.25 0.5 1 2] [--samples 4]

The noise is added to the raw image, before nnU-Net's normalisation; its variance is given in units of the variance of
each channel of that image. A case sees the same noise, scaled, at every level and under every method. Of nnU-Net the one
pass counts, of the others the mean of the samples and the deterministic prediction. Kept case by case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import report
from benchmarks.compare.data import data_from, measurements_of, result_name
from benchmarks.compare.flags import add_result_flags, add_trainers_flag, data_parser
from benchmarks.compare.plots import colour_of, new_figure, save_figure
from benchmarks.compare.trainers import STOCK, Entry, class_name, label_of
from nndiffseg.cli.common import pick_device, run
from nndiffseg.data.seeds import seed_of
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.evaluation_table import number

VARIANCES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    from benchmarks.compare.library import Options, load_model
    from benchmarks.compare.scores import means, predicted_scores

    parser = data_parser(__doc__.splitlines()[0])
    add_trainers_flag(parser)
    parser.add_argument("--variances", type=float, nargs="+", default=list(VARIANCES), help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=4, help="per case (default: %(default)s)")
    add_result_flags(parser, per_case=False)
    args = parser.parse_args(argv)
    if min(args.variances) < 0 or args.samples < 2:
        raise UserError("--variances must not be negative, and --samples must be at least 2.")
    data, device = data_from(args), pick_device(args.device)
    models = {trainer: load_model(data, Entry(trainer), device) for trainer in args.trainers}
    settings = {"samples": args.samples, "seed": args.seed, "mirroring": not args.disable_tta, "device": args.device}
    kept = measurements_of("noise_robustness", data, **settings)
    options = Options(args.samples, args.seed, not args.disable_tta)
    curves: dict[str, dict[str, dict[str, float]]] = {}
    for trainer, model in models.items():
        for variance in sorted(set(args.variances)):
            rows = [
                kept.get(
                    f"{model.identity}, variance {variance:g}, {case}",
                    partial(predicted_scores, model, case, options, with_noise(variance, seed_of(args.seed, case))),
                )
                for case in data.cases
            ]
            curves.setdefault(class_name(trainer), {})[f"{variance:g}"] = means(rows)
    name = args.name or result_name("noise_robustness", data)
    report(name, *table(curves), {"settings": {**data.describe(), **settings}, "curves": curves})
    draw(name, curves)


def with_noise(variance: float, seed: int) -> Callable[[NDArray], NDArray]:
    """Adds Gaussian noise to an image ``(C, *image)``; ``variance`` in units of each channel's own."""

    def change(image: NDArray) -> NDArray:
        noise = np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32)
        deviation = image.std(axis=tuple(range(1, image.ndim)), keepdims=True)
        return (image + np.sqrt(variance) * deviation * noise).astype(np.float32)

    return change


def table(curves: dict[str, dict[str, dict[str, float]]]) -> tuple[list[list[str]], list[str]]:
    """Rows and header, one row per method and variance."""
    rows = [
        [label_of(trainer), variance, *(number(row[k], 4) for k in ("samples", "deterministic", "between_samples"))]
        for trainer, curve in curves.items()
        for variance, row in curve.items()
    ]
    return rows, ["method", "variance", "mean of samples", "deterministic", "between samples"]


def draw(name: str, curves: dict[str, dict[str, dict[str, float]]]) -> None:
    """Dice against the truth, and between the samples: does a method notice that it fails?"""
    figure, (left, right) = new_figure(2)
    for trainer, curve in curves.items():
        levels = [float(v) for v in curve]
        main_kind = "deterministic" if trainer == STOCK else "samples"
        look = {"markersize": 4, "color": colour_of(trainer), "label": label_of(trainer)}
        left.plot(levels, [r[main_kind] for r in curve.values()], "o-", **look)
        if trainer != STOCK:
            left.plot(levels, [r["deterministic"] for r in curve.values()], "--", color=look["color"])
            right.plot(levels, [r["between_samples"] for r in curve.values()], "o-", **look)
    left.set(xlabel="variance of the noise / variance of the image", ylabel="Dice (dashed: deterministic)")
    right.set(xlabel="variance of the noise / variance of the image", ylabel="Dice between two samples")
    for axis in (left, right):
        if axis.lines:
            axis.legend(fontsize=8)
    save_figure(figure, name)


if __name__ == "__main__":
    raise SystemExit(main())
