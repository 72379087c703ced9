"""The deterministic head of a model as a model of stock nnU-Net, which predicts it without nndiffseg."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from torch import Tensor, nn

from nndiffseg.data.checkpoint import plain
from nndiffseg.data.folds import holds_out
from nndiffseg.data.model_json import ModelNames
from nndiffseg.errors import UserError
from nndiffseg.methods.protocol import Method, planned_network

#: of the copy; nnU-Net's own class, which builds the planned network
TRAINER = "nnUNetTrainer"
#: added to the name of the plans: an installed copy never replaces a stock model that was trained on the same plans
SUFFIX = "_head"


def stock_plans(plans: Mapping[str, Any]) -> dict[str, Any]:
    """The plans without what nndiffseg added to them, under a name of their own."""
    stock = copy.deepcopy(dict(plans))
    stock.pop("continue_training", None)
    stock["plans_name"] += SUFFIX
    for configuration in stock["configurations"].values():
        configuration.pop("diffusion", None)
    return stock


def stock_names(names: ModelNames) -> ModelNames:
    """The names of the copy of a model."""
    return replace(names, trainer=TRAINER, plans=names.plans + SUFFIX)


def stock_weights(method: Method, network: nn.Module, trainer: str) -> dict[str, Tensor]:
    """The weights of the head under the names that they have in stock nnU-Net.

    They are put into the network that nnU-Net builds from the plans, and its answer is compared with the head's.

    Args:
        method: of the model.
        network: with the weights of one fold, in evaluation mode, on the CPU.
        trainer: name, for messages.

    Raises:
        UserError: the method's deterministic answer is not that of nnU-Net's planned network.
    """
    if method.head is None:
        raise UserError(
            f"The network of {trainer} does not contain nnU-Net's planned U-Net, so stock nnU-Net cannot predict it; leave "
            "--nnunet out."
        )
    weights = network.get_submodule(method.head).state_dict()
    plan = method.plan
    stock: Any = planned_network(
        plan.configuration.configuration["architecture"], plan.input_channels, plan.heads.number, initialise=False
    )
    stock.load_state_dict(weights)
    stock.decoder.deep_supervision = False
    image = torch.randn((1, plan.input_channels, *_small_patch(method)), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if not torch.equal(stock.eval()(image), network(image)):
            raise UserError(
                f"nnU-Net's planned U-Net in {trainer} answers otherwise than the whole network, or its weights are not "
                "finite, so stock nnU-Net cannot predict it; leave --nnunet out."
            )
    return weights


def _small_patch(method: Method) -> list[int]:
    """Two cells of the deepest stage along each axis, so that the check costs little whatever the patch."""
    size = [2] * len(method.plan.patch)
    for stride in method.plan.strides:
        size = [n * s for n, s in zip(size, stride, strict=True)]
    return [min(n, p) for n, p in zip(size, method.plan.patch, strict=True)]


def stock_checkpoint(
    weights: Mapping[str, Tensor],
    *,
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    configuration: str,
    fold: str,
    epoch: int,
    mirror_axes: tuple[int, ...],
) -> bytes:
    """A checkpoint file with the keys of nnU-Net's own, but for the optimiser's state.

    The log is empty: what was logged in training is of the whole network.

    Args:
        weights: from :func:`stock_weights`.
        plans: from :func:`stock_plans`.
        dataset_json: of the model.
        configuration: name in the plans.
        fold: ``0`` to ``4``, or ``all``.
        epoch: number of epochs that it was trained for.
        mirror_axes: axes that prediction may mirror.
    """
    file = io.BytesIO()
    torch.save(
        plain(
            {
                "network_weights": dict(weights),
                "grad_scaler_state": None,
                "logging": LocalLogger().get_checkpoint(),
                "_best_ema": None,
                "current_epoch": epoch,
                "init_args": {
                    "plans": dict(plans),
                    "configuration": configuration,
                    "fold": int(fold) if holds_out(fold) else fold,
                    "dataset_json": dict(dataset_json),
                },
                "trainer_name": TRAINER,
                "inference_allowed_mirroring_axes": mirror_axes or None,
            }
        ),
        file,
    )
    return file.getvalue()
