"""The comparison from nothing to table on a tiny dataset, and its reuse of what is done."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import versus_nnunet
from benchmarks.compare import planning
from benchmarks.compare.library import FINAL
from nndiffseg.cli import plan_and_preprocess
from nndiffseg.cli.common import folders_from
from nndiffseg.data.checkpoint import load_checkpoint

CPU = torch.device("cpu")

QUICK = ["--no_speed", "--device", "cpu"]


@pytest.fixture
def no_worker_processes(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


def folds(results: Path) -> dict[str, Path]:
    """Fold folder of every training by ``seed_S/TRAINER``."""
    return {f"{p.parts[-5]}/{p.parts[-3].split('__')[0]}": p.parent for p in results.rglob(FINAL)}


def test_the_whole_comparison_runs_and_is_reused(tiny_flags, results_elsewhere, no_worker_processes, tmp_path, capsys):
    common = [*tiny_flags, *QUICK, "--iterations", "2", "--samples", "3", "--name", "tiny", "--more_steps", "3"]
    flags = [*common, "--ensemble", "2", "--per_case", str(tmp_path / "cases.json")]
    assert versus_nnunet.main([*flags, "--only", "nnunet"]) == 0
    trained = folds(tmp_path / "results")
    assert sorted(trained) == ["seed_0/nnUNetTrainer", "seed_1/nnUNetTrainer"]
    times = {name: (f / FINAL).stat().st_mtime_ns for name, f in trained.items()}
    assert versus_nnunet.main(flags) == 0
    trained = folds(tmp_path / "results")
    assert sorted(trained) == ["seed_0/nnDiffSegTrainer", "seed_0/nnUNetTrainer", "seed_1/nnUNetTrainer"]
    assert all((trained[name] / FINAL).stat().st_mtime_ns == t for name, t in times.items())
    assert load_checkpoint(trained["seed_0/nnDiffSegTrainer"] / FINAL)["iteration"] == 2

    text = (results_elsewhere / "tiny.json").read_text()
    result = json.loads(text)
    metrics, sides = result["metrics"], {"nnunet", "ensemble", "head", "nndiffseg"}
    for name in ("Dice, shell", "NSD, mean", "NLL, core", "Brier, fitted temperature", "ECE, mean", "energy score, 1 - IoU"):
        assert set(metrics[name]) == sides and set(result["nndiffseg_minus"][name]) == sides - {"nndiffseg"}, name
        value, low, high = result["nndiffseg_minus"][name]["head"]
        assert low <= value <= high and np.isfinite(value), name
    assert set(metrics["Dice: mean of samples, 3 steps"]) == {"nndiffseg"}
    # Every side has every fit, and cases are named where the user wants it alone.
    fitted = {"fusion_weight", "volume_scale", "temperature"}
    assert {side: set(fits) for side, fits in result["fits"][0].items()} == dict.fromkeys(sides, fitted)
    assert set(json.loads((tmp_path / "cases.json").read_text())) == {"case_000", "case_001", "case_002"}
    assert "case_00" not in text and str(tmp_path) not in text and len(text.splitlines()) < 200
    # A second run predicts nothing anew and ends with the same table.
    capsys.readouterr()
    assert versus_nnunet.main(flags) == 0
    assert " s (" not in capsys.readouterr().out
    assert json.loads((results_elsewhere / "tiny.json").read_text())["metrics"] == metrics
    # Without nnU-Net it has the same Dice, and the head to compare with.
    assert versus_nnunet.main([*common, "--ensemble", "0"]) == 0
    alone = json.loads((results_elsewhere / "tiny.json").read_text())["metrics"]["Dice, mean"]
    assert alone == {side: metrics["Dice, mean"][side] for side in ("head", "nndiffseg")}


def test_cases_of_several_folds_make_one_table(tiny_flags, results_elsewhere, no_worker_processes, tmp_path):
    flags = [*tiny_flags, *QUICK, "--iterations", "1", "--ensemble", "1", "--samples", "2", "--more_steps", "--name", "both"]
    per_case = tmp_path / "cases.json"
    assert versus_nnunet.main([*flags, "--same_precision", "--fold", "0", "1", "--per_case", str(per_case)]) == 0
    result, cases = json.loads((results_elsewhere / "both.json").read_text()), json.loads(per_case.read_text())
    assert result["groups"] == len(cases) == 6 and len(result["fits"]) == len(result["trainings"]) == 2
    assert result["fold"] == [0, 1] and result["dataset"] == "Dataset901_Tiny" and result["same_precision"]
    # Trainings in another precision are not mistaken for these.
    assert {p.name for p in (tmp_path / "results" / "versus_nnunet").iterdir()} == {"1_iterations_same_precision"}
    expected = np.mean([np.mean(c["nnunet"]["dice"]) for c in cases.values()])
    assert result["metrics"]["Dice, mean"]["nnunet"] == pytest.approx(expected, abs=2e-5)


def test_dice_of_the_table_is_nnunets_own(tiny_flags, tiny_folders, results_elsewhere, no_worker_processes, tmp_path):
    """nnU-Net's predictor and evaluation give the same Dice for the same checkpoint."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    flags = [*tiny_flags, *QUICK, "--iterations", "8", "--ensemble", "1", "--samples", "2", "--more_steps", "--name", "tiny"]
    assert versus_nnunet.main(flags) == 0
    fold = folds(tmp_path / "results")["seed_0/nnUNetTrainer"]
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), (0,))
    raw, out = tiny_folders["raw"] / "Dataset901_Tiny", tmp_path / "out"
    cases = ["case_000", "case_001", "case_002"]
    out.mkdir()
    for case in cases:
        predictor.predict_from_files_sequential([[str(raw / "imagesTr" / f"{case}_0000.png")]], [str(out / case)])
    (tmp_path / "labels").mkdir()
    for case in cases:
        shutil.copy(raw / "labelsTr" / f"{case}.png", tmp_path / "labels")
    stock = compute_metrics_on_folder(
        str(tmp_path / "labels"), str(out), None, NaturalImage2DIO(), ".png", [1, 2], num_processes=1
    )
    metrics = json.loads((results_elsewhere / "tiny.json").read_text())["metrics"]
    found = [metrics[f"Dice, {name}"]["nnunet"] for name in ("shell", "core")]
    np.testing.assert_allclose(found, [stock["mean"][k]["Dice"] for k in (1, 2)], atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--iterations, or --speed_only"),
        (["--iterations", "0"], "must be positive, not 0"),
        (["--iterations", "2", "--ensemble", "-1"], "must not be negative, not -1"),
        (["--iterations", "2", "--ensemble", "0"], "add --no_speed"),
        (["--iterations", "2", "--only", "nnU-Net"], "Unknown side nnU-Net (did you mean nnunet?)"),
        (["--iterations", "2", "--fold", "5"], "no fold 5"),
        (["--iterations", "2", "--fold", "0", "0"], "a fold twice"),
        (["--iterations", "2", "--more_steps", "0"], "--more_steps"),
        (["--speed_only", "--planner", "XL"], "Unknown planner XL"),
        (["--speed_onyl"], "did you mean --speed_only"),
    ],
)
def test_bad_input_is_told_in_one_sentence(tiny_flags, flags, message, capsys):
    assert versus_nnunet.main([*tiny_flags, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_split_of_the_raw_dataset_is_used(make_dataset, tmp_path, monkeypatch):
    """nnU-Net's own random split might divide what belongs together."""
    planned = []

    def here(command, **options):  # in this process, which has imported everything
        planned.append(command[4:])
        code = plan_and_preprocess.main([*command[3:], "-np", "1", "-npfp", "1", "--no_pbar"])
        return subprocess.CompletedProcess(command, code, "")

    monkeypatch.setattr(planning, "subprocess", SimpleNamespace(run=here, PIPE=None, STDOUT=None))
    make_dataset(tmp_path / "raw", cases=4, shape=(32, 40), file_ending=".png", splits=True)
    flags = [f"--{kind}={tmp_path / kind}" for kind in ("raw", "preprocessed", "results")]
    folders = folders_from(versus_nnunet.parser().parse_args(["--dataset", "901", *flags]))
    for _ in range(2):  # the second time everything is there
        planning.prepare(folders, "Dataset901_Tiny", "S", "2d")
    assert [c[-1] for c in planned] == ["--no_pp", "--no_check"]
    base = tmp_path / "preprocessed" / "Dataset901_Tiny"
    used, given = (json.loads((d / "splits_final.json").read_text()) for d in (base, tmp_path / "raw/Dataset901_Tiny"))
    assert used == given
    assert (base / "nnDiffSegPlansS.json").is_file() and any((base / "nnUNetPlans_2d").iterdir())
