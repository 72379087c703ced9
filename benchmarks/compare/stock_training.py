"""nnU-Net's own trainer for an exact number of iterations or minutes, on batches that are a function of the iteration.

Network, loss, optimiser and step are nnU-Net's; its polynomial decay of the learning rate runs over exactly what is given.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.compare.flags import Budget
from nndiffseg.data.files import write_atomically, write_json
from nndiffseg.data.seeds import seed_of
from nndiffseg.training.loader import batches_from

#: seconds between two checkpoints
CHECKPOINT_SECONDS = 120.0


class StockTraining:
    """One training of nnU-Net's own trainer.

    Args:
        trainer: nnU-Net's, freshly made.
        budget: iterations or minutes.
        seed: of the batches; also of the weights.
        bfloat16: train in nndiffseg's precision on a CPU too, where nnU-Net would use float32.
        record: JSON file with the ``seconds`` of earlier sessions.
        checkpoint: to go on from, or None.
    """

    def __init__(
        self, trainer: Any, budget: Budget, seed: int, *, bfloat16: bool, record: Path, checkpoint: Path | None = None
    ):
        self.trainer, self.budget, self.seed, self.record = trainer, budget, seed, record
        self.iteration, self.spent, self.started = 0, 0.0, time.monotonic()
        torch.manual_seed(seed_of(seed, trainer.fold, "weights"))
        trainer.initialize()
        self.bfloat16 = bfloat16 and trainer.device.type == "cpu"
        if self.bfloat16:
            trainer.loss = InFloat32(trainer.loss)
        if checkpoint is not None:
            trainer.load_checkpoint(str(checkpoint))
            self.iteration = trainer.current_epoch  # one "epoch" of the checkpoint is one iteration here
            self.spent = json.loads(record.read_text())["seconds"]
            trainer.print_to_log_file(f"Continuing from {checkpoint.name} at iteration {self.iteration}.")

    @property
    def seconds(self) -> float:
        """Of training, earlier sessions included."""
        return self.spent + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        if self.budget.iterations is not None:
            return self.iteration / self.budget.iterations
        assert self.budget.minutes is not None
        return min(1.0, self.seconds / (60 * self.budget.minutes))

    def run(self, final: Path, latest: Path) -> dict[str, Any]:
        """Trains to the end; returns ``iterations`` and ``seconds``. ``latest`` is the checkpoint on the way."""
        trainer = self.trainer
        with _without_worker_processes():
            trainer.on_train_start()
        loader, seed = trainer.dataloader_train.data_loader, seed_of("train", self.seed, trainer.fold, 0)
        batches = batches_from(loader, seed, self.iteration, *_workers(trainer.device))
        self.started = saved = shown = time.monotonic()
        losses: list[float] = []
        while (progress := self.progress) < 1:
            losses.append(self.step(next(batches), progress))
            if time.monotonic() - shown > 30 or self.iteration in (1, self.budget.iterations):
                done = f"{100 * progress:.0f} % done"
                trainer.print_to_log_file(f"iteration {self.iteration}, loss {np.mean(losses):.4f}, {done}")
                losses, shown = [], time.monotonic()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save(latest)
                saved = time.monotonic()
        seconds = self.seconds
        self.save(final)
        latest.unlink(missing_ok=True)
        return {"iterations": self.iteration, "seconds": seconds}

    def step(self, batch: dict[str, Any], progress: float) -> float:
        """One step of the optimiser; returns the loss."""
        for group in self.trainer.optimizer.param_groups:  # PolyLRScheduler of nnU-Net, step by step
            group["lr"] = self.trainer.initial_lr * (1 - progress) ** 0.9
        self.trainer.network.train()
        loss = self.train_step(batch)
        self.iteration += 1
        if not np.isfinite(loss):
            raise RuntimeError(f"The loss is not finite at iteration {self.iteration}.")
        return loss

    def train_step(self, batch: dict[str, Any]) -> float:
        """nnU-Net's own step, in the precision asked for."""
        with torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext():
            return float(self.trainer.train_step(batch)["loss"])

    def validation_batch(self) -> dict[str, Any]:
        """One batch of the validation cases."""
        return next(batches_from(self.trainer.dataloader_val.data_loader, 0, 0, 0, False))

    def save(self, path: Path) -> None:
        """nnU-Net's checkpoint, whole or not at all."""
        self.trainer.current_epoch = self.iteration - 1  # nnU-Net writes the number plus one
        with write_atomically(path) as temporary:
            self.trainer.save_checkpoint(str(temporary))
            write_json(json.loads(self.record.read_text()) | {"seconds": self.seconds}, self.record)


class InFloat32(nn.Module):
    """A loss in float32, as nnU-Net computes it on a GPU, of a network in bfloat16."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
        """Logits of one or several resolutions, and their targets -> scalar."""
        several = isinstance(logits, (list, tuple))
        with torch.autocast("cpu", enabled=False):
            return self.loss([x.float() for x in logits] if several else logits.float(), target)


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
