"""Times nnU-Net and nndiffseg side by side on one configuration: training step, prediction, parts, peak memory.

Used by :mod:`benchmarks.versus_nnunet` (``--speed_only``) and :mod:`benchmarks.scaling`. How it is made fair: both run in
one process on the same tensors with the same plans (so the same image network, patch and batch); every round times all
contestants in turn, so that a slow spell of the machine hits all of them; ratios are medians over rounds of the ratio
within a round. Each side is what its users run: nnU-Net's own ``train_step`` and sliding-window predictor, nndiffseg's
own ``train_step`` and :class:`~nndiffseg.inference.predictor.Predictor`, with fusion, entropy and label maps, which
nnU-Net's time does not include. Stock nnU-Net computes in float32 on a CPU, nndiffseg in bfloat16 where the processor
has it; ``same_precision`` repeats all ratios with nnU-Net put into bfloat16 too.

    python -m benchmarks.speed SPECIFICATION.json    (one task in a process of its own, for peak memory; prints JSON)
"""

from __future__ import annotations

import gc
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIDES = ("nnunet", "nndiffseg")
SAMPLES = (1, 4, 16, 64)


class Rivals:
    """Stock nnU-Net and nndiffseg on one configuration of a plans file, with random weights or trained ones.

    Args:
        plans, configuration, dataset_json: as in nnU-Net's files; the configuration holds diffusion settings.
        device: where both run.
        sides: which of the two to build.
        checkpoints: trained weights by side, as their trainings leave them.
    """

    def __init__(self, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], device: torch.device,
                 sides: Sequence[str] = SIDES, checkpoints: Mapping[str, str | Path] | None = None):
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from nndiffseg.trainers import nnDiffSegTrainer
        from nndiffseg.training.budget import Budget

        classes = {"nnunet": nnUNetTrainer, "nndiffseg": nnDiffSegTrainer}
        self.device, self.trainers = device, {}
        with temporary_folders() as folder, redirect_stdout(io.StringIO()):
            # nnU-Net looks at a file of the preprocessed data to learn their format.
            data = folder / "preprocessed" / plans["dataset_name"] / plans["configurations"][configuration]["data_identifier"]
            data.mkdir(parents=True)
            (data / "case.b2nd").touch()
            for side in sides:
                trainer = classes[side]({**plans, "continue_training": False}, configuration, 0, dataset_json, device)
                trainer.initialize()
                self.trainers[side] = trainer
                if checkpoints and side in checkpoints:
                    trainer.load_checkpoint(str(checkpoints[side]))
        if "nndiffseg" in sides:
            self.trainers["nndiffseg"].budget = Budget(1, 10**6)
        any_trainer = next(iter(self.trainers.values()))
        self.plans, self.configuration = any_trainer.plans_manager, any_trainer.configuration_manager
        self.patch = tuple(int(n) for n in self.configuration.patch_size)
        self.scales = any_trainer._get_deep_supervision_scales()
        self.labels, self.channels = any_trainer.label_manager, any_trainer.num_input_channels

    def batch(self) -> dict[str, Any]:
        """A batch as nnU-Net's loader makes it: noise, with nested shells of all labels."""
        axes = [np.linspace(-1, 1, n) for n in self.patch]
        radius = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")) / len(axes))
        n = len(self.labels.all_labels)
        label = torch.from_numpy(np.minimum((1 - radius) * n, n - 1).clip(0).astype(np.int16))[None]
        if self.labels.has_regions:
            regions = [r if isinstance(r, (list, tuple)) else [r] for r in self.labels.foreground_regions]
            label = torch.cat([torch.isin(label, torch.tensor(list(r), dtype=torch.int16)) for r in regions])
        batch = int(self.configuration.batch_size)
        label = label[None].repeat(batch, 1, *[1] * len(self.patch))
        all_of = (slice(None), slice(None))
        coarse = [(*all_of, *(slice(None, None, round(1 / s)) for s in scale)) for scale in self.scales]
        targets = [label[where].contiguous() for where in coarse]
        image = torch.randn((batch, self.channels, *self.patch), generator=torch.Generator().manual_seed(0))
        return {"data": image, "target": targets}

    def image(self, shape: Sequence[int] | None = None) -> torch.Tensor:
        """A preprocessed image ``(C, *spatial)`` of noise, by default of the dataset's median size.

        One slice for a 2D configuration: what a 2D dataset has, and the least favourable size for nndiffseg, which
        batches slices where nnU-Net does not.
        """
        shape = tuple(round(n) for n in (shape or self.configuration.configuration["median_image_size_in_voxels"]))
        shape = shape[-len(self.patch):]
        shape = (1, *shape) if len(shape) == 2 else shape
        return torch.randn((self.channels, *shape), generator=torch.Generator().manual_seed(0))

    def train_step(self, side: str, batch: dict[str, Any]) -> None:
        """Forward, loss, backward, clipping, optimiser and, with nndiffseg, the average of the weights."""
        trainer = self.trainers[side]
        if side == "nnunet":
            trainer.set_deep_supervision_enabled(True)
        trainer.network.train()
        trainer.train_step(batch)

    def predictor(self, side: str, *, samples: int = 16, steps: int | None = None, mirroring: bool = False
                  ) -> Callable[[torch.Tensor], Any]:
        """A call that predicts one preprocessed image, without resampling and files."""
        trainer = self.trainers[side]
        axes = tuple(range(len(self.patch))) if mirroring else None
        if side == "nnunet":
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

            with redirect_stdout(io.StringIO()):
                predictor = nnUNetPredictor(use_mirroring=mirroring, device=self.device, allow_tqdm=False)
            network = getattr(trainer.network, "_orig_mod", trainer.network)  # nnU-Net does not compile predictions
            predictor.manual_initialization(network, trainer.plans_manager, trainer.configuration_manager, None,
                                            trainer.dataset_json, "nnUNetTrainer", axes)

            def predict(data: torch.Tensor) -> Any:
                trainer.set_deep_supervision_enabled(False)
                return predictor.predict_sliding_window_return_logits(data)

            return predict
        from nndiffseg.inference.predictor import Predictor

        ours = Predictor.from_network(trainer.average.network, trainer.plans_manager, trainer.configuration_name,
                                      trainer.dataset_json, "nnDiffSegTrainer", axes, device=self.device, samples=samples,
                                      steps=steps)
        # One fold and a known fusion weight, as nndiffseg_predict runs.
        return partial(ours.predict_preprocessed, case_id="speed", keep_parts=False)


@contextmanager
def temporary_folders() -> Iterator[Path]:
    """nnU-Net's three folders in a temporary place, the variables restored afterwards."""
    from nndiffseg.folders import configure_folders

    before = {k: v for k, v in os.environ.items() if k.startswith("nnUNet_")}
    with tempfile.TemporaryDirectory() as folder:
        configure_folders(*(Path(folder) / kind for kind in ("raw", "preprocessed", "results")))
        try:
            yield Path(folder)
        finally:
            for name in [k for k in os.environ if k.startswith("nnUNet_") and k not in before]:
                del os.environ[name]
            os.environ.update(before)


# ---- clocks -----------------------------------------------------------------------------------------------------------


def rounds(tasks: Mapping[str, Callable[[], Any]], device: torch.device, count: int = 7, seconds: float = 120.0
           ) -> dict[str, np.ndarray]:
    """Times all tasks in turn, round after round, after one untimed round.

    Args:
        tasks: name -> call.
        device: whose work to wait for.
        count: rounds.
        seconds: no further round starts after this time, but there are at least three.

    Returns:
        Seconds of every task ``(rounds,)``.
    """
    for task in tasks.values():
        task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    started = time.monotonic()
    for i in range(max(count, 3)):
        if i >= 3 and time.monotonic() - started > seconds:
            break
        for name, task in tasks.items():
            _wait(device)
            start = time.perf_counter()
            task()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ratio(a: np.ndarray, b: np.ndarray) -> float:
    """Median over rounds of the ratio within a round."""
    return float(np.median(a / b))


def peak_memory(task: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Peak memory in GB: of the process (on a GPU: of PyTorch's tensors) and above what was there before the task."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        task()
        peak = torch.cuda.max_memory_allocated(device)
    else:
        # Writing 5 makes Linux forget the process's peak so far (man 5 proc).
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        task()
        peak = _status("VmHWM")
    return {"peak_gb": peak / 2**30, "working_gb": (peak - before) / 2**30}


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


# ---- one task in a process of its own ---------------------------------------------------------------------------------


def in_own_process(specification: dict[str, Any], limit: float | None = None) -> dict[str, Any]:
    """Runs :func:`single` in a fresh process.

    Returns:
        Its result, or ``{"failed": reason}`` after ``limit`` seconds or an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "specification.json"
        file.write_text(json.dumps(specification))
        try:
            finished = subprocess.run([sys.executable, "-m", "benchmarks.speed", str(file)], capture_output=True, text=True,
                                      timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return {"failed": f"more than {limit:.0f} s"}
    if finished.returncode == 0:
        return json.loads(finished.stdout.splitlines()[-1])
    if finished.returncode < 0:
        return {"failed": f"killed by signal {-finished.returncode}"}
    return {"failed": (finished.stderr.strip().splitlines() or [f"code {finished.returncode}"])[-1][:200]}


def single(spec: dict[str, Any]) -> dict[str, Any]:
    """Peak memory, and seconds as a median over ``rounds``, of one task of one side.

    Args:
        spec: ``plans``, ``configuration``, ``dataset_json``, ``device``, ``side``, ``task`` (``training`` or
            ``prediction``), ``rounds``, and for predictions ``shape``, ``samples``, ``steps``, ``mirroring``.
    """
    device = torch.device(spec["device"])
    rivals = Rivals(spec["plans"], spec["configuration"], spec["dataset_json"], device, [spec["side"]],
                    spec.get("checkpoints"))
    if spec["task"] == "training":
        task: Callable[[], Any] = partial(rivals.train_step, spec["side"], rivals.batch())
    else:
        predict = rivals.predictor(spec["side"], samples=spec.get("samples", 16), steps=spec.get("steps"),
                                   mirroring=spec.get("mirroring", False))
        task = partial(predict, rivals.image(spec.get("shape")))
    result: dict[str, Any] = peak_memory(task, device)
    if count := spec.get("rounds", 0):
        times = []
        for _ in range(count):
            _wait(device)
            start = time.perf_counter()
            task()
            _wait(device)
            times.append(time.perf_counter() - start)
        result["seconds"] = float(np.median(times))
    return result


# ---- what versus_nnunet reports ---------------------------------------------------------------------------------------


def same_precision(device: torch.device) -> AbstractContextManager:
    """Puts stock nnU-Net into nndiffseg's precision where it would use another: bfloat16 on a CPU that has it."""
    from nndiffseg.inference.precision import default_precision

    if device.type == "cpu" and default_precision(device) == "bfloat16":
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def prediction(rivals: Rivals, data: torch.Tensor, count: int, seconds: float) -> dict[str, Any]:
    """Seconds of every kind of prediction of ``data``, and their ratios to one nnU-Net pass without mirroring."""
    device = rivals.device
    one = partial(rivals.predictor("nnunet"), data)

    def pass_in_our_precision() -> None:
        with same_precision(device):
            one()

    tasks: dict[str, Callable[[], Any]] = {"nnunet": one, "nnunet_same_precision": pass_in_our_precision}
    tasks |= {f"nndiffseg_{n}": partial(rivals.predictor("nndiffseg", samples=n), data) for n in (1, 4, 16)}
    times = rounds(tasks, device, count, seconds)
    slow = {"nnunet": one, "nnunet_mirroring": partial(rivals.predictor("nnunet", mirroring=True), data),
            "nndiffseg_16_mirroring": partial(rivals.predictor("nndiffseg", mirroring=True), data),
            "nndiffseg_64": partial(rivals.predictor("nndiffseg", samples=64), data)}
    slow_times = rounds(slow, device, 3, seconds)

    def against(base: str) -> dict[str, float]:
        return {"prediction_ratio_16": median_ratio(times["nndiffseg_16"], times[base]),
                "sample_ratio": median_ratio((times["nndiffseg_16"] - times["nndiffseg_4"]) / 12, times[base])}

    medians = {name: float(np.median(t)) for name, t in {**slow_times, **times}.items()}
    return {**against("nnunet"), "same_precision": against("nnunet_same_precision"), "seconds": medians,
            "ratios": {name: median_ratio(t, times["nnunet"]) for name, t in times.items()}
            | {name: median_ratio(t, slow_times["nnunet"]) for name, t in slow_times.items()},
            "rounds": {name: [round(v, 5) for v in t] for name, t in times.items()}}


def training(rivals: Rivals, count: int, seconds: float) -> dict[str, Any]:
    """Seconds of a training step of both, and their ratio."""
    batch = rivals.batch()
    stock = partial(rivals.train_step, "nnunet", batch)

    def step_in_our_precision() -> None:
        with same_precision(rivals.device):
            stock()

    times = rounds({"nnunet": stock, "nnunet_same_precision": step_in_our_precision,
                    "nndiffseg": partial(rivals.train_step, "nndiffseg", batch)}, rivals.device, count, seconds)
    return {"training_ratio": median_ratio(times["nndiffseg"], times["nnunet"]),
            "same_precision": {"training_ratio": median_ratio(times["nndiffseg"], times["nnunet_same_precision"])},
            "seconds": {name: float(np.median(t)) for name, t in times.items()},
            "rounds": {name: [round(v, 5) for v in t] for name, t in times.items()}}


@torch.inference_mode()
def parts(rivals: Rivals, count: int, seconds: float, samples: int = 16) -> dict[str, Any]:
    """Measured seconds of image network, denoiser step and label decoder on one patch, beside the planned GFLOP."""
    from nndiffseg.inference.precision import autocast_for
    from nndiffseg.networks.noise import PatchNoise

    device, network = rivals.device, rivals.trainers["nndiffseg"].average.network
    image = rivals.batch()["data"][:1].to(device)
    grid = [n // s for n, s in zip(rivals.patch, network.stride, strict=True)]
    draw = PatchNoise(samples, grid, torch.Generator().manual_seed(0), device)

    def precise(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with autocast_for(device), torch.inference_mode():
                return function()
        return run

    maps = precise(lambda: network.encode(image))()
    latents = precise(lambda: network.sample(maps, draw))().float()
    tasks = {"image_network": precise(lambda: network.image_network(image, False)),
             "encode": precise(lambda: network.encode(image)),
             "sample_1_step": precise(lambda: network.sample(maps, draw, steps=1)),
             "sample_3_steps": precise(lambda: network.sample(maps, draw, steps=3)),
             "label_decoder": precise(lambda: network.decode(latents, maps))}
    times = rounds(tasks, device, count, seconds)
    step = (times["sample_3_steps"] - times["sample_1_step"]) / (2 * samples)
    decode, steps = times["label_decoder"] / samples, network.default_steps
    planned = rivals.configuration.configuration["diffusion"].get("cost", {})
    gflop = {name: planned.get(f"{name}_gflop") for name in ("image_network", "denoiser_step", "label_decoder")}
    measured = {"image_network": times["image_network"], "denoiser_step": step, "label_decoder": decode}
    seconds_each = {name: float(np.median(t)) for name, t in measured.items()}
    return {"seconds": {**seconds_each, "encode": float(np.median(times["encode"]))}, "planned_gflop": gflop,
            "gflop_per_second": {n: g / seconds_each[n] for n, g in gflop.items() if g and seconds_each[n] > 0},
            "samples": samples, "steps": steps,
            "planned_samples_to_image_ratio": planned.get("samples_to_image_ratio"),
            "measured_samples_to_image_ratio": median_ratio(samples * (steps * step + decode), times["image_network"])}


def memory(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], device: torch.device,
           checkpoints: Mapping[str, str] | None, shape: Sequence[int] | None, limit: float) -> dict[str, Any]:
    """Peak memory of every kind of prediction, each in a process of its own."""
    base = {"plans": plans, "configuration": configuration, "dataset_json": dataset_json, "device": device.type,
            "task": "prediction", "shape": list(shape) if shape else None,
            "checkpoints": {k: str(v) for k, v in (checkpoints or {}).items()}}
    kinds: dict[str, dict[str, Any]] = {"nnunet": {"side": "nnunet"}, "nnunet_mirroring": {"side": "nnunet", "mirroring": True}}
    kinds |= {f"nndiffseg_{n}": {"side": "nndiffseg", "samples": n} for n in SAMPLES}
    kinds["nndiffseg_16_mirroring"] = {"side": "nndiffseg", "samples": 16, "mirroring": True}
    found = {}
    for name, kind in kinds.items():
        found[name] = in_own_process({**base, **kind}, limit)
        print(f"  peak memory, {name}: {_gb(found[name])}", flush=True)
    ours, stock = found["nndiffseg_16"], found["nnunet"]
    known = "failed" not in ours and "failed" not in stock
    return {"memory_ratio": ours["peak_gb"] / stock["peak_gb"] if known else None,
            "working_memory_ratio": ours["working_gb"] / stock["working_gb"] if known and stock["working_gb"] > 0 else None,
            "memory": found}


def _gb(found: Mapping[str, Any]) -> str:
    return found["failed"] if "failed" in found else f"{found['peak_gb']:.2f} GB"


def compare(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], device: torch.device, *,
            checkpoints: Mapping[str, str] | None = None, data: torch.Tensor | None = None, count: int = 7,
            seconds: float = 60.0, limit: float = 600.0) -> dict[str, Any]:
    """Everything about time and memory of one configuration.

    Args:
        plans, configuration, dataset_json: as in nnU-Net's files.
        device: where to run.
        checkpoints: trained weights by side; without them the networks are untrained.
        data: preprocessed image ``(C, *spatial)``; None for noise of the dataset's median size.
        count, seconds: see :func:`rounds`; of every group of measurements.
        limit: seconds for one measurement of memory.

    Returns:
        JSON-ready; at its top ``prediction_ratio_16``, ``sample_ratio``, ``training_ratio`` and ``memory_ratio``, all
        over one nnU-Net pass without mirroring (or its training step), each side in the precision that it runs in.
    """
    rivals = Rivals(plans, configuration, dataset_json, device, checkpoints=checkpoints)
    data = rivals.image() if data is None else data
    print(f"Timing predictions of an image of {'x'.join(map(str, data.shape[1:]))} ...", flush=True)
    predicted = prediction(rivals, data, count, seconds)
    print("Timing the parts ...", flush=True)
    measured = parts(rivals, count, seconds)
    print("Timing training steps ...", flush=True)
    trained = training(rivals, count, seconds)
    del rivals
    print("Peak memory of predictions ...", flush=True)
    remembered = memory(plans, configuration, dataset_json, device, checkpoints, data.shape[1:], limit)
    from nndiffseg.inference.precision import default_precision

    top = {"prediction_ratio_16": predicted.pop("prediction_ratio_16"), "sample_ratio": predicted.pop("sample_ratio"),
           "training_ratio": trained.pop("training_ratio"), "memory_ratio": remembered.pop("memory_ratio"),
           "working_memory_ratio": remembered.pop("working_memory_ratio")}
    return {**top, "same_precision": {**predicted.pop("same_precision"), **trained.pop("same_precision")},
            "precision": {"nnunet": "float32" if device.type == "cpu" else "float16", "nndiffseg": default_precision(device)},
            "threads": torch.get_num_threads(), "image": list(data.shape), "prediction": predicted, "training": trained,
            "parts": measured, **remembered}


def table(speed: Mapping[str, Any]) -> list[list[str]]:
    """Rows of :func:`compare` for people: what, seconds, in nnU-Net passes, peak GB."""
    seconds, ratios = speed["prediction"]["seconds"], speed["prediction"]["ratios"]
    names = {"nnunet": "nnU-Net, one pass", "nnunet_same_precision": "nnU-Net, one pass, nndiffseg's precision",
             "nnunet_mirroring": "nnU-Net, mirroring",
             **{f"nndiffseg_{n}": f"nndiffseg, {n} sample{'s' * (n > 1)}" for n in SAMPLES},
             "nndiffseg_16_mirroring": "nndiffseg, 16 samples, mirroring"}
    rows = []
    for name, text in names.items():
        peak = _gb(speed["memory"][name]).removesuffix(" GB") if name in speed["memory"] else ""
        rows.append([f"predict: {text}", f"{seconds[name]:.3f}", f"{ratios[name]:.2f}", peak])
    train = speed["training"]["seconds"]
    for name, text in (("nnunet", "nnU-Net"), ("nnunet_same_precision", "nnU-Net, nndiffseg's precision"),
                       ("nndiffseg", "nndiffseg")):
        rows.append([f"training step: {text}", f"{train[name]:.3f}", f"{train[name] / train['nnunet']:.2f}", ""])
    image = speed["parts"]["seconds"]["image_network"]
    for name in ("image_network", "denoiser_step", "label_decoder"):
        measured, gflop = speed["parts"]["seconds"][name], speed["parts"]["planned_gflop"][name]
        planned = f" ({gflop:.2f} GFLOP planned)" if gflop else ""
        rows.append([f"part: {name.replace('_', ' ')}{planned}", f"{measured:.4f}", f"{measured / image:.4f}", ""])
    return rows


if __name__ == "__main__":
    outcome = single(json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(outcome))
