"""Prediction time against image size: latent methods, label-space methods and nnU-Net's network (LDSeg, figure 6b).

    python -m benchmarks.time_against_size --dataset 4 --configuration 2d [--sizes 64 128 256 512] [--whole]

Weights are random, since time does not depend on them; the networks are those of the plans. An image of noise with equal
sides is predicted tile by tile with the plans' patch; with ``--whole`` the patch is the image, as in the paper. Without
mirroring, so that nnU-Net makes one pass and every method one (``--samples``) sample with its own number of steps. The
median of the repetitions counts, on a CPU in processor seconds. A method leaves the race where the next size would
exceed ``--limit`` seconds.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.common import report
from benchmarks.compare.data import Data, data_from, measurements_of, result_name
from benchmarks.compare.flags import add_trainers_flag, data_parser
from benchmarks.compare.plots import colour_of, new_figure, plain_ticks, save_figure
from benchmarks.compare.trainers import class_name, find_class, label_of
from nndiffseg.cli.common import pick_device, run
from nndiffseg.errors import UserError
from nndiffseg.uncertainty.evaluation_table import number


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser(__doc__.splitlines()[0])
    add_trainers_flag(parser)
    parser.add_argument("--sizes", type=int, nargs="+", help="default: 64 to 512 in 2D, 48 to 128 in 3D")
    parser.add_argument("--samples", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--repetitions", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one prediction (default: %(default)s)")
    parser.add_argument("--whole", action="store_true", help="the patch is the whole image")
    parser.add_argument("--name", help="of the files in benchmarks/results and docs/images")
    args = parser.parse_args(argv)
    data = data_from(args)
    patch = data.plans["configurations"][data.configuration]["patch_size"]
    sizes = sorted(set(args.sizes or ((64, 128, 256, 512) if len(patch) == 2 else (48, 64, 96, 128))))
    check_sizes(data, sizes, args.whole)
    settings = {flag: getattr(args, flag) for flag in ("samples", "whole", "device", "repetitions", "seed")}
    kept = measurements_of("time_against_size", data, **settings)
    curves: dict[str, dict[str, list[float]]] = {}
    for trainer in args.trainers:
        find_class(trainer)
    for trainer in args.trainers:
        curve = curves.setdefault(class_name(trainer), {})
        for size in sizes:
            if curve and expected_seconds(curve, size, len(patch)) > args.limit:
                print(f"{trainer}: {size} would take more than {args.limit:g} s and is left out.", flush=True)
                break
            curve[str(size)] = kept.get(f"{trainer}, {size}", partial(measure, data, trainer, size, args))
    name = args.name or result_name("time_against_size", data) + ("_whole" if args.whole else "")
    report(
        name,
        *table(curves, sizes),
        {
            "settings": {**data.describe(), **settings, "sizes": sizes},
            "exponents": {t: exponent(c) for t, c in curves.items()},
        },
    )
    draw(name, curves, len(patch))


def check_sizes(data: Data, sizes: Sequence[int], whole: bool) -> None:
    """Raises UserError where an image would not fit the networks' strides."""
    strides = data.plans["configurations"][data.configuration]["architecture"]["arch_kwargs"]["strides"]
    multiple = int(np.max(np.prod(strides, axis=0)))
    if min(sizes) < 1:
        raise UserError("--sizes must be positive.")
    if whole and (wrong := [n for n in sizes if n % multiple]):
        raise UserError(f"With --whole the sizes must be multiples of {multiple}, the networks' stride, not {wrong[0]}.")


def measure(data: Data, trainer: str, size: int, args: Any) -> list[float]:
    """Seconds of each repetition."""
    from benchmarks.compare.library import Options, build_model
    from nndiffseg.data.dataset_json import channel_names

    dim = len(data.plans["configurations"][data.configuration]["patch_size"])
    if args.whole:
        plans = copy.deepcopy(data.plans)
        plans["configurations"][data.configuration]["patch_size"] = [size] * dim
        data = replace(data, plans=plans)
    model = build_model(data, find_class(trainer), pick_device(args.device, quiet=True))
    image = (
        np.random.default_rng(args.seed)
        .standard_normal((len(channel_names(data.dataset_json)), *([1] if dim == 2 else []), *[size] * dim))
        .astype(np.float32)
    )
    options = Options(args.samples, args.seed, mirroring=False)
    seconds = []
    for _ in range(args.repetitions):
        seconds.append(model.predict(image, "time", options)[1])
        if sum(seconds) > args.limit:
            break
    return seconds


def expected_seconds(curve: dict[str, list[float]], size: int, dim: int) -> float:
    """Time at ``size`` if it grows with the number of voxels from the largest size so far."""
    last = max(int(n) for n in curve)
    return float(np.median(curve[str(last)])) * (size / last) ** dim


def exponent(curve: dict[str, list[float]]) -> float | None:
    """Slope of log seconds against log size, by least squares; None with a single size."""
    if len(curve) < 2:
        return None
    return float(np.polyfit(np.log([int(n) for n in curve]), np.log([np.median(s) for s in curve.values()]), 1)[0])


def table(curves: dict[str, dict[str, list[float]]], sizes: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Rows and header: median seconds per size, and the exponent."""
    rows = [
        [
            label_of(trainer),
            *(number(float(np.median(curve[str(n)])), 3) if str(n) in curve else "-" for n in sizes),
            number(exponent(curve), 2),
        ]
        for trainer, curve in curves.items()
    ]
    return rows, ["method", *(f"{n}, s" for n in sizes), "exponent"]


def draw(name: str, curves: dict[str, dict[str, list[float]]], dim: int) -> None:
    figure, (axis,) = new_figure()
    for trainer, marker in zip(curves, itertools.cycle("os^Dv"), strict=False):
        curve = curves[trainer]
        axis.plot(
            [int(n) for n in curve],
            [np.median(s) for s in curve.values()],
            f"{marker}-",
            color=colour_of(trainer),
            label=label_of(trainer),
        )
    axis.set(xlabel=f"image size (voxels along each of {dim} axes)", ylabel="seconds per image", xscale="log", yscale="log")
    plain_ticks(axis, sorted({int(n) for curve in curves.values() for n in curve}))
    axis.legend(fontsize=8)
    save_figure(figure, name)


if __name__ == "__main__":
    raise SystemExit(main())
