"""Stock nnU-Net and nndiffseg on one configuration, ready to be timed: tasks, clocks, peak memory.

python -m benchmarks.pair SPECIFICATION.json    (one task in a process of its own, for peak memory; prints JSON)
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
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

SIDES = ("nnunet", "nndiffseg")
#: a task in a process of its own that takes more seconds than this is timed once, its warm-up included
ENOUGH = 30.0


class Pair:
    """Stock nnU-Net and nndiffseg on one configuration of a plans file, with random weights or trained ones.

    Args:
        plans, configuration, dataset_json: as in nnU-Net's files; the configuration holds diffusion settings.
        device: where both run.
        sides: which of the two to build.
        checkpoints: trained weights by side, as their trainings leave them.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        dataset_json: dict[str, Any],
        device: torch.device,
        sides: Sequence[str] = SIDES,
        checkpoints: Mapping[str, str | Path] | None = None,
    ):
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from nndiffseg.trainers import nnDiffSegTrainer
        from nndiffseg.training.budget import Budget

        classes = {"nnunet": nnUNetTrainer, "nndiffseg": nnDiffSegTrainer}
        self.device, self.trainers = device, {}
        with temporary_folders() as folder, redirect_stdout(io.StringIO()):
            # nnU-Net looks at a file of the preprocessed data to learn their format; a fold needs two cases.
            data = folder / "preprocessed" / plans["dataset_name"] / plans["configurations"][configuration]["data_identifier"]
            data.mkdir(parents=True)
            for case in "ab":
                (data / f"{case}.b2nd").touch()
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
        # Of deep supervision: full resolution and every stage of the decoder but the deepest.
        self.scales = (1 / np.cumprod(np.vstack(self.configuration.pool_op_kernel_sizes), axis=0))[:-1]
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
        shape = shape[-len(self.patch) :]
        shape = (1, *shape) if len(shape) == 2 else shape
        return torch.randn((self.channels, *shape), generator=torch.Generator().manual_seed(0))

    def train_step(self, side: str, batch: dict[str, Any]) -> None:
        """Forward, loss, backward, clipping, optimiser and, with nndiffseg, the average of the weights."""
        trainer = self.trainers[side]
        if side == "nnunet":
            trainer.set_deep_supervision_enabled(True)
        trainer.network.train()
        trainer.train_step(batch)

    def predictor(
        self, side: str, *, samples: int = 16, steps: int | None = None, mirroring: bool = False
    ) -> Callable[[torch.Tensor], Any]:
        """A call that predicts one preprocessed image, without resampling and files."""
        trainer = self.trainers[side]
        axes = tuple(range(len(self.patch))) if mirroring else None
        if side == "nnunet":
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

            with redirect_stdout(io.StringIO()):
                predictor = nnUNetPredictor(use_mirroring=mirroring, device=self.device, allow_tqdm=False)
            network = getattr(trainer.network, "_orig_mod", trainer.network)  # nnU-Net does not compile predictions
            predictor.manual_initialization(
                network, trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json, "nnUNetTrainer", axes
            )

            def predict(data: torch.Tensor) -> Any:
                trainer.set_deep_supervision_enabled(False)
                return predictor.predict_sliding_window_return_logits(data)

            return predict
        from nndiffseg.inference.predictor import Predictor

        ours = Predictor.from_network(
            trainer.method,
            trainer.average.network,
            trainer.plans_manager,
            trainer.configuration_name,
            trainer.dataset_json,
            "nnDiffSegTrainer",
            axes,
            device=self.device,
            samples=samples,
            steps=steps,
        )
        # One fold and a known fusion weight, as nndiffseg_predict runs.
        return partial(ours.predict_preprocessed, case_id="speed")


@contextmanager
def temporary_folders() -> Iterator[Path]:
    """nnU-Net's three folders in a temporary place, the variables restored afterwards."""
    from nndiffseg.data.folders import configure_folders

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


class Times(NamedTuple):
    """Seconds of every task ``(rounds,)``: by the clock on the wall, and of this process's threads together.

    The second kind is spared what other programs do to the machine; of a task on a GPU it says nothing.
    """

    wall: dict[str, np.ndarray]
    processor: dict[str, np.ndarray]


def rounds(
    tasks: Mapping[str, Callable[[], Any]],
    device: torch.device,
    count: int = 7,
    seconds: float = 120.0,
    *,
    warm_up: bool = True,
) -> Times:
    """Times all tasks in turn, round after round.

    Args:
        tasks: name -> call.
        device: whose work to wait for.
        count: rounds.
        seconds: no further round starts after this time, but there are at least three.
        warm_up: begin with an untimed round.
    """
    for task in tasks.values() if warm_up else ():
        task()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    started = time.monotonic()
    for i in range(max(count, 3)):
        if i >= 3 and time.monotonic() - started > seconds:
            break
        for name, task in tasks.items():
            wait(device)
            wall, processor = time.perf_counter(), time.process_time()
            task()
            wait(device)
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    arrays = {name: np.array(values).T for name, values in times.items()}
    return Times({n: a[0] for n, a in arrays.items()}, {n: a[1] for n, a in arrays.items()})


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    return {"peak_gb": peak / 2**30, "working_gb": max(0, peak - before) / 2**30}


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
            finished = subprocess.run(
                [sys.executable, "-m", "benchmarks.pair", str(file)],
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"more than {limit:g} s"}
    if finished.returncode == 0:
        return json.loads(finished.stdout.splitlines()[-1])
    if finished.returncode < 0:
        return {"failed": f"killed by signal {-finished.returncode}"}
    return {"failed": (finished.stderr.strip().splitlines() or [f"code {finished.returncode}"])[-1][:200]}


def single(spec: dict[str, Any]) -> dict[str, Any]:
    """Peak memory, seconds and processor seconds (medians over ``rounds``) of one task of one side.

    Args:
        spec: ``plans``, ``configuration``, ``dataset_json``, ``device``, ``side``, ``task`` (``training`` or
            ``prediction``), ``rounds``, and for predictions ``shape``, ``samples``, ``steps``, ``mirroring``.
    """
    device = torch.device(spec["device"])
    pair = Pair(spec["plans"], spec["configuration"], spec["dataset_json"], device, [spec["side"]], spec.get("checkpoints"))
    if spec["task"] == "training":
        task: Callable[[], Any] = partial(pair.train_step, spec["side"], pair.batch())
    else:
        predict = pair.predictor(
            spec["side"], samples=spec.get("samples", 16), steps=spec.get("steps"), mirroring=spec.get("mirroring", False)
        )
        task = partial(predict, pair.image(spec.get("shape")))
    started, by_processor = time.perf_counter(), time.process_time()
    result: dict[str, Any] = peak_memory(task, device)
    wall, processor = time.perf_counter() - started, time.process_time() - by_processor
    if wall <= ENOUGH and spec.get("rounds", 0):
        times = rounds({"task": task}, device, spec["rounds"], warm_up=False)
        wall, processor = float(np.median(times.wall["task"])), float(np.median(times.processor["task"]))
    return {**result, "seconds": wall, "processor_seconds": processor}


if __name__ == "__main__":
    outcome = single(json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(outcome))
