"""Time and memory of a training step and of a prediction against size, samples, steps and classes, beside nnU-Net's.

    python -m benchmarks.scaling [--planner S|M|L] [--quick] [--limit SECONDS]

Networks are untrained and built from plans made here, without a dataset (:func:`made_plans`): nnU-Net's residual-encoder
U-Net of the planner's width, the patch as large as the image up to a bound, above it images are tiled, the light networks
as the planner chooses them for a latent at stride 4. One quantity varies at a time, from ``BASE``. Every measurement runs
in a process of its own, whose peak memory is taken, on one image without mirroring; on a CPU libraries alone take about
1 GB. Time on a CPU is that of all its cores together, which does not depend on what else the machine does; the JSON file
holds the wall clock's too. What exceeds ``--limit`` seconds or the memory is reported as such. An interrupted run goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.common import RESULTS, report
from nndiffseg.cli.common import Parser, add_device_flag, choose, pick_device, run
from nndiffseg.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to load, so wrong flags are told before
    from benchmarks.compare.processes import Measurements

#: per planner: first and largest number of features (2D, 3D), blocks of the encoder's first stages
WIDTHS = {
    "S": (16, (128, 128), (1, 2, 2, 2, 2, 2, 2)),
    "M": (32, (512, 320), (1, 3, 4, 6, 6, 6, 6)),
    "L": (32, (512, 320), (1, 3, 4, 6, 6, 6, 6)),
}
LARGEST_PATCH = {2: 512, 3: 128}
BATCH = 2
#: stage of the latent: stride 4
LATENT_STAGE = 2


@dataclass(frozen=True)
class Point:
    """One setting: edge length of the image, its axes, samples, sampling steps (None: the planner's), classes."""

    size: int
    axes: int
    samples: int = 16
    steps: int | None = None
    classes: int = 3


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
            "networks": described(sweeps, planner),
            "sweeps": {
                sweep: [{**asdict(p), **f} for p, f in zip(points, found[sweep], strict=True)]
                for sweep, points in sweeps.items()
            },
        },
    )
    draw(name, sweeps, found, clock, f"planner {planner}, {device}")
    kept.path.unlink(missing_ok=True)


# ---- plans ------------------------------------------------------------------------------------------------------------


def made_plans(point: Point, planner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans with one configuration ``made``, and dataset.json, for images of this kind.

    What nnU-Net's planner would measure on a dataset is fixed here: one channel, isotropic spacing, a batch of two, pooling
    by two along all axes down to an edge of 4 to 7 voxels.
    """
    import nndiffseg.planners as planners
    from benchmarks.compare.planning import PLANNERS, PLANS
    from nndiffseg.planning.cost import Architecture
    from nndiffseg.planning.decisions import candidate

    patch = (min(point.size, LARGEST_PATCH[point.axes]),) * point.axes
    first, largest, blocks = WIDTHS[planner]
    depth = min(len(blocks), patch[0].bit_length() - 2)
    two = point.axes == 2
    arch = {
        "n_stages": depth,
        "features_per_stage": [min(first * 2**s, largest[0 if two else 1]) for s in range(depth)],
        "conv_op": f"torch.nn.modules.conv.Conv{point.axes}d",
        "kernel_sizes": [[3] * point.axes] * depth,
        "strides": [[1] * point.axes] + [[2] * point.axes] * (depth - 1),
        "n_blocks_per_stage": list(blocks[:depth]),
        "n_conv_per_stage_decoder": [1] * (depth - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{point.axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    size = getattr(planners, PLANNERS[planner]).size
    channels = 8 if point.classes <= 10 else 16  # more classes need a wider latent
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": arch,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    light = candidate(Architecture(architecture, 1, point.classes, patch), LATENT_STAGE, size, channels)
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "made",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": BATCH,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [point.size] * point.axes,
        "spacing": [1.0] * point.axes,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": two,
        **{f"resampling_fn_{k}": "resample_data_or_seg_to_shape" for k in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{k}_kwargs": {**resampling, "is_seg": k == "seg"} for k in ("data", "seg", "probabilities")},
        "architecture": architecture,
        "diffusion": {"settings": light.settings.to_plan(), "regions": False},
    }
    plans = {
        "dataset_name": "Dataset999_Made",
        "plans_name": PLANS[planner],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "original_median_spacing_after_transp": [1.0] * 3,
        "experiment_planner_used": PLANNERS[planner],
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"made": configuration},
    }
    labels = {"background": 0, **{f"structure {i}": i for i in range(1, point.classes)}}
    return plans, {"channel_names": {"0": "noise"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}


def described(sweeps: dict[str, list[Point]], planner: str) -> dict[str, Any]:
    """Patch, widths and diffusion settings of every network, for the JSON file."""
    networks = {}
    for point in {p for points in sweeps.values() for p in points}:
        configuration = made_plans(point, planner)[0]["configurations"]["made"]
        key = f"{point.axes}D, size {point.size}, {point.classes} classes"
        networks[key] = {
            "patch_size": configuration["patch_size"],
            **{k: configuration["architecture"]["arch_kwargs"][k] for k in ("features_per_stage", "n_blocks_per_stage")},
            "diffusion": configuration["diffusion"]["settings"],
        }
    return dict(sorted(networks.items()))


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
