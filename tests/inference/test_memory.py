"""Memory of the whole command on a real brain: the samples must never be held as probabilities."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nndiffseg
from nndiffseg.calibration import Calibration
from nndiffseg.cli.plan_and_preprocess import main as plan
from nndiffseg.methods.latent.method import LatentDiffusion
from nndiffseg.methods.protocol import MethodPlan

CHANNELS = ("FLAIR", "T1", "T2", "T1POST")


def _dataset(source: Path, raw: Path) -> Path:
    folder = raw / "Dataset911_MS"
    for sub in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / sub).mkdir(parents=True)
    patients = sorted(f.name[: -len(".nii.gz")] for f in (source / "labels").glob("*.nii.gz"))
    for patient in patients:
        for i, channel in enumerate(CHANNELS):
            for sub in ("imagesTr", "imagesTs")[: 1 + (patient == patients[0])]:
                (folder / sub / f"{patient}_{i:04d}.nii.gz").symlink_to(source / "images" / f"{patient}_{channel}.nii.gz")
        (folder / "labelsTr" / f"{patient}.nii.gz").symlink_to(source / "labels" / f"{patient}.nii.gz")
    content = {
        "channel_names": {str(i): c for i, c in enumerate(CHANNELS)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": len(patients),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def _model(folder: Path, plans_file: Path, dataset: Path) -> None:
    plans = json.loads(plans_file.read_text())
    (folder / "fold_0").mkdir(parents=True)
    for name, content in (("plans.json", plans), ("dataset.json", json.loads((dataset / "dataset.json").read_text()))):
        (folder / name).write_text(json.dumps(content))
    manager = PlansManager(plans).get_configuration("3d_fullres")
    method = LatentDiffusion(MethodPlan.of(manager, len(CHANNELS), 2))
    torch.save(
        {
            "network_weights": method.network().state_dict(),
            "options": method.options.to_plan(),
            "calibration": Calibration().to_json(),
            "nndiffseg_version": nndiffseg.__version__,
            "trainer_name": "nnDiffSegTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        folder / "fold_0" / "checkpoint_final.pth",
    )


def _tree(pid: int) -> list[int]:
    try:
        tasks = [Path(f"/proc/{pid}/task/{t}/children").read_text() for t in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return [pid]
    return [pid] + [p for children in tasks for child in children.split() for p in _tree(int(child))]


def _proportional_set_size(pid: int) -> int:
    """Bytes; memory that processes share counts once in the sum over them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="measures memory with Linux's /proc")
@pytest.mark.parametrize("planner", ["DiffSegPlannerS", "DiffSegPlanner"])
def test_a_four_channel_brain_with_16_samples_stays_below_6_gigabytes(shared_data, tmp_path, planner):
    dataset = _dataset(shared_data / "ms_lesion_3cases", tmp_path / "raw")
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    assert plan(["-d", "911", "-pl", planner, "-c", "3d_fullres", "--no_pp", "--no_pbar", *flags]) == 0
    plans_file = next((tmp_path / "preprocessed" / dataset.name).glob("nnDiffSegPlans*.json"))
    _model(tmp_path / "results" / dataset.name / f"nnDiffSegTrainer__{plans_file.stem}__3d_fullres", plans_file, dataset)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "nndiffseg.cli.predict",
            "-i",
            str(dataset / "imagesTs"),
            "-o",
            str(tmp_path / "out"),
            "-device",
            "cpu",
            "--disable_tta",
            "--samples",
            "16",
            "--disable_progress_bar",
            *flags,
        ]
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_proportional_set_size(pid) for pid in _tree(process.pid)))
        time.sleep(0.1)
    assert process.returncode == 0
    assert 0.5e9 < peak < 6e9
    assert len(list((tmp_path / "out" / "uncertainty").glob("*_total.nii.gz"))) == 1
