"""A finished nnU-Net: its model folder, read without importing or executing anything that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.data.checkpoint import load_any_checkpoint, mirror_axes
from nndiffseg.data.dataset_json import structures_of
from nndiffseg.data.model_json import ModelNames
from nndiffseg.errors import UserError
from nndiffseg.inference.model_folder import DEFAULT_CHECKPOINT, open_folder, read_calibration
from nndiffseg.methods.latent.source import load_finished
from nndiffseg.methods.protocol import planned_network
from nndiffseg.nn.heads import Heads


@dataclass(frozen=True)
class StockFold:
    """One fold.

    Attributes:
        name: of the fold.
        weights: as nnU-Net stores them.
        calibration: of maps and samples; None before ``nndiffseg_calibrate``.
    """

    name: str
    weights: dict[str, Tensor]
    calibration: Calibration | None


@dataclass(frozen=True)
class StockModel:
    """The folds of a stock nnU-Net and what is needed around them; ``network`` takes the weights of each fold in turn."""

    network: Any
    folds: tuple[StockFold, ...]
    plans: PlansManager
    configuration: str
    dataset_json: dict[str, Any]
    trainer: str
    mirror_axes: tuple[int, ...]


def is_stock(folder: str | Path, folds: Sequence[int | str] | None = None, checkpoint: str = DEFAULT_CHECKPOINT) -> bool:
    """Whether a model folder's checkpoints were written by nnU-Net's own trainers instead of nndiffseg's.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    first = next(iter(open_folder(folder, folds, checkpoint).checkpoints.values()))
    return "nndiffseg_version" not in load_any_checkpoint(first, tensors=False)


def is_calibrated(folder: Path, folds: Sequence[str], checkpoint: str = DEFAULT_CHECKPOINT) -> bool:
    """Whether ``nndiffseg_calibrate`` has calibrated all of these folds, so that nndiffseg predicts with them.

    Raises:
        UserError: one is missing, or its calibration is damaged.
    """
    files = open_folder(folder, folds, checkpoint)
    return files.calibration is not None or all(read_calibration(f.parent) is not None for f in files.checkpoints.values())


def load_stock_model(
    folder: str | Path, folds: Sequence[int | str] | None = None, checkpoint: str = DEFAULT_CHECKPOINT
) -> StockModel:
    """Loads a model folder as ``nnUNetv2_train`` leaves it.

    Any trainer of nnU-Net's will do whose network is the planned one.

    Args:
        folder, folds, checkpoint: see :func:`~nndiffseg.inference.model_folder.open_folder`.

    Raises:
        UserError: something is missing or damaged, the model is a cascade's second stage, or its network is not as planned.
    """
    files = open_folder(folder, folds, checkpoint)
    loaded, first = [], None
    for name, file in files.checkpoints.items():
        content = load_any_checkpoint(file)
        if first is None:
            first = {k: content.get(k) for k in ("trainer_name", "init_args", "inference_allowed_mirroring_axes")}
            configuration = ModelNames.of(content, files.plans, file).configuration
        calibration = files.calibration or read_calibration(file.parent)
        loaded.append(StockFold(name, content["network_weights"], calibration))
    assert first is not None
    plans = PlansManager(files.plans)
    manager = plans.get_configuration(configuration)
    if manager.previous_stage_name is not None:
        raise UserError(
            f"{folder} is the second stage of a cascade of stock nnU-Net, which nndiffseg neither calibrates nor predicts; use "
            "nnUNetv2_predict, or choose another model."
        )
    channels = determine_num_input_channels(plans, manager, files.dataset_json)
    heads = plans.get_label_manager(files.dataset_json).num_segmentation_heads
    network = planned_network(manager.configuration["architecture"], channels, heads, initialise=False)
    for fold in loaded:
        load_finished(network, fold.weights, files.checkpoints[fold.name])
    kind = Heads(heads, plans.get_label_manager(files.dataset_json).has_regions)
    for fold in loaded:
        if fold.calibration is not None:
            fold.calibration.check(kind, len(structures_of(files.dataset_json)), str(folder), coherent=True)
    network.decoder.deep_supervision = False  # type: ignore[union-attr]
    axes = mirror_axes(first, len(manager.patch_size), folder)
    return StockModel(network.eval(), tuple(loaded), plans, configuration, files.dataset_json, str(first["trainer_name"]), axes)
