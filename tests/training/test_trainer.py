"""The trainer on real nnU-Net data loading: it learns, stops at its budget, and resumes exactly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nndiffseg.calibration import Calibration, fit, read_tables
from nndiffseg.cli import plan_and_preprocess, predict, train
from nndiffseg.data.checkpoint import load_checkpoint
from nndiffseg.trainers import nnDiffSegTrainer
from nndiffseg.training import epoch_log as log
from nndiffseg.training.budget import Budget
from nndiffseg.training.trainer import DiffusionTrainer

PLANS = "nnDiffSegPlansS"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_dataset):
    """A preprocessed tiny dataset."""
    base = tmp_path_factory.mktemp("nn")
    raw = base / "raw"
    make_dataset(raw, cases=6, splits=True)
    flags = [f"--{kind}={base / kind}" for kind in ("raw", "preprocessed", "results")]
    assert plan_and_preprocess.main(["-d", "901", "-pl", "DiffSegPlannerS", "-c", "3d_fullres", "-np", "1", *flags]) == 0
    return base


def arguments(base: Path, results: str, *more: str) -> list[str]:
    return [
        "901",
        "3d_fullres",
        "0",
        "-p",
        PLANS,
        "-device",
        "cpu",
        "--disable_progress_bar",
        f"--raw={base / 'raw'}",
        f"--preprocessed={base / 'preprocessed'}",
        f"--results={base / results}",
        *more,
    ]


def fold(base: Path, results: str) -> Path:
    return base / results / "Dataset901_Tiny" / f"nnDiffSegTrainer__{PLANS}__3d_fullres" / "fold_0"


@pytest.fixture(scope="module")
def trained(folders):
    """The fold of one short training, validated; to be read only."""
    assert train.main(arguments(folders, "trained", "--epochs", "3", "--iterations_per_epoch", "12")) == 0
    return fold(folders, "trained")


@pytest.fixture
def copy_of_trained(folders, trained):
    """A copy of that training under the results folder ``copy``, for a test that validates it once more."""
    shutil.copytree(folders / "trained", folders / "copy")
    yield fold(folders, "copy")
    shutil.rmtree(folders / "copy")


def test_training_learns_and_writes_nnunets_files(trained):
    out = trained
    for name in (
        "checkpoint_final.pth",
        "checkpoint_best.pth",
        "progress.png",
        "progress_diffusion.png",
        "stats.jsonl",
        "validation/summary.json",
    ):
        assert (out / name).is_file(), name
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        assert (out.parent / name).is_file(), name
    rows = log.read(out)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[-1]["losses"]["total"] < 0.8 * rows[0]["losses"]["total"]
    checkpoint = load_checkpoint(out / "checkpoint_final.pth")
    assert checkpoint["current_epoch"] == 3 and checkpoint["iteration"] == 36
    raw, averaged = checkpoint["network_weights_raw"], checkpoint["network_weights"]
    assert raw.keys() == averaged.keys()
    assert any(not torch.equal(raw[k], averaged[k]) for k in raw), "the average must not be the live weights"
    calibration = Calibration.from_json(checkpoint["calibration"])
    assert json.loads((out / "calibration.json").read_text()) == checkpoint["calibration"]
    tables = read_tables(out / "validation" / "tables")
    assert [table.case for table in tables] == ["case_000", "case_001", "case_002"]
    assert calibration == fit(tables, folds=("0",)) and calibration.groups == 3
    cases = [json.loads(f.read_text()) for f in sorted((out / "validation" / "uncertainty").glob("*.json"))]
    for case in cases:
        others = fit([table for table in tables if table.case != case["case"]], folds=("0",))
        assert case["calibration"] == [others.to_json()], "a case must not see what it helped to fit"
    assert not (out / "validation" / ".parts").exists()


def test_validating_the_best_checkpoint_leaves_the_final_one_alone(folders, copy_of_trained):
    out = copy_of_trained
    final = (out / "checkpoint_final.pth").read_bytes()
    best = load_checkpoint(out / "checkpoint_best.pth")
    assert train.main(arguments(folders, "copy", "--val", "--val_best")) == 0
    assert (out / "checkpoint_final.pth").read_bytes() == final
    after = load_checkpoint(out / "checkpoint_best.pth")
    same = [torch.equal(best["network_weights"][k], v) for k, v in after["network_weights"].items()]
    assert all(same) and after["iteration"] == best["iteration"]


def test_siblings_alone_teach_the_fit_of_the_volumes_nothing(folders, copy_of_trained):
    """All three validation cases are of one patient, so there is nobody to compare with."""
    file = folders / "preprocessed" / "Dataset901_Tiny" / "cases.csv"
    file.write_text("case,group\n" + "".join(f"case_{i:03d},{i // 3}\n" for i in range(6)))
    try:
        assert train.main(arguments(folders, "copy", "--val")) == 0
    finally:
        file.unlink()
    calibration = json.loads((copy_of_trained / "calibration.json").read_text())
    assert (calibration["volume_scale"], calibration["groups"]) == (1.0, 1)


def test_pretrained_weights_are_where_a_training_begins(folders, trained, capsys):
    """One step leaves the weights where they began."""
    source = trained / "checkpoint_final.pth"
    short = ("--epochs", "1", "--iterations_per_epoch", "1", "--seed", "5", "-pretrained_weights", str(source))
    assert train.main(arguments(folders, "finetuned", *short)) == 0
    began, ended = (
        load_checkpoint(source)["network_weights"],
        load_checkpoint(fold(folders, "finetuned") / "checkpoint_final.pth")["network_weights"],
    )
    key = "denoiser.stem.weight"
    assert (began[key] - ended[key]).abs().max() < 0.005 < began[key].std(), "seed 5 begins far from there"
    log_text = next(fold(folders, "finetuned").glob("training_log*.txt")).read_text()
    assert "Pretrained weights: the whole network" in log_text
    assert train.main(arguments(folders, "finetuned", *short, "--c")) == 2
    assert "-pretrained_weights begins a training" in capsys.readouterr().err


def test_a_killed_training_resumes_where_it_stopped(folders):
    """SIGKILL in the middle of an epoch, after a checkpoint within that epoch."""
    length = ("--epochs", "3", "--iterations_per_epoch", "5")
    uninterrupted = arguments(folders, "whole", *length)
    assert train.main(uninterrupted) == 0
    out = fold(folders, "killed")
    # The real command; it saves after every iteration within an epoch, and is killed at the start of the ninth.
    script = (
        "import nndiffseg.training.trainer as t, nndiffseg.training.loop as l, nndiffseg.cli.train as c, os, signal, sys;"
        "l.CHECKPOINT_SECONDS = 0; step = t.DiffusionTrainer.train_step;"
        "t.DiffusionTrainer.train_step = lambda self, batch: "
        "os.kill(os.getpid(), signal.SIGKILL) if self.iteration == 8 else step(self, batch);"
        "sys.exit(c.main(sys.argv[1:]))"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, *arguments(folders, "killed", *length)], capture_output=True, text=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    stopped = load_checkpoint(out / "checkpoint_latest.pth")
    assert stopped["iteration"] == 8 and not (out / "checkpoint_final.pth").exists()
    assert not list(out.glob("*.tmp.*")), "a kill must not leave a torn checkpoint under a real name"
    assert train.main(arguments(folders, "killed", *length, "--c")) == 0
    keys = ("losses", "dice_deterministic", "dice_samples", "dice_fused", "spread", "iteration")
    expected = [{k: row[k] for k in keys} for row in log.read(fold(folders, "whole"))]
    resumed = [{k: row[k] for k in keys} for row in log.read(out)]
    assert resumed == expected
    a = load_checkpoint(fold(folders, "whole") / "checkpoint_final.pth")["network_weights_raw"]
    b = load_checkpoint(out / "checkpoint_final.pth")["network_weights_raw"]
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_interrupted_training_goes_on_although_an_older_one_was_finished(folders, copy_of_trained, monkeypatch, capsys):
    step, length = DiffusionTrainer.train_step, ("--epochs", "1", "--iterations_per_epoch", "6")

    def interrupted(self, batch):
        if self.iteration == 3:
            os.kill(os.getpid(), signal.SIGUSR1)  # as SLURM before the time is over
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTrainer, "train_step", interrupted)
        assert train.main(arguments(folders, "copy", *length, "--seed", "5")) == 75
    assert "stopped by SIGUSR1 after iteration 4, the state is saved; go on with --c" in capsys.readouterr().err
    assert load_checkpoint(copy_of_trained / "earlier_1" / "checkpoint_final.pth")["iteration"] == 36
    assert train.main(arguments(folders, "copy", *length, "--seed", "6", "--c")) == 2
    assert "has the seed 5, not 6" in capsys.readouterr().err
    assert train.main(arguments(folders, "copy", *length, "--c")) == 0
    final = load_checkpoint(copy_of_trained / "checkpoint_final.pth")
    assert (final["iteration"], final["seed"]) == (6, 5)


def test_float16_trains_with_scaled_gradients_and_resumes_with_their_scale(folders, monkeypatch):
    """As on a GPU without bfloat16; a CPU emulates it slowly, so these are few steps."""
    base = folders / "preprocessed" / "Dataset901_Tiny"
    plans, dataset_json = (json.loads((base / f"{name}.json").read_text()) for name in (PLANS, "dataset"))
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(folders / kind))

    def trainer(precision: str) -> DiffusionTrainer:
        made = nnDiffSegTrainer({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu"))
        made.precision, made.budget = precision, Budget(1, 10, None, 0.0)
        made.initialize()
        return made

    half, wide = trainer("float16"), trainer("float32")
    batch = next(half.validation_batches())
    assert half.train_step(batch)["total"] == pytest.approx(wide.train_step(batch)["total"], rel=0.02)
    taken = []
    for _ in range(6):
        scale, before = half.grad_scaler.get_scale(), [p.detach().clone() for p in half.network.parameters()]
        half.train_step(batch)
        taken.append(half.grad_scaler.get_scale() == scale)
        # A step whose gradients are not finite lowers the scale and changes no weight.
        assert all(map(torch.equal, before, half.network.parameters())) != taken[-1]
    assert any(taken)
    half.save_checkpoint(str(folders / "half.pth"))
    assert load_checkpoint(folders / "half.pth")["grad_scaler_state"]["scale"] == half.grad_scaler.get_scale()
    resumed = trainer("float16")
    resumed.load_checkpoint(str(folders / "half.pth"))
    assert resumed.grad_scaler.get_scale() == half.grad_scaler.get_scale() < 2**16
    assert wide.grad_scaler is None


def test_fold_all_with_other_seeds_is_further_members_that_predict_together(folders, tmp_path, monkeypatch, capsys):
    """The commands as a user types them: two trainings, one of them resumed, one prediction."""
    short = ("--epochs", "1", "--iterations_per_epoch", "2")
    base = arguments(folders, "members", *short)
    base[2] = "all"
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTrainer, "perform_actual_validation", lambda *_: None)  # that of the other member is enough
        assert train.main(base) == 0
    model = fold(folders, "members").parent
    first = {f: f.read_bytes() for f in (model / "fold_all").rglob("*") if f.is_file()}
    assert train.main([*base, "--seed", "1"]) == 0
    assert all(f.read_bytes() == content for f, content in first.items()), "the first member stays as it was"
    assert [f.name for f in model.glob("fold_*")] == ["fold_all"]
    a, b = (load_checkpoint(model / place / "checkpoint_final.pth") for place in ("fold_all", "fold_all/seed_1"))
    assert (a["seed"], b["seed"], b["init_args"]["fold"]) == (0, 1, "all/seed_1")
    key = "denoiser.stem.weight"
    assert not torch.equal(a["network_weights_raw"][key], b["network_weights_raw"][key]), "members begin apart"
    assert a["calibration"] == b["calibration"] == Calibration().to_json()
    assert len(list((model / "fold_all/seed_1/validation").glob("*.nii.gz"))) == 6, "all cases, all of them seen"
    monkeypatch.setattr(DiffusionTrainer, "perform_actual_validation", lambda *_: None)
    assert train.main([*base, "--seed", "1", "--c", "--epochs", "2"]) == 0
    assert load_checkpoint(model / "fold_all/seed_1/checkpoint_final.pth")["iteration"] == 4
    assert (model / "fold_all/checkpoint_final.pth").read_bytes() == first[model / "fold_all/checkpoint_final.pth"]
    capsys.readouterr()
    images = tmp_path / "in"
    images.mkdir()
    shutil.copy(folders / "raw" / "Dataset901_Tiny" / "imagesTr" / "case_000_0000.nii.gz", images)
    flags = ["-m", str(model), "-f", "all", "all/seed_1", "--samples", "2", "-device", "cpu", "--disable_progress_bar"]
    assert predict.main(["-i", str(images), "-o", str(tmp_path / "out"), *flags, *base[-3 - len(short) : -len(short)]]) == 0
    assert "members all, all/seed_1" in capsys.readouterr().out
    assert (tmp_path / "out" / "uncertainty" / "case_000_epistemic.nii.gz").is_file()


def test_minutes_bound_the_training(folders):
    started = time.monotonic()
    assert train.main(arguments(folders, "minutes", "--minutes", "0.05", "--iterations_per_epoch", "5")) == 0
    rows = log.read(fold(folders, "minutes"))
    assert rows and rows[-1]["seconds"] < 60
    assert time.monotonic() - started < 240


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: "999"}, "No such dataset"),
        ({1: "4d_fullres"}, "no configuration 4d_fullres"),
        ({2: "first"}, "fold must be"),
        ({4: "nnUNetPlans"}, "no plans nnUNetPlans"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(folders, capsys, change, sentence):
    args = arguments(folders, "bad")
    for position, value in change.items():
        args[position] = value
    assert train.main(args) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (folders / "bad").exists()


def test_a_half_copied_plans_file_is_one_sentence(folders, capsys):
    (base,) = (folders / "preprocessed").glob("Dataset901_*")
    file = base / "halfPlans.json"
    file.write_text((base / f"{PLANS}.json").read_text()[:100])
    args = arguments(folders, "bad")
    args[4] = "halfPlans"
    try:
        assert train.main(args) == 2
    finally:
        file.unlink()
    error = capsys.readouterr().err
    assert "halfPlans.json is not valid JSON" in error and error.count("\n") == 1


def test_a_label_corrected_after_the_preprocessing_is_one_sentence(folders, capsys):
    label = folders / "raw" / "Dataset901_Tiny" / "labelsTr" / "case_003.nii.gz"
    before = label.read_bytes()
    shutil.copy(label.with_name("case_004.nii.gz"), label)
    try:
        assert train.main(arguments(folders, "corrected")) == 2
    finally:
        label.write_bytes(before)
    error = capsys.readouterr().err
    assert "label of case_003 have changed" in error and "run nndiffseg_plan_and_preprocess" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-tr", "nnUNetTrainer"], "nnUNetTrainer trains no diffusion"),
        (["-tr", "Nonsense"], "no nndiffseg trainer Nonsense"),
        (["--epoch", "3"], "unknown flag --epoch"),
        (["--minutes", "0"], "must be positive"),
        (["--val"], "no checkpoint"),
    ],
)
def test_bad_flags_are_one_sentence(folders, capsys, flags, sentence):
    assert train.main(arguments(folders, "bad2", *flags)) == 2
    error = capsys.readouterr().err
    assert sentence.lower() in error.lower() and "Traceback" not in error


def test_plans_without_diffusion_settings_are_refused(folders, capsys):
    path = folders / "preprocessed" / "Dataset901_Tiny" / "plainPlans.json"
    plans = json.loads((path.parent / f"{PLANS}.json").read_text())
    del plans["configurations"]["3d_fullres"]["diffusion"]
    path.write_text(json.dumps(plans))
    args = arguments(folders, "bad3")
    args[4] = "plainPlans"
    assert train.main(args) == 2
    assert "no diffusion settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("colour=3", "have no colour"),
        ("steps", "--option takes NAME=VALUE"),
        ("steps=two", "invalid steps"),
        ("steps=9", "invalid steps"),
        ("attention=1", "invalid attention"),
    ],
)
def test_bad_options_are_one_sentence(folders, capsys, option, sentence):
    assert train.main(arguments(folders, "bad4", "-tr", "nnDiffSegTrainerCDAL", "--option", option)) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (folders / "bad4").exists()
