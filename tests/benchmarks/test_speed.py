"""Time and memory side by side on tiny networks, and the clocks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import pair as timing
from benchmarks import speed
from benchmarks.pair import Pair, in_own_process, peak_memory, rounds

CPU = torch.device("cpu")


@pytest.fixture
def tiny_plans(tiny_folders) -> tuple[dict, dict]:
    base = tiny_folders["preprocessed"] / "Dataset901_Tiny"
    return json.loads((base / "nnDiffSegPlansS.json").read_text()), json.loads((base / "dataset.json").read_text())


@pytest.fixture
def quick_clocks(monkeypatch):
    """Three short rounds, and memory from this process."""
    monkeypatch.setattr(speed, "in_own_process", lambda spec, limit: timing.single(spec))


@pytest.mark.slow
def test_speed_needs_no_preprocessed_data(tiny_flags, tiny_folders, tmp_path, results_elsewhere, quick_clocks, capsys):
    flags = [*tiny_flags, "--device", "cpu", "--name", "speed"]
    flags[flags.index("--preprocessed") + 1] = str(tmp_path / "nothing")
    assert speed.main(flags) == 0
    result = json.loads((results_elsewhere / "speed.json").read_text())
    for name in ("prediction_ratio_16", "training_ratio", "memory_ratio"):
        assert 0.01 < result[name] < 1000
    assert np.isfinite(result["sample_ratio"])
    assert set(result["parts"]["planned_gflop"]) == {"image_network", "denoiser_step", "label_decoder"}
    assert all(v > 0 for v in result["parts"]["planned_gflop"].values())
    assert "prediction_ratio_16:" in capsys.readouterr().out
    assert not (tmp_path / "nothing" / "Dataset901_Tiny").exists()


def test_both_sides_have_the_same_image_network_and_batch(tiny_plans):
    pair = Pair(tiny_plans[0], "2d", tiny_plans[1], CPU)
    stock, ours = pair.trainers["nnunet"].network, pair.trainers["nndiffseg"].bare_network.image_network
    assert sum(p.numel() for p in stock.parameters()) == sum(p.numel() for p in ours.parameters())
    batch = pair.batch()
    assert batch["data"].shape == (pair.configuration.batch_size, 1, *pair.patch)
    stock.train()
    outputs = stock(batch["data"])
    assert [o.shape[2:] for o in outputs] == [t.shape[2:] for t in batch["target"]]
    assert set(batch["target"][0].unique().tolist()) == {0, 1, 2}


def test_a_timed_training_step_changes_the_weights_and_their_average(tiny_plans):
    pair = Pair(tiny_plans[0], "2d", tiny_plans[1], CPU)
    for side in timing.SIDES:
        before = {k: v.clone() for k, v in pair.trainers[side].network.state_dict().items()}
        pair.train_step(side, pair.batch())
        after = pair.trainers[side].network.state_dict()
        assert any(not torch.equal(before[k], after[k]) for k in before), side
    assert pair.trainers["nndiffseg"].average.updates == 1


def test_timed_predictions_draw_the_samples_asked_for(tiny_plans):
    pair = Pair(tiny_plans[0], "2d", tiny_plans[1], CPU, ["nndiffseg"])
    image = pair.image((40, 40))
    assert pair.predictor("nndiffseg", samples=5)(image).labels.shape == (5, 1, 40, 40)


def test_rounds_take_turns_and_end_in_time():
    order: list[str] = []
    times = rounds({n: lambda n=n: order.append(n) for n in "ab"}, CPU, count=5)
    assert order == ["a", "b"] * 6 and len(times.wall["a"]) == 5  # one round of warming up
    slow = rounds({"a": lambda: None}, CPU, count=100, seconds=0)
    assert len(slow.processor["a"]) == 3


def test_the_ratio_is_of_each_round():
    a, b = np.array([1.0, 10, 3]), np.array([2.0, 20, 6])  # the machine was busy in the second round
    assert speed.median_ratio(a, b) == 0.5


def test_peak_memory_sees_what_was_freed_again():
    found = peak_memory(lambda: np.ones(2**26).sum(), CPU)  # 0.5 GB
    assert 0.45 < found["working_gb"] < 0.8 and found["peak_gb"] > found["working_gb"]


def test_a_measurement_that_takes_too_long_is_reported(tiny_plans):
    spec = {
        "plans": tiny_plans[0],
        "configuration": "2d",
        "dataset_json": tiny_plans[1],
        "device": "cpu",
        "side": "nnunet",
        "task": "training",
    }
    assert in_own_process(spec, 0.1) == {"failed": "more than 0.1 s"}


def test_an_unknown_planner_is_told(capsys):
    assert speed.main(["--dataset", "901", "--planner", "XL"]) == 2
    assert "Unknown planner XL" in capsys.readouterr().err
