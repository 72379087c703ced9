"""What the trainers share: deterministic batches, budget, weight average, exact resume, stochastic validation."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

import nndiffseg
from nndiffseg.calibration.calibration import Calibration
from nndiffseg.data.checkpoint import load_checkpoint, save_atomically
from nndiffseg.data.names import check_case_id
from nndiffseg.data.plan_names import check_plan_names
from nndiffseg.data.seeds import seed_of
from nndiffseg.diffusion.noise.source import patch_noise
from nndiffseg.errors import UserError
from nndiffseg.methods.protocol import Batch, Losses, Method, MethodPlan, SegmentationLoss, unwrapped
from nndiffseg.nn.precision import autocast_for, default_precision, training_precision
from nndiffseg.planning.cost import stage_grids
from nndiffseg.planning.memory import adapted_plans
from nndiffseg.training import epoch_log as log
from nndiffseg.training.average import WeightAverage
from nndiffseg.training.budget import Budget, learning_rate
from nndiffseg.training.loader import batches_from
from nndiffseg.training.patch_validation import DEAD_SPREAD, dice_of_batches, mean_over_structures, score_patches
from nndiffseg.training.pretrained import load_pretrained_weights

#: seconds between two checkpoints within an epoch
CHECKPOINT_SECONDS = 240.0


class DiffusionTrainer(nnUNetTrainer):
    """Base of the trainers; a trainer names its method.

    Everything random in a training step is a function of (seed, fold, iteration): a resumed training needs no saved
    random state and goes on exactly where it stopped, also in the middle of an epoch.
    """

    method_class: type[Method]
    loss: Losses
    current_epoch: int
    _best_ema: float | None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this exact signature
    ):
        check_plan_names(plans, "The plans")  # stock nnU-Net makes trainers too
        plans, self.memory_note = adapted_plans(plans, configuration, type(self))
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.label_manager.has_ignore_label:
            raise UserError("Datasets with an ignore label are not supported yet; remove it from dataset.json.")
        self.method = self.method_class(
            MethodPlan.of(
                self.configuration_manager,
                determine_num_input_channels(self.plans_manager, self.configuration_manager, dataset_json),
                self.label_manager.num_segmentation_heads,
            )
        )
        if self.method.plan.heads.regions != self.label_manager.has_regions:
            raise UserError("The plans were made for labels and dataset.json names regions, or the other way; plan anew.")
        self.precision = training_precision(
            self.device, stage_grids(self.configuration_manager.patch_size, self.configuration_manager.pool_op_kernel_sizes)
        )
        self.initial_lr, self.weight_decay = 1e-3, 1e-2
        self.grad_scaler: torch.amp.GradScaler | None = None  # bfloat16 needs none
        self.seed = 0
        self.minutes: float | None = None
        self.bound_by_time_only = False
        self.workers: int | None = None
        self.iteration = 0  # iterations done in all epochs
        self.show_progress = True
        self.validated_checkpoint = "checkpoint_final.pth"  # gets the fusion weight that the validation fits
        self.calibration = Calibration()  # until a validation fits it
        self.average: WeightAverage | None = None
        self.budget: Budget | None = None
        self._epoch_terms: dict[str, list[float]] = {}
        self._spent = 0.0
        self._last_save = 0.0

    # ---- set-up ---------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        torch.manual_seed(seed_of(self.seed, self.fold, "weights"))
        super().initialize()
        self.grad_scaler = torch.amp.GradScaler(self.device.type) if self.precision == "float16" else None
        self.average = WeightAverage(self.bare_network)

    @property
    def bare_network(self) -> Any:
        """The network without the wrappers of DistributedDataParallel and torch.compile."""
        return unwrapped(self.network)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The method's network with the options in the plans; nnU-Net's own predictor calls this too."""
        return cls.method_class(MethodPlan.of(configuration_manager, num_input_channels, num_output_channels)).network()

    def _build_loss(self) -> Losses:
        torch.manual_seed(seed_of(self.seed, self.fold, "losses"))
        return self.method.losses(self._segmentation_loss).to(self.device)

    def _segmentation_loss(self, ce: float = 1.0, dice: float = 1.0) -> SegmentationLoss:
        """nnU-Net's loss with other weights of its two terms."""
        deep = super()._build_loss()
        deep.loss.weight_ce, deep.loss.weight_dice = ce, dice
        return SegmentationLoss(deep, deep.loss)

    def _do_i_compile(self) -> bool:
        # nnU-Net compiles by default and its users switch it off; here it is opt-in.
        return self.device.type == "cuda" and os.environ.get("nnUNet_compile", "f").lower() in ("true", "1", "t")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        fused = self.device.type in ("cpu", "cuda")  # one pass through memory instead of ten
        return torch.optim.AdamW(
            self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay, fused=fused
        ), None

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Deep supervision is an argument of the network's forward, so there is nothing to switch."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's plot needs a package that no longer exists."""

    def get_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """nnU-Net's loaders and augmentation; the i-th batch depends on (seed, fold, rank, i) alone."""
        workers = get_allowed_n_proc_DA() if self.workers is None else self.workers
        if self.device.type == "cpu" and self.workers is None:
            workers = min(workers, 1)  # the training itself needs the other cores
        train, val = self._plain_loaders()
        pin = self.device.type == "cuda"
        key = (self.seed, self.fold, self.local_rank)
        first_val = self.current_epoch * self.num_val_iterations_per_epoch
        return (
            batches_from(train, seed_of("train", *key), self.iteration, workers, pin),
            batches_from(val, seed_of("val", *key), first_val, min(workers, 1), pin),
        )

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's; names of cases become names of files.

        Raises:
            UserError: a name in ``splits_final.json`` is no plain file name.
        """
        train, val = super().do_split()
        for case in (*train, *val):
            check_case_id(case, "splits_final.json")
        return train, val

    def validation_batches(self) -> Iterator[dict]:
        """Random patches of the validation cases, made in this process, the same ones in every call."""
        _, val = self._plain_loaders()
        return batches_from(val, seed_of("calibration", self.seed, self.fold), 0, 0, False)

    def _plain_loaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders without its worker processes."""
        before = os.environ.get("nnUNet_n_proc_DA")
        os.environ["nnUNet_n_proc_DA"] = "0"  # makes nnU-Net build its loaders without starting processes
        try:
            train, val = super().get_dataloaders()
        finally:
            if before is None:
                del os.environ["nnUNet_n_proc_DA"]
            else:
                os.environ["nnUNet_n_proc_DA"] = before
        return train.data_loader, val.data_loader

    def on_train_start(self) -> None:
        # A time budget must not be spent on validation patches that a long training would not notice.
        self.num_val_iterations_per_epoch = max(1, min(50, self.num_iterations_per_epoch // 10))
        super().on_train_start()
        epochs = None if self.bound_by_time_only else self.num_epochs
        self.budget = Budget(epochs, self.num_iterations_per_epoch, self.minutes, self._spent)
        self.budget.start()
        self._last_save = time.monotonic()
        if self.local_rank == 0:
            log.keep_epochs(self.output_folder, self.current_epoch)
        if self.precision != default_precision(self.device):
            self.print_to_log_file(
                "Training in float32, which is slower: this processor's bfloat16 convolutions are not safe "
                "for patches of few large slices. Predictions are not affected."
            )
        self.print_to_log_file(
            f"device {self.device}, {self.precision}, seed {self.seed}, {self.method.name} with options "
            f"{json.dumps(self.method.options.to_plan())}"
        )
        if self.memory_note is not None:
            self.print_to_log_file(self.memory_note)

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run_training(self) -> None:
        self.on_train_start()
        assert self.budget is not None
        while self.budget.progress(self.iteration) < 1:
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
        from tqdm import tqdm

        end = (self.current_epoch + 1) * self.num_iterations_per_epoch
        with tqdm(
            total=self.num_iterations_per_epoch,
            initial=self.iteration - end + self.num_iterations_per_epoch,
            desc=f"epoch {self.current_epoch}",
            disable=not self.show_progress or self.local_rank > 0,
            leave=False,
        ) as bar:
            while self.iteration < end and self.budget.progress(self.iteration) < 1:
                rate = learning_rate(self.initial_lr, self.budget.progress(self.iteration), self.iteration)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                for name, value in self.train_step(next(self.dataloader_train)).items():
                    self._epoch_terms.setdefault(name, []).append(value)
                self.iteration += 1
                bar.update()
                if self.iteration < end and time.monotonic() - self._last_save > CHECKPOINT_SECONDS:
                    self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))

    def on_train_epoch_start(self) -> None:
        assert self.budget is not None
        self.network.train()
        rate = learning_rate(self.initial_lr, self.budget.progress(self.iteration), self.iteration)
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self._log("lrs", rate)

    def _log(self, key: str, value: Any) -> None:
        """Logs for the current epoch, replacing what an interrupted run of this epoch left."""
        values = self.logger.local_logger.my_fantastic_logging[key]
        del values[self.current_epoch :]
        self.logger.log(key, value, self.current_epoch)

    def on_epoch_start(self) -> None:
        self._log("epoch_start_timestamps", time.time())

    def train_step(self, batch: dict) -> dict[str, float]:
        """One optimiser step; returns every loss term."""
        assert self.average is not None
        one = self.as_batch(batch)
        extra = self.loss.before_step(self.network, one, self.optimizer.param_groups[0]["lr"])
        with autocast_for(self.device, self.precision):
            terms = self.loss(self.network, one)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self._step(total)
        self.average.update(self.bare_network)
        if not torch.isfinite(total):
            raise RuntimeError(f"The loss is not finite at iteration {self.iteration}: {terms}.")
        return {name: float(term.detach()) for name, term in terms.items()} | {"total": float(total.detach())} | extra

    def as_batch(self, batch: dict) -> Batch:
        """A batch of nnU-Net's loader as the losses take it, on the device."""
        data, targets = self._to_device(batch)
        progress = 0.0 if self.budget is None else self.budget.progress(self.iteration)
        key = (self.seed, self.fold, self.local_rank, self.iteration)
        return Batch(data, targets, self.method.plan.heads.onehot(targets[0]), progress, key)

    def _step(self, total: Tensor) -> None:
        """Updates the weights. In float16 gradients are scaled, and a step whose gradients are not finite is left out."""
        scaler = self.grad_scaler
        (total if scaler is None else scaler.scale(total)).backward()
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _to_device(self, batch: dict) -> tuple[Tensor, list[Tensor]]:
        return (
            batch["data"].to(self.device, non_blocking=True),
            [t.to(self.device, non_blocking=True) for t in batch["target"]],
        )

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        if not self._epoch_terms:
            raise UserError("The time budget ended before the first training step; give more --minutes.")
        self._log("train_losses", float(np.mean(self._epoch_terms["total"])))

    # ---- validation of patches ------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        assert self.average is not None
        self.average.network.eval()

    def validation_step(self, batch: dict) -> dict[str, Any]:
        """Deterministic, sample-mean and fused overlap counts of a batch, and how far two seeds lie apart."""
        assert self.average is not None
        data, targets = self._to_device(batch)
        with autocast_for(self.device), torch.no_grad():
            logits, samples = self.predict_patch(self.average.network, data)
        heads = self.method.plan.heads
        return score_patches(logits, samples, heads.onehot(targets[0]), heads)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        dice = dice_of_batches(val_outputs)
        mean = {name: mean_over_structures(values) for name, values in dice.items()}
        for key, value in (
            ("mean_fg_dice", mean["fused"]),
            ("dice_per_class_or_region", [float(v) for v in dice["fused"]]),
            ("val_losses", float(np.mean([o["loss"] for o in val_outputs]))),
        ):
            self._drop_later(key)
            self.logger.log(key, value, self.current_epoch)
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

    def _drop_later(self, key: str) -> None:
        logged = self.logger.local_logger.my_fantastic_logging
        for name in (key, "ema_fg_dice") if key == "mean_fg_dice" else (key,):
            del logged[name][self.current_epoch :]

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
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))

    def on_train_end(self) -> None:
        self.current_epoch += 1  # nnU-Net's on_train_end takes it back for its own epoch counting
        super().on_train_end()
        self.current_epoch -= 1

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """Averaged weights as ``network_weights``, so that nnU-Net's own tools predict with them."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        assert self.average is not None
        save_atomically(
            {
                "network_weights": self.average.network.state_dict(),
                "network_weights_raw": self.bare_network.state_dict(),
                "optimizer_state": self.optimizer.state_dict(),
                "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
                "logging": self.logger.get_checkpoint(),
                "_best_ema": self._best_ema,
                "current_epoch": self.current_epoch,
                "init_args": self.my_init_kwargs,
                "trainer_name": type(self).__name__,
                "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
                "nndiffseg_version": nndiffseg.__version__,
                "method": self.method.name,
                "options": self.method.options.to_plan(),
                "calibration": self.calibration.to_json(),
                "iteration": self.iteration,
                "ema_updates": self.average.updates,
                "loss_state": self.loss.state_dict(),
                "epoch_terms": self._epoch_terms,
                "seconds": self.budget.seconds if self.budget else self._spent,
                "seed": self.seed,
            },
            filename,
        )
        self._last_save = time.monotonic()

    def load_pretrained_weights(self, path: str) -> None:
        """Starts from the weights of another training, see :mod:`nndiffseg.training.pretrained`.

        Raises:
            UserError: they do not fit.
        """
        if not self.was_initialized:
            self.initialize()
        self.print_to_log_file(load_pretrained_weights(self.bare_network, path))
        self.average = WeightAverage(self.bare_network)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Restores weights, optimiser, average, log and position.

        Raises:
            UserError: the checkpoint is damaged or comes from another trainer.
        """
        if not self.was_initialized:
            self.initialize()
        checkpoint = (
            load_checkpoint(filename_or_checkpoint, self.device)
            if isinstance(filename_or_checkpoint, str)
            else filename_or_checkpoint
        )
        if checkpoint["trainer_name"] != type(self).__name__:
            raise UserError(
                f"The checkpoint was written by {checkpoint['trainer_name']}, not by {type(self).__name__}; "
                f"choose -tr {checkpoint['trainer_name']}."
            )
        if checkpoint["options"] != self.method.options.to_plan():
            raise UserError(
                f"The checkpoint was trained with the options {json.dumps(checkpoint['options'])}, not "
                f"{json.dumps(self.method.options.to_plan())}; give the same ones with --option."
            )
        assert self.average is not None
        try:
            self.bare_network.load_state_dict(checkpoint["network_weights_raw"])
            self.average.network.load_state_dict(checkpoint["network_weights"])
        except RuntimeError:
            raise UserError(
                "The checkpoint's network differs from the plans; the plans were changed after this training "
                "began, so restore them or train anew without --c."
            ) from None
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.average.updates = checkpoint["ema_updates"]
        self.loss.load_state_dict(checkpoint["loss_state"])
        self.calibration = Calibration.from_json(checkpoint["calibration"])
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        self.current_epoch, self.iteration = checkpoint["current_epoch"], checkpoint["iteration"]
        self._epoch_terms = checkpoint["epoch_terms"]
        self._spent, self.seed = checkpoint["seconds"], checkpoint["seed"]

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        from nndiffseg.training.validation import validate_fold

        validate_fold(self, save_probabilities)

    def predict_patch(self, network: Any, data: Tensor) -> tuple[Tensor, Tensor]:
        """Deterministic logits ``(B, heads, *patch)`` and those of two samples ``(2, B, heads, *patch)``."""
        maps, steps, samples = network.encode(data), self.method.steps_while_training, []
        grid = [n // s for n, s in zip(data.shape[2:], network.stride, strict=True)]
        seed = seed_of(self.seed, "validation", self.current_epoch)
        for sample in range(2):
            noise = patch_noise(seed, len(data), [sample], grid, self.device)
            samples.append(network.decode(network.sample(maps, noise, steps=steps), maps))
        return maps[0], torch.stack(samples)
