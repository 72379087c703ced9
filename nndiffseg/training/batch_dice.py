"""nnU-Net's Dice over a batch that several processes share."""

from __future__ import annotations

import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from nndiffseg.nn.ranks import sum_over_ranks


class SharedBatchDice(nn.Module):
    """What :class:`MemoryEfficientSoftDiceLoss` with ``batch_dice`` computes over the items of all processes.

    nnU-Net's own gathers a row for each item, and so wants as many items in every process.

    Args:
        dice: nnU-Net's loss, for one process.
    """

    def __init__(self, dice: MemoryEfficientSoftDiceLoss):
        super().__init__()
        self.dice = dice

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """x ``(B, C, *spatial)``, y labels ``(B, 1, *spatial)`` or one channel each; loss_mask ``(B, 1, *spatial)``."""
        dice, axes = self.dice, (0, *range(2, x.ndim))
        x = x if dice.apply_nonlin is None else dice.apply_nonlin(x)
        if x.shape != y.shape:
            y = torch.zeros_like(x, dtype=torch.float32).scatter_(1, y.long(), 1)
        first = 0 if dice.do_bg else 1
        x, y = x[:, first:], y[:, first:].float()
        mask = 1.0 if loss_mask is None else loss_mask
        sums = [(v * mask).sum(axes, dtype=torch.float32) for v in (x * y, x, y)]
        intersect, predicted, true = sum_over_ranks(torch.stack(sums))  # (C,) each
        return -((2 * intersect + dice.smooth) / (true + predicted + dice.smooth).clamp_min(1e-8)).mean()
