"""The comparison of methods from training to table, on a tiny dataset, and its reuse of what is done."""

from __future__ import annotations

import importlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import methods, methods_training
from benchmarks.methods_common import STOCK, Budget
from benchmarks.methods_prediction import voxelwise_samples
from benchmarks.methods_training import FINAL, LATEST, epochs_of, finished_training, train
from nndiffseg.errors import UserError
from nndiffseg.nn.precision import default_precision

CPU = torch.device("cpu")


@pytest.fixture
def in_this_process(monkeypatch) -> list[str]:
    """Runs the commands that would be processes here; returns their names as they come."""
    started: list[str] = []

    def run_module(module: str, arguments: list[str]) -> tuple[int, float]:
        started.append(f"{module.rpartition('.')[2]} {arguments[-1]}")
        return importlib.import_module(module).main(arguments), 0.5

    monkeypatch.setattr(methods, "run_module", run_module)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return started


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / FINAL, weights_only=False)["network_weights"]


@pytest.mark.parametrize("iterations", [1, 7, 250, 499, 701, 1000, 4000])
def test_epochs_multiply_to_exactly_the_iterations(iterations):
    epochs, length = epochs_of(iterations)
    assert epochs * length == iterations
    assert length >= min(250, iterations)
    assert epochs_of(1000) == (4, 250)


def test_the_whole_comparison_runs_and_is_reused(tiny_flags, results_elsewhere, in_this_process, capsys):
    flags = [*tiny_flags, "--iterations", "2", "--samples", "2", "--cases", "2", "--name", "tiny"]
    assert methods.main([*flags, "--trainers", STOCK]) == 0
    assert methods.main([*flags, "--trainers", "nnDiffSegTrainer"]) == 0
    assert in_this_process == [
        "methods_training nnUNetTrainer",
        "methods_prediction nnUNetTrainer",
        "methods_training nnDiffSegTrainer",
        "methods_prediction nnDiffSegTrainer",
    ]
    result = json.loads((results_elsewhere / "tiny.json").read_text())
    assert list(result["methods"]) == [STOCK, "nnDiffSegTrainer"]
    for row in result["methods"].values():
        assert row["training"]["iterations"] == 2 and row["training"]["seconds_per_iteration"] > 0
        assert len(row["per_case"]) == 2 and row["seconds_per_case"] > 0
        assert row["prediction"]["parameters"] > 1000 and row["prediction"]["peak_gb"] == 0.5
        assert 0 <= row["dice_fused"]["mean"] <= 1 and 0 <= row["ece"] <= 1
    assert result["settings"]["cases"] == 2 and result["settings"]["iterations"] == 2 and "processor" in result["hardware"]
    assert len(result["table"]) == 3 and (results_elsewhere / "tiny.png").is_file()

    in_this_process.clear()
    assert methods.main([*flags, "--trainers", "nnDiffSegTrainer"]) == 0  # trained already, and so are both cases
    assert in_this_process == ["methods_prediction nnDiffSegTrainer"]
    assert "(1 of" not in capsys.readouterr().out.rpartition("trained already")[2]

    assert methods.main([*flags, "--trainers", STOCK, "--seed", "1"]) == 2
    assert "other settings (seed)" in capsys.readouterr().err
    assert methods.main([*tiny_flags, "--iterations", "3", "--trainers", STOCK, "--name", "b"]) == 2
    assert "holds a training of 2 iterations, not 3" in capsys.readouterr().err


def test_without_a_budget_only_finished_trainings_are_used(tiny_data):
    with pytest.raises(UserError, match="give --iterations or --minutes"):
        train(tiny_data, STOCK, Budget(None, None), CPU, 0)


@pytest.mark.parametrize("trainer", [STOCK, pytest.param("nnDiffSegTrainer", marks=pytest.mark.slow)])
def test_an_interrupted_training_ends_like_an_uninterrupted_one(trainer, tiny_data, tmp_path, monkeypatch):
    import dataclasses

    from benchmarks.methods_common import find_class

    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(methods_training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("nndiffseg.training.loop.CHECKPOINT_SECONDS", 0.0)
    train(tiny_data, trainer, Budget(4, None), CPU, 0)
    expected = weights(tiny_data.fold_folder(trainer))

    other = tmp_path / "interrupted"
    monkeypatch.setenv("nnUNet_results", str(other))
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
        train(data, trainer, Budget(4, None), CPU, 0)
    monkeypatch.setattr(cls, "train_step", original)
    folder = data.fold_folder(trainer)
    assert (folder / LATEST).is_file() and finished_training(folder) is None
    with pytest.raises(UserError, match="holds a training of 4 iterations, not 5"):
        train(data, trainer, Budget(5, None), CPU, 0)
    record = train(data, trainer, Budget(4, None), CPU, 0)
    assert record["finished"] and record["iterations"] == 4 and not (folder / LATEST).exists()
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.skipif(default_precision(CPU) != "bfloat16", reason="this processor does not multiply bfloat16 in hardware")
def test_nnunet_trains_in_bfloat16_with_its_loss_in_float32(tiny_data, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    cls, seen = methods_training.find_class(STOCK), []
    original = cls.train_step

    def watched(self, batch):
        stem = next(m for m in self.network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d)))
        inside = stem.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        outside = self.network.register_forward_hook(lambda module, inputs, output: seen.append(output[0].dtype))
        result = original(self, batch)
        inside.remove(), outside.remove()
        return result

    monkeypatch.setattr(cls, "train_step", watched)
    train(tiny_data, STOCK, Budget(1, None), CPU, 0, bfloat16=True)
    assert seen[:2] == [torch.bfloat16, torch.float32]
    assert all(v.dtype == torch.float32 for v in weights(tiny_data.fold_folder(STOCK)).values())


def watch_rates(monkeypatch) -> list[float]:
    """The learning rate of every step of nnU-Net's trainer, as it comes."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    cls, rates = methods_training.find_class(STOCK), []
    original = cls.train_step

    def watched(self, batch):
        rates.append(self.optimizer.param_groups[0]["lr"])
        return original(self, batch)

    monkeypatch.setattr(cls, "train_step", watched)
    return rates


def test_minutes_bound_a_training_and_its_learning_rate_falls_to_zero(tiny_data, monkeypatch):
    rates = watch_rates(monkeypatch)
    record = train(tiny_data, STOCK, Budget(None, 0.1), CPU, 0)
    rates = rates[: record["iterations"]]  # behind them come the timed steps
    assert record["seconds"] >= 6  # long enough for several steps on a busy machine
    assert len(rates) > 1 and rates[0] > 0.8e-2 and all(a > b for a, b in pairwise(rates))
    assert train(tiny_data, STOCK, Budget(None, 0.1), CPU, 0) == record
    with pytest.raises(UserError, match=r"holds a training of 0.1 minutes, not 1 minutes"):
        train(tiny_data, STOCK, Budget(None, 1.0), CPU, 0)


def test_the_polynomial_rate_spans_exactly_the_iterations(tiny_data, monkeypatch):
    rates = watch_rates(monkeypatch)
    train(tiny_data, STOCK, Budget(4, None), CPU, 0)
    assert rates[:4] == pytest.approx([1e-2 * (1 - i / 4) ** 0.9 for i in range(4)])


def test_voxelwise_samples_follow_the_softmax_and_are_one_hot():
    p = torch.tensor([[0.2, 1.0], [0.5, 0.0], [0.3, 0.0]]).reshape(3, 1, 2)
    drawn = voxelwise_samples(p, 20000, False, 0)
    assert drawn.shape == (20000, 3, 1, 2) and torch.equal(drawn.sum(1), torch.ones(20000, 1, 2))
    np.testing.assert_allclose(drawn.mean(0), p, atol=0.015)


def test_voxelwise_samples_of_regions_are_independent():
    p = torch.tensor([0.9, 0.5]).reshape(2, 1)
    drawn = voxelwise_samples(p, 20000, True, 0)
    np.testing.assert_allclose(drawn.mean(0), p, atol=0.015)
    assert float((drawn[:, 0] * drawn[:, 1]).mean()) == pytest.approx(0.45, abs=0.02)
