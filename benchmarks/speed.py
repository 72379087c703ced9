"""Times nnU-Net and nndiffseg side by side on one configuration: training step, prediction, parts, peak memory.

    python -m benchmarks.speed --dataset 4 --configuration 3d_fullres --planner S

Needs plans, or raw data to make them from, and no training. How it is made fair: both run in one process on the same tensors
with the same plans (so the same image network, patch and batch); every round times all tasks in turn, so that a slow spell of
the machine hits all of them; ratios are medians over rounds of the ratio within a round. Each side is what its users run:
nnU-Net's own ``train_step`` and sliding-window predictor, nndiffseg's own ``train_step`` and
:class:`~nndiffseg.inference.predictor.Predictor`, with fusion, entropy and label maps, which nnU-Net's time does not include.
Stock nnU-Net computes in float32 on a CPU, nndiffseg in bfloat16 where the processor has it; ``same_precision`` repeats all
ratios with nnU-Net put into bfloat16 too. On a busy machine ``processor_time``, the same ratios of the seconds that
processors spent on each side, says more than the wall clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.common import report
from benchmarks.compare.flags import add_result_flags
from benchmarks.compare.planning import PLANNERS, dataset_name, planned
from benchmarks.pair import Pair, Times, in_own_process, rounds
from nndiffseg.cli.common import Parser, add_device_flag, add_folder_flags, choose, folders_from, pick_device, run
from nndiffseg.uncertainty.evaluation_table import number

SAMPLES = (1, 4, 16, 64)


def median_ratio(a: np.ndarray, b: np.ndarray) -> float:
    """Median over rounds of the ratio within a round."""
    return float(np.median(a / b))


def _other_precision(device: torch.device, stock: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """The same task of stock nnU-Net in nndiffseg's precision, where it would use another: on a CPU with bfloat16.

    On a GPU both compute in 16 bits.
    """
    from nndiffseg.nn.precision import default_precision

    def task() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            stock()

    return {"nnunet_same_precision": task} if device.type == "cpu" and default_precision(device) == "bfloat16" else {}


def prediction(pair: Pair, data: torch.Tensor, count: int, seconds: float) -> dict[str, Any]:
    """Seconds of every kind of prediction of ``data``, and their ratios to one nnU-Net pass without mirroring."""
    device = pair.device
    one = partial(pair.predictor("nnunet"), data)
    tasks: dict[str, Callable[[], Any]] = {"nnunet": one, **_other_precision(device, one)}
    tasks |= {f"nndiffseg_{n}": partial(pair.predictor("nndiffseg", samples=n), data) for n in (1, 4, 16)}
    times = rounds(tasks, device, count, seconds)
    slow = {
        "nnunet": one,
        "nndiffseg_64": partial(pair.predictor("nndiffseg", samples=64), data),
        "nnunet_mirroring": partial(pair.predictor("nnunet", mirroring=True), data),
        "nndiffseg_16_mirroring": partial(pair.predictor("nndiffseg", mirroring=True), data),
    }
    slow_times = rounds(slow, device, 3, seconds).wall
    ratios = {name: median_ratio(t, slow_times["nnunet"]) for name, t in slow_times.items()}

    def against(base: str, clock: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {
            "prediction_ratio_16": median_ratio(clock["nndiffseg_16"], clock[base]),
            "sample_ratio": median_ratio((clock["nndiffseg_16"] - clock["nndiffseg_4"]) / 12, clock[base]),
        }

    ratios |= {name: median_ratio(t, times.wall["nnunet"]) for name, t in times.wall.items()}
    return {
        **_three_kinds(against, times),
        "ratios": ratios,
        "seconds": {name: float(np.median(t)) for name, t in {**slow_times, **times.wall}.items()},
    }


def training(pair: Pair, count: int, seconds: float) -> dict[str, Any]:
    """Seconds of a training step of both, and their ratio."""
    batch = pair.batch()
    stock = partial(pair.train_step, "nnunet", batch)
    times = rounds(
        {
            "nnunet": stock,
            **_other_precision(pair.device, stock),
            "nndiffseg": partial(pair.train_step, "nndiffseg", batch),
        },
        pair.device,
        count,
        seconds,
    )

    def against(base: str, clock: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"training_ratio": median_ratio(clock["nndiffseg"], clock[base])}

    return {
        **_three_kinds(against, times),
        "seconds": {name: float(np.median(t)) for name, t in times.wall.items()},
    }


def _three_kinds(against: Callable[[str, Mapping[str, np.ndarray]], dict[str, float]], times: Times) -> dict[str, Any]:
    """Ratios to stock nnU-Net on the wall clock, to nnU-Net in nndiffseg's precision, and of processor time (CPU only)."""
    same = "nnunet_same_precision" if "nnunet_same_precision" in times.wall else "nnunet"
    by_processor = against("nnunet", times.processor) if min(map(np.min, times.processor.values())) > 0 else {}
    return {**against("nnunet", times.wall), "same_precision": against(same, times.wall), "processor_time": by_processor}


@torch.inference_mode()
def parts(pair: Pair, count: int, seconds: float, samples: int = 16) -> dict[str, Any]:
    """Measured seconds of image network, denoiser step and label decoder on one patch, beside the planned GFLOP."""
    times = rounds(_part_tasks(pair, samples), pair.device, count, seconds).wall
    step = (times["sample_3_steps"] - times["sample_1_step"]) / (2 * samples)
    decode, steps = times["label_decoder"] / samples, pair.trainers["nndiffseg"].average.network.default_steps
    planned = pair.configuration.configuration["diffusion"].get("cost", {})
    gflop = {name: planned.get(f"{name}_gflop") for name in ("image_network", "denoiser_step", "label_decoder")}
    measured = {"image_network": times["image_network"], "denoiser_step": step, "label_decoder": decode}
    seconds_each = {name: float(np.median(t)) for name, t in measured.items()}
    return {
        "seconds": {**seconds_each, "encode": float(np.median(times["encode"]))},
        "planned_gflop": gflop,
        "gflop_per_second": {n: g / seconds_each[n] for n, g in gflop.items() if g and seconds_each[n] > 0},
        "samples": samples,
        "steps": steps,
        "planned_samples_to_image_ratio": planned.get("samples_to_image_ratio"),
        "measured_samples_to_image_ratio": median_ratio(samples * (steps * step + decode), times["image_network"]),
    }


def _part_tasks(pair: Pair, samples: int) -> dict[str, Callable[[], Any]]:
    """Calls of nndiffseg's parts on one patch, in the precision that it predicts in."""
    from nndiffseg.diffusion.noise.source import patch_noise
    from nndiffseg.inference.volume_sampler import CPU_BATCH_BYTES, FLOATS_PER_VOXEL
    from nndiffseg.nn.precision import autocast_for

    device, network = pair.device, pair.trainers["nndiffseg"].average.network
    image = pair.batch()["data"][:1].to(device)
    grid = [n // s for n, s in zip(pair.patch, network.stride, strict=True)]
    draw = patch_noise(0, 1, range(samples), grid, device)

    def precise(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with autocast_for(device), torch.inference_mode():
                return function()

        return run

    maps = precise(lambda: network.encode(image))()
    latents = precise(lambda: network.sample(maps, draw))().float()
    # In the predictor's batches: on a CPU larger ones are slower.
    batch = samples if device.type != "cpu" else max(1, CPU_BATCH_BYTES // (4 * FLOATS_PER_VOXEL * math.prod(pair.patch)))
    return {
        "image_network": precise(lambda: network.image_network(image, False)),
        "encode": precise(lambda: network.encode(image)),
        "sample_1_step": precise(lambda: network.sample(maps, draw, steps=1)),
        "sample_3_steps": precise(lambda: network.sample(maps, draw, steps=3)),
        "label_decoder": precise(lambda: [network.decode(part, maps) for part in latents.split(batch)][-1]),
    }


def memory(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    device: torch.device,
    checkpoints: Mapping[str, str] | None,
    shape: Sequence[int] | None,
    limit: float,
) -> dict[str, Any]:
    """Peak memory of every kind of prediction, each in a process of its own."""
    base = {
        "plans": plans,
        "configuration": configuration,
        "dataset_json": dataset_json,
        "device": device.type,
        "task": "prediction",
        "shape": list(shape) if shape else None,
        "checkpoints": {k: str(v) for k, v in (checkpoints or {}).items()},
    }
    kinds: dict[str, dict[str, Any]] = {"nnunet": {"side": "nnunet"}, "nnunet_mirroring": {"side": "nnunet", "mirroring": True}}
    kinds |= {f"nndiffseg_{n}": {"side": "nndiffseg", "samples": n} for n in SAMPLES}
    kinds["nndiffseg_16_mirroring"] = {"side": "nndiffseg", "samples": 16, "mirroring": True}
    found = {}
    for name, kind in kinds.items():
        found[name] = in_own_process({**base, **kind}, limit)
        print(f"  peak memory, {name}: {gigabytes(found[name])}", flush=True)
    ours, stock = found["nndiffseg_16"], found["nnunet"]
    known = "failed" not in ours and "failed" not in stock
    return {
        "memory_ratio": ours["peak_gb"] / stock["peak_gb"] if known else None,
        "working_memory_ratio": ours["working_gb"] / stock["working_gb"] if known and stock["working_gb"] > 0 else None,
        "memory": found,
    }


def gigabytes(found: Mapping[str, Any]) -> str:
    """Peak memory of one measurement, or why there is none."""
    return found["failed"] if "failed" in found else f"{found['peak_gb']:.2f} GB"


def compare(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    device: torch.device,
    *,
    checkpoints: Mapping[str, str] | None = None,
    data: torch.Tensor | None = None,
    count: int = 7,
    seconds: float = 60.0,
    limit: float = 600.0,
) -> dict[str, Any]:
    """Everything about time and memory of one configuration.

    Args:
        plans, configuration, dataset_json, device: see :class:`benchmarks.pair.Pair`.
        checkpoints: trained weights by side; without them the networks are untrained.
        data: preprocessed image ``(C, *spatial)``; None for noise of the dataset's median size.
        count, seconds, limit: of :func:`rounds`, for every group of measurements, and of one measurement of memory.

    Returns:
        JSON-ready; at its top ratios to one nnU-Net pass without mirroring or its training step, in each side's precision.
    """
    pair = Pair(plans, configuration, dataset_json, device, checkpoints=checkpoints)
    data = pair.image() if data is None else data
    print(f"Timing an image of {list(data.shape)} ...", flush=True)
    predicted = prediction(pair, data, count, seconds)
    measured, trained = parts(pair, count, seconds), training(pair, count, seconds)
    del pair
    remembered = memory(plans, configuration, dataset_json, device, checkpoints, data.shape[1:], limit)
    return {
        **_ratios(predicted, trained, remembered),
        "precision": _precisions(device),
        "threads": torch.get_num_threads(),
        "image": list(data.shape),
        "prediction": predicted,
        "training": trained,
        "parts": measured,
        **remembered,
    }


def _ratios(predicted: dict[str, Any], trained: dict[str, Any], remembered: dict[str, Any]) -> dict[str, Any]:
    """Takes the ratios out of the measurements."""
    return {
        **{k: predicted.pop(k) for k in ("prediction_ratio_16", "sample_ratio")},
        "training_ratio": trained.pop("training_ratio"),
        **{k: remembered.pop(k) for k in ("memory_ratio", "working_memory_ratio")},
        **{kind: {**predicted.pop(kind), **trained.pop(kind)} for kind in ("same_precision", "processor_time")},
    }


def _precisions(device: torch.device) -> dict[str, str]:
    from nndiffseg.nn.precision import default_precision

    return {"nnunet": "float32" if device.type == "cpu" else "float16", "nndiffseg": default_precision(device)}


# ---- the command ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser("Times nnU-Net and nndiffseg side by side on one configuration.", prog="python -m benchmarks.speed")
    parser.add_argument("--dataset", required=True, help="id or name, such as 4 or Dataset004_Hippocampus")
    parser.add_argument("--configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument("--planner", default="M", metavar="S|M|L", help="size of the plans (default: %(default)s)")
    add_folder_flags(parser)
    add_result_flags(parser, per_case=False)
    add_device_flag(parser)
    args = parser.parse_args(argv)
    choose("planner", args.planner, list(PLANNERS))
    folders = folders_from(args)
    dataset = dataset_name(folders, args.dataset)
    plans, dataset_json = planned(folders, dataset, args.planner, args.configuration)
    device = pick_device(args.device)
    from benchmarks import speed_table

    result = compare(plans, args.configuration, dataset_json, device)
    chosen = plans["configurations"][args.configuration]
    setup = {"dataset": dataset, "configuration": args.configuration, "planner": args.planner}
    sizes = {name: chosen[name] for name in ("patch_size", "batch_size")}
    report(
        args.name or f"speed_{dataset}_{args.configuration}_{args.planner}_{device.type}",
        speed_table.table(result),
        [f"{dataset}, {args.configuration}, planner {args.planner}, {device.type}", "seconds", "in nnU-Net's", "peak GB"],
        {**setup, **sizes, **result},
    )
    for key in ("prediction_ratio_16", "sample_ratio", "training_ratio", "memory_ratio"):
        words = {"same_precision": "with nnU-Net in the same precision", "processor_time": "in processor time"}
        more = [f"{text} {result[kind][key]:.3f}" for kind, text in words.items() if key in result[kind]]
        print(f"{key}: {number(result[key])}" + (f" ({', '.join(more)})" if more else ""))


if __name__ == "__main__":
    raise SystemExit(main())
