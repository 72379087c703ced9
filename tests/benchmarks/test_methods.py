"""The comparison of methods from training to table, on a tiny dataset, and its reuse of what is done."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

from benchmarks import methods
from benchmarks.compare import entries
from benchmarks.compare.trainers import OURS, STOCK


@pytest.fixture
def in_this_process(monkeypatch) -> list[str]:
    """Runs the commands that would be processes here; returns their names as they come."""
    started: list[str] = []

    def run_module(module: str, arguments: list[str]) -> tuple[int, float]:
        started.append(f"{module.rpartition('.')[2]} {arguments[-1]}")
        return importlib.import_module(module).main(arguments), 0.5

    monkeypatch.setattr(entries, "run_module", run_module)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return started


def test_the_whole_comparison_runs_and_is_reused(tiny_flags, results_elsewhere, in_this_process, tmp_path, capsys):
    flags = [*tiny_flags, "--iterations", "2", "--samples", "2", "--cases", "2", "--name", "tiny"]
    per_case = tmp_path / "cases.json"
    assert methods.main([*flags, "--trainers", STOCK]) == 0
    assert in_this_process == [f"training {STOCK}", f"predictions {STOCK}"]
    in_this_process.clear()
    assert methods.main([*flags, "--trainers", STOCK, OURS, "--per_case", str(per_case)]) == 0
    assert in_this_process == [f"predictions {STOCK}", f"training {OURS}", f"predictions {OURS}"]
    assert f"{STOCK}: case" not in capsys.readouterr().out.rpartition("trained already")[2]  # predicted already, too
    result = json.loads((results_elsewhere / "tiny.json").read_text())
    assert list(result["costs"]) == ["nnU-Net", "nnDiffSeg"]
    for label, costs in result["costs"].items():
        assert costs["iterations"] == 2 and costs["seconds_per_iteration"] > 0
        assert costs["parameters"] > 1000 and costs["peak_gb"] == 0.5
        assert all(0 <= result["metrics"][name][label] <= 1 for name in ("Dice, mean", "ECE, fitted temperature"))
    assert result["settings"]["cases"] == 2 and result["settings"]["iterations"] == 2 and "processor" in result["hardware"]
    assert len(result["table"]) == 3 and (results_elsewhere / "tiny.png").is_file()
    # What belongs to single cases lies where the user said and nowhere else.
    cases = json.loads(per_case.read_text())
    assert len(cases) == 2 and all(len(c[OURS]["dice"]) == 2 and c[OURS]["seconds"] > 0 for c in cases.values())
    assert not any(case in (results_elsewhere / "tiny.json").read_text() for case in cases)
    # One annotation each: IoU = Dice / (2 - Dice). The interval is that of ours minus nnU-Net's, which stands first.
    dice = {side: np.array([c[side]["dice"] for c in cases.values()], dtype=float) for side in (STOCK, OURS)}
    for side in (STOCK, OURS):
        iou = np.array([c[side]["iou"] for c in cases.values()], dtype=float)
        np.testing.assert_allclose(iou, dice[side] / (2 - dice[side]), atol=2e-5)
    (value, low, high) = result["dice_minus_first"]["nnDiffSeg"]
    assert low <= value <= high and list(result["dice_minus_first"]) == ["nnDiffSeg"]
    assert value == pytest.approx((np.nanmean(dice[OURS], 0) - np.nanmean(dice[STOCK], 0)).mean(), abs=3e-5)


def test_what_failed_is_named_after_the_table_of_the_others(
    tiny_flags, results_elsewhere, in_this_process, monkeypatch, capsys
):
    run_module = entries.run_module
    monkeypatch.setattr(entries, "run_module", lambda m, a: (1, 0.0) if a[-1] == OURS else run_module(m, a))
    flags = [*tiny_flags, "--iterations", "1", "--samples", "2", "--cases", "1", "--name", "tiny"]
    assert methods.main([*flags, "--trainers", STOCK, OURS]) == 2
    assert f"{OURS} failed" in capsys.readouterr().err
    assert list(json.loads((results_elsewhere / "tiny.json").read_text())["costs"]) == ["nnU-Net"]
