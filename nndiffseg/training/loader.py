"""Training batches that are a pure function of (seed, iteration), so that a resumed training goes on exactly."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch.utils.data import DataLoader, Dataset

from nndiffseg.data.seeds import seed_of

#: of a cascade's second stage; they shuffle their list of channels, which would make a batch depend on those before
SHUFFLING = (ApplyRandomBinaryOperatorTransform, RemoveRandomConnectedComponentFromOneHotEncodingTransform)


class IndexedBatches(Dataset):
    """nnU-Net's loader, whose i-th batch does not depend on the batches before or on the worker that makes it."""

    def __init__(self, loader: nnUNetDataLoader, seed: int):
        self.loader, self.seed = loader, seed
        disable_timing_dependence(loader.transforms)
        self._shuffling = [t for t in transforms_in(loader.transforms) if isinstance(t, SHUFFLING)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        seed = seed_of(self.seed, index)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - nnU-Net's loader and transforms draw from the global generators
        torch.manual_seed(seed)
        for transform in self._shuffling:
            transform.channel_idx.sort()
        return next(self.loader)


def batches_from(
    loader: nnUNetDataLoader, seed: int, start: int, workers: int, pin_memory: bool, step: int = 1
) -> Iterator[dict[str, Any]]:
    """Endless batches ``start, start + step, ...``; ``workers`` 0 makes them in this process."""
    dataset = IndexedBatches(loader, seed)
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=itertools.count(start, step),
            num_workers=workers,
            pin_memory=pin_memory,
            prefetch_factor=max(1, 4 // step) if workers else None,
        )
    )


def disable_timing_dependence(transform: Any) -> None:
    """Switches off the blur's run-time benchmark: it picks one of two algorithms by the clock, which rounds differently."""
    for one in transforms_in(transform):
        if isinstance(one, GaussianBlurTransform):
            one.benchmark = False


def transforms_in(transform: Any) -> Iterator[Any]:
    """A transform and all that are nested in it."""
    yield transform
    for name in ("transforms", "transform", "list_of_transforms"):
        inner = getattr(transform, name, None)
        for child in inner if isinstance(inner, (list, tuple)) else [inner]:
            if child is not None and not callable(getattr(child, "items", None)) and child is not transform:
                yield from transforms_in(child)
