"""A batch that several processes share: each draws the random numbers of all items, and keeps those of its own.

So every item sees the same numbers whatever the number of processes is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """The items of a batch that this process has.

    Attributes:
        first: index of the first one in the whole batch.
        number: how many it has.
        total: how many the whole batch has.
        processes: that share it.
    """

    first: int
    number: int
    total: int
    processes: int = 1

    @classmethod
    def of(cls, process: int, processes: int, total: int) -> Part:
        """As nnU-Net divides a batch: as equally as it goes, the first processes have one more."""
        least, more = divmod(total, processes)
        return cls(process * least + min(process, more), least + (process < more), total, processes)

    @property
    def items(self) -> range:
        """Their indices in the whole batch."""
        return range(self.first, self.first + self.number)

    @property
    def weight(self) -> float:
        """Of this part's means, so that their average over all processes is the mean over the whole batch."""
        return self.number * self.processes / self.total


class ItemGenerator(torch.Generator):
    """A generator that knows which items of the batch are this process's; give it to :func:`drawn` and what builds on it."""

    def __new__(cls, part: Part) -> ItemGenerator:
        return super().__new__(cls)

    def __init__(self, part: Part):
        self.part = part


def drawn(draw: Callable[[int], Tensor], items: int, generator: torch.Generator | None) -> Tensor:
    """Random numbers of this process's items.

    Args:
        draw: draws those of so many items from the generator, ``(items, ...)``.
        items: of this process.
        generator: an :class:`ItemGenerator` where the batch has others besides.
    """
    if not isinstance(generator, ItemGenerator):
        return draw(items)
    part = generator.part
    if items != part.number:
        raise ValueError(f"{items} items, but this process has {part.number} of the batch.")
    return draw(part.total)[part.first : part.first + items]


def uniform(items: int, generator: torch.Generator | None) -> Tensor:
    """A number in [0, 1) for each item ``(items,)``."""
    return drawn(lambda n: torch.rand(n, generator=generator), items, generator)
