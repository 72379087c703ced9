"""Statistics over the items of all processes that train a network together (torch.distributed).

A loss that is a mean over items needs nothing of this: gradients are averaged. What couples the items of a batch, such as a
running mean or a Dice over the batch, needs sums over all processes. With one process every function here is the plain one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """That train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of the same tensor of all processes.

    Each process's loss contains it, and their gradients are averaged in the end, so that its gradient is right.
    """
    return x if processes() == 1 else _Sum.apply(x)


def item_mean(x: Tensor, dim: int = 0) -> Tensor:
    """Mean along ``dim``, the items, of which every process may have another number; NaN where nobody has any."""
    if processes() == 1:
        return x.mean(dim)
    sums = x.sum(dim)
    both = sum_over_ranks(torch.cat([sums.flatten(), sums.new_full((1,), x.shape[dim])]))
    return (both[:-1] / both[-1]).view(sums.shape)


def moments(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and variance along ``axes``, the items among them."""
    mean, var = x.mean(axes), x.var(axes, unbiased=False)
    if processes() == 1:
        return mean, var
    share = x.new_tensor([x.numel() / mean.numel()])
    share = share / sum_over_ranks(share)
    whole = sum_over_ranks(share * mean)
    return whole, sum_over_ranks(share * (var + (mean - whole).square()))


def average_gradients(module: torch.nn.Module) -> None:
    """Averages the gradients over all processes; the same parameters must have one in each."""
    if processes() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / processes()).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
