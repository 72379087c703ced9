"""Numbers that are fitted on validation cases after the training; the checkpoint carries them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FittedNumbers(nn.Module):
    """What every network of nndiffseg has of them.

    Attributes:
        fusion_weight: of the deterministic head in the fused probability, in [0, 1], ``(1,)``;
            :mod:`nndiffseg.calibration.fusion`.
        volume_scale: of the samples' volumes around their mean, where volumes are reported, one for each structure; ``(1,)``
            until they are fitted; :mod:`nndiffseg.calibration.volumes`.
    """

    fusion_weight: Tensor
    volume_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fusion_weight", torch.tensor([0.5]))
        self.register_buffer("volume_scale", torch.tensor([1.0]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        scales = state_dict[f"{prefix}volume_scale"]
        self.volume_scale = self.volume_scale.new_ones(scales.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def set_fitted(network: Any, fitted: Mapping[str, float | Sequence[float]]) -> None:
    """Puts fitted numbers into the buffers of these names, as far as the network has them."""
    for name, value in fitted.items():
        if name in dict(network.named_buffers(recurse=False)):
            setattr(network, name, getattr(network, name).new_tensor(value).reshape(-1))


def volume_scales_of(network: Any) -> tuple[float, ...]:
    """One for each structure, or a single one for all; 1 for a network of someone's own that is no :class:`FittedNumbers`."""
    return tuple(network.volume_scale.tolist()) if isinstance(network, FittedNumbers) else (1.0,)
