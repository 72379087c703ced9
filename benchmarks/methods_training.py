"""Trains one trainer, nnU-Net's own or one of nndiffseg's, for a number of iterations or minutes; goes on where it stopped.

    python -m benchmarks.methods_training --dataset 4 --configuration 2d --trainer nnDiffSegTrainerLDSeg --iterations 1000

All trainers see the same batches: those of nnU-Net's loader and augmentation as a function of seed and iteration
(:mod:`nndiffseg.training.loader`). nnU-Net's own trainer keeps its network, loss, optimiser and step; its polynomial
decay of the learning rate runs over exactly the iterations (or minutes) given.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.methods_common import (
    STOCK,
    Budget,
    add_budget_flags,
    budget_from,
    clock_of,
    data_parser,
    find_class,
    stop_cleanly_on_terminate,
)
from benchmarks.methods_data import Data, data_from
from nndiffseg.cli.common import pick_device, run
from nndiffseg.data.files import write_json
from nndiffseg.errors import UserError
from nndiffseg.nn.precision import autocast_for
from nndiffseg.training.loader import batches_from, seed_of

FINAL, LATEST, BEST = "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"
#: what a training was asked for and what it took, in the fold's folder
RECORD = "benchmark_training.json"
CHECKPOINT_SECONDS = 120.0
#: optimiser steps that are timed once the training is over
TIMED_STEPS = 10


def finished_training(folder: Path) -> dict[str, Any] | None:
    """Record of a finished training: ``iterations``, ``minutes_asked``, ``seconds``, ``seed``; None if there is none.

    A model that ``nndiffseg_train`` trained counts; its checkpoint knows iterations and seconds.
    """
    if not (folder / FINAL).is_file():
        return None
    if (folder / RECORD).is_file():
        record = json.loads((folder / RECORD).read_text())
        return record if record["finished"] else None
    # nnU-Net's checkpoints hold numpy scalars, which weights_only refuses; the folder is the user's own.
    checkpoint = torch.load(folder / FINAL, map_location="cpu", weights_only=False)
    iterations = checkpoint.get("iteration", 250 * checkpoint["current_epoch"])
    return {
        "iterations": iterations,
        "minutes_asked": None,
        "seconds": checkpoint.get("seconds"),
        "seed": checkpoint.get("seed"),
        "finished": True,
        "seconds_per_iteration": None,
    }


def check_record(record: dict[str, Any], budget: Budget, seed: int, folder: Path) -> None:
    """Raises UserError where a training in the folder was made with another budget or seed than is asked for now."""
    asked = Budget(None if record["minutes_asked"] else record["iterations"], record["minutes_asked"])
    # A model of `nndiffseg_train --minutes` does not say what it was asked for; its seconds are near enough.
    same = asked == budget or (
        budget.minutes is not None
        and record["minutes_asked"] is None
        and abs((record["seconds"] or 0) / 60 - budget.minutes) < 0.1 * budget.minutes
    )
    if budget.given and not same:
        raise UserError(
            f"{folder} holds a training of {asked}, not {budget}; ask for the same or choose another folder with --results."
        )
    if record["seed"] not in (None, seed):
        raise UserError(f"{folder} holds a training with the seed {record['seed']}; use it or choose another --results.")


def train(
    data: Data, trainer: str, budget: Budget, device: torch.device, seed: int, *, bfloat16: bool = False
) -> dict[str, Any]:
    """Trains unless that is done already; returns the record, see :func:`finished_training`.

    Args:
        bfloat16: puts nnU-Net's own trainer into nndiffseg's precision, which differs on a CPU only.

    Raises:
        UserError: the folder holds another training, or none and no budget is given.
    """
    cls = find_class(trainer)
    folder = data.fold_folder(cls.__name__)
    if (record := finished_training(folder)) is not None:
        check_record(record, budget, seed, folder)
        return record
    if not budget.given:
        raise UserError(f"There is no finished training of {cls.__name__} in {folder}; give --iterations or --minutes.")
    if (folder / RECORD).is_file():
        check_record(json.loads((folder / RECORD).read_text()), budget, seed, folder)
    record = {
        "iterations": budget.iterations,
        "minutes_asked": budget.minutes,
        "seed": seed,
        "seconds": 0.0,
        "finished": False,
        "seconds_per_iteration": None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RECORD).is_file():
        write_json(record, folder / RECORD)
    made = _make(data, cls, device, resume=_newest(folder) is not None)
    done = _train_stock(made, budget, seed, bfloat16) if trainer == STOCK else _train_diffusion(made, budget, seed)
    record |= done | {"finished": True}
    write_json(record, folder / RECORD)
    return record


def _make(data: Data, cls: Any, device: torch.device, *, resume: bool) -> Any:
    plans = {**json.loads(json.dumps(data.plans)), "continue_training": resume}
    return cls(plans, data.configuration, data.fold, data.dataset_json, device)


def _newest(folder: Path) -> Path | None:
    """The checkpoint to go on from."""
    files = [f for f in (folder / LATEST, folder / BEST) if f.is_file()]
    return max(files, key=lambda f: f.stat().st_mtime, default=None)


def epochs_of(iterations: int, longest: int = 250) -> tuple[int, int]:
    """Epochs and iterations per epoch, whose product is exactly ``iterations``: at least ``longest`` each, if possible."""
    most = max(1, iterations // longest)
    epochs = max(n for n in range(1, most + 1) if iterations % n == 0)
    return epochs, iterations // epochs


def _train_diffusion(trainer: Any, budget: Budget, seed: int) -> dict[str, Any]:
    trainer.seed, trainer.minutes = seed, budget.minutes
    trainer.bound_by_time_only = budget.minutes is not None
    if budget.iterations is not None:
        trainer.num_epochs, trainer.num_iterations_per_epoch = epochs_of(budget.iterations)
    trainer.show_progress = os.isatty(2)
    if (checkpoint := _newest(Path(trainer.output_folder))) is not None:
        trainer.load_checkpoint(str(checkpoint))
        trainer.print_to_log_file(f"Continuing from {checkpoint.name} at iteration {trainer.iteration}.")
    trainer.run_training()
    timed = step_seconds(trainer, next(trainer.validation_batches()))
    return {"iterations": trainer.iteration, "seconds": trainer.budget.seconds, "seconds_per_iteration": timed}


# ---- nnU-Net's own trainer ----------------------------------------------------------------------------------------


def _train_stock(trainer: Any, budget: Budget, seed: int, bfloat16: bool) -> dict[str, Any]:
    folder = Path(trainer.output_folder)
    torch.manual_seed(seed_of(seed, trainer.fold, "weights"))
    trainer.initialize()
    if bfloat16 and trainer.device.type == "cpu":
        _put_into_bfloat16(trainer.network)
    iteration, spent = 0, 0.0
    if (checkpoint := _newest(folder)) is not None:
        trainer.load_checkpoint(str(checkpoint))
        iteration = trainer.current_epoch  # one "epoch" of the checkpoint is one iteration here
        spent = json.loads((folder / RECORD).read_text())["seconds"]
        trainer.print_to_log_file(f"Continuing from {checkpoint.name} at iteration {iteration}.")
    with _without_worker_processes():
        trainer.on_train_start()
    loader, val_loader = trainer.dataloader_train.data_loader, trainer.dataloader_val.data_loader
    batches = batches_from(loader, seed_of("train", seed, trainer.fold, 0), iteration, *_workers(trainer.device))
    clock = _Clock(spent)
    losses: list[float] = []
    saved = shown = time.monotonic()
    while (progress := _progress(budget, iteration, clock.seconds)) < 1:
        for group in trainer.optimizer.param_groups:  # PolyLRScheduler of nnU-Net, step by step
            group["lr"] = trainer.initial_lr * (1 - progress) ** 0.9
        trainer.network.train()
        losses.append(float(trainer.train_step(next(batches))["loss"]))
        iteration += 1
        if not np.isfinite(losses[-1]):
            raise RuntimeError(f"The loss is not finite at iteration {iteration}.")
        if time.monotonic() - shown > 30 or iteration in (1, budget.iterations):
            trainer.print_to_log_file(f"iteration {iteration}, loss {np.mean(losses):.4f}, {100 * progress:.0f} % done")
            losses, shown = [], time.monotonic()
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            _save_stock(trainer, iteration, folder / LATEST, clock.seconds)
            saved = time.monotonic()
    seconds = clock.seconds
    _save_stock(trainer, iteration, folder / FINAL, seconds)
    (folder / LATEST).unlink(missing_ok=True)
    timed = step_seconds(trainer, next(batches_from(val_loader, 0, 0, 0, False)))
    return {"iterations": iteration, "seconds": seconds, "seconds_per_iteration": timed}


def _put_into_bfloat16(network: torch.nn.Module) -> None:
    """The network under autocast, as nnU-Net trains on a GPU; the loss stays in float32, as it does there."""
    forward = network.forward

    def under_autocast(x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        with autocast_for(x.device):
            logits = forward(x)
        return [y.float() for y in logits] if isinstance(logits, (list, tuple)) else logits.float()

    network.forward = under_autocast


class _Clock:
    """Seconds of training, earlier sessions included."""

    def __init__(self, spent: float):
        self.spent, self.started = spent, time.monotonic()

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started


def _progress(budget: Budget, iteration: int, seconds: float) -> float:
    """Fraction of the training done; 1 at its end."""
    if budget.iterations is not None:
        return iteration / budget.iterations
    assert budget.minutes is not None
    return min(1.0, seconds / (60 * budget.minutes))


def _workers(device: torch.device) -> tuple[int, bool]:
    """Worker processes of the loader and whether to pin memory, as :class:`~nndiffseg.training.trainer` chooses them."""
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    workers = get_allowed_n_proc_DA()
    return (min(workers, 1) if device.type == "cpu" else workers), device.type == "cuda"


@contextmanager
def _without_worker_processes() -> Iterator[None]:
    """nnU-Net builds its loaders without starting processes; :func:`batches_from` starts its own."""
    before = os.environ.get("nnUNet_n_proc_DA")
    os.environ["nnUNet_n_proc_DA"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["nnUNet_n_proc_DA"]
        else:
            os.environ["nnUNet_n_proc_DA"] = before


def _save_stock(trainer: Any, iteration: int, path: Path, seconds: float) -> None:
    """nnU-Net's checkpoint, whole or not at all."""
    trainer.current_epoch = iteration - 1  # nnU-Net writes the number plus one
    temporary = path.with_suffix(".partial")
    trainer.save_checkpoint(str(temporary))
    record = json.loads((path.parent / RECORD).read_text())
    write_json(record | {"seconds": seconds}, path.parent / RECORD)
    os.replace(temporary, path)


# ---- shared -------------------------------------------------------------------------------------------------------


def step_seconds(trainer: Any, batch: dict[str, Any]) -> float:
    """Median time of one whole optimiser step on one batch, loading not counted. Changes the weights: call it last."""
    trainer.network.train()
    clock, times = clock_of(trainer.device), []
    for _ in range(TIMED_STEPS):
        started = clock()
        trainer.train_step(batch)
        times.append(clock() - started)
    return float(np.median(times))


def main(argv: Sequence[str] | None = None) -> int:
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--trainer", required=True, help="its name, or module:Class")
    add_budget_flags(parser)
    args = parser.parse_args(argv)
    data = data_from(args)
    record = train(data, args.trainer, budget_from(args), pick_device(args.device), args.seed)
    print(f"{args.trainer}: {record['iterations']} iterations.", flush=True)


if __name__ == "__main__":
    stop_cleanly_on_terminate()
    raise SystemExit(main())
