"""Base of all trainers: deterministic batches, budget, weight average, exact resume, stochastic validation."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.data.checkpoint import load_checkpoint, save_atomically
from nndiffseg.data.folds import check_fold, member_seed, split_of
from nndiffseg.data.names import is_plain_name
from nndiffseg.data.plans_schema import check_plans
from nndiffseg.data.raw_changes import check_raw_unchanged
from nndiffseg.data.records import check_settings
from nndiffseg.data.seeds import seed_of
from nndiffseg.data.splits import cases_of_fold
from nndiffseg.diffusion.items import Part
from nndiffseg.diffusion.noise.source import patch_noise
from nndiffseg.errors import UserError
from nndiffseg.methods.protocol import Batch, Losses, Method, MethodPlan, SegmentationLoss, unwrapped
from nndiffseg.nn.annotated import annotated_voxels, completed
from nndiffseg.nn.precision import autocast_for, default_precision, training_precision
from nndiffseg.nn.ranks import average_gradients
from nndiffseg.planning.cost import stage_grids
from nndiffseg.planning.memory import adapted_plans
from nndiffseg.training import epoch_log as log
from nndiffseg.training.average import WeightAverage
from nndiffseg.training.batch_dice import SharedBatchDice
from nndiffseg.training.budget import Budget
from nndiffseg.training.loader import batches_from
from nndiffseg.training.loop import EpochLoop
from nndiffseg.training.mirroring import check_mirroring
from nndiffseg.training.patch_validation import score_patches
from nndiffseg.training.pretrained import load_pretrained_weights
from nndiffseg.training.ranks import alike, check_batch
from nndiffseg.training.shared_batches import SharedBatches
from nndiffseg.training.stages import check_previous
from nndiffseg.training.state import checkpoint_of, not_finite, restore


class DiffusionTrainer(EpochLoop):
    """Base of the trainers; a trainer names its method.

    Everything random in a training step is a function of (seed, fold, iteration): a resumed training needs no saved
    random state and goes on exactly where it stopped, also in the middle of an epoch.

    Besides nnU-Net's folds there are the members of an ensemble (:mod:`nndiffseg.data.folds`): fold ``all`` with other seeds.
    """

    method_class: type[Method]
    network: Any
    loss: Losses

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this exact signature
    ):
        check_plans(plans, "The plans")  # stock nnU-Net makes trainers too
        check_fold(fold)
        plans, self.memory_note = adapted_plans(plans, configuration, type(self))
        check_batch(int(PlansManager(plans).get_configuration(configuration).batch_size))
        super().__init__(plans, configuration, fold, dataset_json, device)  # the fold's name becomes a folder's
        self.fold_name, self.fold = str(fold), split_of(fold)
        self.seed = member_seed(fold) or 0
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
        self.initial_lr, self.weight_decay = self.method.recipe[:2]
        self.grad_scaler: torch.amp.GradScaler | None = None  # bfloat16 needs none
        self.workers: int | None = None
        self.mirror_axes: tuple[int, ...] | None = None  # of the patch, as nnU-Net counts them; None for the trainer's own
        self._own_val_iterations: int | None = None
        self.validated_checkpoint = "checkpoint_final.pth"  # gets the calibration that the validation fits
        self.calibration = Calibration()  # until a validation fits it

    # ---- set-up ---------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        base, (train, val) = Path(self.preprocessed_dataset_folder_base), self.do_split()
        cases = [*train, *val]
        check_settings(base, self.plans_manager.plans, self.configuration_name, cases)  # before networks are built
        check_raw_unchanged(base, self.configuration_manager.data_identifier, cases)
        torch.manual_seed(seed_of(self.seed, self.fold, "weights"))
        self.is_ddp = False  # nnU-Net would change the batch, the loss and the network in its own way
        super().initialize()
        self.is_ddp = self.ranks.number > 1
        if self.is_ddp:
            self.network = alike(self.network, self.loss, self.device)
        self.grad_scaler = torch.amp.GradScaler(self.device.type) if self.precision == "float16" else None
        self.average = WeightAverage(self.bare_network, self.method.recipe.average)
        if not isinstance(own := self.loss, Losses):  # such as nnUNetTrainerDiceLoss's, mixed into an own trainer
            torch.manual_seed(seed_of(self.seed, self.fold, "losses"))
            self.loss = self.method.losses(lambda **_: SegmentationLoss.of(own)).to(self.device)

    @property
    def num_val_iterations_per_epoch(self) -> int:
        """An own trainer's, or a tenth of the training's: a time budget must not be spent on patches for validation."""
        own = self._own_val_iterations
        return max(1, min(50, self.num_iterations_per_epoch // 10)) if own is None else own

    @num_val_iterations_per_epoch.setter
    def num_val_iterations_per_epoch(self, number: int) -> None:
        self._own_val_iterations = number

    @property
    def bare_network(self) -> Any:
        """The network without the wrapper of torch.compile."""
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
        loss = SegmentationLoss.of(super()._build_loss())
        loss.full.weight_ce, loss.full.weight_dice = ce, dice
        if self.ranks.number > 1 and self.configuration_manager.batch_dice:
            loss.full.dc = SharedBatchDice(loss.full.dc)
        return loss

    def _do_i_compile(self) -> bool:
        # nnU-Net compiles by default and its users switch it off; here it is opt-in.
        return self.device.type == "cuda" and os.environ.get("nnUNet_compile", "f").lower() in ("true", "1", "t")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        fused = self.device.type in ("cpu", "cuda")  # one pass through memory instead of ten
        trained = [p for p in self.network.parameters() if p.requires_grad]
        betas, decay = self.method.recipe.betas, self.weight_decay
        return torch.optim.AdamW(trained, lr=self.initial_lr, betas=betas, weight_decay=decay, fused=fused), None

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Deep supervision is an argument of the network's forward, so there is nothing to switch."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's plot needs a package that no longer exists."""

    def get_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """nnU-Net's loaders and augmentation; the i-th batch depends on (seed, fold, i) alone."""
        workers = get_allowed_n_proc_DA() if self.workers is None else self.workers
        if self.device.type == "cpu" and self.workers is None:
            workers = min(workers, 1)  # the training itself needs the other cores
        train, val = self._plain_loaders()
        pin, key = self.device.type == "cuda", (self.seed, self.fold, 0)
        first_val = self.current_epoch * self.num_val_iterations_per_epoch
        return (
            self._batches(train, seed_of("train", *key), self.iteration + self.batches_left_out, workers, pin),
            self._batches(val, seed_of("val", *key), first_val, min(workers, 1), pin),
        )

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """nnU-Net's, but for the axes of mirroring where they were asked for."""
        *others, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.mirror_axes is not None:
            axes = self.inference_allowed_mirroring_axes = self.mirror_axes or None
        return *others, axes

    def _batches(self, loader: Any, seed: int, start: int, workers: int, pin: bool) -> Iterator[dict]:
        """Batches from ``start`` on, or this process's part of each."""
        ranks = self.ranks
        own = start + (ranks.index - start) % ranks.number
        batches = batches_from(loader, seed, own, workers, pin, ranks.number)
        return SharedBatches(batches, start, ranks, self.device) if ranks.number > 1 else batches

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's folds, or fewer where there are few cases.

        Raises:
            UserError: there is no such fold, ``splits_final.json`` does not fit the data, or it shares cases or groups between
                training and validation.
        """
        folder = Path(self.preprocessed_dataset_folder)
        names = [name for name in infer_dataset_class(str(folder)).get_identifiers(str(folder)) if is_plain_name(name)]
        return cases_of_fold(Path(self.preprocessed_dataset_folder_base), self.fold, names)

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
        check_mirroring(type(self).__name__, self.mirror_axes, self.inference_allowed_mirroring_axes)
        return train.data_loader, val.data_loader

    def on_train_start(self) -> None:
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

    def train_step(self, batch: dict) -> dict[str, float]:
        """One optimiser step; returns every loss term."""
        assert self.average is not None
        one = self.as_batch(batch)
        before = [(b, b.clone()) for module in (self.network, self.loss) for b in module.buffers()]
        extra = self.loss.before_step(self.network, one, self.optimizer.param_groups[0]["lr"])
        with autocast_for(self.device, self.precision):
            terms = self.loss(self.network, one)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        logged = {name: float(term.detach()) for name, term in terms.items()} | {"total": float(total.detach())} | extra
        if one.part is not None:  # all processes decide alike
            logged = self.ranks.summed({name: value * one.weight / one.part.processes for name, value in logged.items()})
        if not math.isfinite(logged["total"]):
            self._refuse("loss", batch, before)
        self.optimizer.zero_grad(set_to_none=True)
        if not self._step(total * one.weight):
            self._refuse("gradient", batch, before)
        self.average.update(self.bare_network)
        return logged

    def _refuse(self, what: str, batch: dict, before: Sequence[tuple[Tensor, Tensor]]) -> NoReturn:
        """Ends the training with the running statistics of ``before``."""
        for buffer, value in before:
            buffer.copy_(value)
        raise not_finite(self, what, batch)

    def as_batch(self, batch: dict) -> Batch:
        """A batch of nnU-Net's loader as the losses take it, on the device."""
        (data, targets), key = self._to_device(batch), (self.seed, self.fold, 0, self.iteration)
        progress = 0.0 if self.budget is None else self.progress()
        heads = self.method.plan.heads
        one = Batch(data, targets, heads.onehot(targets[0]), progress, key, part=batch.get("part"))
        if not self.label_manager.has_ignore_label:
            return one
        annotated = annotated_voxels(targets[0], heads)
        with autocast_for(self.device, self.precision), torch.no_grad():
            logits = self.network(data)
        return one._replace(onehot=completed(one.onehot, annotated, logits, heads), annotated=annotated)

    def _step(self, total: Tensor) -> bool:
        """Updates the weights; False, and no update, where a gradient is not finite.

        In float16 gradients are scaled, and a step whose gradients are not finite is left out to lower the scale.
        """
        scaler = self.grad_scaler
        (total if scaler is None else scaler.scale(total)).backward()
        average_gradients(self.network)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.method.recipe.clipping)
        if scaler is None:
            if not torch.isfinite(norm):
                return False
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        return True

    def _to_device(self, batch: dict) -> tuple[Tensor, list[Tensor]]:
        targets = (
            [batch["target"]] if isinstance(batch["target"], Tensor) else batch["target"]
        )  # without deep supervision, or with
        return batch["data"].to(self.device, non_blocking=True), [t.to(self.device, non_blocking=True) for t in targets]

    def validation_step(self, batch: dict) -> dict[str, Any]:
        """Deterministic, sample-mean and fused overlap counts of a batch, and how far two seeds lie apart."""
        assert self.average is not None
        data, targets = self._to_device(batch)
        part = batch.get("part", Part.of(0, 1, len(data)))
        with autocast_for(self.device), torch.no_grad():
            logits, samples = self.predict_patch(self.average.network, data, part.items)
        heads = self.method.plan.heads
        annotated = annotated_voxels(targets[0], heads) if self.label_manager.has_ignore_label else None
        scores = score_patches(logits, samples, heads.onehot(targets[0]), heads, annotated)
        scores["loss"] *= part.weight / part.processes
        return self.ranks.summed(scores)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """Averaged weights as ``network_weights``, so that nnU-Net's own tools predict with them."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        save_atomically(checkpoint_of(self), filename)
        self._last_save = time.monotonic()

    def load_pretrained_weights(self, path: str) -> None:
        """Starts from the weights of another training, see :mod:`nndiffseg.training.pretrained`.

        Raises:
            UserError: they do not fit.
        """
        if not self.was_initialized:
            self.initialize()
        self.print_to_log_file(load_pretrained_weights(self.bare_network, path))
        self.average = WeightAverage(self.bare_network, self.method.recipe.average)

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
        restore(self, checkpoint)

    def run_training(self) -> None:
        if self.is_cascaded:
            check_previous(self, {case for side in self.do_split() for case in side})
        super().run_training()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        from nndiffseg.training.validation import validate_fold

        if self.is_cascaded:
            check_previous(self, self.do_split()[1])
        validate_fold(self, save_probabilities)

    def predict_patch(self, network: Any, data: Tensor, items: range | None = None) -> tuple[Tensor, Tensor]:
        """Deterministic logits ``(B, heads, *patch)`` and those of two samples ``(2, B, heads, *patch)``.

        ``items`` are the indices of the patches in a batch that several processes share.
        """
        maps, steps, samples = network.encode(data), self.method.steps_while_training, []
        grid = [n // s for n, s in zip(data.shape[2:], network.stride, strict=True)]
        seed = seed_of(self.seed, "validation", self.current_epoch)
        for sample in range(2):
            noise = patch_noise(seed, len(data) if items is None else items, [sample], grid, self.device)
            samples.append(network.decode(network.sample(maps, noise, steps=steps), maps))
        return maps[0], torch.stack(samples)
