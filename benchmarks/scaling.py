"""Time and memory of a training step and of a prediction against size, samples, steps and classes, beside nnU-Net's.

    python -m benchmarks.scaling [--planner S|M|L] [--quick] [--limit SECONDS]

Networks are untrained and built from plans made here, without a dataset (:mod:`benchmarks.made_plans`): nnU-Net's
residual-encoder U-Net of the planner's width, the patch as large as the image up to a bound, above it images are tiled, the
light networks as the planner chooses them for a latent at stride 4. One quantity varies at a time, from ``BASE``. Every
measurement runs in a process of its own, whose peak memory is taken, on one image without mirroring; on a CPU libraries
alone take about 1 GB. Time on a CPU is that of all its cores together, which does not depend on what else the machine does;
the JSON file holds the wall clock's too, as ``wall_seconds``. What exceeds ``--limit`` seconds or the memory is reported as
such. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.common import RESULTS, report
from benchmarks.made_plans import BATCH, LARGEST_PATCH, WIDTHS, Point, made_plans
from nndiffseg.cli.common import Parser, add_device_flag, choose, pick_device, run
from nndiffseg.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to load, so wrong flags are told before
    from benchmarks.compare.processes import Measurements


BASE = Point(size=64, axes=3)
SWEEPS: dict[str, list[Point]] = {
    "image size, 2D": [Point(size=n, axes=2) for n in (128, 256, 512, 1024, 2048)],
    "image size, 3D": [Point(size=n, axes=3) for n in (32, 64, 128, 256)],
    "samples": [replace(BASE, samples=n) for n in (1, 2, 4, 8, 16, 32, 64)],
    "steps": [replace(BASE, steps=n) for n in (1, 2, 5, 10, 20, 50)],
    "classes": [replace(BASE, classes=n) for n in (2, 5, 10, 20, 50, 100)],
}
QUICK = {
    "image size, 2D": SWEEPS["image size, 2D"][:2],
    "image size, 3D": SWEEPS["image size, 3D"][:2],
    "samples": [replace(BASE, samples=n) for n in (1, 4, 16)],
    "steps": [replace(BASE, steps=n) for n in (1, 10)],
    "classes": [replace(BASE, classes=n) for n in (2, 20)],
}
VARIED = {"image size, 2D": "size", "image size, 3D": "size", "samples": "samples", "steps": "steps", "classes": "classes"}
CURVES = tuple(itertools.product(("prediction", "training"), ("nnunet", "nndiffseg")))
STYLES = {"prediction": "o-", "training": "s--"}
COLOURS = {"nnunet": "tab:gray", "nndiffseg": "tab:blue"}
LABELS = {"nnunet": "nnU-Net", "nndiffseg": "nndiffseg"}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser("Time and memory against size, samples, steps and classes.", prog="python -m benchmarks.scaling")
    parser.add_argument("--planner", metavar="S|M|L", help="size of the networks; default: S on a CPU, else M")
    parser.add_argument("--quick", action="store_true", help="smaller ranges, a few minutes")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one measurement (default: %(default)g)")
    parser.add_argument("--name", help="of the files in benchmarks/results and docs/images; default: scaling, or scaling_quick")
    add_device_flag(parser)
    args = parser.parse_args(argv)
    if args.planner is not None:
        choose("planner", args.planner, list(WIDTHS))
    if args.limit <= 0:
        raise UserError(f"--limit must be positive, not {args.limit:g}.")
    device = pick_device(args.device)
    planner = args.planner or ("S" if device.type == "cpu" else "M")
    sweeps, name = (QUICK, "scaling_quick") if args.quick else (SWEEPS, "scaling")
    _run(args, sweeps, args.name or name, planner, device.type)


def _run(args: argparse.Namespace, sweeps: dict[str, list[Point]], name: str, planner: str, device: str) -> None:
    from benchmarks.compare.processes import Measurements

    settings = {"planner": planner, "device": device, "limit": args.limit, "batch": BATCH}
    kept = Measurements(RESULTS, f".{name}_partial", settings)
    found = {sweep: [measure(kept, point, planner, device, args.limit) for point in points] for sweep, points in sweeps.items()}
    clock = "processor_seconds" if device == "cpu" else "seconds"
    rows = [row for sweep, points in sweeps.items() for row in table(sweep, points, found[sweep], clock)]
    header = ["varied", "value", *(f"{LABELS[side]} {task}, {what}" for task, side in CURVES for what in ("s", "GB"))]
    report(
        name,
        rows,
        header,
        {
            **settings,
            "base": asdict(BASE),
            "wall_seconds": {
                sweep: {f"{task} {side}": [f[f"{task} {side}"].get("seconds") for f in of] for task, side in CURVES}
                for sweep, of in found.items()
            },
        },
    )
    draw(name, sweeps, found, clock, f"planner {planner}, {device}")
    kept.path.unlink(missing_ok=True)


# ---- measurements -----------------------------------------------------------------------------------------------------


def measure(kept: Measurements, point: Point, planner: str, device: str, limit: float) -> dict[str, Any]:
    """Seconds and peak memory of all curves at one point, or why there are none: ``{"prediction nnunet": {...}, ...}``."""
    from benchmarks.pair import in_own_process

    found = {}
    for task, side in CURVES:
        relevant = _relevant(point, task, side)
        plans, dataset_json = made_plans(relevant, planner)
        specification = {
            "plans": plans,
            "configuration": "made",
            "dataset_json": dataset_json,
            "device": device,
            "side": side,
            "task": task,
            "rounds": 3,
            "shape": [relevant.size] * point.axes,
            "samples": relevant.samples,
            "steps": relevant.steps,
        }
        key = f"{side} {task}: {relevant.axes}D size {relevant.size} classes {relevant.classes}"
        if (task, side) == ("prediction", "nndiffseg"):
            key += f" samples {relevant.samples} steps {relevant.steps or 'planned'}"
        found[f"{task} {side}"] = kept.get(key, partial(in_own_process, specification, limit))
    return found


def _relevant(point: Point, task: str, side: str) -> Point:
    """The point without what a curve does not depend on, so that nothing is measured twice."""
    if task == "training":
        return Point(min(point.size, LARGEST_PATCH[point.axes]), point.axes, classes=point.classes)
    return point if side == "nndiffseg" else Point(point.size, point.axes, classes=point.classes)


def table(sweep: str, points: Sequence[Point], found: Sequence[dict[str, Any]], clock: str) -> list[list[str]]:
    """One row a point: seconds and GB of every curve."""
    return [
        [
            sweep,
            str(getattr(point, VARIED[sweep])),
            *itertools.chain.from_iterable(_cells(values[f"{task} {side}"], clock) for task, side in CURVES),
        ]
        for point, values in zip(points, found, strict=True)
    ]


def _cells(value: dict[str, Any], clock: str) -> list[str]:
    return [value["failed"], ""] if "failed" in value else [f"{value[clock]:.3f}", f"{value['peak_gb']:.2f}"]


def draw(name: str, sweeps: dict[str, list[Point]], found: dict[str, list[dict[str, Any]]], clock: str, title: str) -> None:
    """``docs/images/NAME.png``: a column for each sweep, seconds above, memory below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from benchmarks.compare.plots import plain_ticks, save_figure

    figure, axes = plt.subplots(
        2, len(sweeps), figsize=(3.4 * len(sweeps), 6), layout="constrained", sharex="col", squeeze=False
    )
    for column, (sweep, points) in enumerate(sweeps.items()):
        values = [getattr(p, VARIED[sweep]) for p in points]
        for axis, what, words in zip(axes[:, column], (clock, "peak_gb"), (clock.replace("_", " "), "peak GB"), strict=True):
            for task, side in CURVES:
                here = [f[f"{task} {side}"].get(what, math.nan) for f in found[sweep]]
                axis.plot(values, here, STYLES[task], color=COLOURS[side], markersize=4, label=_label(task, side))
            axis.set(xscale="log", yscale="log", ylabel="" if column else words)
            axis.grid(alpha=0.3)
            axis.tick_params(labelsize=7)
            plain_ticks(axis, values)
        axes[1, column].set(xlabel=sweep)
    axes[0, 0].legend(fontsize=7)
    figure.suptitle(title)
    save_figure(figure, name)


def _label(task: str, side: str) -> str:
    if task == "training":
        return f"{LABELS[side]}, training step"
    return f"{LABELS[side]}, one pass" if side == "nnunet" else f"{LABELS[side]}, {BASE.samples} samples"


if __name__ == "__main__":
    raise SystemExit(main())
