"""The training loop: epochs within a budget, logging after each, and periodic checkpoints."""

from __future__ import annotations

import os
import secrets
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tqdm import tqdm

from nndiffseg.data.files import check_space
from nndiffseg.errors import Stopped, UserError
from nndiffseg.stopping import Request, noticed
from nndiffseg.training import epoch_log as log
from nndiffseg.training.average import WeightAverage
from nndiffseg.training.budget import Budget, learning_rate
from nndiffseg.training.fold_folder import set_aside, sole_user
from nndiffseg.training.patch_validation import DEAD_SPREAD, dice_of_batches, mean_over_structures
from nndiffseg.training.ranks import Ranks

#: seconds between two checkpoints within an epoch
CHECKPOINT_SECONDS = 240.0


class EpochLoop(nnUNetTrainer):
    """nnU-Net's trainer with epochs that a resumed training can enter anywhere.

    Attributes:
        minutes, bound_by_time_only: wall-clock bound, and whether it alone ends the training.
        iteration: iterations done in all epochs.
        batches_left_out: batches that gave no finite loss or gradient, so that the training went on with others.
        show_progress: show a progress bar.
        ranks: the processes that train together.
        average: averaged copy of the network.
        budget: progress through the training; None until it starts.
        lr_scheduler: an own trainer's, stepped once an epoch as nnU-Net does; None for the schedule of the budget.
        training_id: the same in all checkpoints of one training.
    """

    network: Any
    current_epoch: int
    lr_scheduler: Any = None
    _best_ema: float | None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this exact signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.ranks = Ranks()
        if self.is_ddp:  # nnU-Net takes the GPU with the number of the process, which others may be on another computer
            index = int(os.environ.get("LOCAL_RANK", str(self.local_rank)))
            self.device = torch.device("cuda", index) if device.type == "cuda" else device
        self.minutes: float | None = None
        self.bound_by_time_only = False
        self.iteration = self.batches_left_out = 0
        self.show_progress = True
        self.average: WeightAverage | None = None
        self.budget: Budget | None = None
        self._epoch_terms: dict[str, list[float]] = {}
        self._spent = 0.0
        self._last_save = 0.0
        self._asked = Request()
        self._lock: Path | None = None
        self.training_id = secrets.token_hex(8)

    def run_training(self) -> None:
        """Trains; nobody else may work in the fold's folder meanwhile.

        Raises:
            UserError: somebody does, the disk is full, or numbers are not finite any more.
            Stopped: by SIGTERM or SIGUSR1, after a checkpoint was written.
        """
        check_space(Path(self.output_folder))
        with sole_user(self.output_folder) if self.local_rank == 0 else nullcontext() as self._lock:
            if self.local_rank == 0 and self.iteration == 0 and (aside := set_aside(self.output_folder)) is not None:
                self.print_to_log_file(f"The earlier training of this fold was moved to {aside}.")
            with noticed("SIGTERM", "SIGUSR1") as self._asked:
                self._run_epochs()
            if (name := self._signal()) is not None:
                raise Stopped(f"stopped by {name} when the training was finished; validate the fold with --val.")

    def _run_epochs(self) -> None:
        self.on_train_start()
        assert self.budget is not None
        while self.progress() < 1:
            self.on_epoch_start()
            self.on_train_epoch_start()
            self._train_epoch()
            self.on_train_epoch_end([])
            with torch.no_grad():
                self.on_validation_epoch_start()
                self.on_validation_epoch_end(
                    [self.validation_step(next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)]
                )
            self.on_epoch_end()
        self.on_train_end()

    def _train_epoch(self) -> None:
        assert self.budget is not None

        end = (self.current_epoch + 1) * self.num_iterations_per_epoch
        with tqdm(
            total=self.num_iterations_per_epoch,
            initial=self.iteration - end + self.num_iterations_per_epoch,
            desc=f"epoch {self.current_epoch}",
            disable=not self.show_progress or self.local_rank > 0,
            leave=False,
        ) as bar:
            while self.iteration < end and (done := self.progress()) < 1:
                if self.lr_scheduler is None:
                    rate = learning_rate(self.initial_lr, done, self.iteration)
                    for group in self.optimizer.param_groups:
                        group["lr"] = rate
                for name, value in self.train_step(self._next_batch()).items():
                    self._epoch_terms.setdefault(name, []).append(value)
                self.iteration += 1
                bar.update()
                if self.iteration < end and time.monotonic() - self._last_save > CHECKPOINT_SECONDS:
                    self.save_latest()
                self._stop_if_asked()

    def _next_batch(self) -> dict:
        """The next training batch.

        Raises:
            UserError: the process that makes it was killed.
            Stopped: as by the signal that ended that process, too.
        """
        try:
            return next(self.dataloader_train)
        except RuntimeError as error:
            self._stop_if_asked()
            if "DataLoader worker" not in str(error) or "signal" not in str(error):
                raise
            raise UserError(
                "A process that loads patches was killed, probably out of memory; use fewer (export nnUNet_n_proc_DA=1) and go "
                "on with --c."
            ) from None

    def _stop_if_asked(self) -> None:
        if (name := self._signal()) is not None:
            self.save_latest()
            self.ranks.wait()  # until the first process has saved it
            raise Stopped(f"stopped by {name} after iteration {self.iteration}, the state is saved; go on with --c.")

    def _signal(self) -> str | None:
        """The signal by which somebody asked any of the processes to stop."""
        name = self._asked.signal
        number = self.ranks.largest(0 if name is None else signal.Signals[name].value)
        return signal.Signals(number).name if number else None

    def progress(self) -> float:
        """Share of the training that is done; the first process has the clock, so that all end at the same iteration."""
        assert self.budget is not None
        done = self.budget.progress(self.iteration)
        return done if self.budget.minutes is None else self.ranks.told_by(0, done)

    def print_to_log_file(self, *parts: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """nnU-Net's; of several processes the first one's."""
        if self.local_rank == 0:
            super().print_to_log_file(*parts, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)

    def save_latest(self) -> None:
        """Writes ``checkpoint_latest.pth``, and tells other computers that the training lives."""
        self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
        if self._lock is not None:
            os.utime(self._lock)

    def on_train_epoch_start(self) -> None:
        assert self.budget is not None
        self.network.train()
        first = self.current_epoch * self.num_iterations_per_epoch  # also where a resumed training enters the epoch later
        if self.lr_scheduler is not None:  # an own trainer's
            self.lr_scheduler.step(self.current_epoch)
            rate = float(self.optimizer.param_groups[0]["lr"])
        else:
            rate = learning_rate(self.initial_lr, self.budget.progress(first), first)
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self._log("lrs", rate)

    def _log(self, key: str, value: Any) -> None:
        """Logs for the current epoch, replacing what an interrupted run of this epoch left."""
        logged = self.logger.local_logger.my_fantastic_logging
        for name in (key, "ema_fg_dice") if key == "mean_fg_dice" else (key,):  # nnU-Net logs the average along with it
            del logged[name][self.current_epoch :]
        self.logger.log(key, value, self.current_epoch)

    def on_epoch_start(self) -> None:
        self._log("epoch_start_timestamps", time.time())

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        if not self._epoch_terms:
            raise UserError("The time budget ended before the first training step; give more --minutes.")
        self._log("train_losses", float(np.mean(self._epoch_terms["total"])))

    def on_validation_epoch_start(self) -> None:
        assert self.average is not None
        self.average.network.eval()

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        dice = dice_of_batches(val_outputs)
        mean = {name: mean_over_structures(values) for name, values in dice.items()}
        self._log("mean_fg_dice", mean["fused"])
        self._log("dice_per_class_or_region", [float(v) for v in dice["fused"]])
        self._log("val_losses", float(np.mean([o["loss"] for o in val_outputs])))
        assert self.budget is not None
        self._row: dict[str, Any] = {
            "epoch": self.current_epoch,
            "iteration": self.iteration,
            "seconds": round(self.budget.seconds, 1),
            "losses": {name: float(np.mean(values)) for name, values in self._epoch_terms.items()},
            "dice_deterministic": mean["deterministic"],
            "dice_samples": mean["samples"],
            "dice_fused": mean["fused"],
            "spread": 1 - mean["seeds"],
            "sample_error": 1 - mean["sample"],
        }

    def on_epoch_end(self) -> None:
        assert self.budget is not None
        self._log("epoch_end_timestamps", time.time())
        row = self._row
        losses = ", ".join(f"{k} {v:.4f}" for k, v in row["losses"].items())
        self.print_to_log_file(f"losses: {losses}")
        self.print_to_log_file(
            f"Dice: deterministic {row['dice_deterministic']:.4f}, mean of samples {row['dice_samples']:.4f}, fused "
            f"{row['dice_fused']:.4f}; spread between seeds {row['spread']:.4f}, sample error {row['sample_error']:.4f}"
        )
        done = self.budget.progress(self.iteration)
        self.print_to_log_file(f"{100 * done:.1f} % done after {row['seconds'] / 60:.1f} min")
        if done > 0.2 and row["spread"] < DEAD_SPREAD * row["sample_error"]:
            self.print_to_log_file(
                "WARNING: the samples hardly differ between seeds although they are wrong more "
                "often: the latent is dead, and the uncertainty maps of this model mean little."
            )
        if self.local_rank == 0:
            log.append(self.output_folder, row)
            log.plot(self.output_folder)
            self.logger.plot_progress_png(self.output_folder)
        self._epoch_terms = {}
        ema = self.logger.get_value("ema_fg_dice", step=-1)
        best = self._best_ema is None or ema > self._best_ema
        self._best_ema = ema if best else self._best_ema
        self.current_epoch += 1
        if best:
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_best.pth"))
        if self.current_epoch % self.save_every == 0 or time.monotonic() - self._last_save > CHECKPOINT_SECONDS:
            self.save_latest()

    def on_train_end(self) -> None:
        self.current_epoch += 1  # nnU-Net's on_train_end takes it back for its own epoch counting
        super().on_train_end()
        self.current_epoch -= 1
