"""Every trainer's step and prediction keep to one device, seen without a GPU.

torch's fake tensors know shape and device and hold no values: mixing tensors of ``cuda`` and ``cpu`` raises as on a real GPU.
Backward passes need one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import _planned
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from nndiffseg import trainers
from nndiffseg.inference.statistics import FoldSums
from nndiffseg.inference.volume_sampler import SamplingOptions, VolumeSampler

CUDA = torch.device("cuda", 0)
TRAINERS = ("nnDiffSegTrainer", "nnDiffSegTrainerLDSeg", "nnDiffSegTrainerCDAL", "nnDiffSegTrainerMedSegDiffV2")


def made_on(device: torch.device, function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes all tensors that the function makes on the device."""
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with device:
            return function(*args, **kwargs)
    return wrapped


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers for the few places that read a tensor's value, which fake tensors lack."""
    different = itertools.count(1)

    def known(function: Callable[..., Any], instead: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
        def read(tensor: torch.Tensor) -> Any:
            try:
                return function(tensor)
            except DataDependentOutputException:
                return instead(tensor)
        return read

    def number(tensor: torch.Tensor) -> float:
        return next(different) / 1000 if tensor.dtype.is_floating_point else 1

    reads = {"item": number, "__float__": lambda _: 0.5, "__int__": lambda _: 1, "__bool__": lambda _: False}
    for name, instead in reads.items():
        monkeypatch.setattr(torch.Tensor, name, known(getattr(torch.Tensor, name), instead))
    monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor: np.zeros(tensor.shape, np.int16))


@pytest.fixture
def trainer_on_gpu(make_dataset, tmp_path, monkeypatch) -> Callable[[str], Any]:
    """A trainer whose networks and losses are on ``cuda``."""
    plans, dataset_json = _planned(make_dataset)
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path))
    folder: Path = tmp_path / "Dataset901_Tiny" / "nnUNetPlans_3d_fullres"
    folder.mkdir(parents=True)
    (folder / "case_000.b2nd").touch()  # nnU-Net infers the format from the files' names
    # Moving fake parameters is not supported, so they are made where they belong.
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)

    def make(name: str) -> Any:
        trainer = getattr(trainers, name)({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, CUDA)
        trainer.precision = "bfloat16"
        made_on(CUDA, trainer.initialize)()
        trainer.budget = SimpleNamespace(progress=lambda iteration: 0.5)
        return trainer
    return make


def batch(trainer: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Image ``(2, C, *patch)`` and the targets of deep supervision, on ``cuda``."""
    patch = trainer.configuration_manager.patch_size
    targets = [torch.zeros(2, 1, *[round(n * f) for n, f in zip(patch, scale, strict=True)], device=CUDA)
               for scale in trainer._get_deep_supervision_scales()]
    return torch.zeros(2, 2, *patch, device=CUDA), targets


@pytest.mark.parametrize("name", TRAINERS)
def test_a_training_step_and_a_prediction_mix_no_devices(name, trainer_on_gpu, values):
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer = trainer_on_gpu(name)
        trainer.loss.eval()  # which items the flagship's running means take is a value
        data, targets = batch(trainer)
        with torch.autocast("cuda", torch.bfloat16):
            terms = trainer.loss_terms(data, targets, torch.Generator())
        assert {term.device for term in terms.values()} == {CUDA}
        trainer.average.update(trainer.bare_network)

        network = trainer.average.network.eval()
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            logits, samples = trainer.predict_patch(network, data, torch.Generator())
        assert logits.device == samples.device == CUDA

        shape = [n + 8 for n in data.shape[2:]]
        for memory in (2**18, 2**30):  # maps and sums on the CPU, and beside the network
            options = SamplingOptions(samples=2, steps=1, mirror_axes=(0,), precision="bfloat16", memory=memory)
            sampler = VolumeSampler(network, data.shape[2:], trainer.label_manager, CUDA, options)
            image = torch.zeros(2, *shape)
            where = sampler.sums_device(image)
            assert where.type == ("cpu" if memory < 2**20 else "cuda")
            sums = FoldSums(trainer.label_manager.num_segmentation_heads, tuple(shape), where, None)
            with torch.no_grad():  # in inference mode fake tensors ask for a real GPU, so the bare function is called
                VolumeSampler.run.__wrapped__(sampler, image, "case", [0, 1], sums, np.zeros((2, *shape), np.uint8))
            assert sums.sampled.device == where


def test_mixed_devices_are_noticed(values):
    with FakeTensorMode(), pytest.raises(RuntimeError, match="device"):
        torch.nn.functional.conv2d(torch.zeros(1, 1, 4, 4, device=CUDA), torch.zeros(1, 1, 3, 3))
