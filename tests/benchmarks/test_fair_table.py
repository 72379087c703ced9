"""The fair table from nothing on a tiny dataset, of finished models, and its reuse of what is done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import fair_table
from benchmarks.compare.library import FINAL
from nndiffseg.data.checkpoint import load_checkpoint

CPU = torch.device("cpu")
SIDES = {"nnunet", "nnunet coherent", "ensemble", "ensemble coherent", "ssn", "attached", "head", "head coherent", "nndiffseg"}


@pytest.fixture(autouse=True)
def no_worker_processes(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


def folds(results: Path) -> dict[str, Path]:
    """Fold folder of every training by ``seed_S/TRAINER``."""
    return {f"{p.parts[-5]}/{p.parts[-3].split('__')[0]}": p.parent for p in results.rglob(FINAL)}


def test_all_sides_are_trained_alike_and_judged_alike(tiny_flags, tiny_folders, results_elsewhere, tmp_path, capsys):
    flags = [*tiny_flags, "--device", "cpu", "--iterations", "2", "--ensemble", "2", "--samples", "4", "--name", "fair"]
    flags += ["--per_case", str(tmp_path / "cases.json")]
    assert fair_table.main([*flags, "--only", "nnunet"]) == 0
    trained = folds(tmp_path / "results")
    assert sorted(trained) == ["seed_0/nnUNetTrainer", "seed_1/nnUNetTrainer"]
    times = {name: (f / FINAL).stat().st_mtime_ns for name, f in trained.items()}
    assert fair_table.main(flags) == 0
    trained = folds(tmp_path / "results")
    ours = {f"seed_0/{name}" for name in ("nnDiffSegTrainer", "nnDiffSegTrainerAttached", "StochasticSegmentation")}
    assert set(trained) == {*times, *ours}
    assert all((trained[name] / FINAL).stat().st_mtime_ns == t for name, t in times.items())
    assert load_checkpoint(trained["seed_0/nnDiffSegTrainer"] / FINAL)["iteration"] == 2

    text = (results_elsewhere / "fair.json").read_text()
    result = json.loads(text)
    metrics = result["metrics"]
    names = ("Dice, mean", "NSD, core", "NLL, fitted temperature", "ECE, isotonic regression", "GED^2")
    for name in (*names, "volume inside the 90 % interval, calibrated"):
        assert set(metrics[name]) == SIDES and set(result["base_minus"][name]) == SIDES - {"nndiffseg"}, name
        value, low, high = result["base_minus"][name]["head"]
        assert low <= value <= high and np.isfinite(value), name
    assert set(result["fits"][0]) == set(result["seconds"]) == set(result["minutes"]) == SIDES
    minutes = result["minutes"]
    assert minutes["ensemble"] > minutes["nnunet"] > 0 and minutes["attached"] > minutes["nnunet"]
    assert set(json.loads((tmp_path / "cases.json").read_text())) == {"case_000", "case_001", "case_002"}
    assert "case_00" not in text and str(tmp_path) not in text and str(tiny_folders["raw"].parent) not in text
    assert metrics["NLL, shell"]["nnunet"] == metrics["NLL, shell"]["nnunet coherent"]  # one map, two kinds of samples
    assert metrics["GED^2"]["nnunet"] != metrics["GED^2"]["nnunet coherent"]
    # A second run predicts nothing anew; as finished models the same sides give the same table.
    capsys.readouterr()
    assert fair_table.main(flags) == 0
    assert " s (" not in capsys.readouterr().out
    assert json.loads((results_elsewhere / "fair.json").read_text())["metrics"] == metrics
    folders = [f"--{kind}={tiny_folders[kind]}" for kind in ("raw", "preprocessed")]
    models = {name: str(f.parent) for name, f in trained.items()}
    given = ["--nnunet", models["seed_0/nnUNetTrainer"], models["seed_1/nnUNetTrainer"], "--base", "head"]
    given += ["--ssn", models["seed_0/StochasticSegmentation"], "--attached", models["seed_0/nnDiffSegTrainerAttached"]]
    given += ["--nndiffseg", models["seed_0/nnDiffSegTrainer"], "--samples", "4", "--device", "cpu", "--name", "finished"]
    assert fair_table.main([*folders, *given]) == 0
    again = json.loads((results_elsewhere / "finished.json").read_text())
    assert again["metrics"] == metrics and set(again["base_minus"]["GED^2"]) == SIDES - {"head"}


def test_cases_of_several_folds_make_one_table(tiny_flags, results_elsewhere, tmp_path):
    flags = [*tiny_flags, "--device", "cpu", "--iterations", "1", "--ensemble", "1", "--samples", "2", "--name", "both"]
    per_case = tmp_path / "cases.json"
    assert fair_table.main([*flags, "--fold", "0", "1", "--per_case", str(per_case)]) == 0
    result, cases = json.loads((results_elsewhere / "both.json").read_text()), json.loads(per_case.read_text())
    assert result["groups"] == len(cases) == 6 and len(result["fits"]) == len(result["minutes"]) == 2
    assert result["fold"] == [0, 1] and result["dataset"] == "Dataset901_Tiny" and "ensemble" not in result["seconds"]
    expected = np.mean([np.mean(c["nnunet"]["dice"]) for c in cases.values()])
    assert result["metrics"]["Dice, mean"]["nnunet"] == pytest.approx(expected, abs=2e-5)


def test_dice_of_the_table_is_nnunets_own(tiny_flags, tiny_folders, results_elsewhere, tmp_path):
    """nnU-Net's predictor and evaluation give the same Dice for the same checkpoint."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    flags = [*tiny_flags, "--device", "cpu", "--iterations", "8", "--ensemble", "1", "--only", "nnunet"]
    assert fair_table.main(flags) == 0
    fold = folds(tmp_path / "results")["seed_0/nnUNetTrainer"]
    folders = [f"--{kind}={tiny_folders[kind]}" for kind in ("raw", "preprocessed")]
    given = [*folders, "--nnunet", str(fold.parent), "--samples", "2", "--device", "cpu", "--name", "tiny"]
    assert fair_table.main(given) == 0
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
        ([], "Give --dataset and --iterations, or model folders"),
        (["--dataset", "901"], "Give --dataset and --iterations, or model folders"),
        (["--nnunet", "results/model"], "TRAINER__PLANS__CONFIGURATION"),
        (["--nnunet", "results/model", "--dataset", "901"], "not both"),
        (["--samples", "0"], "must be positive, not 0"),
        (["--dataset", "901", "--iterations", "0"], "must be positive, not 0"),
        (["--dataset", "901", "--iterations", "2", "--ensemble", "-1"], "must be positive, not -1"),
        (["--dataset", "901", "--iterations", "2", "--configuration", "2d", "--fold", "5"], "no fold 5"),
        (["--dataset", "901", "--iterations", "2", "--fold", "0", "0"], "a fold twice"),
        (["--dataset", "901", "--iterations", "2", "--planner", "XL"], "Unknown planner XL"),
        (["--dataset", "901", "--iterations", "2", "--only", "nnU-Net"], "Unknown training nnU-Net (did you mean nnunet?)"),
        (["--onyl", "ssn"], "did you mean --only"),
    ],
)
def test_bad_input_is_told_in_one_sentence(flags, message, tiny_folders, tmp_path, capsys):
    folders = [f"--{kind}={tiny_folders[kind]}" for kind in ("raw", "preprocessed")]
    assert fair_table.main([*folders, "--results", str(tmp_path / "results"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
