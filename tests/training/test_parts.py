"""Budget, learning rate, weight average, checkpoints and log."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from nndiffseg.data.checkpoint import load_checkpoint, save_atomically
from nndiffseg.errors import UserError
from nndiffseg.training import epoch_log as log
from nndiffseg.training.average import WeightAverage
from nndiffseg.training.budget import Budget, learning_rate
from nndiffseg.training.loader import seed_of


def test_progress_follows_whichever_budget_ends_first(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("nndiffseg.training.budget.time.monotonic", lambda: now[0])
    budget = Budget(epochs=10, iterations_per_epoch=5, minutes=1.0, spent=15.0)
    budget.start()
    assert budget.progress(5) == pytest.approx(0.25)  # 15 s of 60 s, against 5 of 50 iterations
    assert budget.progress(30) == pytest.approx(0.6)
    now[0] += 45
    assert budget.progress(0) == 1.0
    assert Budget(epochs=10, iterations_per_epoch=5).progress(25) == 0.5


def test_learning_rate_warms_up_and_ends_at_zero():
    assert learning_rate(1e-3, 0.0, 0) == pytest.approx(2e-5)
    assert learning_rate(1e-3, 0.5, 1000) == pytest.approx(5e-4)
    assert learning_rate(1e-3, 1.0, 1000) == pytest.approx(0.0, abs=1e-12)


def test_weight_average_follows_the_recursion_and_copies_counters():
    network = nn.BatchNorm1d(1)
    average = WeightAverage(network, decay=0.5)
    expected = 1.0
    for step, value in enumerate((3.0, 5.0), start=1):
        network.weight.data.fill_(value)
        network.num_batches_tracked.fill_(step)
        average.update(network)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.network.weight) == pytest.approx(expected)
    assert int(average.network.num_batches_tracked) == 2
    assert not average.network.weight.requires_grad


def test_frozen_weights_are_not_averaged():
    """Not even with themselves: what is frozen keeps its bits."""
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[0].requires_grad_(False)
    average = WeightAverage(network)
    frozen = [p.clone() for p in network[0].parameters()]
    with torch.no_grad():
        for p in network.parameters():
            p += 1
    average.update(network)
    assert all(map(torch.equal, frozen, average.network[0].parameters()))
    assert not torch.equal(average.network[1].weight, network[1].weight - 1)


def test_checkpoints_load_without_running_code(tmp_path):
    content = {
        "network_weights": {"w": torch.ones(2)},
        "nndiffseg_version": "0",
        "log": [np.float64(0.5), np.arange(2)],
        "init_args": {"device": torch.device("cpu"), "fold": "all", "configuration": "2d"},
        "trainer_name": "nnDiffSegTrainer",
        "options": {},
        "calibration": {},
    }
    save_atomically(content, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth")
    assert loaded["log"] == [0.5, [0, 1]] and type(loaded["log"][0]) is float
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


def test_a_checkpoint_of_version_0_1_is_told_to_train_again(tmp_path):
    save_atomically({"network_weights": {}, "nndiffseg_version": "0.1.0", "diffusion": {}}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"of nndiffseg 0\.1\.0 and lacks calibration.*train the fold again"):
        load_checkpoint(tmp_path / "c.pth")


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "c.pth"
    save_atomically({"network_weights": {}, "nndiffseg_version": "0"}, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"bad": lambda: None}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_unreadable_checkpoints_are_one_sentence(tmp_path, content):
    path = tmp_path / "c.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pth"):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_one_sentence(tmp_path):
    path = tmp_path / "c.pth"
    save_atomically({"network_weights": {"w": torch.ones(1000)}, "nndiffseg_version": "0"}, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_program_is_refused(tmp_path):
    torch.save({"network_weights": {}}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="not written by an nndiffseg trainer"):
        load_checkpoint(tmp_path / "c.pth")


def test_resuming_drops_later_rows_and_a_torn_line(tmp_path):
    for epoch in range(3):
        log.append(tmp_path, {"epoch": epoch})
    with open(tmp_path / log.STATS, "a") as file:
        file.write(json.dumps({"epoch": 3})[:-4])
    assert [row["epoch"] for row in log.read(tmp_path)] == [0, 1, 2]
    log.keep_epochs(tmp_path, 2)
    assert [row["epoch"] for row in log.read(tmp_path)] == [0, 1]


def test_seeds_differ_by_every_part():
    assert len({seed_of(0, "train", 1), seed_of(0, "train", 2), seed_of(0, "val", 1), seed_of(1, "train", 1)}) == 4
