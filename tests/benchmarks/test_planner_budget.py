"""The benchmark that holds the planner's budget against the clock."""

from __future__ import annotations

import json

import pytest

from benchmarks import planner_budget


def row(operations_per_element: float) -> dict:
    """Parts whose seconds follow one number exactly."""
    parts = {
        "image_network": {"gflop": 10.0, "million_elements": 8.0},
        "denoiser_step": {"gflop": 0.5, "million_elements": 0.2},
        "label_decoder": {"gflop": 0.2, "million_elements": 1.2},
    }
    seconds = {k: v["gflop"] + operations_per_element * v["million_elements"] / 1e3 for k, v in parts.items()}
    return {"parts": parts, "seconds": seconds}


def test_the_number_that_made_the_times_has_no_error_and_others_have():
    rows = [row(300.0)]
    errors = {k: planner_budget.fit(rows, k) for k in planner_budget.TRIED}
    assert errors[300] == pytest.approx(0.0, abs=1e-9)
    assert min(v for k, v in errors.items() if k != 300) > 0.03


def test_ratios_of_every_configuration_are_measured(tiny_flags, tiny_folders, results_elsewhere, capsys):
    flags = ["--datasets", "901", "--planners", "S", "--device", "cpu", *tiny_flags[tiny_flags.index("--raw") :]]
    assert planner_budget.main(flags) == 0
    result = json.loads((results_elsewhere / "planner_budget.json").read_text())
    (only,) = result["rows"]
    assert only["configuration"] == "2d"
    plans = json.loads((tiny_folders["preprocessed"] / "Dataset901_Tiny" / "nnDiffSegPlansS.json").read_text())
    planned = plans["configurations"]["2d"]["diffusion"]["cost"]
    assert only["time"] == pytest.approx(planned["samples_to_image_ratio"])
    assert only["measured"] > 0
    assert only["operations"] < only["time"], "full resolution costs memory traffic"
    assert "operations per element" in capsys.readouterr().out


def test_an_unknown_planner_is_told_in_one_sentence(capsys):
    assert planner_budget.main(["--planners", "X"]) == 2
    assert "planner" in capsys.readouterr().err
