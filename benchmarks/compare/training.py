"""Trains one trainer, nnU-Net's own or one of nndiffseg's, for a number of iterations or minutes; goes on where it stopped.

    python -m benchmarks.compare.training --dataset 4 --configuration 2d --trainer nnDiffSegTrainerLDSeg --iterations 1000

All trainers see the same batches: those of nnU-Net's loader and augmentation as a function of seed and iteration
(:mod:`nndiffseg.training.loader`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.compare.data import Data, data_from
from benchmarks.compare.flags import Budget, add_budget_flags, add_entry_flags, budget_from, data_parser
from benchmarks.compare.library import FINAL
from benchmarks.compare.processes import clock_of, stop_cleanly_on_terminate
from benchmarks.compare.stock_training import StockTraining
from benchmarks.compare.trainers import Entry, find_class
from nndiffseg.cli.common import pick_device, run
from nndiffseg.data.files import write_json
from nndiffseg.errors import UserError

LATEST, BEST = "checkpoint_latest.pth", "checkpoint_best.pth"
#: what a training was asked for and what it took, in the fold's folder
RECORD = "benchmark_training.json"
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
    return {
        "iterations": checkpoint.get("iteration", 250 * checkpoint["current_epoch"]),
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
    data: Data,
    entry: Entry,
    budget: Budget,
    device: torch.device,
    seed: int,
    *,
    bfloat16: bool = False,
    prepare: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Trains unless that is done already; returns the record, see :func:`finished_training`.

    Args:
        data: of the fold.
        entry: trainer and options.
        budget: length.
        device: where to train.
        seed: of weights and batches.
        bfloat16: puts nnU-Net's own trainer into nndiffseg's precision, which differs on a CPU only.
        prepare: called with the trainer before it starts.

    Raises:
        UserError: the folder holds another training, or none and no budget is given.
    """
    data, cls = entry.of(data), find_class(entry.trainer)
    folder = data.fold_folder(cls.__name__)
    if (record := finished_training(folder)) is not None:
        check_record(record, budget, seed, folder)
        return record
    if not budget.given:
        raise UserError(f"There is no finished training of {entry.name} in {folder}; give --iterations or --minutes.")
    record = _begun(folder, budget, seed)
    with results_in(data.results):
        plans = {**json.loads(json.dumps(data.plans)), "continue_training": _newest(folder) is not None}
        made = cls(plans, data.configuration, data.fold, data.dataset_json, device)
        if prepare is not None:
            prepare(made)
        train_it = _train_diffusion if hasattr(cls, "method_class") else _train_stock
        record |= train_it(made, budget, seed, bfloat16) | {"finished": True}
    write_json(record, folder / RECORD)
    return record


def _begun(folder: Path, budget: Budget, seed: int) -> dict[str, Any]:
    """The record of a training that begins or goes on."""
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
    return record


@contextmanager
def results_in(folder: Path) -> Iterator[None]:
    """nnU-Net's trainers read their results folder from the environment."""
    before = os.environ.get("nnUNet_results")
    os.environ["nnUNet_results"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["nnUNet_results"]
        else:
            os.environ["nnUNet_results"] = before


def _newest(folder: Path) -> Path | None:
    """The checkpoint to go on from."""
    files = [f for f in (folder / LATEST, folder / BEST) if f.is_file()]
    return max(files, key=lambda f: f.stat().st_mtime, default=None)


def epochs_of(iterations: int, longest: int = 250) -> tuple[int, int]:
    """Epochs and iterations per epoch, whose product is exactly ``iterations``: at least ``longest`` each, if possible."""
    most = max(1, iterations // longest)
    epochs = max(n for n in range(1, most + 1) if iterations % n == 0)
    return epochs, iterations // epochs


def _train_diffusion(trainer: Any, budget: Budget, seed: int, _bfloat16: bool) -> dict[str, Any]:
    trainer.seed, trainer.minutes = seed, budget.minutes
    trainer.bound_by_time_only = budget.minutes is not None
    if budget.iterations is not None:
        trainer.num_epochs, trainer.num_iterations_per_epoch = epochs_of(budget.iterations)
    trainer.show_progress = os.isatty(2)
    if (checkpoint := _newest(Path(trainer.output_folder))) is not None:
        trainer.load_checkpoint(str(checkpoint))
        trainer.print_to_log_file(f"Continuing from {checkpoint.name} at iteration {trainer.iteration}.")
    trainer.run_training()
    trainer.network.train()
    timed = step_seconds(trainer.train_step, next(trainer.validation_batches()), trainer.device)
    return {"iterations": trainer.iteration, "seconds": trainer.budget.seconds, "seconds_per_iteration": timed}


def _train_stock(trainer: Any, budget: Budget, seed: int, bfloat16: bool) -> dict[str, Any]:
    folder = Path(trainer.output_folder)
    training = StockTraining(trainer, budget, seed, bfloat16=bfloat16, record=folder / RECORD, checkpoint=_newest(folder))
    done = training.run(folder / FINAL, folder / LATEST)
    timed = step_seconds(training.train_step, training.validation_batch(), trainer.device)
    return {**done, "seconds_per_iteration": timed}


def step_seconds(step: Callable[[dict], Any], batch: dict[str, Any], device: torch.device) -> float:
    """Median time of one whole optimiser step on one batch, loading not counted. Changes the weights: call it last."""
    clock, times = clock_of(device), []
    for _ in range(TIMED_STEPS):
        started = clock()
        step(batch)
        times.append(clock() - started)
    return float(np.median(times))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = data_parser("Trains one trainer, nnU-Net's own or one of nndiffseg's.")
    add_entry_flags(parser)
    add_budget_flags(parser)
    args = parser.parse_args(argv)
    entry = Entry(args.trainer, tuple(args.option))
    record = train(data_from(args), entry, budget_from(args), pick_device(args.device), args.seed)
    print(f"{entry.name}: {record['iterations']} iterations.", flush=True)


if __name__ == "__main__":
    stop_cleanly_on_terminate()
    raise SystemExit(main())
