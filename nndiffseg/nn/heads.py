"""Meaning of a segmentation's channels: mutually exclusive labels, or nnU-Net's regions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Heads(NamedTuple):
    """The channels of logits, probabilities and one-hot labels.

    Attributes:
        number: of channels.
        regions: independent regions (sigmoid) instead of mutually exclusive labels (softmax, channel 0 the background).
    """

    number: int
    regions: bool = False

    @property
    def first_structure(self) -> int:
        """Index of the first channel that is a structure: labels begin with the background."""
        return 0 if self.regions else 1

    def probabilities(self, logits: Tensor, axis: int = 1) -> Tensor:
        """Logits with the channels at ``axis`` -> probabilities of the same shape, float32."""
        return logits.float().sigmoid() if self.regions else logits.float().softmax(axis)

    def logits(self, probabilities: Tensor) -> Tensor:
        """Inverse of :meth:`probabilities`, up to a constant: log p, for regions logit p; p in (0, 1)."""
        return torch.logit(probabilities) if self.regions else probabilities.log()

    def hard(self, probabilities: Tensor, axis: int = 1) -> Tensor:
        """Most probable label, or regions above 1/2, one-hot: the shape of ``probabilities``, bool."""
        if self.regions:
            return probabilities > 0.5
        return self._members(probabilities.argmax(axis), axis)

    def onehot(self, target: Tensor) -> Tensor:
        """Target of nnU-Net's loader -> float ``(B, number, *patch)``.

        Args:
            target: label numbers ``(B, 1, *patch)``, or masks of the regions and perhaps of the ignore label
                ``(B, regions or more, *patch)``. Voxels with the ignore label belong to no channel of labels.
        """
        return (target[:, : self.number] if self.regions else self._members(target[:, 0], 1)).float()

    def _members(self, labels: Tensor, axis: int) -> Tensor:
        """Label numbers -> one-hot at ``axis``, bool: a byte for each, where F.one_hot needs eight.

        The layout in memory is that of F.one_hot, since convolutions round differently with another one.
        """
        return (labels.unsqueeze(-1) == torch.arange(self.number, device=labels.device)).movedim(-1, axis)
