"""What the processes of one training tell each other besides gradients: batches, decisions and figures.

All of it goes over a group of its own on the processors, whose time limit is long: one process may work for hours, as at the
end of a validation, while the others wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from nndiffseg.diffusion.items import Part
from nndiffseg.errors import UserError
from nndiffseg.nn.ranks import processes

#: how long a process may wait for the others; a process that has died is noticed at once
PATIENCE = timedelta(days=7)


class Ranks:
    """This process and the others. All of them call the same methods in the same order; with one, nothing is sent.

    Attributes:
        number: of processes.
        index: of this one, 0 for the first, on all computers together.
    """

    def __init__(self) -> None:
        self.number = processes()
        self.index = dist.get_rank() if self.number > 1 else 0
        self._group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if self.number > 1 else None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.index == 0

    def part(self, total: int) -> Part:
        """This process's items of a batch."""
        return Part.of(self.index, self.number, total)

    def wait(self) -> None:
        """Until all are here."""
        if self.number > 1:
            dist.barrier(self._group)

    def told_by(self, index: int, value: Any) -> Any:
        """The value that one process has; what the others give is ignored."""
        if self.number == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=index, group=self._group)
        return told[0]

    def largest(self, number: int) -> int:
        """The largest number that any process has."""
        if self.number == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX, self._group)
        return int(value)

    def summed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Sums of numbers and arrays over all processes."""
        if self.number == 1:
            return dict(values)
        arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
        flat = torch.from_numpy(np.concatenate([a.ravel() for a in arrays.values()]))
        dist.all_reduce(flat, group=self._group)
        sums = flat.split([a.size for a in arrays.values()])
        return {
            name: s.numpy().reshape(a.shape) if a.ndim else float(s) for (name, a), s in zip(arrays.items(), sums, strict=True)
        }


def check_batch(items: int) -> None:
    """
    Raises:
        UserError: there are more processes than items in a batch.
    """
    if processes() > items:
        raise UserError(f"{processes()} processes cannot share a batch of {items}; train with -num_gpus {items} or fewer.")


def alike(network: nn.Module, losses: nn.Module, device: torch.device) -> nn.Module:
    """The network as the first process has it, with batch norms over the items of all; the losses as the first has them.

    Gradients are averaged after each backward pass (:func:`nndiffseg.nn.ranks.average_gradients`). DistributedDataParallel
    sends them during the pass, but gives gradients of zero to parameters that have none, which the optimiser would then decay.

    Raises:
        UserError: it has batch norms, which torch cannot share on processors.
    """
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        if device.type != "cuda":
            raise UserError("Plans with batch norms cannot be trained by several processes on the CPU; leave out -num_gpus.")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in (network, losses):
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)
    return network
