"""The planner's compute budget against the clock: what 16 samples cost in passes of the image network.

    python -m benchmarks.planner_budget [--datasets 4 110 ...] [--planners S M] [--device cpu]

Networks are untrained. For every configuration: the measured ratio, the ratio that operations alone promise, and the one
of the planner's own measure (:attr:`nndiffseg.planning.cost.Cost.time`). A second table says how well a number of
operations per element of memory traffic explains the parts (denoiser step, label decoder, relative to the image network).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.common import report
from benchmarks.compare.planning import PLANNERS, PLANS, dataset_name, planned
from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, choose, folders_from, pick_device, run
from nndiffseg.uncertainty.evaluation_table import number

PARTS = ("denoiser_step", "label_decoder")
TRIED = (0, 100, 200, 300, 500, 1000, 2000)


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser(__doc__.splitlines()[0], prog="python -m benchmarks.planner_budget")
    parser.add_argument("--datasets", nargs="+", default=["4"], help="default: %(default)s")
    parser.add_argument("--planners", nargs="+", default=["S", "M"], metavar="S|M|L", help="default: %(default)s")
    add_device_flag(parser)
    add_folder_flags(parser)
    args = parser.parse_args(argv)
    for planner in args.planners:
        choose("planner", planner, list(PLANNERS))
    rows = [row for dataset in args.datasets for row in measured(args, dataset)]
    fits = {k: fit(rows, k) for k in TRIED}
    ratios = ("measured", "operations", "time")
    table = [[r["dataset"], r["planner"], r["configuration"], *(number(r[k], 2) for k in ratios)] for r in rows]
    columns = ["planner", "configuration", "measured", "by operations", "by the planner's measure"]
    report(
        "planner_budget",
        table,
        ["16 samples in passes of the image network", *columns],
        {"device": args.device, "rows": rows, "rms_log_error_by_operations_per_element": fits},
    )
    print("operations per element: root mean square of the log error of the parts")
    for k, error in fits.items():
        print(f"{k:>6} {error:.2f}")


def measured(args: argparse.Namespace, name: str) -> Iterator[dict[str, Any]]:
    """Rows of one dataset: every planner and configuration."""
    folders = folders_from(args)
    dataset, device = dataset_name(folders, name), pick_device(args.device)
    for planner in args.planners:
        plans, dataset_json = planned(folders, dataset, planner, None)
        for configuration in (c for c, p in plans["configurations"].items() if "diffusion" in p):
            print(f"{dataset}, {PLANS[planner]}, {configuration} ...", flush=True)
            found = measure(plans, configuration, dataset_json, device)
            yield {"dataset": dataset, "planner": planner, "configuration": configuration, **found}


def measure(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], device: Any) -> dict[str, Any]:
    """Seconds, operations and elements of each part on one patch, and the three ratios."""
    from benchmarks.pair import Pair
    from benchmarks.speed import parts
    from nndiffseg.planning.cost import Architecture

    pair = Pair(plans, configuration, dataset_json, device, sides=("nndiffseg",))
    settings = pair.trainers["nndiffseg"].method.plan.settings
    heads = pair.labels.num_segmentation_heads
    architecture = Architecture.of(pair.configuration.configuration, pair.channels, heads)
    image, light = architecture.image, architecture.light(settings)
    costs = {"image_network": image, "denoiser_step": light.denoise, "label_decoder": light.decode}
    measured = parts(pair, 9, 60.0)
    sample = light.sample(settings.steps)
    return {
        "measured": measured["measured_samples_to_image_ratio"],
        "operations": 16 * sample.flops / image.flops,
        "time": 16 * sample.time / image.time,
        "seconds": measured["seconds"],
        "steps": settings.steps,
        "parts": {name: {"gflop": c.flops / 1e9, "million_elements": c.elements / 1e6} for name, c in costs.items()},
    }


def fit(rows: Sequence[dict[str, Any]], operations_per_element: float) -> float:
    """Root mean square, over configurations and parts, of the log of predicted over measured share of an image pass."""

    def time(part: dict[str, float]) -> float:
        return part["gflop"] * 1e9 + operations_per_element * part["million_elements"] * 1e6

    errors = [
        math.log(time(r["parts"][p]) / time(r["parts"]["image_network"]) / (r["seconds"][p] / r["seconds"]["image_network"]))
        for r in rows
        for p in PARTS
    ]
    return math.sqrt(sum(e * e for e in errors) / len(errors))


if __name__ == "__main__":
    raise SystemExit(main())
