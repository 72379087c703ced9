"""Contents of a training checkpoint, and resuming from it."""

from __future__ import annotations

import json
from typing import Any

import torch

import nndiffseg
from nndiffseg.calibration.calibration import Calibration
from nndiffseg.data.archive import check_finite
from nndiffseg.data.checkpoint import mirror_axes
from nndiffseg.errors import UserError


def checkpoint_of(trainer: Any) -> dict[str, Any]:
    """All that a prediction and an exact resume need.

    ``network_weights`` are the averaged ones, so that nnU-Net's own tools predict with them.
    """
    return {
        "network_weights": trainer.average.network.state_dict(),
        "network_weights_raw": trainer.bare_network.state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": None if trainer.grad_scaler is None else trainer.grad_scaler.state_dict(),
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.current_epoch,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
        "mirror_axes": trainer.mirror_axes,
        "nndiffseg_version": nndiffseg.__version__,
        "method": trainer.method.name,
        "options": trainer.method.options.to_plan(),
        "calibration": trainer.calibration.to_json(),
        "iteration": trainer.iteration,
        "batches_left_out": trainer.batches_left_out,
        "ema_updates": trainer.average.updates,
        "loss_state": trainer.loss.state_dict(),
        "epoch_terms": trainer._epoch_terms,
        "seconds": trainer.budget.seconds if trainer.budget else trainer._spent,
        "seed": trainer.seed,
        "training_id": trainer.training_id,
    }


def restore(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Weights, optimiser, average, log and position of a checkpoint.

    Args:
        trainer: an initialised :class:`nndiffseg.training.trainer.DiffusionTrainer`.
        checkpoint: from :func:`checkpoint_of`.

    Raises:
        UserError: it comes from another trainer, other options or other plans, or its state is not finite or not whole.
    """
    if checkpoint["trainer_name"] != type(trainer).__name__:
        raise UserError(
            f"The checkpoint was written by {checkpoint['trainer_name']}, not by {type(trainer).__name__}; "
            f"choose -tr {checkpoint['trainer_name']}."
        )
    if trainer.method.with_defaults(checkpoint["options"]) != trainer.method.options.to_plan():
        raise UserError(
            f"The checkpoint was trained with the options {json.dumps(checkpoint['options'])}, not "
            f"{json.dumps(trainer.method.options.to_plan())}; give the same ones with --option."
        )
    assert trainer.average is not None
    for state in ("network_weights_raw", "optimizer_state", "loss_state"):
        check_finite(checkpoint.get(state), "the checkpoint", f"numbers of {state}")
    try:
        trainer.bare_network.load_state_dict(checkpoint.get("network_weights_raw", {}))
        trainer.average.network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError:
        raise UserError(
            "The checkpoint's network differs from the plans; the plans were changed after this training "
            "began, so restore them or start again without --c."
        ) from None
    try:
        _restore_the_rest(trainer, checkpoint)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError):
        raise UserError(
            "The state of the training in the checkpoint is not one that this trainer writes; restore the file, or start again "
            "without --c."
        ) from None


def _restore_the_rest(trainer: Any, checkpoint: dict[str, Any]) -> None:
    trainer.optimizer.load_state_dict(checkpoint["optimizer_state"])
    if trainer.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
        trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
    trainer.average.updates = checkpoint["ema_updates"]
    trainer.loss.load_state_dict(checkpoint["loss_state"])
    trainer.calibration = Calibration.from_json(checkpoint["calibration"])
    trainer.logger.load_checkpoint(checkpoint["logging"])
    trainer._best_ema = checkpoint["_best_ema"]
    key, dimensions = "inference_allowed_mirroring_axes", len(trainer.configuration_manager.patch_size)
    trainer.inference_allowed_mirroring_axes = mirror_axes({key: checkpoint[key]}, dimensions, "to go on from") or None
    asked = checkpoint.get("mirror_axes")
    trainer.mirror_axes = None if asked is None else mirror_axes({key: asked}, dimensions, "to go on from")
    trainer.current_epoch, trainer.iteration = checkpoint["current_epoch"], checkpoint["iteration"]
    trainer.batches_left_out = checkpoint.get("batches_left_out", 0)
    trainer._epoch_terms = checkpoint["epoch_terms"]
    trainer._spent, trainer.seed = checkpoint["seconds"], checkpoint["seed"]
    trainer.training_id = checkpoint.get("training_id", trainer.training_id)


def not_finite(trainer: Any, what: str, batch: dict) -> UserError:
    """The sentence about a loss or gradient that is not finite, with the cases to blame.

    The state before the step, which was not made, is saved where it is sound; from there another batch comes next.

    Args:
        trainer: an initialised :class:`nndiffseg.training.trainer.DiffusionTrainer`.
        what: is not finite.
        batch: of nnU-Net's loader.
    """
    modules = (trainer.bare_network, trainer.average.network, trainer.loss)
    sound = all(torch.isfinite(value).all() for module in modules for value in module.state_dict().values())
    if sound and trainer.iteration > 0:
        trainer.batches_left_out += 1
        trainer.save_latest()
        trainer.ranks.wait()  # until the first process has saved it
        again = "go on from the last sound state and another batch with --c"
    else:
        again = "go on with --c, or begin anew with --seed 1 if it happens again"
    cases = ", ".join(sorted({str(key) for key in batch.get("keys", ())})) or "unknown"
    return UserError(
        f"The {what} is not finite at iteration {trainer.iteration} with patches of the cases {cases}; look at their images, "
        f"correct or leave out what is wrong and preprocess it again, then {again}."
    )
