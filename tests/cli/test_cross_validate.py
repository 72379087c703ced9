"""``nndiffseg_cross_validate``: only what is missing, whatever has happened before; one report of all folds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nndiffseg.cli import cross_validate
from nndiffseg.cli.cross_validate import main
from nndiffseg.cli.find_best_configuration import main as find_best
from nndiffseg.cli.plan_and_preprocess import main as plan

pytestmark = pytest.mark.seconds
PLANS = "nnDiffSegPlansS"
LENGTH = ("--epochs", "2", "--iterations_per_epoch", "4", "-device", "cpu", "--disable_progress_bar")


def folders_in(root: Path) -> list[str]:
    return [f"--{kind}={root / kind}" for kind in ("raw", "preprocessed", "results")]


@pytest.fixture(scope="module")
def root(make_dataset, tmp_path_factory) -> Path:
    """Four cases in two folds, planned and preprocessed."""
    root = tmp_path_factory.mktemp("world")
    make_dataset(root / "raw", cases=4, splits=True)
    flags = ["-d", "901", "-pl", "DiffSegPlannerS", "-c", "3d_fullres", "--no_pbar", "-np", "1", "-npfp", "1"]
    assert plan([*flags, *folders_in(root)]) == 0
    return root


@pytest.fixture
def world(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "world"))


def words(world: Path, *more: str) -> list[str]:
    return ["901", "3d_fullres", "-p", PLANS, *folders_in(world), *more]


def model_in(world: Path) -> Path:
    return world / "results" / "Dataset901_Tiny" / f"nnDiffSegTrainer__{PLANS}__3d_fullres"


@pytest.mark.slow
def test_a_stopped_command_stops_its_training_which_saves_its_state(world: Path) -> None:
    command = [sys.executable, "-m", "nndiffseg.cli.cross_validate", *words(world, *LENGTH, "--folds", "0")]
    command[command.index("--iterations_per_epoch") + 1] = "200"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log, deadline = model_in(world) / "cross_validation" / "fold_0.log", time.monotonic() + 120
    while not (log.is_file() and "Epoch 0" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped by SIGTERM" in said, said
    assert (model_in(world) / "fold_0" / "checkpoint_latest.pth").is_file() and "the state is saved" in log.read_text()
    assert not (model_in(world) / "calibration.json").exists()


def interrupt(fold: Path) -> None:
    """Makes of a finished training one that ended with a kill."""
    (fold / "checkpoint_best.pth").rename(fold / "checkpoint_latest.pth")
    (fold / "checkpoint_final.pth").unlink()
    shutil.rmtree(fold / "validation")


def test_what_is_missing_is_done_and_nothing_twice(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_in(world)
    # 1. fold 1 is refused, because somebody works in it; fold 0 is not lost
    (model / "fold_1").mkdir(parents=True)
    (model / "fold_1" / ".lock").write_text(json.dumps({"host": "elsewhere", "process": 7}))
    assert main(words(world, *LENGTH)) == 2
    said = capsys.readouterr()
    assert said.out.count("to be trained.") == 2
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("error: 1 of 2 folds are not complete: 3d_fullres, fold 1") and "process 7 on elsewhere" in last
    assert json.loads((model / "calibration.json").read_text())["folds"] == ["0"]
    # 2. fold 0 goes on, fold 1 is trained
    (model / "fold_1" / ".lock").unlink()
    interrupt(model / "fold_0")
    assert main(words(world, *LENGTH)) == 0
    said = capsys.readouterr()
    assert "3d_fullres, fold 0: begun, to be gone on with." in said.out and said.out.count(": runs;") == 2
    assert "Continuing from checkpoint_latest.pth" in (model / "cross_validation" / "fold_0.log").read_text()
    check_results(model, said.out)
    # 3. nothing
    everything = {f: f.stat().st_mtime_ns for f in world.rglob("*") if f.is_file()}
    assert main(words(world, *LENGTH)) == 0
    said = capsys.readouterr().out
    assert said.count(": complete.") == 2 and "up to date" in said and ": runs;" not in said
    assert {f: f.stat().st_mtime_ns for f in world.rglob("*") if f.is_file()} == everything
    # 4. another validation makes calibration, evaluation and report anew, without any training
    validation = model / "fold_1" / "validation" / "uncertainty.json"
    validation.write_text(validation.read_text().replace("{", "{\n", 1))
    assert main(words(world, "--report_only", "--disable_progress_bar")) == 0
    assert "up to date" not in capsys.readouterr().out


def check_results(model: Path, said: str) -> None:
    calibration = json.loads((model / "calibration.json").read_text())
    assert calibration["folds"] == ["0", "1"] and calibration["groups"] == 4
    pooled = model / "crossval_results_folds_0_1"
    for n in range(4):
        name, fold = f"case_{n:03d}.nii.gz", 0 if n < 2 else 1
        of_fold = model / f"fold_{fold}" / "validation" / name
        arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in (pooled / name, of_fold)]
        assert (arrays[0] == arrays[1]).all()
    evaluation = json.loads((model / "cross_validation" / "evaluation.json").read_text())
    assert sorted(evaluation["cases"]) == [f"case_{n:03d}" for n in range(4)]
    summary = json.loads((pooled / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 4
    page = (model / "cross_validation" / "report.html").read_text()
    assert all(text in page for text in ("case_003", "<h2>Folds</h2>", "<h2>Calibration</h2>", "data:image/png", "head alone"))
    assert "No picture" not in page and str(model) not in page
    row = next(line.split() for line in said.splitlines() if line.startswith("all "))
    assert row[1] == "4" and float(row[2]) == pytest.approx(summary["foreground_mean"]["Dice"], abs=6e-4)


@pytest.mark.slow  # nnU-Net starts a pool for each step
def test_the_better_model_is_the_best_and_its_commands_are_ours(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ranking of what is predicted, on validations made by hand: a good and a bad configuration, with probabilities."""
    results = world / "results" / "Dataset901_Tiny"
    references = world / "preprocessed" / "Dataset901_Tiny" / "gt_segmentations"
    plans = json.loads((world / "preprocessed" / "Dataset901_Tiny" / f"{PLANS}.json").read_text())
    plans["configurations"]["own"] = {"inherits_from": "3d_fullres"}
    (world / "preprocessed" / "Dataset901_Tiny" / f"{PLANS}.json").write_text(json.dumps(plans))
    for configuration, wrong in (("3d_fullres", 3), ("own", 0)):
        model = results / f"nnDiffSegTrainer__{PLANS}__{configuration}"
        for case in range(4):
            validation = model / f"fold_{case // 2}" / "validation"
            validation.mkdir(parents=True, exist_ok=True)
            image = sitk.ReadImage(str(references / f"case_{case:03d}.nii.gz"))
            image[: wrong * 3, :, :] = 0
            sitk.WriteImage(image, str(validation / f"case_{case:03d}.nii.gz"))
            (validation / "summary.json").write_text("{}")
            scores = {"cases": 2, "calibration": {"nll": 0.1 * (case // 2 + 1), "brier": 0.2, "ece": None}, "error_auroc": 0.9}
            (validation / "uncertainty.json").write_text(json.dumps({**scores, "volumes": {"core": {"coverage_90": 0.5}}}))
        (model / "plans.json").write_text(json.dumps(plans))
        shutil.copy(world / "raw" / "Dataset901_Tiny" / "dataset.json", model)
    flags = ["901", "-p", PLANS, "-f", "0", "1", "-np", "1", *folders_in(world)]
    assert find_best([*flags, "-c", "3d_fullres", "own"]) == 0
    said = capsys.readouterr().out
    assert "No ensembles: fold 0 of" in said and f"Best: nnDiffSegTrainer__{PLANS}__own, Dice 1.0000" in said
    rows = [line.split() for line in said.splitlines() if line.startswith("nnDiffSegTrainer")]
    assert [row[0][-3:] for row in rows] == ["own", "res"] and float(rows[1][1]) < 0.999
    assert rows[0][2:] == ["0.150", "0.200", "-", "0.900", "0.50"]
    text = (results / "inference_instructions.txt").read_text()
    command = (
        f"nndiffseg_predict -d Dataset901_Tiny -i INPUT_FOLDER -o OUTPUT_FOLDER -f 0 1 -tr nnDiffSegTrainer -c own -p {PLANS}"
    )
    assert command in text and text.strip() in said and "nnUNetv2_predict" not in said + text
    pickle = results / f"nnDiffSegTrainer__{PLANS}__own" / "crossval_results_folds_0_1" / "postprocessing.pkl"
    assert f"-pp_pkl_file {pickle} " in text and pickle.is_file()
    information = json.loads((results / "inference_information.json").read_text())
    assert information["best_model_or_ensemble"]["selected_model_or_models"][0]["configuration"] == "own"
    keep_probabilities(results)
    assert find_best([*flags, "-c", "3d_fullres", "own"]) == 0
    said = capsys.readouterr().out
    ensemble = next(line.split() for line in said.splitlines() if line.startswith("ensemble___"))
    assert float(rows[1][1]) <= float(ensemble[1]) <= 1 and ensemble[2:] == ["-"] * 5 and "No ensembles" not in said


def keep_probabilities(results: Path) -> None:
    """What ``--npz`` leaves, of certain models."""
    for file in results.glob("*/fold_*/validation/*.nii.gz"):
        labels, properties = SimpleITKIO().read_seg(str(file))
        p = np.stack([labels[0] == label for label in range(3)]).astype(np.float32)  # (heads, *image)
        np.savez(str(file).replace(".nii.gz", ".npz"), probabilities=p)
        save_pickle(properties, str(file).replace(".nii.gz", ".pkl"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--folds", "2"], "There is no fold 2"),
        (["--folds", "all"], "Fold all leaves no case out"),
        (["--folds", "x"], "The fold must be 0 to 4 or all"),
        (["-tr", "nnUNetTrainer"], "nnUNetTrainer trains no diffusion"),
        (["--option", "steps=0"], "steps"),
        (["--epochs", "0"], "--epochs must be positive"),
        (["--mirror_axes", "3"], "--mirror_axes"),
        (["-np", "-1"], "-np must be 0 or more"),
        (["--gpus", "2"], "--gpus is for jobs; leave it out, or give --launcher slurm"),
        (["--launcher", "slurm", "--time", "soon"], "--time takes minutes"),
        (["--launcher", "slurm", "--cpus", "0"], "--cpus must be 1 or more"),
        (["--launcher", "slurm", "--memory", "0"], "--memory must be positive"),
        (["--launcher", "slurm", "--slurm", "account"], "--slurm takes KEY=VALUE"),
        (["--launcher", "slurm"], "There is no sbatch on this machine"),
        (["--report_only"], "2 of 2 folds are not complete"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(root: Path, capsys, monkeypatch, more, sentence: str) -> None:
    monkeypatch.setenv("PATH", os.defpath if not shutil.which("sbatch", path=os.defpath) else "/nowhere")
    assert main(words(root, *more)) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (root / "results").exists()


def test_mirroring_is_told_to_trainings_that_begin_and_processes_to_all(root: Path, monkeypatch) -> None:
    asked: list = []
    monkeypatch.setattr(cross_validate, "_train", lambda models: asked.extend(models) or [])
    flags = words(root, "--folds", "0", "--mirror_axes", "0", "2", "-num_gpus", "2")
    assert main(flags) == 2  # nothing was trained
    task = asked[0].tasks["0"]
    assert task.start == ("--mirror_axes", "0", "2") and "--mirror_axes" not in task.words
    assert task.words[task.words.index("-num_gpus") + 1] == "2"


def test_a_configuration_that_is_not_planned_is_told(root: Path, capsys) -> None:
    assert main(["901", "3d_fullres", "2d", "-p", PLANS, *folders_in(root)]) == 2
    assert "2d" in capsys.readouterr().err
    assert main(["901", "3d_fullres", "3d_fullres", "-p", PLANS, *folders_in(root)]) == 2
    assert "given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["-c", "2d"], "There is no model nnDiffSegTrainer__"),
        ([], "There is no model nnDiffSegTrainer__"),
        (["-np", "0"], "-np must be 1 or more"),
        (["-f", "x"], "invalid int value"),
    ],
)
def test_models_that_are_not_there_cannot_be_compared(root: Path, tmp_path: Path, capsys, more, sentence: str) -> None:
    (tmp_path / "results" / "Dataset901_Tiny").mkdir(parents=True)
    flags = [*folders_in(root)[:2], f"--results={tmp_path / 'results'}"]
    assert find_best(["901", "-p", PLANS, *more, *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_fold_that_is_not_validated_is_told(root: Path, tmp_path: Path, capsys) -> None:
    model = tmp_path / "results" / "Dataset901_Tiny" / f"nnDiffSegTrainer__{PLANS}__3d_fullres"
    (model / "fold_0" / "validation").mkdir(parents=True)
    (model / "fold_0" / "validation" / "summary.json").write_text("{}")
    flags = [*folders_in(root)[:2], f"--results={tmp_path / 'results'}"]
    assert find_best(["901", "-p", PLANS, "-f", "0", "1", *flags]) == 2
    assert "is not validated on fold 1" in capsys.readouterr().err
