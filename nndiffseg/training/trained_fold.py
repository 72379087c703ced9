"""What a validation needs of a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from nndiffseg.calibration import Calibration
from nndiffseg.methods.protocol import Method
from nndiffseg.training.average import WeightAverage
from nndiffseg.training.ranks import Ranks


class TrainedFold(Protocol):
    """What a validation needs of a trainer (:class:`nndiffseg.training.trainer.DiffusionTrainer`)."""

    method: Method
    average: WeightAverage | None
    calibration: Calibration
    seed: int
    validated_checkpoint: str
    ranks: Ranks
    # nnU-Net's own attributes
    fold_name: str
    device: torch.device
    is_cascaded: bool
    output_folder: str
    plans_manager: Any
    configuration_manager: Any
    configuration_name: str
    dataset_json: dict[str, Any]
    label_manager: Any
    dataset_class: Any
    preprocessed_dataset_folder: str
    preprocessed_dataset_folder_base: str
    inference_allowed_mirroring_axes: Sequence[int] | None
    logger: Any

    def do_split(self) -> tuple[list[str], list[str]]: ...

    def print_to_log_file(self, *parts: Any, also_print_to_console: bool = True) -> None: ...
