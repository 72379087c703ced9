"""Trainings of an exact length, interrupted ones and those in another precision."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.compare import stock_training
from benchmarks.compare.flags import Budget
from benchmarks.compare.library import FINAL
from benchmarks.compare.trainers import STOCK, Entry, find_class
from benchmarks.compare.training import LATEST, check_record, epochs_of, finished_training, train
from nndiffseg.errors import UserError
from nndiffseg.nn.precision import default_precision

CPU = torch.device("cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / FINAL, weights_only=False)["network_weights"]


@pytest.mark.parametrize("iterations", [1, 7, 250, 499, 701, 1000, 4000])
def test_epochs_multiply_to_exactly_the_iterations(iterations):
    epochs, length = epochs_of(iterations)
    assert epochs * length == iterations
    assert length >= min(250, iterations)
    assert epochs_of(1000) == (4, 250)


@pytest.mark.parametrize(
    ("budget", "seed", "message"),
    [
        (Budget(3, None), 0, "holds a training of 2 iterations, not 3"),
        (Budget(None, 1.0), 0, "holds a training of 2 iterations, not 1 minutes"),
        (Budget(2, None), 1, "holds a training with the seed 0"),
        (Budget(None, None), 1, "holds a training with the seed 0"),
    ],
)
def test_a_training_of_another_length_or_seed_is_not_taken_for_this_one(budget, seed, message, tmp_path):
    record = {"iterations": 2, "minutes_asked": None, "seconds": 1.0, "seed": 0}
    check_record(record, Budget(2, None), 0, tmp_path)
    check_record(record, Budget(None, None), 0, tmp_path)
    with pytest.raises(UserError, match=message):
        check_record(record, budget, seed, tmp_path)


def test_without_a_budget_only_finished_trainings_are_used(tiny_data):
    with pytest.raises(UserError, match="give --iterations or --minutes"):
        train(tiny_data, Entry(STOCK), Budget(None, None), CPU, 0)


@pytest.mark.parametrize("trainer", [STOCK, pytest.param("nnDiffSegTrainer", marks=pytest.mark.slow)])
def test_an_interrupted_training_ends_like_an_uninterrupted_one(trainer, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(stock_training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("nndiffseg.training.loop.CHECKPOINT_SECONDS", 0.0)
    train(tiny_data, Entry(trainer), Budget(4, None), CPU, 0)
    expected = weights(tiny_data.fold_folder(trainer))

    other = tmp_path / "interrupted"
    data = dataclasses.replace(tiny_data, results=other)
    cls, steps = find_class(trainer), []
    original = cls.train_step

    def stops(self, batch):
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(1)
        return original(self, batch)

    monkeypatch.setattr(cls, "train_step", stops)
    with pytest.raises(KeyboardInterrupt):
        train(data, Entry(trainer), Budget(4, None), CPU, 0)
    monkeypatch.setattr(cls, "train_step", original)
    folder = data.fold_folder(trainer)
    assert (folder / LATEST).is_file() and finished_training(folder) is None
    with pytest.raises(UserError, match="holds a training of 4 iterations, not 5"):
        train(data, Entry(trainer), Budget(5, None), CPU, 0)
    record = train(data, Entry(trainer), Budget(4, None), CPU, 0)
    assert record["finished"] and record["iterations"] == 4 and not (folder / LATEST).exists()
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.skipif(default_precision(CPU) != "bfloat16", reason="this processor does not multiply bfloat16 in hardware")
def test_nnunet_trains_in_bfloat16_with_its_loss_in_float32(tiny_data, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    cls, seen = find_class(STOCK), []
    original = cls.train_step

    def watched(self, batch):
        hooks = [
            self.network.register_forward_hook(lambda module, inputs, output: seen.append(output[0].dtype)),
            self.loss.loss.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].dtype)),
            self.loss.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype)),
        ]
        result = original(self, batch)
        for hook in hooks:
            hook.remove()
        return result

    monkeypatch.setattr(cls, "train_step", watched)
    train(tiny_data, Entry(STOCK), Budget(1, None), CPU, 0, bfloat16=True)
    assert seen[:3] == [torch.bfloat16, torch.float32, torch.float32]
    assert all(v.dtype == torch.float32 for v in weights(tiny_data.fold_folder(STOCK)).values())


def test_without_bfloat16_nnunet_computes_in_float32(tiny_data, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    cls, seen = find_class(STOCK), []
    original = cls.train_step

    def watched(self, batch):
        hook = self.network.register_forward_hook(lambda module, inputs, output: seen.append(output[0].dtype))
        result = original(self, batch)
        hook.remove()
        return result

    monkeypatch.setattr(cls, "train_step", watched)
    train(tiny_data, Entry(STOCK), Budget(1, None), CPU, 0)
    assert seen[0] == torch.float32


def watch_rates(monkeypatch) -> list[float]:
    """The learning rate of every step of nnU-Net's trainer, as it comes."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    cls, rates = find_class(STOCK), []
    original = cls.train_step

    def watched(self, batch):
        rates.append(self.optimizer.param_groups[0]["lr"])
        return original(self, batch)

    monkeypatch.setattr(cls, "train_step", watched)
    return rates


def test_minutes_bound_a_training_and_its_learning_rate_falls_to_zero(tiny_data, monkeypatch):
    rates = watch_rates(monkeypatch)
    record = train(tiny_data, Entry(STOCK), Budget(None, 0.1), CPU, 0)
    rates = rates[: record["iterations"]]  # behind them come the timed steps
    assert record["seconds"] >= 6  # long enough for several steps on a busy machine
    assert len(rates) > 1 and rates[0] > 0.8e-2 and all(a > b for a, b in pairwise(rates))
    assert train(tiny_data, Entry(STOCK), Budget(None, 0.1), CPU, 0) == record
    with pytest.raises(UserError, match=r"holds a training of 0.1 minutes, not 1 minutes"):
        train(tiny_data, Entry(STOCK), Budget(None, 1.0), CPU, 0)


def test_the_polynomial_rate_spans_exactly_the_iterations(tiny_data, monkeypatch):
    rates = watch_rates(monkeypatch)
    train(tiny_data, Entry(STOCK), Budget(4, None), CPU, 0)
    assert rates[:4] == pytest.approx([1e-2 * (1 - i / 4) ** 0.9 for i in range(4)])
