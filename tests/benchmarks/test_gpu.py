"""What runs where a GPU can be had, tried without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_speed
from benchmarks.made_plans import Point

ROOT = Path(__file__).resolve().parents[2]


def test_a_failing_measurement_leaves_the_others(monkeypatch):
    def single(specification):
        if specification["task"] == "training" and specification["side"] == "nndiffseg":
            raise RuntimeError("CUDA out of memory.\nmore")
        return {"seconds": 3.0 if specification["side"] == "nndiffseg" else 2.0, "peak_gb": 1.0}

    monkeypatch.setattr("benchmarks.pair.single", single)
    found = gpu_speed.measure(Point(16, 2, 2), "S", "cpu")
    assert found["training nndiffseg"] == {"failed": "CUDA out of memory."} and found["training ratio"] is None
    assert found["training nnunet"]["seconds"] == 2.0 and found["prediction ratio"] == 1.5


def test_the_script_wants_a_folder():
    finished = subprocess.run(["bash", ROOT / "benchmarks" / "gpu.sh"], capture_output=True, text=True, check=False)
    assert finished.returncode == 2 and finished.stderr == "usage: benchmarks/gpu.sh OUTPUT_FOLDER\n"


@pytest.mark.slow
def test_the_script_measures_everything_on_the_cpu(tmp_path):
    environment = {**os.environ, "GPU_SH_SMALL": "1", "PYTHON": sys.executable}
    script = ["bash", ROOT / "benchmarks" / "gpu.sh", tmp_path / "out"]
    finished = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert all(step["code"] == 0 for step in found["steps"].values()), finished.stdout
    assert set(found["speed"]) == {"S_2d", "S_3d"} and set(found["training"]) == {"nnUNetTrainer", "nnDiffSegTrainer"}
    assert "failed or skipped: nothing" in finished.stdout
