"""Batches are a function of seed and iteration, whoever makes them and wherever a training begins."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from nndiffseg.training.loader import batches_from


class Draws:
    """Stands in for nnU-Net's loader: each batch draws from all three global generators."""

    transforms = None

    def __next__(self) -> dict[str, Any]:
        return {"data": (random.random(), float(np.random.random()), float(torch.rand(())))}  # noqa: NPY002


def first(number: int, *, seed: int = 0, start: int = 0, workers: int = 0) -> list[Any]:
    batches = batches_from(Draws(), seed, start, workers, pin_memory=False)
    return [tuple(next(batches)["data"]) for _ in range(number)]


def test_every_iteration_and_seed_has_its_own_batch() -> None:
    assert len({*first(8), *first(8, seed=1)}) == 16


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_goes_on_with_the_same_batches(workers: int) -> None:
    assert first(3, start=5, workers=workers) == first(8)[5:]
