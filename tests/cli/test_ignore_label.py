"""The commands, one after another, on data of which half of the slices are ignored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from stock_world import make_stock_world

from nndiffseg.cli.calibrate import main as calibrate
from nndiffseg.cli.evaluate import main as evaluate
from nndiffseg.cli.plan_and_preprocess import main as plan
from nndiffseg.cli.predict import main as predict
from nndiffseg.cli.train import main as train
from nndiffseg.export.writer import probability_names

PLANS = "nnDiffSegPlansS"
LENGTH = ("--epochs", "1", "--iterations_per_epoch", "6", "-device", "cpu", "--disable_progress_bar")


def labels_in(folder: Path) -> set[int]:
    return {int(v) for f in folder.glob("*.nii.gz") for v in np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(f))))}


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [float(value)] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize(
    ("regions", "configuration"), [(False, "3d_fullres"), pytest.param(True, "2d", marks=pytest.mark.slow)]
)
def test_from_data_to_evaluation(make_dataset, tmp_path, regions, configuration):
    data = make_dataset(tmp_path / "raw", cases=10, shape=(16, 20, 16), splits=True, regions=regions, ignore=True)
    folders = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    one = ("-np", "1", "-npfp", "1", "--no_pbar")
    assert plan(["-d", "901", "-pl", "DiffSegPlannerS", "-c", configuration, *one, *folders]) == 0
    assert train(["901", configuration, "0", "-p", PLANS, *LENGTH, *folders]) == 0
    model = tmp_path / "results" / data.name / f"nnDiffSegTrainer__{PLANS}__{configuration}"
    validation = model / "fold_0" / "validation"
    summary = json.loads((validation / "summary.json").read_text())
    calibration = json.loads((model / "fold_0" / "calibration.json").read_text())
    names = {"(1, 2)", "(2,)"} if regions else {"1", "2"}
    assert set(summary["mean"]) == names and np.isfinite(summary["foreground_mean"]["Dice"])
    first = summary["metric_per_case"][0]["metrics"]["(2,)" if regions else "2"]
    assert sum(first[n] for n in ("TP", "FP", "FN", "TN")) == 16 * 20 * 16 // 2, "half of the voxels"
    assert calibration["groups"] == 5 and calibration["volume_quantiles"] == [None, None]
    assert np.isfinite(numbers(calibration)).all()
    out = tmp_path / "out"
    words = ("-m", str(model), "-f", "0", "--samples", "2", "--save_samples", "-device", "cpu", "--disable_progress_bar")
    images = tmp_path / "images"
    images.mkdir()
    for case in ("case_000", "case_001"):
        shutil.copy(data / "imagesTr" / f"{case}_0000.nii.gz", images)
    assert predict(["-i", str(images), "-o", str(out), *words, "--save_probabilities", "nifti", *folders]) == 0
    assert labels_in(out) | labels_in(out / "samples") | labels_in(validation) <= {0, 1, 2}
    content = json.loads((model / "dataset.json").read_text())
    assert all((out / n).is_file() for n in probability_names("case_000", content)) and content["labels"]["ignore"] == 3
    assert evaluate(["-i", str(out), "-r", str(data / "labelsTr"), "--disable_progress_bar"]) == 0
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert set(evaluation["cases"]) == {"case_000", "case_001"}


@pytest.mark.slow
@pytest.mark.parametrize("regions", [False, True])
def test_a_stock_model_is_calibrated_on_annotated_voxels_alone(make_dataset, tmp_path, regions, capsys):
    world = make_stock_world(make_dataset, tmp_path, cases=6, ignore=True, regions=regions)
    world.keep_probabilities()
    found = []
    for spoil in (False, True):
        if spoil:
            _spoil(world)
        assert calibrate([str(world.model), "--disable_progress_bar", "-device", "cpu", *world.flags]) == 0
        found.append([json.loads((world.model / name).read_text()) for name in ("calibration.json", "calibration/check.json")])
    assert found[0] == found[1]
    calibration, check = found[0]
    assert "fewer than 9 groups of cases without ignored voxels" in capsys.readouterr().out
    assert calibration["volume_quantiles"] == [None, None] and check["volumes"][0]["coverage_90"] is None
    assert calibration["coherent_share"] == 1 and (check["cases"], check["complete_cases"]) == (6, 0)


def _spoil(world: Any) -> None:
    """Other probabilities under the ignore label."""
    for file in world.model.glob("fold_*/validation/*.npz"):
        label = world.preprocessed / world.dataset / "gt_segmentations" / f"{file.stem}.nii.gz"
        ignored = sitk.GetArrayFromImage(sitk.ReadImage(str(label))) == 3
        p = np.load(file)["probabilities"]
        p[:, ignored] = p[::-1, ignored]
        assert ignored.mean() == 0.5
        np.savez_compressed(file, probabilities=p)
