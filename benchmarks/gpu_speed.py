"""Seconds and memory of a training step and of a prediction of one planner, beside nnU-Net, in one process.

    python -m benchmarks.gpu_speed --planner M --axes 3 --size 128 --output FILE.json [--device cuda]

The short form of :mod:`benchmarks.scaling` for :file:`benchmarks/gpu.sh`: one size, no table. What fails is reported as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nndiffseg.cli.common import Parser, add_device_flag, choose, pick_device, run


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser("Time and memory of one planner beside nnU-Net.", prog="python -m benchmarks.gpu_speed")
    parser.add_argument("--planner", required=True, metavar="S|M|L")
    parser.add_argument("--axes", type=int, choices=(2, 3), required=True)
    parser.add_argument("--size", type=int, required=True, help="edge of the image, in voxels")
    parser.add_argument("--samples", type=int, default=16, help="of a prediction (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON")
    add_device_flag(parser)
    args = parser.parse_args(argv)
    from benchmarks.common import hardware
    from benchmarks.made_plans import WIDTHS, Point
    from nndiffseg.data.files import write_json

    choose("planner", args.planner, list(WIDTHS))
    point = Point(args.size, args.axes, args.samples)
    found = measure(point, args.planner, pick_device(args.device).type)
    settings = {"planner": args.planner, "axes": args.axes, "size": args.size, "samples": args.samples}
    write_json({**settings, "hardware": hardware(), **found}, args.output)
    for name, value in found.items():
        print(f"{args.planner} {args.axes}D {name}: {value}")


def measure(point: Any, planner: str, device: str) -> dict[str, Any]:
    """``training nnunet`` and so on -> seconds and GB, or why there are none; with the ratios of nndiffseg to nnU-Net."""
    from benchmarks.made_plans import made_plans
    from benchmarks.pair import single

    plans, dataset_json = made_plans(point, planner)
    found: dict[str, Any] = {}
    for task in ("training", "prediction"):
        for side in ("nnunet", "nndiffseg"):
            specification = {"plans": plans, "configuration": "made", "dataset_json": dataset_json, "device": device}
            specification |= {"side": side, "task": task, "rounds": 5, "samples": point.samples}
            try:
                found[f"{task} {side}"] = {k: round(v, 5) for k, v in single(specification).items()}
            except RuntimeError as error:  # out of memory, most of all; the other measurements go on
                found[f"{task} {side}"] = {"failed": str(error).splitlines()[0][:200]}
        pair = [found[f"{task} {side}"].get("seconds") for side in ("nndiffseg", "nnunet")]
        found[f"{task} ratio"] = round(pair[0] / pair[1], 3) if all(pair) else None
    return found


if __name__ == "__main__":
    raise SystemExit(main())
