"""Batches that several processes share.

nnU-Net's loader draws the items of a batch one after another from one stream of random numbers, so that nobody can make the
last item without the others. Each batch is therefore made whole, as one process would make it, but by one process alone: batch
i by process i mod N, ahead of time. Its parts are then sent to the others. All together augment no more than one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nndiffseg.diffusion.items import Part
from nndiffseg.training.ranks import Ranks


class SharedBatches:
    """This process's parts of the batches ``start, start + 1, ...``, under the keys of nnU-Net's loader and ``part``.

    Args:
        batches: that this process makes: those of ``start, start + 1, ...`` whose index is its own modulo N.
        start: index of the first batch.
        ranks: the processes.
        device: where parts are sent from and to: the GPU with nccl, else the processor.
    """

    def __init__(self, batches: Iterator[dict[str, Any]], start: int, ranks: Ranks, device: torch.device):
        self.batches, self.index, self.ranks = batches, start, ranks
        self.device = device if dist.get_backend() == "nccl" else torch.device("cpu")

    def __iter__(self) -> SharedBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        """
        Raises:
            RuntimeError: in all processes, where the one whose turn it is cannot make the batch.
        """
        owner, self.index = self.index % self.ranks.number, self.index + 1
        batch: dict[str, Any] = {}
        told: Any = None
        if self.ranks.index == owner:
            try:
                batch = next(self.batches)
                told = {name: _described(value) for name, value in batch.items()}
            except RuntimeError as error:
                told = str(error)
        told = self.ranks.told_by(owner, told)
        if isinstance(told, str):
            raise RuntimeError(told)
        mine = {
            "data": self._sent(batch.get("data"), told["data"], owner),
            "target": self._sent_all(batch.get("target"), told["target"], owner),
        }
        return told | mine | {"part": self.ranks.part(len(told["data"]))}

    def _sent_all(self, whole: Any, like: Any, owner: int) -> Any:
        """A target at full resolution, or a list of one for each resolution."""
        if isinstance(like, Tensor):
            return self._sent(whole, like, owner)
        return [self._sent(None if whole is None else whole[i], one, owner) for i, one in enumerate(like)]

    def _sent(self, whole: Tensor | None, like: Tensor, owner: int) -> Tensor:
        """This process's items of a tensor ``(B, ...)`` that the owner has; ``like`` tells shape and type."""
        total, number = len(like), self.ranks.number
        most = -(-total // number)
        # Windows of equal length, as scatter wants them: a process with one item less drops a neighbour's.
        starts = [min(Part.of(process, number, total).first, total - most) for process in range(number)]
        windows = None
        if whole is not None:
            flat = whole.to(self.device).contiguous().flatten(1).view(torch.uint8)  # bytes: not every type can be sent
            windows = [flat[start : start + most] for start in starts]
        received = torch.empty(most, like[:1].nbytes, dtype=torch.uint8, device=self.device)
        dist.scatter(received, windows, src=owner)
        mine = self.ranks.part(total)
        skipped = mine.first - starts[self.ranks.index]
        return received[skipped : skipped + mine.number].view(like.dtype).view(mine.number, *like.shape[1:])


def _described(value: Any) -> Any:
    """Tensors without their values, which are sent in another way."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    return [_described(v) for v in value] if isinstance(value, list) else value
