"""Numbers that are fitted on validation cases after the training; the checkpoint carries them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FittedNumbers(nn.Module):
    """What every network of nndiffseg has of them.

    Attributes:
        fusion_weight: of the deterministic head in the fused probability, in [0, 1], ``(1,)``;
            :mod:`nndiffseg.training.fusion`.
        volume_scale: of the samples' volumes around their mean, where volumes are reported, ``(1,)``;
            :mod:`nndiffseg.training.volume_scale`.
    """

    fusion_weight: Tensor
    volume_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fusion_weight", torch.tensor([0.5]))
        self.register_buffer("volume_scale", torch.tensor([1.0]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}volume_scale", torch.ones(1))  # checkpoints of before it existed
        super()._load_from_state_dict(state_dict, prefix, *rest)


def volume_scale_of(network: Any) -> float:
    """1 for a network of someone's own trainer that has none."""
    scale = getattr(network, "volume_scale", None)
    return 1.0 if scale is None else float(scale)
