"""A cross-validation on a real Slurm: five folds as an array, two interrupted and queued again, then one report.

`pytest -n 0 -m slow tests/launch/test_slurm_loopback.py` on a machine with Debian's slurm-wlm.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_loopback import slurm_loopback

from nndiffseg.cli.plan_and_preprocess import main as plan

SECONDS = 1500
DATASET, PLANS = "Dataset901_Tiny", "nnDiffSegPlansS"


def wait_for(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS)
def test_five_folds_are_trained_interrupted_queued_again_and_reported_by_one_command(make_dataset, tmp_path: Path) -> None:
    make_dataset(tmp_path / "raw", cases=5)
    folders = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    words = ["-d", "901", "-pl", "DiffSegPlannerS", "-c", "3d_fullres", "--no_pbar", "-np", "1", "-npfp", "1", *folders]
    assert plan(words) == 0
    model = tmp_path / "results" / DATASET / f"nnDiffSegTrainer__{PLANS}__3d_fullres"
    logs = model / "cross_validation"
    command = [sys.executable, "-m", "nndiffseg.cli.cross_validate", "901", "3d_fullres", "-p", PLANS, *folders]
    command += ["--epochs", "2", "--iterations_per_epoch", "60", "-device", "cpu", "--launcher", "slurm", "--cpus", "1"]

    def trains(fold: int) -> bool:
        file = logs / f"fold_{fold}.log"
        return file.is_file() and "Epoch" in file.read_text()

    with slurm_loopback(tmp_path / "slurm") as slurm:
        submitted = subprocess.run(
            [*command, "--time", "30"], env=slurm.environment, capture_output=True, text=True, check=False
        )
        assert submitted.returncode == 0, submitted.stderr
        array, after = json.loads((logs / "jobs.json").read_text())
        assert f"5 folds as job {array}, then" in submitted.stdout
        again = subprocess.run(command, env=slurm.environment, capture_output=True, text=True, check=False)
        assert again.returncode == 2 and "still queued or running" in again.stderr
        wait_for(lambda: trains(0))
        # What Slurm sends before the time limit. The task queues itself again meanwhile, so scancel may say that it cannot.
        subprocess.run(["scancel", "--signal=USR2", f"{array}_0"], env=slurm.environment, capture_output=True, check=False)
        wait_for(lambda: trains(1))
        slurm("scontrol", "requeue", f"{array}_1")  # as after the failure of a node
        wait_for(
            lambda: slurm("squeue", "-h", "-t", "all", "-j", after, "-o", "%T") not in ("PENDING", "RUNNING", "COMPLETING")
        )
        told = "\n".join(f.read_text() for f in (tmp_path / "results" / DATASET / "slurm").glob("*_log.*"))
        assert slurm("squeue", "-h", "-t", "all", "-j", after, "-o", "%T") == "COMPLETED", told + slurm.logs()
        restarts = slurm("scontrol", "-o", "show", "job", array)
        assert sum("Restarts=1" in line for line in restarts.splitlines()) == 2, restarts
    for fold, told in ((0, "stopped by SIGUSR1"), (1, "stopped by SIGTERM")):
        text = (logs / f"fold_{fold}.log").read_text()
        assert told in text and "Continuing from checkpoint_latest.pth" in text
    assert json.loads((model / "calibration.json").read_text())["folds"] == ["0", "1", "2", "3", "4"]
    assert len(json.loads((logs / "evaluation.json").read_text())["cases"]) == 5
    assert "case_004" in (logs / "report.html").read_text()
